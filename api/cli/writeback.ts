/**
 * `writeback`: writes all dirty data of the given devices back without mounting anything, and
 * leaves them clean. The devices are this process's alone meanwhile.
 */
import process from "node:process";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import type { Log } from "../../lib/base/runtime.ts";
import { readSuperblock } from "../../lib/cache/members/attach.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { openBacking } from "../../lib/cache/members/open_backing.ts";
import type { DeviceStatus } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { backingState, isSynchronous } from "../../lib/ondisk/superblock.ts";
import { equalUuids, formatUuid } from "../../lib/ondisk/uuid.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { SystemRandom } from "../../lib/runtime/random.ts";
import { formatBytes, oneLine, printable } from "./format.ts";
import type { Program } from "./program.ts";
import { flushWithProgress } from "./progress.ts";

export interface WritebackCommand {
  readonly cachePath: string;
  readonly backingPaths: readonly string[];
  readonly json: boolean;
}

export async function runWriteback(program: Program, command: WritebackCommand): Promise<void> {
  const opened: Device[] = [];
  const host = await openLibc();
  const open = (path: string) => openFileDevice(path, { exclusive: true, host });
  try {
    const cache = await open(command.cachePath);
    opened.push(cache);
    const backings: { device: Device; path: string }[] = [];
    for (const path of command.backingPaths) {
      const device = await openBacking(path, open);
      opened.push(device);
      backings.push({ device, path });
    }
    await refuseStrangers(cache, backings);
    const devices = await drain(program, cache, backings);
    program.out(command.json ? `${JSON.stringify({ devices }, null, 2)}\n` : textOf(devices));
  } finally {
    await Promise.all(opened.map((device) => device.close()));
  }
}

/** Opening a set attaches devices that it does not know: here that would be a surprise. */
async function refuseStrangers(
  cache: Device,
  backings: ReadonlyArray<{ device: Device; path: string }>,
): Promise<void> {
  const set = await readSuperblock(cache);
  if (set.kind !== "cache") {
    const what = `${cache.name}: this is a backing device, not a cache device`;
    throw new BcacheError("InvalidArgument", `${what}; give it with --backing`);
  }
  for (const { device, path } of backings) {
    const superblock = await readSuperblock(device);
    const refuse = (why: string): never => {
      throw new BcacheError("InvalidArgument", `${path}: ${why}`);
    };
    if (superblock.kind !== "backing") {
      refuse("this is a cache device, not a backing device; give it with --cache");
    }
    const state = backingState(superblock);
    if (state === "stale") {
      refuse(
        "was used without its cache (state inconsistent): what the cache has of it is older and " +
          "must not be written back; mounting attaches it anew",
      );
    }
    const isMember = state !== "none" && equalUuids(superblock.setUuid, set.setUuid);
    if (isMember && isSynchronous(set)) continue;
    const setText = formatUuid(set.setUuid);
    refuse(`is not attached to cache set ${setText} (state ${state}): nothing to write back`);
  }
}

/** What became of one device. */
interface Drained {
  readonly backingPath: string;
  readonly uuid: string;
  readonly writtenBackBytes: number;
  readonly state: string;
}

/** Does it, and says everything once: what fails it is in the log of the set, and thrown. */
async function drain(
  program: Program,
  cache: Device,
  backings: ReadonlyArray<{ device: Device; path: string }>,
): Promise<Drained[]> {
  const errors: string[] = [];
  const say = (level: string, message: string) =>
    program.err(`bcache-fuse: ${level}: ${oneLine(message)}\n`);
  const log: Log = (level, message) => {
    if (level === "error") errors.push(message);
    else if (level !== "info") say(level, message);
  };
  let thrown: string | undefined;
  try {
    return await drainSet(program, { cache, backings, log });
  } catch (error) {
    thrown = messageOf(error);
    throw error;
  } finally {
    const others = errors.filter((text) => thrown === undefined || !text.includes(thrown));
    for (const text of others) say("error", text);
  }
}

async function drainSet(
  program: Program,
  parts: {
    cache: Device;
    backings: ReadonlyArray<{ device: Device; path: string }>;
    log: Log;
  },
): Promise<Drained[]> {
  const set = await CacheSet.open({
    ...parts,
    clock: new RealClock(),
    random: new SystemRandom(),
  });
  // Stopping is safe at any time: what is written back by then is, the rest stays in the cache.
  let closing: Promise<void> | undefined;
  const onSignal = () => void (closing ??= set.close());
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    const before = (await set.status()).devices;
    await flushWithProgress(program, set);
    return summary(before, (await set.status()).devices);
  } catch (error) {
    if (closing === undefined) throw error;
    const what = "interrupted: what is left stays dirty in the cache";
    throw new BcacheError("Shutdown", `${what}; run it again`, { cause: error });
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
    await (closing ?? set.close());
  }
}

function summary(before: readonly DeviceStatus[], after: readonly DeviceStatus[]): Drained[] {
  return after.map(({ backingPath, uuid, dirtyBytes, state }, at) => ({
    backingPath,
    uuid,
    writtenBackBytes: (before[at]?.dirtyBytes ?? 0) - dirtyBytes,
    state,
  }));
}

function textOf(devices: readonly Drained[]): string {
  return devices.map(({ backingPath, writtenBackBytes, state }) =>
    `${printable(backingPath)}: ${formatBytes(writtenBackBytes)} written back, ${state}\n`
  ).join("");
}
