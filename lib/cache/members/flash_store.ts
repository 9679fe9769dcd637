/**
 * The sectors of a volume that lives on the cache alone. Answers to `flash_dev_submit_bio` and
 * `flash_dev_cache_miss` of request.c.
 *
 * Every write is dirty data, and is never written back: there is nowhere else. What was never
 * written, or was given up, reads as zeroes. Sectors are counted from 0: there is no data offset.
 */
import { BcacheError, messageOf } from "../../base/errors.ts";
import { BATCH_KEYS_MAX } from "../../btree/insert.ts";
import { Segment } from "../../btree/btree.ts";
import { RESERVE } from "../../buckets/reserves.ts";
import { setFailed } from "../faults.ts";
import type { RangeLocks } from "../ranges.ts";
import { BatchBuilder, type RequestParts } from "../request_parts.ts";
import type { SectorStore } from "../requests/sector_store.ts";

const SECTOR = 512;

export class FlashStore implements SectorStore {
  readonly #name: string;
  readonly #inode: number;
  readonly #parts: RequestParts;
  readonly #locks: RangeLocks;
  #segment = new Segment();
  #builder = new BatchBuilder();
  #pinned = new Uint32Array(BATCH_KEYS_MAX);
  #sectors = new Float64Array(BATCH_KEYS_MAX);

  constructor(volume: { name: string; inode: number; locks: RangeLocks }, parts: RequestParts) {
    this.#name = volume.name;
    this.#inode = volume.inode;
    this.#locks = volume.locks;
    this.#parts = parts;
  }

  get obstructed(): boolean {
    const { faults, tunables } = this.#parts;
    return faults.failed !== undefined || tunables.ioDisabled;
  }

