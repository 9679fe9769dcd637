/**
 * Writing dirty data back, of one device. Answers to writeback.c.
 *
 * Order, per round:
 *   1. dirty extents are collected from the index in key order
 *   2. each is read from the cache and written to the backing device, several at a time; its range
 *      is held, so that no other write to the backing device can pass it
 *   3. the backing device is flushed
 *   4. only then each extent is marked clean, if it is still the same (a newer write wins)
 * Linux leaves out step 3 and can lose data that was flushed long ago.
 * The superblock says clean only after the clean keys are durable.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import type { Clock, Log } from "../base/runtime.ts";
import { Signal } from "../base/sync.ts";
import type { BtreeNode } from "../btree/node.ts";
import { Segment } from "../btree/btree.ts";
import type { Device } from "../device/device.ts";
import type { KeySet } from "../bset/key_set.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keySizeSectors,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { CachedDevice } from "./cached_device.ts";
import { BatchBuilder, type RequestParts } from "./request_parts.ts";
import type { Grant } from "./open_buckets.ts";
import { RateController } from "./writeback_rate.ts";

/** Extents and sectors of one round: what one flush of the backing device is shared by. */
const ROUND_EXTENTS_MAX = 500;
const ROUND_SECTORS_MAX = 32768;

/** Dirty sectors that lie together, on both devices. */
interface DirtyExtent {
  readonly start: number;
  readonly sectors: number;
  readonly sector: number;
  readonly gen: number;
}

export class Writeback {
  readonly rate: RateController = new RateController();
  /** Off: dirty data stays in the cache, but for `drain`. */
  running = true;
  /** Pause between two scans of the whole device, seconds. */
  delaySeconds = 30;
  /** Extents read and written at a time. */
  inFlightMax = 8;
  keysDone = 0;
  keysFailed = 0;
  #dev: CachedDevice;
  #parts: RequestParts;
  #settleClean: () => Promise<void>;
  #clock: Clock;
  #log: Log;
  #wake = new Signal();
  #draining = 0;
  #drainFailure: unknown;
  #roundDone = new Signal();
  /** Where the next round begins. */
  #cursor = 0;
  #cacheSectors: number;
  #stopped = false;

  constructor(
    dev: CachedDevice,
    parts: RequestParts,
    options: { settleClean: () => Promise<void>; cacheSectors: number },
  ) {
    this.#dev = dev;
    this.#parts = parts;
    this.#settleClean = options.settleClean;
    this.#clock = parts.clock;
    this.#log = parts.log;
    this.#cacheSectors = options.cacheSectors;
  }

  /** There is dirty data, or a setting changed: look again. */
  wake(): void {
    this.#wake.raise();
  }

  start(): void {
    this.#parts.tasks.start((signal) => this.#run(signal));
    this.#parts.tasks.start((signal) => this.#updateRate(signal));
  }

