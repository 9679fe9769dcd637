/**
 * How a cached device is served once its cache set has failed. Answers to
 * `conditional_stop_bcache_device` and the pass-through of super.c and request.c.
 *
 * | errors | stop_when_cache_set_failed | dirty data | reads             | writes       |
 * | ------ | -------------------------- | ---------- | ----------------- | ------------ |
 * | panic  | any                        | any        | refused           | refused      |
 * | unreg. | always                     | any        | refused           | refused      |
 * | unreg. | auto                       | some       | clean ranges only | refused      |
 * | unreg. | auto                       | none       | backing device    | backing dev. |
 *
 * There is dirty data as long as the superblock says so: what writeback has just marked clean in
 * memory may be dirty in the index on the device, and would come back over newer data.
 *
 * Nothing that the cache alone has is ever answered from the backing device: what is dirty there
 * is old. Which ranges those are the index in memory says; where it does not have the node, the
 * range counts as dirty. The device keeps belonging to its set, and the next start finds its dirty
 * data as it was. (Linux stops a dirty device altogether.)
 *
 * A write past the cache makes what the cache holds stale for good. So before the first one, and
 * before anything is promised that the journal does not know, the backing superblock says
 * durably that it was changed without its cache: the next attach then drops what is cached.
 */
import { BcacheError, messageOf } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";
import { Segment } from "../../btree/btree.ts";
import type { CachedDevice } from "./cached_device.ts";
import { setFailed } from "../faults.ts";
import type { FailedManner } from "../ports.ts";
import type { RequestParts } from "../request_parts.ts";

export class FailedService {
  #dev: CachedDevice;
  #parts: RequestParts;
  #segment = new Segment();

  constructor(dev: CachedDevice, parts: RequestParts) {
    this.#dev = dev;
    this.#parts = parts;
  }

  /** The set has failed. */
  get needed(): boolean {
    return this.#parts.faults.failed !== undefined;
  }

  /** As things are now: the last writeback under way may still make a device clean. */
  get manner(): FailedManner {
    const { tunables } = this.#parts;
    if (tunables.errors === "panic" || this.#dev.stopWhenFailed === "always") return "refused";
    const mayBeDirty = this.#dev.dirtySectors > 0 || this.#dev.state === "dirty";
    return mayBeDirty ? "clean ranges only" : "pass through";
  }

  /** Says in the log what becomes of the device. Called once, when the set fails. */
  announce(): void {
    const { log } = this.#parts;
    const { name, dirtySectors } = this.#dev;
    switch (this.manner) {
      case "pass through":
        return log("warning", `${name}: nothing is dirty; it goes on without its cache`);
      case "clean ranges only":
        return log(
          "error",
          `${name}: ${formatBytes(dirtySectors * 512)} are only in the cache, and on the cache ` +
            "device more may be called so: they, and every write, fail until the set is started " +
            "again; what is clean is read from the backing device",
        );
      case "refused":
        return log("error", `${name}: every request is refused until the set is started again`);
    }
  }

  /** Sectors of the backing device. Rejects with SetFailed, or DeviceIo of the backing device. */
  async read(start: number, into: Uint8Array): Promise<void> {
    const { manner } = this;
    if (manner === "refused") throw this.#refusal("");
    if (manner === "clean ranges only") this.#refuseDirty(start, start + into.length / 512);
    await this.#dev.readBacking(start, into);
  }

  /** The caller holds the range. */
  async write(start: number, from: Uint8Array): Promise<void> {
    this.#refuseUnlessPassing();
    await this.leaveCache();
    await this.#dev.writeBacking(start, from);
  }

  /** The caller holds the range. */
  async zero(start: number, sectors: number): Promise<void> {
    this.#refuseUnlessPassing();
    await this.leaveCache();
    await this.#dev.zeroBacking(start, sectors);
  }

  /** Resolves when all that was acknowledged is on the backing device, and will be seen there. */
  async flush(): Promise<void> {
    this.#refuseUnlessPassing();
    // The journal does not know of it, so what the cache would say after a restart may be older.
    if (this.#parts.committer.uncommitted || this.#dev.unflushed) await this.leaveCache();
    if (this.#dev.unflushed) await this.#dev.flushWrites();
  }

  /** Durable afterwards: what the cache has of this device must not be used again. */
  async leaveCache(): Promise<void> {
    try {
      await this.#dev.becomeStale();
    } catch (error) {
      const message = `${this.#dev.name}: cannot be written without its cache, as its superblock ` +
        `cannot be told so: ${messageOf(error)}`;
      throw new BcacheError("DeviceIo", message, { cause: error });
    }
  }

  #refuseUnlessPassing(): void {
    if (this.manner === "pass through") return;
    const bytes = this.#dev.dirtySectors * 512;
    throw this.#refusal(bytes > 0 ? `, and ${formatBytes(bytes)} of it are only there` : "");
  }

  #refusal(more: string): BcacheError {
    return setFailed(this.#dev.name, this.#parts.faults.failed, more);
  }

  /** Throws unless the index in memory says that nothing of the range is dirty. */
  #refuseDirty(start: number, end: number): void {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    const segment = this.#segment;
    for (let at = start; at < end; at = segment.end) {
      let leaf;
      try {
        leaf = btree.findLeaf(inode, at);
      } catch (error) {
        throw this.#refusal(`: ${messageOf(error)}`);
      }
      if (leaf === undefined) throw this.#refusal(`, and sector ${at} may be only there`);
      btree.lookup(leaf, inode, at, end, segment);
      if (segment.cached && segment.dirty) {
        throw this.#refusal(`, and sectors ${at}-${segment.end - 1} are only there`);
      }
    }
  }
}
