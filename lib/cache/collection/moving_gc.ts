/**
 * Moving collection: what is left in sparsely used buckets is copied together, so that these can
 * be used again without dropping it. Answers to movinggc.c. Runs after a collection, whose counts
 * tell which buckets to choose, when asked for (`copy_gc_enabled`), or while somebody waits for a
 * bucket for data, who would have to be refused. (Linux lets them wait for ever.)
 *
 * Order, per extent:
 *   1. it is read from where it is; its bucket is pinned
 *   2. it is written to a bucket of the moving collector's own
 *   3. in one synchronous step the index is looked at again, and what still lies at the old place
 *      gets a key to the new one; what was overwritten meanwhile does not (a collision). Dirty keys
 *      go into the journal like any others: the old bucket is only used again after an entry that
 *      names them is durable (the round of priorities that frees it commits one), and an entry is
 *      only written after the data it points to
 * A power cut anywhere finds the data at its old or its new place. Linux does not journal these
 * keys; there only the leaf's write before the next collection ends keeps them.
 */
import { messageOf } from "../../base/errors.ts";
import { CheapestHeap } from "../../base/heap.ts";
import type { Log } from "../../base/runtime.ts";
import { endingWith, type Faults, Signal } from "../../base/sync.ts";
import { type Btree, Segment } from "../../btree/btree.ts";
import type { Allocator } from "../../buckets/allocator.ts";
import { RESERVE } from "../../buckets/reserves.ts";
import { type BucketTable, MARK } from "../../buckets/table.ts";
import type { Device } from "../../device/device.ts";
import { INODE_MAX, keyPointers, OFFSET_MAX, pointerSector } from "../../ondisk/bkey.ts";
import type { KeyCommitter } from "../commit.ts";
import { type BufferedKey, KeyBuffer } from "../key_buffer.ts";
import { type Grant, OpenBuckets } from "../open_buckets.ts";
import { BatchBuilder } from "../request_parts.ts";
import type { Slices } from "./slices.ts";

/** Extents on their way at a time, as in the kernel, and what they take in memory at most. */
const IN_FLIGHT_MAX = 64;
const IN_FLIGHT_SECTORS_MAX = 32_768;
/** The longest piece that is copied at once. */
const PIECE_SECTORS_MAX = 2048;
/** Buckets looked at between two questions whether the slice is over. */
const SWEEP_BUCKETS = 8192;
/** Candidates kept, in sizes of the reserve. */
const CANDIDATE_RESERVES = 8;

const END = { inode: INODE_MAX, offset: OFFSET_MAX };

export interface MovingOptions {
  readonly btree: Btree;
  readonly allocator: Allocator;
  /** The cache device. */
  readonly cache: Device;
  readonly committer: KeyCommitter;
  readonly blockSectors: number;
  readonly slices: Slices;
  readonly faults: Faults;
  readonly log: Log;
  /** So many sectors were copied; they count towards the next collection. */
  readonly noteCached: (sectors: number) => void;
}

export class MovingCollector {
  /** After every collection, as the user wants it; else only in need. */
  enabled = false;
  /** Since start. */
  keysMoved = 0;
  sectorsMoved = 0;
  /** Extents that were overwritten, in part at least, while they were copied. */
  collisions = 0;
  /** What is being copied, and what is to be: nothing while a collection marks. */
  readonly buffer: KeyBuffer = new KeyBuffer();
  readonly #options: MovingOptions;
  readonly #buckets: BucketTable;
  readonly #open: OpenBuckets;
  readonly #landed = new Signal();
  #inFlight = 0;
  #inFlightSectors = 0;
  /** There is no bucket to copy to, or the device fails: what is not begun is left alone. */
  #givenUp = false;