  /**
   * Writes everything back without regard to the rate and resolves when the device is clean, on
   * disk too. Rejects with what stands in the way.
   */
  async drain(): Promise<void> {
    this.#draining++;
    this.#drainFailure = undefined;
    this.wake();
    try {
      while (this.#dev.needsWriteback) {
        if (this.#stopped) throw new BcacheError("Shutdown", `${this.#dev.name} is being stopped`);
        if (this.#drainFailure !== undefined) throw this.#drainFailure;
        await this.#roundDone.wait();
      }
    } finally {
      this.#draining--;
    }
  }

  async #run(signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => this.#wake.raise(), { once: true });
    try {
      while (!signal.aborted && !this.#parts.faults.failed) {
        if (!this.#dev.needsWriteback || !(this.running || this.#draining > 0)) {
          this.#roundDone.raise();
          await this.#wake.wait();
          continue;
        }
        const goOn = await this.#round(signal);
        this.#roundDone.raise();
        if (!goOn && this.#draining === 0 && !signal.aborted) await this.#pause(signal);
      }
    } finally {
      this.#stopped = true;
      this.#roundDone.raise();
    }
  }

  /** Waits between scans; a drain, or a changed setting, ends it. */
  async #pause(signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const end = () => stop.abort();
    signal.addEventListener("abort", end, { once: true });
    const woken = this.#wake.wait().then(end);
    await this.#clock.sleep(this.delaySeconds * 1000, stop.signal);
    signal.removeEventListener("abort", end);
    this.#wake.raise();
    await woken;
    this.rate.reset(this.#clock.nowMs());
  }

  /** One round. False: the whole device was scanned, or something failed; rest a while. */
  async #round(signal: AbortSignal): Promise<boolean> {
    try {
      const began = this.#cursor;
      const extents = await this.#collect();
      if (extents.length === 0) {
        this.#cursor = 0;
        if (began === 0) {
          await this.#dev.becomeClean(this.#settleClean);
          this.#parts.noteClean();
        }
        return began !== 0;
      }
      await this.#writeAll(extents, signal);
      return true;
    } catch (error) {
      if (this.#parts.faults.failed) throw error;
      this.#drainFailure = error;
      this.#log("warning", `${this.#dev.name}: writeback: ${messageOf(error)}`);
      return false;
    }
  }

  /** The next dirty extents from the cursor on, in key order. */
  async #collect(): Promise<DirtyExtent[]> {
    const { inode } = this.#dev;
    const found: DirtyExtent[] = [];
    let sectors = 0;
    let cursor = this.#cursor;
    await this.#parts.btree.walk(0, { inode, offset: cursor }, (leaf) => {
      for (const extent of dirtyExtents(leaf, inode, cursor)) {
        if (found.length === ROUND_EXTENTS_MAX || sectors >= ROUND_SECTORS_MAX) break;
        found.push(extent);
        sectors += extent.sectors;
        cursor = extent.start + extent.sectors;
      }
      const full = found.length === ROUND_EXTENTS_MAX || sectors >= ROUND_SECTORS_MAX;
      return !full && leaf.endInode <= inode;
    });
    this.#cursor = cursor;
    return found;
  }

  async #writeAll(extents: DirtyExtent[], signal: AbortSignal): Promise<void> {
    let next = 0;
    let failure: unknown;
    const written: DirtyExtent[] = [];
    const worker = async (): Promise<void> => {
      while (next < extents.length && failure === undefined && !signal.aborted) {
        const extent = extents[next++]!;
        try {
          await this.#writeOne(extent, written);
        } catch (error) {
          this.keysFailed++;
          failure = error;
        }
        if (this.#draining > 0) continue;
        const delayMs = this.rate.delayMs(extent.sectors, this.#clock.nowMs());
        if (delayMs > 0) await this.#clock.sleep(delayMs, signal);
      }
    };
    await Promise.all(Array.from({ length: this.inFlightMax }, worker));
    if (written.length > 0) {
      // Before any key says clean: the data must be on the backing device to stay.
      await this.#dev.flushWrites();
      for (const piece of written) await this.#markClean(piece);
    }
    if (failure !== undefined) {
      this.#cursor = 0;
      throw failure;
    }
  }

  /**
   * Writes what is still dirty of an extent, and no sector more: the backing device may have newer
   * data where a write went past the cache meanwhile.
   */
  async #writeOne(extent: DirtyExtent, written: DirtyExtent[]): Promise<void> {
    const { locks } = this.#dev;
    const end = extent.start + extent.sectors;
    const range = await locks.acquire(extent.start, end, true);
    try {
      const segment = new Segment();
      // await: in each round the world may have changed; no other backing write is in the range.
      for (let at = extent.start; at < end; at = segment.end) {
        await this.#lookup(at, end, segment);
        if (!this.#matches(segment, at, extent)) continue;
        const piece = {
          start: at,
          sectors: segment.end - at,
          sector: segment.sector,
          gen: segment.gen,
        };
        await this.#writePiece(piece, segment.bucket);
        written.push(piece);
      }
    } finally {
      locks.release(range);
    }
  }

  async #lookup(at: number, end: number, segment: Segment): Promise<void> {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    let leaf = btree.findLeaf(inode, at);
    while (leaf === undefined) {
      await btree.loadLeaf(inode, at);
      leaf = btree.findLeaf(inode, at);
    }
    btree.lookup(leaf, inode, at, end, segment);
  }

  async #writePiece(piece: DirtyExtent, bucket: number): Promise<void> {
    const { buckets, cache } = this.#parts;
    buckets.pin(bucket);
    try {
      const bytes = new Uint8Array(piece.sectors * 512);
      await this.#readCache(piece, bytes, cache);
      try {
        await this.#dev.device.write(piece.start, bytes);
      } catch (error) {
        this.#dev.ioErrors++;
        throw error;
      } finally {
        this.#dev.noteWrite();
      }
    } finally {
      buckets.unpin(bucket);
    }
  }

  async #readCache(piece: DirtyExtent, into: Uint8Array, cache: Device): Promise<void> {
    try {
      await cache.read(piece.sector, into);
    } catch (error) {
      this.#parts.noteCacheError(error);
      throw error;
    }
  }

  #matches(segment: Segment, at: number, extent: DirtyExtent): boolean {
    return segment.cached && segment.dirty && segment.gen === extent.gen &&
      segment.sector === extent.sector + (at - extent.start);
  }

  /** Inserts a clean key for every part of the extent that nobody changed since. */
  async #markClean(extent: DirtyExtent): Promise<void> {
    const { committer } = this.#parts;
    const { inode } = this.#dev;
    const builder = new BatchBuilder();
    const segment = new Segment();
    const end = extent.start + extent.sectors;
    for (let at = extent.start; at < end; at = segment.end) {
      await this.#lookup(at, end, segment);
      if (!this.#matches(segment, at, extent)) continue;
      builder.clear();
      builder.addData(inode, at, cleanGrant(segment, at), false);
      if (committer.tryInsertVolatile(builder.batch)) {
        this.keysDone++;
        continue;
      }
      await committer.whenInsertable(builder.batch);
      segment.end = at; // await: look at the same place again.
    }
  }

  async #updateRate(signal: AbortSignal): Promise<void> {
    const { buckets } = this.#parts;
    while (!signal.aborted && !this.#parts.faults.failed) {
      await this.#clock.sleep(this.rate.tunables.updateSeconds * 1000, signal);
      if (!this.#dev.needsWriteback || this.rate.tunables.percent === 0) continue;
      this.rate.update({
        dirtySectors: this.#dev.dirtySectors,
        cacheSectors: this.#cacheSectors,
        inUsePercent: buckets.inUsePercent(),
        bucketsInUse: buckets.bucketCount - buckets.availableBuckets,
        bucketSectors: buckets.bucketSectors,
        nowMs: this.#clock.nowMs(),
      });
      this.#parts.noteWritebackControl();
    }
  }
}

function cleanGrant(segment: Segment, at: number): Grant {
  return {
    bucket: segment.bucket,
    gen: segment.gen,
    sector: segment.sector,
    sectors: segment.end - at,
  };
}

/** The dirty extents of `inode` in a leaf that end behind `from`, in key order. */
function dirtyExtents(leaf: BtreeNode, inode: number, from: number): DirtyExtent[] {
  const found: DirtyExtent[] = [];
  collectDirty(leaf.base, inode, from, found);
  collectDirty(leaf.delta, inode, from, found);
  return found.sort((a, b) => a.start - b.start);
}

function collectDirty(set: KeySet, inode: number, from: number, found: DirtyExtent[]): void {
  const { words } = set;
  for (let index = set.upperBound(inode, from); index < set.count; index++) {
    const at = index * SLOT_WORDS;
    if (keyInode(words, at) !== inode) return;
    const sectors = keySizeSectors(words, at);
    if (sectors === 0 || !keyDirty(words, at)) continue;
    found.push({
      start: keyOffset(words, at) - sectors,
      sectors,
      sector: pointerSector(words, at),
      gen: pointerGen(words, at),
    });
  }
}
