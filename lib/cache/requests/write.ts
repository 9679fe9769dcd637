/**
 * Writing to a cached device. Answers to `cached_dev_write` and `bch_data_insert` of request.c.
 *
 *   writeback     data to the cache, dirty key; acknowledged
 *   writethrough  data to the backing device and to the cache; both done: clean key; acknowledged
 *   bypass        data to the backing device; done: a key without pointer; acknowledged
 *
 * Differs from Linux on purpose: the key follows the backing write. Linux sends both off at once,
 * and a read between them can put stale data into the cache. And where dirty data is in the cache,
 * a key that hides it follows a flush of the backing device: should that flush fail, what was
 * dirty may be the only copy of what an earlier flush confirmed.
 * Changes that take time hold their range (RangeLocks), so that overlapping ones reach the backing
 * device and the index in the same order. `tryWrite` never waits: nothing can come in between.
 */
import { BcacheError } from "../../base/errors.ts";
import { Segment } from "../../btree/btree.ts";
import { BATCH_KEYS_MAX } from "../../btree/insert.ts";
import { RESERVE } from "../../buckets/reserves.ts";
import type { BypassReason } from "./bypass.ts";
import { REQUEST_METADATA, REQUEST_SYNC } from "../ports.ts";
import type { CachedDevice } from "./cached_device.ts";
import { BatchBuilder, type RequestParts } from "../request_parts.ts";

/** How one write is carried out. */
type Manner = "writeback" | "writethrough" | "bypass";

/** Keys for data that was written to the cache, and the buckets pinned for them. */
interface Placed {
  readonly builder: BatchBuilder;
  readonly pinned: number[];
  /** Everything up to here (exclusive) is placed. */
  end: number;
}

export class WritePath {
  #dev: CachedDevice;
  #parts: RequestParts;
  #builder = new BatchBuilder();
  #pinned = new Uint32Array(BATCH_KEYS_MAX);
  #sectors = new Float64Array(BATCH_KEYS_MAX);
  #decision = { mode: "none" as CachedDevice["mode"], inUsePercent: 0, detaching: false };

  constructor(dev: CachedDevice, parts: RequestParts) {
    this.#dev = dev;
    this.#parts = parts;
  }

