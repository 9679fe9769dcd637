/**
 * An engine without backing devices, requests or attributes: the index, the journal and the
 * allocator as a cache set has them, on a device that the caller keeps. For tests and measures
 * of these parts alone.
 */
import type { Clock, Random } from "../../lib/base/runtime.ts";
import { readSuperblock } from "../../lib/cache/members/attach.ts";
import type { Engine } from "../../lib/cache/engine.ts";
import type { StartProgress } from "../../lib/cache/start_progress.ts";
import { makeCache } from "../../lib/cache/make.ts";
import { startExisting, startNew } from "../../lib/cache/recovery.ts";
import type { Device } from "../../lib/device/device.ts";
import { geometryOf } from "../../lib/ondisk/geometry.ts";
import { isSynchronous } from "../../lib/ondisk/superblock.ts";

export interface BareOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** Told of everything the engine logs. */
  readonly log?: (line: string) => void;
  readonly onProgress?: (progress: StartProgress) => void;
}

/** Makes the device a cache; for `startBare`. */
export async function makeBare(
  device: Device,
  shape: { bucketSectors: number; blockSectors: number },
): Promise<void> {
  await makeCache(device, {
    ...shape,
    uuid: new Uint8Array(16).fill(1),
    setUuid: new Uint8Array(16).fill(7),
  });
}

/** Starts what is on the device, or anew on one that was just made. */
export async function startBare(device: Device, options: BareOptions): Promise<Engine> {
  const superblock = await readSuperblock(device);
  const source = {
    device,
    superblock,
    geometry: geometryOf(superblock, device.name),
    world: {
      clock: options.clock,
      random: options.random,
      log: (level: string, message: string) => options.log?.(`${level}: ${message}`),
      onProgress: options.onProgress,
    },
  };
  if (isSynchronous(superblock)) return await startExisting(source);
  const engine = await startNew(source);
  await registerInodes(engine, 8);
  return engine;
}

/** Gives the first device numbers to somebody: keys of nobody are dropped by collections. */
export async function registerInodes(engine: Engine, count: number): Promise<void> {
  const { uuids, allocator } = engine;
  for (let inode = 0; inode < count; inode++) {
    uuids.set(inode, { ...uuids.entry(inode), uuid: new Uint8Array(16).fill(0x20 + inode) });
  }
  await uuids.write(allocator, () => engine.commitMetadata());
}

/** Stops in good order: everything in memory is durable afterwards. */
export async function closeBare(engine: Engine): Promise<void> {
  await engine.tasks.stop();
  await engine.nodes.writeAllDirty();
  await engine.journal.stop();
  await engine.cache.flush();
  await engine.stopTasks();
}
