/**
 * What is known in memory about every bucket of the cache device: a struct of typed arrays,
 * 12 bytes a bucket (24 MiB for a 1 TiB cache with 512 KiB buckets).
 *
 * Invariants:
 * - A pointer is stale when the bucket's generation is after the pointer's. Generations wrap, so
 *   a bucket may run at most GENERATION_LIMIT ahead of its oldest pointer (`lastGc`).
 * - A bucket is invalidated only if nothing pins it, it holds at most clean data, and that is
 *   known from a finished collection (or was known when the running one began).
 * - A collection goes over the table twice, a slice at a time, so that no request waits for
 *   millions of buckets. A cursor tells which buckets a pass has reached:
 *
 *     marks    begin pass           marking              finish pass
 *     valid -> [begun|still valid] -> [only remembered] -> [valid, counted|valid, to be counted]
 *
 *   Beginning is right in slices because nothing is marked before it has reached every bucket, and
 *   whatever changes meanwhile marks itself or is pinned (see gc.ts). Finishing is, because the
 *   marks are complete before it begins: it only counts them and forgets what was remembered.
 * - `availableBuckets` is the number of buckets that are free or hold what may simply be
 *   dropped: exactly those with the AVAILABLE flag. Taking a bucket lowers it at once; that what
 *   was written there is only clean data is counted again by the next collection.
 * - A bucket that the allocator holds (HELD flag) is pinned once, by the allocator.
 *
 * Linux: struct bucket in bcache.h, alloc.c, the marking part of btree.c. There sectors_used has
 * 13 bits, too few for buckets of 4 MiB; here it has 32. There buckets on the free lists count as
 * used after a collection and again when taken; here they are counted once, as available.
 */
import { assert } from "../base/assert.ts";
import { PRIO_BTREE, PRIO_INITIAL } from "../ondisk/prio_set.ts";

/** What a collection found in a bucket. */
export const MARK = {
  none: 0,
  /** Clean data only: may be dropped. */
  reclaimable: 1,
  dirty: 2,
  /** A b-tree node, priorities, UUIDs, journal. */
  metadata: 3,
} as const;
export type Mark = (typeof MARK)[keyof typeof MARK];

/** A bucket whose oldest pointer is this many generations behind is left alone until collected. */
export const GENERATION_LIMIT = 96;

/** Answer of `markPointer`: an index pointer into data, or a data pointer into the index. */
export const MARK_CONFLICT = -1;

const FLAG_MOVE = 1;
const FLAG_RECLAIMABLE_IN_GC = 2;
const FLAG_AVAILABLE = 4;
const FLAG_HELD = 8;

const PINS_MAX = 0xffff;
/** Ageing goes over the table in slices of so many buckets, so that no request waits for all. */
const AGEING_SLICE_BUCKETS = 256;

/** How far generation `a` is ahead of `b`, both modulo 256; 0 when it is behind. */
export function genAfter(a: number, b: number): number {
  const difference = (a - b) & 0xff;
  return difference > 128 ? 0 : difference;
}

export interface BucketTableOptions {
  readonly bucketCount: number;
  /** The first bucket that may be allocated; the superblock lies before it. */
  readonly firstBucket: number;
  readonly bucketSectors: number;
}

export class BucketTable {
  readonly bucketCount: number;
  readonly firstBucket: number;
  readonly bucketSectors: number;
  /** Current generation. */
  readonly gen: Uint8Array;
  /** 0: never used, PRIO_BTREE: metadata, else falls from PRIO_INITIAL as it ages. */
  readonly priority: Uint16Array;
  /** The oldest generation that pointers still name, as of the last collection. */
  readonly lastGc: Uint8Array;
  readonly mark: Uint8Array;
  readonly pins: Uint16Array;
  /** Sectors that the index points to; at most bucketSectors. */
  readonly sectorsUsed: Uint32Array;
  readonly #flags: Uint8Array;

