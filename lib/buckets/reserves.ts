/**
 * How large the lists of free buckets are, and who may take from which.
 *
 * They live in memory only, so they need not be the kernel's; they must let every step of the
 * engine go on that another one waits for:
 * - PRIO holds exactly what one round of writing priorities takes, and nobody else takes from it:
 *   the allocator is what refills everything, so it must never wait for buckets itself.
 * - BTREE feeds splits, the root's growth and the collector while data has used up everything.
 * - MOVINGGC lets moving collection free more than it takes.
 * - NONE is what data takes from, and every other after it has run out of nothing better: it is
 *   asked first, which keeps the reserves for when they are needed.
 *
 * Linux: RESERVE_* in bcache.h and cache_alloc in super.c.
 */
import { assert } from "../base/assert.ts";

export const RESERVE = { btree: 0, prio: 1, movingGc: 2, none: 3 } as const;
export type Reserve = (typeof RESERVE)[keyof typeof RESERVE];
export const RESERVE_NAMES = ["btree", "prio", "movingGc", "none"] as const;

export interface ReserveSizes {
  readonly btree: number;
  readonly prio: number;
  readonly movingGc: number;
  readonly none: number;
  /** Buckets invalidated in one round, all made usable by one write of priorities. */
  readonly pending: number;
}

/** The sizes for a device of `bucketCount` buckets that takes `prioSetCount` prio_sets. */
export function reserveSizes(bucketCount: number, prioSetCount: number): ReserveSizes {
  assert(prioSetCount >= 1, "priorities take at least one set");
  // The kernel's unit: a thousandth of the next power of two.
  const unit = Math.max(1, 2 ** Math.ceil(Math.log2(bucketCount)) >>> 10);
  // A round costs two device flushes, up to 20 ms. While it runs, writers live on NONE: 500
  // buckets a second use up 10; a thirty-second of the buckets is at least 16, and 4096 are
  // enough for any device. Together both lists hold back 6 % of the smallest cache's buckets.
  const data = Math.max(unit, Math.min(bucketCount >>> 5, 4096));
  return {
    // A split through a tree of three levels takes 5, and the collector 4 at a time. 32 are good
    // for 1024 buckets and more; of 513 they would be 6 %, so a small cache keeps back 3 %.
    btree: Math.max(16, Math.min(bucketCount >>> 5, 32), Math.min(bucketCount >>> 7, 256)),
    prio: prioSetCount,
    movingGc: unit,
    none: data,
    // A round must more than replace the prio_sets it wrote, or it would lead nowhere.
    pending: Math.max(data, 2 * prioSetCount),
  };
}
