/**
 * Taking a device out of its cache set. Answers to `bch_cached_dev_detach` and
 * `cached_dev_detach_finish` of super.c.
 *
 * In this order, each step durable before the next:
 *   1. nothing new becomes dirty, and all that is dirty is written back; the superblock says clean
 *   2. with every change of the device held off, its superblock says that it has no cache; only
 *      then may a write go past the index. Linux lets writers in first: a crash in between leaves
 *      a device that is clean and attached, and old data in the cache that is served later
 *   3. its entry in the UUID table is invalidated: nothing in the index is its data any more
 * After a crash between 2 and 3 the device is not taken for one that the table knows.
 */
import { BcacheError } from "../../base/errors.ts";
import type { CachedDevice } from "../requests/cached_device.ts";
import type { Engine } from "../engine.ts";
import type { CachedMember } from "./cached_member.ts";
import { PassThroughStore } from "../requests/sector_store.ts";
import { invalidated } from "./slots.ts";

export interface DetachContext {
  readonly engine: Engine;
  /** Runs a step while no other device comes or goes. */
  readonly alone: <T>(step: () => Promise<T>) => Promise<T>;
}

/** Detaches a device. Rejects with what stood in the way; it is then attached as before. */
export async function detachFromSet(member: CachedMember, context: DetachContext): Promise<void> {
  const { dev } = member;
  dev.detaching = true;
  try {
    do await member.writeback.drain(); while (
      !await context.alone(() => leave(member, context.engine))
    );
  } finally {
    dev.detaching = false;
  }
}

/** Steps 2 and 3. False: something became dirty again, by a write that was under way. */
async function leave(member: CachedMember, engine: Engine): Promise<boolean> {
  const { dev, volume, tasks } = member;
  if (member.stopping) throw new BcacheError("Shutdown", `${dev.name} is stopped`);
  const everything = await dev.locks.acquireAll();
  let lastRead: Promise<void>;
  try {
    if (dev.needsWriteback) return false;
    if (dev.unflushed) await dev.flushWrites();
    // Clean keys are not journaled: no restart may bring dirty ones back for this device.
    await engine.settleKeys();
    await dev.leaveSet();
    lastRead = volume.replaceStore(new PassThroughStore(dev));
  } finally {
    dev.locks.release(everything);
  }
  // Reads that still look into the index, and what they put there, end before its slot is given up.
  await lastRead;
  await tasks.stop();
  engine.cache.remove(dev);
  await forgetSlot(engine, dev);
  engine.world.log("info", `${dev.name} (${dev.path}) was detached and goes on without cache`);
  return true;
}

async function forgetSlot(engine: Engine, dev: CachedDevice): Promise<void> {
  const entry = invalidated(engine.uuids.entry(dev.inode), engine.world.clock.wallSeconds() >>> 0);
  const commit = () => engine.commitMetadata();
  await engine.uuids.update([[dev.inode, entry]], engine.allocator, commit);
}