  /** There is nothing to go on with: all that the volume has is on the cache. */
  get failure(): Error | undefined {
    const { faults, tunables } = this.#parts;
    if (faults.failed) return setFailed(this.#name, faults.failed);
    if (!tunables.ioDisabled) return undefined;
    const disabled = "I/O of the whole cache set is disabled; set its io_disable to 0";
    return new BcacheError("DeviceIo", `${this.#name}: ${disabled}`);
  }

  noteRequest(): void {}

  tryRead(start: number, into: Uint8Array): boolean {
    const { btree, cache, buckets } = this.#parts;
    const { sync } = cache;
    if (sync === undefined) return false;
    const segment = this.#segment;
    const end = start + into.length / SECTOR;
    for (let at = start; at < end; at = segment.end) {
      const leaf = btree.findLeaf(this.#inode, at);
      if (leaf === undefined) return false;
      btree.lookup(leaf, this.#inode, at, end, segment);
      const whole = at === start && segment.end === end;
      const from = (at - start) * SECTOR;
      const part = whole ? into : into.subarray(from, (segment.end - start) * SECTOR);
      if (!segment.cached) {
        part.fill(0);
        continue;
      }
      try {
        sync.read(segment.sector, part);
      } catch {
        return false; // The other path reads again, and says what failed.
      }
      buckets.touch(segment.bucket);
    }
    return true;
  }

  async read(start: number, into: Uint8Array): Promise<void> {
    const { btree } = this.#parts;
    const segment = new Segment();
    const end = start + into.length / SECTOR;
    for (let at = start; at < end; at = segment.end) {
      let leaf = btree.findLeaf(this.#inode, at);
      // await: the tree may change while a node is read, so it is walked anew.
      while (leaf === undefined) {
        await btree.loadLeaf(this.#inode, at);
        leaf = btree.findLeaf(this.#inode, at);
      }
      btree.lookup(leaf, this.#inode, at, end, segment);
      const part = into.subarray((at - start) * SECTOR, (segment.end - start) * SECTOR);
      if (segment.cached) await this.#readCache(at, segment, part);
      else part.fill(0);
    }
  }

  async #readCache(at: number, segment: Segment, into: Uint8Array): Promise<void> {
    const { cache, buckets, log } = this.#parts;
    const { bucket, sector } = segment;
    buckets.pin(bucket);
    try {
      await cache.read(sector, into);
      buckets.touch(bucket);
    } catch (error) {
      this.#parts.noteCacheError(error);
      const message = `${this.#name}: sectors ${at}-${at + into.length / SECTOR - 1} (cache ` +
        `device sector ${sector}) cannot be read: ${messageOf(error)}`;
      log("error", message);
      throw new BcacheError("DeviceIo", message, { cause: error });
    } finally {
      buckets.unpin(bucket);
    }
  }

  tryWrite(start: number, from: Uint8Array): boolean {
    const { open, cache, committer, buckets } = this.#parts;
    const sectors = from.length / SECTOR;
    const end = start + sectors;
    if (cache.sync === undefined || this.#locks.isChanging(start, end)) return false;
    const builder = this.#builder;
    builder.clear();
    let at = start;
    let pieces = 0;
    while (at < end && pieces < BATCH_KEYS_MAX && open.tryAllocate(end - at, true)) {
      builder.addData(this.#inode, at, open.grant, true);
      this.#pinned[pieces] = open.grant.bucket;
      this.#sectors[pieces] = open.grant.sector;
      at += open.grant.sectors;
      pieces++;
    }
    const done = at === end && committer.canInsert(builder.batch) &&
      this.#writePieces(from, pieces) && committer.tryCommit(builder.batch);
    for (let index = 0; index < pieces; index++) open.settle(this.#pinned[index]!);
    if (!done) return false;
    buckets.rescale(sectors);
    this.#parts.noteCached(sectors);
    return true;
  }

  #writePieces(from: Uint8Array, pieces: number): boolean {
    const { sync } = this.#parts.cache;
    try {
      for (let index = 0, byte = 0; index < pieces; index++) {
        const bytes = this.#builder.sizeSectors(index) * SECTOR;
        const whole = bytes === from.length;
        sync!.write(this.#sectors[index]!, whole ? from : from.subarray(byte, byte + bytes));
        byte += bytes;
      }
      return true;
    } catch {
      return false; // The other path writes again, and says what failed.
    }
  }

  async writeLocked(start: number, from: Uint8Array): Promise<void> {
    const end = start + from.length / SECTOR;
    for (let at = start; at < end;) {
      at = await this.#writeBatch(at, from.subarray((at - start) * SECTOR));
    }
    this.#parts.buckets.rescale(end - start);
    this.#parts.noteCached(end - start);
  }

  /** Writes as much as one batch of keys can say; returns where it ends. */
  async #writeBatch(start: number, from: Uint8Array): Promise<number> {
    const { open, cache, committer } = this.#parts;
    const end = start + from.length / SECTOR;
    const builder = new BatchBuilder();
    const pinned: number[] = [];
    const writes: Promise<void>[] = [];
    let at = start;
    try {
      while (at < end && pinned.length < BATCH_KEYS_MAX) {
        if (!open.tryAllocate(end - at, true)) {
          if (pinned.length > 0) break;
          await this.#whenSpace();
          continue;
        }
        const { grant } = open;
        builder.addData(this.#inode, at, grant, true);
        pinned.push(grant.bucket);
        const byte = (at - start) * SECTOR;
        const bytes = from.subarray(byte, byte + grant.sectors * SECTOR);
        at += grant.sectors;
        writes.push(cache.write(grant.sector, bytes));
      }
      await this.#written(writes);
      while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
      return at;
    } finally {
      // A write that still runs must not meet the bucket's next owner.
      await Promise.allSettled(writes);
      for (const bucket of pinned) open.settle(bucket);
    }
  }

  async #written(writes: readonly Promise<void>[]): Promise<void> {
    try {
      await Promise.all(writes);
    } catch (error) {
      this.#parts.noteCacheError(error);
      throw error;
    }
  }

  async #whenSpace(): Promise<void> {
    try {
      await this.#parts.allocator.whenAvailable(RESERVE.none, 1);
    } catch (error) {
      if (!(error instanceof BcacheError) || error.code !== "NoSpace") throw error;
      const found = `${this.#name}: the cache is full of data that is nowhere else`;
      throw new BcacheError("NoSpace", `${found}; flush the cached devices, or destroy volumes`, {
        cause: error,
      });
    }
  }

  /**
   * Many small holes make the index larger and no bucket free. While it is short such requests are
   * refused like data: else they would take what it takes to destroy a volume.
   */
  async #whenIndexMayGrow(): Promise<void> {
    const { allocator } = this.#parts;
    while (allocator.indexIsShort) {
      try {
        await this.#whenSpace();
      } catch (error) {
        // A collection may have found something for the index alone.
        if (allocator.indexIsShort) throw error;
      }
    }
  }

  async zeroLocked(start: number, sectors: number): Promise<void> {
    const { committer } = this.#parts;
    const builder = new BatchBuilder();
    const end = start + sectors;
    for (let at = start; at < end;) {
      await this.#whenIndexMayGrow();
      builder.clear();
      while (at < end && builder.batch.count < BATCH_KEYS_MAX) {
        at = builder.addHole(this.#inode, at, end);
      }
      while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
    }
  }

  /** The data of all acknowledged writes, and its keys in the journal. */
  flush(): Promise<void> {
    return this.#parts.committer.flush();
  }
}