  #gcPhase: "valid" | "beginning" | "marking" | "finishing" = "marking";
  /** Buckets below it were reached by the pass under way. */
  #gcCursor: number;
  #available = 0;
  #needGc = 0;
  /** The same, of the pass that finishes a collection so far. */
  #needGcCounted = 0;
  /** While a round of priorities is composed: generations as they were when it began. */
  #raisedSince: Map<number, number> | undefined;
  /** Requests that did not bypass the cache, since start. */
  requestsSeen = 0;
  /** Not above the priority of any bucket that ages; what lru measures cost from. */
  #minPriority = 0;
  #ageingCursor: number;
  #ageingMinPriority = PRIO_BTREE;
  #ageingCreditSectors: number;

  constructor(options: BucketTableOptions) {
    const { bucketCount, firstBucket, bucketSectors } = options;
    assert(firstBucket >= 1, "the superblock's bucket is never allocated");
    assert(bucketCount > firstBucket, "there are buckets to allocate");
    assert(bucketCount <= 0xffff_ffff, "bucket numbers fit 32 bits");
    assert(bucketSectors > 0, "a bucket has sectors");
    this.bucketCount = bucketCount;
    this.firstBucket = firstBucket;
    this.bucketSectors = bucketSectors;
    this.gen = new Uint8Array(bucketCount);
    this.priority = new Uint16Array(bucketCount);
    this.lastGc = new Uint8Array(bucketCount);
    this.mark = new Uint8Array(bucketCount);
    this.pins = new Uint16Array(bucketCount);
    this.sectorsUsed = new Uint32Array(bucketCount);
    this.#flags = new Uint8Array(bucketCount);
    this.#gcCursor = firstBucket;
    this.#ageingCursor = firstBucket;
    this.#ageingCreditSectors = this.#sectorsPerAgedBucket * AGEING_SLICE_BUCKETS;
  }

  /** Whether the marks describe all that is in use: true between collections. */
  get gcMarksValid(): boolean {
    return this.#gcPhase === "valid" || this.#gcPhase === "finishing";
  }

  get availableBuckets(): number {
    return this.#available;
  }

  /** The greatest distance of any bucket's generation from its oldest pointer. */
  get needGc(): number {
    return this.#needGc;
  }

  get minPriority(): number {
    return this.#minPriority;
  }