  constructor(options: MovingOptions) {
    this.#options = options;
    this.#buckets = options.btree.buckets;
    const { allocator, blockSectors } = options;
    this.#open = new OpenBuckets({
      buckets: this.#buckets,
      allocator: { tryTake: () => allocator.tryTake(RESERVE.movingGc) },
      blockSectors,
    });
  }

  /** Copies what lies in the emptiest buckets. Ends early when stopped. */
  async run(signal: AbortSignal): Promise<void> {
    this.#givenUp = false;
    const candidates = await this.#choose();
    if (candidates.length === 0) return;
    for (const bucket of candidates) this.#buckets.setMove(bucket, true);
    try {
      await this.#moveAll(signal);
    } finally {
      // Whoever took one of them meanwhile took the flag away with it.
      for (const bucket of candidates) this.#buckets.setMove(bucket, false);
      this.buffer.clearPending();
    }
  }

  /** The emptiest buckets, so many that all they hold fits into the reserve. */
  async #choose(): Promise<number[]> {
    const { allocator, slices } = this.#options;
    const buckets = this.#buckets;
    const heap = new CheapestHeap(CANDIDATE_RESERVES * allocator.sizes.movingGc);
    for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
      if (this.#isSparse(bucket)) heap.offer(bucket, buckets.sectorsUsed[bucket]!);
      if (bucket % SWEEP_BUCKETS === 0 && slices.spend(SWEEP_BUCKETS)) await slices.turn();
    }
    let room = buckets.bucketSectors * allocator.freeCount(RESERVE.movingGc);
    const chosen: number[] = [];
    for (const bucket of heap.drain()) {
      room -= buckets.sectorsUsed[bucket]!;
      if (room < 0) break;
      // await: it may have been taken since.
      if (this.#isSparse(bucket)) chosen.push(bucket);
    }
    return chosen;
  }

  #isSparse(bucket: number): boolean {
    const { mark, pins, sectorsUsed, bucketSectors } = this.#buckets;
    const used = sectorsUsed[bucket]!;
    return used > 0 && used < bucketSectors && pins[bucket] === 0 &&
      mark[bucket] !== MARK.metadata;
  }

  async #moveAll(signal: AbortSignal): Promise<void> {
    const { btree, faults, slices } = this.#options;
    const wanted = (words: Uint32Array, at: number): boolean =>
      keyPointers(words, at) > 0 && !btree.isBad(words, at, 0) &&
      this.#buckets.isMoving(Math.floor(pointerSector(words, at) / this.#buckets.bucketSectors));
    this.buffer.lastScanned = { inode: 0, offset: 0 };
    const over = () => signal.aborted || faults.failed !== undefined || this.#givenUp;
    try {
      while (!over()) {
        const key = this.buffer.takeNext();
        if (key !== undefined) {
          await this.#begin(key);
          continue;
        }
        // Slots are free again when what is in flight has landed.
        if (this.buffer.full) await slices.waitFor(this.#landed.wait());
        else if (this.buffer.lastScanned === END) break;
        else await slices.waitFor(this.buffer.refill(btree, END, wanted));
      }
    } finally {
      while (this.#inFlight > 0) await slices.waitFor(this.#landed.wait());
    }
  }

  /** Sets a key on its way as soon as there is room for it; what becomes of it rejects nothing. */
  async #begin(key: BufferedKey): Promise<void> {
    const { slices } = this.#options;
    const sectors = Math.min(key.end - key.start, PIECE_SECTORS_MAX);
    while (
      this.#inFlight >= IN_FLIGHT_MAX ||
      (this.#inFlight > 0 && this.#inFlightSectors + sectors > IN_FLIGHT_SECTORS_MAX)
    ) await slices.waitFor(this.#landed.wait());
    this.#inFlight++;
    this.#inFlightSectors += sectors;
    const moving = endingWith(this.#move(key).catch((error) => this.#fail(error)), () => {
      this.#inFlight--;
      this.#inFlightSectors -= sectors;
      this.buffer.finish(key);
      this.#landed.raise();
    });
    // It is awaited through `#landed`; it never rejects.
    void moving;
    if (slices.spend(sectors)) await slices.turn();
  }

  #fail(error: unknown): void {
    this.#givenUp = true;
    if (this.#options.faults.failed) return;
    this.#options.log("warning", `moving collection stops for now: ${messageOf(error)}`);
  }

  async #move(key: BufferedKey): Promise<void> {
    const segment = new Segment();
    let collided = false;
    for (let at = key.start; at < key.end && !this.#givenUp;) {
      // What is found holds until the next await: it is pinned before that.
      if (!this.#lookup(key, at, segment)) {
        await this.#options.btree.loadLeaf(key.inode, at);
        continue;
      }
      const end = Math.min(segment.end, at + PIECE_SECTORS_MAX);
      if (this.#isStill(segment, at, key)) {
        const copied = await this.#copy(key, { at, end }, segment);
        if (copied === 0) return;
        if (copied < 0) collided = true;
        at += Math.abs(copied);
      } else {
        collided = true;
        at = end;
      }
    }
    if (collided) this.collisions++;
    else this.keysMoved++;
  }

  /** Whether what lies at `at` now lies where the key said. */
  #isStill(segment: Segment, at: number, key: BufferedKey): boolean {
    return segment.cached && segment.gen === key.gen &&
      segment.sector === key.sector + (at - key.start);
  }

  /** What lies at `at` now; false: a node has to be read first (`btree.loadLeaf`). Synchronous. */
  #lookup(key: BufferedKey, at: number, segment: Segment): boolean {
    const { btree } = this.#options;
    const leaf = btree.findLeaf(key.inode, at);
    if (leaf === undefined) return false;
    btree.lookup(leaf, key.inode, at, key.end, segment);
    return true;
  }

  /**
   * Copies a piece, which `segment` describes as it is now, or the first part of it. Returns how
   * many sectors it was; negative when some were overwritten meanwhile; 0: there is no space.
   */
  async #copy(
    key: BufferedKey,
    piece: { at: number; end: number },
    segment: Segment,
  ): Promise<number> {
    const { cache, noteCached } = this.#options;
    const { at } = piece;
    const { bucket, sector, dirty } = segment;
    if (!this.#open.tryAllocate(piece.end - at, dirty, key.inode, at)) {
      this.#givenUp = true;
      return 0;
    }
    const { bucket: to, gen, sector: toSector, sectors } = this.#open.grant;
    const grant: Grant = { bucket: to, gen, sector: toSector, sectors };
    this.#buckets.pin(bucket);
    try {
      const bytes = new Uint8Array(grant.sectors * 512);
      await cache.read(sector, bytes);
      await cache.write(grant.sector, bytes);
      const moved = await this.#commit(key, at, grant);
      this.sectorsMoved += moved;
      noteCached(grant.sectors);
      return moved === grant.sectors ? moved : -grant.sectors;
    } finally {
      this.#buckets.unpin(bucket);
      this.#open.settle(grant.bucket);
    }
  }

  /** Points the index to the copy, where it still has the original. Returns how many sectors. */
  async #commit(key: BufferedKey, start: number, copy: Grant): Promise<number> {
    const { btree, committer } = this.#options;
    const builder = new BatchBuilder();
    const segment = new Segment();
    const end = start + copy.sectors;
    let moved = 0;
    for (let at = start; at < end;) {
      if (!this.#lookup(key, at, segment)) {
        await btree.loadLeaf(key.inode, at);
        continue;
      }
      const stop = Math.min(segment.end, end);
      if (!this.#isStill(segment, at, key)) {
        at = stop;
        continue;
      }
      // No await from the lookup to the insert: what is replaced is what was looked at.
      builder.clear();
      const sector = copy.sector + (at - start);
      const place = { bucket: copy.bucket, gen: copy.gen, sector, sectors: stop - at };
      builder.addData(key.inode, at, place, segment.dirty);
      const inserted = segment.dirty
        ? committer.tryCommit(builder.batch)
        : committer.tryInsertVolatile(builder.batch);
      if (inserted) {
        moved += stop - at;
        at = stop;
      } else if (segment.dirty) await committer.ready(builder.batch);
      else await committer.whenInsertable(builder.batch);
    }
    return moved;
  }
}
