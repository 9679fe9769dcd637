/**
 * Where data goes on the cache device: the buckets that are being filled. Answers to
 * `bch_alloc_sectors` of alloc.c.
 *
 * Dirty and clean data go into buckets of their own: a bucket with one dirty sector cannot be
 * reused, so clean data must not share it. (Linux keeps streams of writers apart instead.)
 */
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { type BucketTable, MARK } from "../buckets/table.ts";

interface OpenBucket {
  /** -1: none is open. */
  bucket: number;
  sectorsFree: number;
}

/** What was granted; reused by the next call. */
export class Grant {
  bucket = 0;
  gen = 0;
  sector = 0;
  sectors = 0;
}

export class OpenBuckets {
  #buckets: BucketTable;
  #allocator: Allocator;
  #blockSectors: number;
  #dirty: OpenBucket = { bucket: -1, sectorsFree: 0 };
  #clean: OpenBucket = { bucket: -1, sectorsFree: 0 };
  readonly grant: Grant = new Grant();
  /** Sectors handed out since start (`written`). */
  grantedSectors = 0;

  constructor(options: { buckets: BucketTable; allocator: Allocator; blockSectors: number }) {
    this.#buckets = options.buckets;
    this.#allocator = options.allocator;
    this.#blockSectors = options.blockSectors;
  }

  /**
   * Grants up to `sectors` of contiguous space: fills `grant`. False when there is no bucket just
   * now. Each grant pins its bucket until `settle`. Never waits.
   */
  tryAllocate(sectors: number, dirty: boolean): boolean {
    const open = dirty ? this.#dirty : this.#clean;
    if (open.bucket < 0) {
      const bucket = this.#allocator.tryTake(RESERVE.none);
      if (bucket < 0) return false;
      open.bucket = bucket;
      open.sectorsFree = this.#buckets.bucketSectors;
    }
    const { grant } = this;
    const granted = Math.min(sectors, open.sectorsFree);
    grant.bucket = open.bucket;
    grant.gen = this.#buckets.gen[open.bucket]!;
    grant.sector = (open.bucket + 1) * this.#buckets.bucketSectors - open.sectorsFree;
    grant.sectors = granted;
    open.sectorsFree -= granted;
    this.grantedSectors += granted;
    this.#buckets.pin(open.bucket);
    // From now on the bucket holds what exists nowhere else; a collection under way must know.
    if (dirty) this.#buckets.mark[open.bucket] = MARK.dirty;
    if (open.sectorsFree < this.#blockSectors) this.#close(open);
    return true;
  }

  /** The key of a grant is in the index (or was given up). */
  settle(bucket: number): void {
    this.#buckets.unpin(bucket);
  }

  #close(open: OpenBucket): void {
    this.#buckets.unpin(open.bucket);
    open.bucket = -1;
    open.sectorsFree = 0;
  }
}