  /** Percent of buckets that hold something that cannot simply be dropped, or may. */
  inUsePercent(): number {
    return Math.floor((this.bucketCount - this.#available) * 100 / this.bucketCount);
  }

  /** Whether `bucket` can be allocated at all; to check pointers of untrusted keys. */
  isAllocatable(bucket: number): boolean {
    return bucket >= this.firstBucket && bucket < this.bucketCount;
  }

  // --- Use ---

  /** Forbids the invalidation of `bucket` until the matching `unpin`. */
  pin(bucket: number): void {
    this.#assertBucket(bucket);
    assert(this.pins[bucket]! < PINS_MAX, "a bucket's pins fit 16 bits");
    this.pins[bucket]!++;
  }

  unpin(bucket: number): void {
    this.#assertBucket(bucket);
    assert(this.pins[bucket]! > 0, "an unpinned bucket was pinned");
    assert((this.#flags[bucket]! & FLAG_HELD) === 0, "only the allocator unpins what it holds");
    this.pins[bucket]!--;
  }

  /** A cache hit: `bucket` is as recently used as one just written. */
  touch(bucket: number): void {
    this.priority[bucket] = PRIO_INITIAL;
  }

  /** How stale a pointer with generation `gen` into `bucket` is; 0: it is good. */
  staleness(bucket: number, gen: number): number {
    return genAfter(this.gen[bucket]!, gen);
  }

  /** How far `bucket` has run ahead of its oldest pointer. */
  gcGen(bucket: number): number {
    return (this.gen[bucket]! - this.lastGc[bucket]!) & 0xff;
  }

  /** Makes every pointer to `bucket` stale (a freed b-tree node). Returns the new generation. */
  bumpGen(bucket: number): number {
    this.#assertBucket(bucket);
    const before = this.gen[bucket]!;
    const gen = (before + 1) & 0xff;
    if (this.#raisedSince !== undefined && !this.#raisedSince.has(bucket)) {
      this.#raisedSince.set(bucket, before);
    }
    this.gen[bucket] = gen;
    const distance = this.gcGen(bucket);
    if (distance > this.#needGc) this.#needGc = distance;
    if (distance > this.#needGcCounted) this.#needGcCounted = distance;
    return gen;
  }

  /**
   * From now until `endGenWatch`, the result collects every bucket whose generation is raised, with
   * the generation it had at this moment. One watch at a time.
   */
  watchGens(): ReadonlyMap<number, number> {
    assert(this.#raisedSince === undefined, "generations are watched by one");
    this.#raisedSince = new Map();
    return this.#raisedSince;
  }

  endGenWatch(): void {
    this.#raisedSince = undefined;
  }

  /** Marks `bucket` for moving: whatever points there will be copied elsewhere. */
  setMove(bucket: number, move: boolean): void {
    this.#setFlag(bucket, FLAG_MOVE, move);
  }

  isMoving(bucket: number): boolean {
    return (this.#flags[bucket]! & FLAG_MOVE) !== 0;
  }

  // --- Allocation: called by the allocator ---

  canInvalidate(bucket: number): boolean {
    if (this.pins[bucket]! !== 0 || this.mark[bucket]! > MARK.reclaimable) return false;
    if (!this.#isMarkKnown(bucket) && (this.#flags[bucket]! & FLAG_RECLAIMABLE_IN_GC) === 0) {
      return false;
    }
    return this.gcGen(bucket) < GENERATION_LIMIT;
  }

  /** Whether the mark of `bucket` says all that is in it. */
  #isMarkKnown(bucket: number): boolean {
    const phase = this.#gcPhase;
    if (phase === "beginning") return bucket >= this.#gcCursor;
    return phase !== "marking";
  }

  /**
   * Drops what `bucket` holds and gives it to the allocator, pinned. It must not be written before
   * its new generation is on disk, unless nothing on disk points to it.
   */
  invalidate(bucket: number): void {
    this.#assertBucket(bucket);
    assert(this.canInvalidate(bucket), "an invalidated bucket holds nothing that is needed");
    this.bumpGen(bucket);
    this.priority[bucket] = PRIO_INITIAL;
    this.mark[bucket] = MARK.none;
    this.sectorsUsed[bucket] = 0;
    this.pins[bucket] = 1;
    this.#flags[bucket] = (this.#flags[bucket]! & FLAG_AVAILABLE) | FLAG_HELD;
    this.#setAvailable(bucket, true);
  }

  /** Hands a held bucket out: the allocator's pin becomes the caller's. */
  take(bucket: number, asMetadata: boolean): void {
    this.#assertBucket(bucket);
    assert((this.#flags[bucket]! & FLAG_HELD) !== 0, "a bucket is taken from the allocator");
    assert(this.pins[bucket]! === 1, "a held bucket is pinned once");
    this.#setAvailable(bucket, false);
    this.#flags[bucket] = 0;
    // The whole bucket counts as used: by an open bucket it soon will be.
    this.sectorsUsed[bucket] = this.bucketSectors;
    this.mark[bucket] = asMetadata ? MARK.metadata : MARK.reclaimable;
    this.priority[bucket] = asMetadata ? PRIO_BTREE : PRIO_INITIAL;
  }

  /** The reverse of `take`, for a bucket that nothing came to point to; its pin is taken over. */
  giveBack(bucket: number): void {
    this.#assertBucket(bucket);
    assert((this.#flags[bucket]! & FLAG_HELD) === 0, "a bucket is given back by who took it");
    assert(this.pins[bucket]! === 1, "a bucket given back is pinned once, by its owner");
    this.mark[bucket] = MARK.none;
    this.sectorsUsed[bucket] = 0;
    this.priority[bucket] = PRIO_INITIAL;
    this.#flags[bucket] = (this.#flags[bucket]! & FLAG_AVAILABLE) | FLAG_HELD;
    this.#setAvailable(bucket, true);
  }

  /** Nothing needs `bucket` any more. Its generation and pins stay; invalidation does the rest. */
  release(bucket: number): void {
    this.#assertBucket(bucket);
    assert((this.#flags[bucket]! & FLAG_HELD) === 0, "a released bucket was in use");
    this.mark[bucket] = MARK.none;
    this.sectorsUsed[bucket] = 0;
    this.#setAvailable(bucket, true);
  }

  // --- Ageing ---

  /**
   * Counts `sectors` of requests that did not bypass the cache. Per 1/1024 of the cache's size,
   * every bucket in use, unpinned and not metadata, loses one of priority. The kernel stops to go
   * over all buckets at once; here each call does its share.
   */
  rescale(sectors: number): void {
    this.requestsSeen++;
    this.#ageingCreditSectors -= sectors;
    if (this.#ageingCreditSectors < 0) this.#age();
  }

  get #sectorsPerAgedBucket(): number {
    return this.bucketSectors / 1024;
  }

  #age(): void {
    // One request never ages a bucket twice, however small the cache.
    let left = this.bucketCount - this.firstBucket;
    while (this.#ageingCreditSectors < 0 && left > 0) {
      const end = Math.min(
        this.#ageingCursor + Math.min(AGEING_SLICE_BUCKETS, left),
        this.bucketCount,
      );
      left -= end - this.#ageingCursor;
      this.#ageingCreditSectors += (end - this.#ageingCursor) * this.#sectorsPerAgedBucket;
      this.#ageUpTo(end);
    }
    if (this.#ageingCreditSectors < 0) this.#ageingCreditSectors = 0;
  }

  #ageUpTo(end: number): void {
    const { priority, pins } = this;
    let least = this.#ageingMinPriority;
    for (let bucket = this.#ageingCursor; bucket < end; bucket++) {
      const value = priority[bucket]!;
      if (value === 0 || value === PRIO_BTREE || pins[bucket]! !== 0) continue;
      priority[bucket] = value - 1;
      if (value - 1 < least) least = value - 1;
    }
    this.#ageingMinPriority = least;
    if (least < this.#minPriority) this.#minPriority = least;
    this.#ageingCursor = end;
    if (end < this.bucketCount) return;
    // A sweep is complete: its minimum is the new one (0 when there was nothing to age).
    this.#minPriority = least === PRIO_BTREE ? 0 : least;
    this.#ageingMinPriority = PRIO_BTREE;
    this.#ageingCursor = this.firstBucket;
  }

  // --- Marking: called by registration and the collector ---

  /** Takes over what the priorities on disk say of `bucket`. */
  load(bucket: number, priority: number, gen: number): void {
    assert(bucket >= 0 && bucket < this.bucketCount, "priorities are of buckets of the device");
    this.priority[bucket] = priority;
    this.gen[bucket] = gen;
    this.lastGc[bucket] = gen;
  }

  /**
   * Registration met a pointer: a generation ahead of the one on disk is the current one (it was
   * given out and not persisted before the crash). Call before `markPointer`. True: it moved on
   * although the bucket was marked for pointers that are stale now; see `forgetMarks`.
   */
  adoptPointer(bucket: number, gen: number, interior: boolean): boolean {
    this.#assertBucket(bucket);
    if (this.staleness(bucket, gen) > 0) return false;
    const moved = this.gen[bucket] !== gen && this.mark[bucket] !== MARK.none;
    this.gen[bucket] = gen;
    if (interior) this.priority[bucket] = PRIO_BTREE;
    else if (this.priority[bucket] === PRIO_BTREE) this.priority[bucket] = PRIO_INITIAL;
    return moved;
  }

  /** Registration begins to mark anew; what is pinned already is known otherwise. */
  forgetMarks(): void {
    for (let bucket = this.firstBucket; bucket < this.bucketCount; bucket++) {
      if (this.pins[bucket] !== 0) continue;
      this.mark[bucket] = MARK.none;
      this.sectorsUsed[bucket] = 0;
    }
  }

  /**
   * Begins a collection, or goes on beginning it: at most `bucketsMax` buckets, true when all are
   * begun. Until it ends only what was reclaimable now may be invalidated. Nothing may be marked
   * before this has returned true.
   */
  beginGc(bucketsMax: number = Infinity): boolean {
    // Before the first one has finished there is nothing known to remember.
    if (this.#gcPhase === "marking") return true;
    if (this.#gcPhase === "valid") {
      this.#gcPhase = "beginning";
      this.#gcCursor = this.firstBucket;
    }
    assert(this.#gcPhase === "beginning", "a collection begins after the last one has finished");
    // Fields in locals: it is the speed of these two loops that lets slices be large.
    const { gen, lastGc, mark, pins, sectorsUsed } = this;
    const flags = this.#flags;
    const end = Math.min(this.#gcCursor + bucketsMax, this.bucketCount);
    for (let bucket = this.#gcCursor; bucket < end; bucket++) {
      lastGc[bucket] = gen[bucket]!;
      // A pinned bucket's keys may not be in the index yet, so its marks cannot be found again.
      if (pins[bucket] !== 0) continue;
      // As canInvalidate has it: the mark is valid still, and lastGc has just caught up.
      if (mark[bucket]! <= MARK.reclaimable) flags[bucket]! |= FLAG_RECLAIMABLE_IN_GC;
      mark[bucket] = MARK.none;
      sectorsUsed[bucket] = 0;
    }
    this.#gcCursor = end;
    if (end < this.bucketCount) return false;
    this.#gcPhase = "marking";
    return true;
  }

  /** Remembers the oldest generation that a pointer to `bucket` has. */
  noteOldestGen(bucket: number, gen: number): void {
    if (genAfter(this.lastGc[bucket]!, gen) > 0) this.lastGc[bucket] = gen;
  }

  /**
   * Marks `bucket` unless it has a stronger mark. False: the index points to it both as metadata
   * and as data, so the index is damaged; nothing was changed.
   */
  setMark(bucket: number, mark: Mark): boolean {
    this.#assertBucket(bucket);
    const present = this.mark[bucket]!;
    if (present !== MARK.none && (present === MARK.metadata) !== (mark === MARK.metadata)) {
      return false;
    }
    if (mark > present) this.mark[bucket] = mark;
    return true;
  }

  /** Adds to what is used of `bucket`; a bucket is never more than full. */
  addSectorsUsed(bucket: number, sectors: number): void {
    const used = this.sectorsUsed[bucket]! + sectors;
    this.sectorsUsed[bucket] = used > this.bucketSectors ? this.bucketSectors : used;
  }

  /**
   * The collector met a pointer with generation `gen`. Marks its bucket unless it is stale;
   * returns its staleness, or MARK_CONFLICT (see `setMark`).
   */
  markPointer(bucket: number, gen: number, mark: Mark, sectors: number): number {
    this.#assertBucket(bucket);
    this.noteOldestGen(bucket, gen);
    const stale = this.staleness(bucket, gen);
    if (stale > 0) return stale;
    if (!this.setMark(bucket, mark)) return MARK_CONFLICT;
    this.addSectorsUsed(bucket, sectors);
    return 0;
  }

  /**
   * Ends a collection, or the marking at registration, or goes on ending it: at most `bucketsMax`
   * buckets, true when all are counted. Journal, UUID and priority buckets, and buckets that
   * writeback is about to read, must have been marked (`setMark`) just before the first call: from
   * then on every mark is valid.
   */
  finishGc(bucketsMax: number = Infinity): boolean {
    if (this.#gcPhase !== "finishing") {
      assert(this.#gcPhase !== "beginning", "a collection that is finished was begun");
      this.#gcPhase = "finishing";
      this.#gcCursor = this.firstBucket;
      this.#needGcCounted = 0;
    }
    const { gen, lastGc, mark, pins, sectorsUsed } = this;
    const flags = this.#flags;
    const end = Math.min(this.#gcCursor + bucketsMax, this.bucketCount);
    let needGc = this.#needGcCounted;
    let freed = 0;
    let unmarked = 0;
    for (let bucket = this.#gcCursor; bucket < end; bucket++) {
      const distance = (gen[bucket]! - lastGc[bucket]!) & 0xff;
      if (distance > needGc) needGc = distance;
      const before = flags[bucket]!;
      const rest = before & ~(FLAG_RECLAIMABLE_IN_GC | FLAG_AVAILABLE);
      const marked = mark[bucket]!;
      if (marked === MARK.none && sectorsUsed[bucket] !== 0) unmarked++;
      const free = pins[bucket] === 0 ? marked <= MARK.reclaimable : (rest & FLAG_HELD) !== 0;
      flags[bucket] = free ? rest | FLAG_AVAILABLE : rest;
      // The count is exact at every moment, whatever is taken or released between two slices.
      freed += (free ? 1 : 0) - ((before & FLAG_AVAILABLE) !== 0 ? 1 : 0);
    }
    assert(unmarked === 0, "a used bucket has a mark");
    this.#needGcCounted = needGc;
    this.#available += freed;
    this.#gcCursor = end;
    if (end < this.bucketCount) return false;
    this.#needGc = needGc;
    this.#gcPhase = "valid";
    return true;
  }

  /** For tests: throws when the table contradicts itself. */
  checkInvariants(): void {
    let available = 0;
    for (let bucket = 0; bucket < this.bucketCount; bucket++) {
      const flags = this.#flags[bucket]!;
      if ((flags & FLAG_AVAILABLE) !== 0) available++;
      assert(bucket >= this.firstBucket || flags === 0, "reserved buckets have no flags");
      assert(this.mark[bucket]! <= MARK.metadata, "a mark is one of four");
      assert(this.sectorsUsed[bucket]! <= this.bucketSectors, "a bucket is at most full");
      if ((flags & FLAG_HELD) === 0) continue;
      assert(this.pins[bucket] === 1, "a held bucket is pinned once");
      assert(this.mark[bucket] === MARK.none, "a held bucket has no mark");
      assert(this.sectorsUsed[bucket] === 0, "a held bucket is empty");
      assert((flags & FLAG_AVAILABLE) !== 0, "a held bucket is available");
    }
    assert(available === this.#available, "available buckets are counted exactly");
  }

  /** For tests and the allocator's checks. */
  isHeld(bucket: number): boolean {
    return (this.#flags[bucket]! & FLAG_HELD) !== 0;
  }

  #setFlag(bucket: number, flag: number, on: boolean): void {
    this.#assertBucket(bucket);
    if (on) this.#flags[bucket]! |= flag;
    else this.#flags[bucket]! &= ~flag;
  }

  #setAvailable(bucket: number, on: boolean): void {
    if (((this.#flags[bucket]! & FLAG_AVAILABLE) !== 0) === on) return;
    this.#setFlag(bucket, FLAG_AVAILABLE, on);
    this.#available += on ? 1 : -1;
  }

  #assertBucket(bucket: number): void {
    assert(bucket >= this.firstBucket, "a bucket is not below the first");
    assert(bucket < this.bucketCount, "a bucket is below the count");
  }
}
