/**
 * The replacement policies: which buckets to drop next. A policy takes buckets one by one until
 * enough are taken; when that cannot be, it asks for a collection.
 *
 * A policy is a generator that pauses every PAUSE_BUCKETS buckets: a cache of millions of buckets
 * is looked over without holding up requests. What was seen before a pause is checked again.
 *
 * Linux: invalidate_buckets_{lru,fifo,random} in alloc.c. Random here ends with one round over
 * all buckets, so that a policy that gives up has really found nothing more.
 */
import { assert } from "../base/assert.ts";
import { CheapestHeap } from "../base/heap.ts";
import type { Random } from "../base/runtime.ts";
import { PRIO_INITIAL } from "../ondisk/prio_set.ts";
import type { BucketTable } from "./table.ts";

/** Well below a millisecond of looking at buckets. */
const PAUSE_BUCKETS = 4096;

/** What a policy works on. */
export interface Invalidation {
  readonly table: BucketTable;
  readonly random: Random;
  /** The bucket that fifo looks at next; any number is good, the policy keeps it in range. */
  fifoCursor: number;
  /** How many more buckets are wanted. */
  wanted(): number;
  /** Drops what `bucket` holds (it can be invalidated) and lowers `wanted` by one. */
  take(bucket: number): void;
  /** Not enough was found: only a collection can find more. */
  needGc(): void;
}

/** Runs until it is done; each `yield` is a good moment to let other work run. */
export type ReplacementPolicy = (work: Invalidation) => Generator<void, void>;

/** The policies by the names that people and the superblock (0, 1, 2) know. */
export const REPLACEMENT_POLICIES = {
  lru: invalidateLru,
  fifo: invalidateFifo,
  random: invalidateRandom,
} as const satisfies Record<string, ReplacementPolicy>;
export type ReplacementPolicyName = keyof typeof REPLACEMENT_POLICIES;

/**
 * What dropping `bucket` would cost: how much it holds, weighed by how recently it was used. The
 * eighth of the priority range is added so that the least recently used ones, too, are told apart
 * by what they hold. An empty bucket costs nothing.
 */
export function evictionCost(table: BucketTable, bucket: number): number {
  const least = table.minPriority;
  const recency = Math.max(0, table.priority[bucket]! - least);
  return (recency + ((PRIO_INITIAL - least) >>> 3)) * table.sectorsUsed[bucket]!;
}

/** The cheapest first; of equals the lowest numbered. */
export function* invalidateLru(work: Invalidation): Generator<void, void> {
  const { table } = work;
  const heap = new CheapestHeap(work.wanted());
  let pauseIn = PAUSE_BUCKETS;
  for (let bucket = table.firstBucket; bucket < table.bucketCount; bucket++) {
    if (table.canInvalidate(bucket)) heap.offer(bucket, evictionCost(table, bucket));
    if (--pauseIn === 0) {
      pauseIn = PAUSE_BUCKETS;
      yield;
    }
  }
  for (const bucket of heap.drain()) {
    // It may have been pinned or marked during a pause.
    if (table.canInvalidate(bucket)) work.take(bucket);
  }
  if (work.wanted() > 0) work.needGc();
}

/** Round and round; gives up after a whole round. */
export function* invalidateFifo(work: Invalidation): Generator<void, void> {
  const { table } = work;
  const count = table.bucketCount - table.firstBucket;
  for (let checked = 0; work.wanted() > 0; checked++) {
    if (checked === count) {
      work.needGc();
      return;
    }
    if (!table.isAllocatable(work.fifoCursor)) work.fifoCursor = table.firstBucket;
    const bucket = work.fifoCursor++;
    if (table.canInvalidate(bucket)) work.take(bucket);
    if (checked % PAUSE_BUCKETS === PAUSE_BUCKETS - 1) yield;
  }
}

/** Any; after as many misses as half the buckets, the next ones from a random place on. */
export function* invalidateRandom(work: Invalidation): Generator<void, void> {
  const { table } = work;
  for (let draws = table.bucketCount >>> 1; draws > 0 && work.wanted() > 0; draws--) {
    const bucket = randomBucket(work);
    if (table.canInvalidate(bucket)) work.take(bucket);
    if (draws % PAUSE_BUCKETS === 0) yield;
  }
  if (work.wanted() === 0) return;
  const start = randomBucket(work);
  const count = table.bucketCount - table.firstBucket;
  for (let offset = 0; offset < count && work.wanted() > 0; offset++) {
    const bucket = table.firstBucket + (start - table.firstBucket + offset) % count;
    if (table.canInvalidate(bucket)) work.take(bucket);
    if (offset % PAUSE_BUCKETS === PAUSE_BUCKETS - 1) yield;
  }
  if (work.wanted() > 0) work.needGc();
}

function randomBucket({ table, random }: Invalidation): number {
  const draw = random.nextU32();
  assert(draw >= 0 && draw <= 0xffff_ffff, "a random number has 32 bits");
  const count = table.bucketCount - table.firstBucket;
  return table.firstBucket + Math.floor(draw / 0x1_0000_0000 * count);
}
