/**
 * Our side of the chain: the engine over image files, in this process, or in one of its own that
 * is killed with SIGKILL.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { openBacking } from "../../../lib/cache/members/open_backing.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { RealClock } from "../../../lib/runtime/clock.ts";
import { SystemRandom } from "../../../lib/runtime/random.ts";
import type { Piece } from "./pieces.ts";
import { bytesOf, VOLUME_BYTES } from "./pieces.ts";

export interface Paths {
  readonly cache: string;
  readonly backings: readonly string[];
}

/** Runs `body` with the set open; the set and its devices are closed afterwards. */
export async function withSet<T>(
  paths: Paths,
  options: { readonly readOnly: boolean },
  body: (set: CacheSet) => Promise<T>,
): Promise<T> {
  const open = (path: string) => openFileDevice(path, options);
  const cache = await open(paths.cache);
  const backings = [];
  for (const path of paths.backings) backings.push({ path, device: await openBacking(path, open) });
  const complaints: string[] = [];
  const set = await CacheSet.open({
    cache,
    backings,
    clock: new RealClock(),
    random: new SystemRandom(),
    log: (level, message) => level === "info" || complaints.push(message),
    ...options,
  });
  let result: T;
  try {
    result = await body(set);
  } finally {
    await set.close();
    for (const { device } of backings) await device.close();
    await cache.close();
  }
  if (complaints.length > 0) throw new Error(`the engine logged: ${complaints.join("; ")}`);
  return result;
}

/** The whole of volume `index`. */
export async function readAll(set: CacheSet, index: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(VOLUME_BYTES);
  const volume = set.volumes[index]!;
  for (let at = 0; at < bytes.length; at += 1 << 20) {
    const into = bytes.subarray(at, at + (1 << 20));
    if (!volume.tryRead(at, into)) await volume.read(at, into);
  }
  return bytes;
}

/** Several at a time, but never two that overlap. */
export async function writePieces(
  set: CacheSet,
  index: number,
  pieces: readonly Piece[],
  data: Uint8Array,
): Promise<void> {
  const volume = set.volumes[index]!;
  let running: Array<{ piece: Piece; done: Promise<void> }> = [];
  for (const piece of pieces) {
    const overlaps = running.some(({ piece: other }) =>
      piece.to < other.to + other.count && other.to < piece.to + piece.count
    );
    if (overlaps || running.length >= 8) {
      await Promise.all(running.map(({ done }) => done));
      running = [];
    }
    const at = piece.to * piece.unitBytes;
    const bytes = bytesOf(piece, data);
    if (!volume.tryWrite(at, bytes)) running.push({ piece, done: volume.write(at, bytes) });
  }
  await Promise.all(running.map(({ done }) => done));
}

/** What the process that will be killed is to do; given to it as a file. */
export interface Orders {
  readonly paths: Paths;
  readonly dataPath: string;
  /** By volume: written, then flushed. */
  readonly certain: ReadonlyArray<readonly Piece[]>;
  /** By volume: written afterwards, over and over, until the end. */
  readonly uncertain: ReadonlyArray<readonly Piece[]>;
}

/** Carries out the orders in a process that is killed `delayMs` after its flush. */
export async function writeAndBeKilled(orders: Orders, delayMs: number): Promise<void> {
  const file = `${orders.paths.cache}.orders`;
  writeFileSync(file, JSON.stringify(orders));
  const program = join(import.meta.dirname!, "killed_writer.ts");
  const args = process.versions["bun"] === undefined ? ["run", "-A", "--no-check"] : [];
  const child = spawn(process.execPath, [...args, program, file], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const gone = once(child, "close");
  let flushed = false;
  for await (const line of createInterface(child.stdout)) {
    if (line !== "flushed") continue;
    flushed = true;
    setTimeout(() => child.kill("SIGKILL"), delayMs);
  }
  await gone;
  rmSync(file);
  if (!flushed || child.signalCode !== "SIGKILL") {
    throw new Error(`the writer ended with ${child.signalCode ?? child.exitCode} before its time`);
  }
}
