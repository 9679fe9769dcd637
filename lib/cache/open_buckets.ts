/**
 * Where data goes on the cache device: the buckets that are being filled. Answers to
 * `bch_alloc_sectors` of alloc.c.
 *
 * Dirty and clean data go into buckets of their own: a bucket with one dirty sector cannot be
 * reused, so clean data must not share it. Within each kind a write that goes on where an earlier
 * one of its device ended belongs to a stream and gets a bucket for the stream; all else of a
 * device goes to one bucket, so that small writes still lie side by side. (Linux tells streams
 * apart by the task that writes, which a loop device or a virtual machine hides.)
 */
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { type BucketTable, MARK } from "../buckets/table.ts";

/** Buckets open at a time, of either kind. */
export const OPEN_BUCKETS_DEFAULT = 8;
export const OPEN_BUCKETS_MAX = 128;

interface OpenBucket {
  /** -1: none is open. */
  bucket: number;
  sectorsFree: number;
  /** Whose data came here last, and where that ended: what comes next in the stream. */
  inode: number;
  end: number;
  /** Takes only what continues; the other of a device takes whatever comes. */
  isStream: boolean;
  lastUsed: number;
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
  #allocator: Pick<Allocator, "tryTake">;
  #blockSectors: number;
  #dirty: OpenBucket[] = [];
  #clean: OpenBucket[] = [];
  #countMax = OPEN_BUCKETS_DEFAULT;
  #tick = 0;
  readonly grant: Grant = new Grant();
  /** Sectors handed out since start (`written`). */
  grantedSectors = 0;

  constructor(options: {
    buckets: BucketTable;
    allocator: Pick<Allocator, "tryTake">;
    blockSectors: number;
  }) {
    this.#buckets = options.buckets;
    this.#allocator = options.allocator;
    this.#blockSectors = options.blockSectors;
  }

  /** Buckets open at a time, of either kind: 1 to OPEN_BUCKETS_MAX. */
  get countMax(): number {
    return this.#countMax;
  }

  set countMax(count: number) {
    this.#countMax = count;
    for (const list of [this.#dirty, this.#clean]) {
      while (list.length > count) this.#close(list.pop()!);
    }
  }

  /**
   * Grants up to `sectors` of contiguous space for what device `inode` writes at `start`: fills
   * `grant`. False when there is no bucket just now. Each grant pins its bucket until `settle`.
   * Never waits.
   */
  tryAllocate(sectors: number, dirty: boolean, inode = 0, start = -1): boolean {
    const open = this.#choose(dirty ? this.#dirty : this.#clean, inode, start);
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
    open.end = start + granted;
    open.lastUsed = ++this.#tick;
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

  /** The bucket for data of `inode` at `start`; opened, or not yet. */
  #choose(list: OpenBucket[], inode: number, start: number): OpenBucket {
    let scattered: OpenBucket | undefined;
    for (let index = 0; index < list.length; index++) {
      const open = list[index]!;
      if (open.inode !== inode) continue;
      if (open.isStream && open.end === start) return open;
      if (!open.isStream) scattered = open;
    }
    if (scattered === undefined) return this.#add(list, inode, false);
    // What goes on where the last odd write ended is a stream that has just shown itself.
    if (scattered.end === start && start > 0 && this.#countMax > 1) {
      return this.#add(list, inode, true);
    }
    return scattered;
  }

  /** A place for one more; when there are too many, the least recently used one with its bucket. */
  #add(list: OpenBucket[], inode: number, isStream: boolean): OpenBucket {
    if (list.length < this.#countMax) {
      const made = { bucket: -1, sectorsFree: 0, inode, end: -1, isStream, lastUsed: 0 };
      list.push(made);
      return made;
    }
    let oldest = list[0]!;
    for (let index = 1; index < list.length; index++) {
      if (list[index]!.lastUsed < oldest.lastUsed) oldest = list[index]!;
    }
    oldest.inode = inode;
    oldest.end = -1;
    oldest.isStream = isStream;
    return oldest;
  }

  #close(open: OpenBucket): void {
    if (open.bucket >= 0) this.#buckets.unpin(open.bucket);
    open.bucket = -1;
    open.sectorsFree = 0;
  }
}