  /** Why the write would go past the cache. */
  #reason(start: number, sectors: number): BypassReason {
    const decision = this.#decision;
    decision.mode = this.#dev.mode;
    decision.inUsePercent = this.#parts.buckets.inUsePercent();
    decision.detaching = this.#dev.detaching;
    return this.#dev.bypass.reason(start - this.#dev.dataOffset, sectors, true, decision);
  }

  /**
   * A write that would go past the cache stays in it all the same, to keep a stripe together.
   * Answers to the first rule of `should_writeback`.
   */
  #keepsStripeTogether(start: number, sectors: number): boolean {
    return this.#dev.mode === "writeback" && !this.#dev.detaching &&
      this.#parts.buckets.inUsePercent() <= this.#parts.tunables.cutoffWritebackSync &&
      this.#dev.map.keepsStripeTogether(start, sectors);
  }

  /** Whether a write that is not bypassed may leave dirty data. Answers to `should_writeback`. */
  #mayBeDirty(): boolean {
    if (this.#dev.mode !== "writeback" || this.#dev.detaching) return false;
    const { tunables, buckets } = this.#parts;
    const inUsePercent = buckets.inUsePercent();
    if (inUsePercent > tunables.cutoffWritebackSync) return false;
    // Somebody waits for it: the cache is quicker.
    const isUrgent = (this.#dev.bypass.flags & (REQUEST_SYNC | REQUEST_METADATA)) !== 0;
    return isUrgent || inUsePercent <= tunables.cutoffWriteback;
  }

  /**
   * Writes `from` at sector `start` of the backing device without waiting, if that can be done:
   * as dirty data, with space, leaves and journal ready. False: to the outside nothing changed.
   */
  tryWrite(start: number, from: Uint8Array): boolean {
    const { open, fills, buckets } = this.#parts;
    const dev = this.#dev;
    const sectors = from.length / 512;
    const end = start + sectors;
    if (this.#parts.cache.sync === undefined || !dev.hasDirty || !this.#mayBeDirty()) return false;
    if (dev.locks.isChanging(start, end)) return false;
    const reason = this.#reason(start, sectors);
    if (reason !== "none") return false;
    const builder = this.#builder;
    builder.clear();
    let at = start;
    let pieces = 0;
    while (at < end && pieces < BATCH_KEYS_MAX) {
      if (!open.tryAllocate(end - at, true, dev.inode, at)) break;
      builder.addData(dev.inode, at, open.grant, true);
      this.#pinned[pieces] = open.grant.bucket;
      this.#sectors[pieces] = open.grant.sector;
      at += open.grant.sectors;
      pieces++;
    }
    const done = at === end && this.#writePieces(from, pieces);
    for (let index = 0; index < pieces; index++) open.settle(this.#pinned[index]!);
    if (!done) return false;
    fills.cancel(dev.inode, start, end);
    dev.bypass.count(reason);
    buckets.rescale(sectors);
    this.#parts.noteCached(sectors);
    return true;
  }

  /** Data first, then keys. False: an error or no room; what was written is garbage nobody sees. */
  #writePieces(from: Uint8Array, pieces: number): boolean {
    const { cache, committer } = this.#parts;
    const { batch } = this.#builder;
    if (!committer.canInsert(batch)) return false;
    let byte = 0;
    try {
      for (let index = 0; index < pieces; index++) {
        const at = index + 1 < pieces ? this.#pieceBytes(index) : from.length - byte;
        const whole = at === from.length;
        cache.sync!.write(this.#sectors[index]!, whole ? from : from.subarray(byte, byte + at));
        byte += at;
      }
    } catch {
      // The asynchronous path writes again, counts the error and knows what to do about it.
      return false;
    }
    return committer.tryCommit(batch);
  }

  #pieceBytes(index: number): number {
    return this.#builder.sizeSectors(index) * 512;
  }

  /** Writes anything. Rejects with a BcacheError; the range then holds old or new data. */
  async write(start: number, from: Uint8Array): Promise<void> {
    const range = await this.#dev.locks.acquire(start, start + from.length / 512);
    try {
      await this.writeLocked(start, from);
    } finally {
      this.#dev.locks.release(range);
    }
  }

  /** `write` for a caller that holds the range. */
  async writeLocked(start: number, from: Uint8Array): Promise<void> {
    const sectors = from.length / 512;
    const decided = this.#reason(start, sectors);
    // Only whole blocks can be cached.
    const together = decided !== "unaligned" && this.#keepsStripeTogether(start, sectors);
    const reason = together ? "none" : decided;
    this.#dev.bypass.count(reason);
    const manner: Manner = together
      ? "writeback"
      : reason !== "none"
      ? "bypass"
      : this.#mayBeDirty()
      ? "writeback"
      : "writethrough";
    if (manner === "bypass") {
      this.#dev.stats.bypassed(sectors);
      return await this.#bypass(start, from);
    }
    this.#parts.buckets.rescale(sectors);
    this.#parts.noteCached(sectors);
    if (manner === "writeback") await this.#writeback(start, from);
    else await this.#writethrough(start, from);
  }

  async #bypass(start: number, from: Uint8Array): Promise<void> {
    await this.#writeBacking(start, from);
    await this.#mayHide(start, start + from.length / 512);
    await this.commitHoles(start, start + from.length / 512);
  }

  #writeBacking(start: number, from: Uint8Array): Promise<void> {
    const end = start + from.length / 512;
    return this.#changeBacking(start, end, () => this.#dev.writeBacking(start, from));
  }

  /**
   * Changes the backing device, with the range held. Should that fail, what is there is old or
   * new, block by block, so what is cached of it as clean is dropped: what is dirty is not, it is
   * still the best there is.
   */
  async #changeBacking(start: number, end: number, change: () => Promise<void>): Promise<void> {
    this.#parts.fills.cancel(this.#dev.inode, start, end);
    try {
      await change();
    } catch (error) {
      await this.#dropClean(start, end);
      throw error;
    }
  }

  async #dropClean(start: number, end: number): Promise<void> {
    const segment = new Segment();
    try {
      for (let at = start; at < end; at = segment.end) {
        await this.#lookup(at, end, segment);
        if (segment.cached && !segment.dirty) await this.commitHoles(at, segment.end);
      }
    } catch (error) {
      // The set has failed, and nothing clean is read from it any more.
      if (this.#parts.faults.failed === undefined) throw error;
    }
  }

  /**
   * Resolves when nothing dirty is in the range, or what was written there to the backing device
   * is stable. The caller holds the range, so nothing becomes dirty in it.
   */
  async #mayHide(start: number, end: number): Promise<void> {
    const segment = new Segment();
    for (let at = start; at < end && this.#dev.dirtySectors > 0; at = segment.end) {
      await this.#lookup(at, end, segment);
      if (segment.cached && segment.dirty) return await this.#dev.flushWrites();
    }
  }

  /** What the index says of `at`, and how far, at most to `end`. */
  async #lookup(at: number, end: number, segment: Segment): Promise<void> {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    let leaf = btree.findLeaf(inode, at);
    // await: the tree may change while a node is read, so it is walked anew.
    while (leaf === undefined) {
      await btree.loadLeaf(inode, at);
      leaf = btree.findLeaf(inode, at);
    }
    btree.lookup(leaf, inode, at, end, segment);
  }

  async #writeback(start: number, from: Uint8Array): Promise<void> {
    const end = start + from.length / 512;
    for (let at = start; at < end;) {
      const rest = from.subarray((at - start) * 512);
      const placed = await this.#place(at, rest, true);
      // No space, or the cache device failed: the backing device takes the rest.
      if (placed.end === at) return await this.#bypass(at, rest);
      try {
        await this.#commitDirty(at, placed);
      } finally {
        this.#settle(placed);
      }
      at = placed.end;
    }
  }

  async #writethrough(start: number, from: Uint8Array): Promise<void> {
    const end = start + from.length / 512;
    const writing = this.#writeBacking(start, from);
    // Whatever happens below, this rejection is looked at.
    writing.catch(() => undefined);
    const batches: Placed[] = [];
    try {
      let placedEnd = start;
      while (placedEnd < end) {
        const placed = await this.#place(
          placedEnd,
          from.subarray((placedEnd - start) * 512),
          false,
        );
        if (placed.end === placedEnd) break;
        batches.push(placed);
        placedEnd = placed.end;
      }
      await writing;
      await this.#mayHide(start, end);
      let at = start;
      for (const placed of batches) {
        await this.#commit(at, placed);
        at = placed.end;
      }
      if (at < end) await this.commitHoles(at, end);
    } finally {
      for (const placed of batches) this.#settle(placed);
    }
  }

  /**
   * Writes data from `at` on to the cache, as much as one batch of keys can say. `end` of the
   * result is `at` when there is no space or the device failed.
   */
  async #place(at: number, from: Uint8Array, dirty: boolean): Promise<Placed> {
    const { open, cache } = this.#parts;
    const placed: Placed = { builder: new BatchBuilder(), pinned: [], end: at };
    const end = at + from.length / 512;
    const writes: Array<Promise<void>> = [];
    try {
      while (placed.end < end && placed.pinned.length < BATCH_KEYS_MAX) {
        if (!open.tryAllocate(end - placed.end, dirty, this.#dev.inode, placed.end)) {
          if (placed.pinned.length > 0 || !await this.#waitForSpace(dirty)) break;
          continue;
        }
        const { grant } = open;
        const byte = (placed.end - at) * 512;
        const bytes = from.subarray(byte, byte + grant.sectors * 512);
        placed.builder.addData(this.#dev.inode, placed.end, grant, dirty);
        placed.pinned.push(grant.bucket);
        placed.end += grant.sectors;
        if (cache.sync) cache.sync.write(grant.sector, bytes);
        else writes.push(cache.write(grant.sector, bytes));
      }
      await Promise.all(writes);
      return placed;
    } catch (error) {
      await Promise.allSettled(writes);
      this.#parts.noteCacheError(error);
      this.#settle(placed);
      return { builder: new BatchBuilder(), pinned: [], end: at };
    }
  }

  /** Only dirty data is worth waiting for, and only while waiting can help. */
  async #waitForSpace(dirty: boolean): Promise<boolean> {
    if (!dirty) return false;
    try {
      await this.#parts.allocator.whenAvailable(RESERVE.none, 1);
      return true;
    } catch (error) {
      if (error instanceof BcacheError && error.code === "NoSpace") return false;
      throw error;
    }
  }

  /** The superblock says dirty at the moment the keys go in: it may have turned clean meanwhile. */
  async #commitDirty(start: number, placed: Placed): Promise<void> {
    const { committer, fills } = this.#parts;
    const { batch } = placed.builder;
    for (;;) {
      if (!this.#dev.hasDirty) await this.#dev.ensureDirty();
      else if (committer.tryCommit(batch)) break;
      else await committer.ready(batch);
    }
    fills.cancel(this.#dev.inode, start, placed.end);
  }

  async #commit(start: number, placed: Placed): Promise<void> {
    const { committer, fills } = this.#parts;
    const { batch } = placed.builder;
    while (!committer.tryCommit(batch)) await committer.ready(batch);
    // The same synchronous step: no fill can begin between the key and this.
    fills.cancel(this.#dev.inode, start, placed.end);
  }

  /** Makes the index say durably-with-the-next-flush that nothing is cached in the range. */
  async commitHoles(start: number, end: number): Promise<void> {
    const { committer, fills } = this.#parts;
    const builder = new BatchBuilder();
    for (let at = start; at < end;) {
      builder.clear();
      const from = at;
      while (at < end && builder.batch.count < BATCH_KEYS_MAX) {
        at = builder.addHole(this.#dev.inode, at, end);
      }
      while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
      fills.cancel(this.#dev.inode, from, at);
    }
  }

  #settle(placed: Placed): void {
    for (const bucket of placed.pinned) this.#parts.open.settle(bucket);
    placed.pinned.length = 0;
  }

  /**
   * Makes a range read as zeroes, on the backing device, and drops it from the cache. The caller
   * holds the range.
   */
  async zeroLocked(start: number, sectors: number): Promise<void> {
    this.#dev.bypass.count(this.#dev.detaching ? "detaching" : "discard");
    this.#dev.stats.bypassed(sectors);
    const end = start + sectors;
    await this.#changeBacking(start, end, () => this.#dev.zeroBacking(start, sectors));
    await this.#mayHide(start, end);
    await this.commitHoles(start, end);
  }
}
