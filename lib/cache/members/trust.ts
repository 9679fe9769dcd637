/**
 * Taking a backing device up again after a flush of it failed (see CachedDevice). What was written
 * since the last good flush is there or not, in any mixture, so what the cache says is there too,
 * its clean keys, goes: from then on the device is read for what it has. Dirty data stays dirty.
 *
 * In this order: no change of the device is under way, a flush of it is good, the clean keys are
 * gone from the index durably, and only then keys of the device become durable as they are.
 */
import { BcacheError } from "../../base/errors.ts";
import { OFFSET_MAX } from "../../ondisk/bkey.ts";
import type { CachedDevice } from "../requests/cached_device.ts";
import type { Engine } from "../engine.ts";
import { dropKeys } from "./drop_keys.ts";

/**
 * Serves a disabled device again. Rejects, with it disabled as before, when a flush of it failed
 * and fails still.
 */
export async function enable(engine: Engine, dev: CachedDevice): Promise<void> {
  if (!dev.flushFailed) {
    dev.ioDisabled = false;
    return;
  }
  const everything = await dev.locks.acquireAll();
  try {
    await flushAgain(dev);
    // Without a cache, or with one that has failed, there is nothing that could be false.
    if (dev.attached && engine.faults.failed === undefined) await dropClean(engine, dev.inode);
    dev.serveAgain();
  } finally {
    dev.locks.release(everything);
  }
}

async function flushAgain(dev: CachedDevice): Promise<void> {
  try {
    await dev.flushAgain();
  } catch (error) {
    const message = `${dev.name}: a flush of ${dev.path} fails still, so it stays disabled; mend ` +
      "it, then set io_disable to 0 again";
    throw new BcacheError("DeviceIo", message, { cause: error });
  }
}

/** Forgets what is cached of a device that is not trusted, but for what is dirty. Durable then. */
export async function dropClean(engine: Engine, inode: number): Promise<void> {
  engine.fills.cancel(inode, 0, OFFSET_MAX);
  await dropKeys(engine, inode, { keepDirty: true });
  await engine.committer.flush();
  engine.distrusted.delete(inode);
}
