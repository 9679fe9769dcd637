/**
 * Everything about the layout of a cache device that follows from its superblock: sizes of the
 * metadata structures, where the journal lies, how many buckets a set of priorities describes.
 * Fixed for the life of a set; computed once, shared by all of the engine.
 * Kernel: run_cache_set, cache_alloc and bch_cache_set_alloc in super.c; meta_bucket_bytes and
 * btree_pages in bcache.h.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { priosPerSet } from "./prio_set.ts";
import { JOURNAL_BUCKETS_MAX, type Superblock } from "./superblock.ts";
import { UUID_ENTRY_BYTES } from "./uuid_entry.ts";

const SECTOR_BYTES = 512;
/** The least with which a set can run: a heap of one entry per 1024 buckets must not be empty. */
export const RUNNING_BUCKETS_MIN = 513;
/** More than this fit in no memory: the engine keeps 12 bytes a bucket, so 12 GiB. */
export const RUNNING_BUCKETS_MAX = 2 ** 30;
/** Metadata uses at most this much of a bucket: MAX_ORDER_NR_PAGES pages on x86-64. */
const META_BYTES_MAX = 4 * 1024 * 1024;
/** Meta areas up to this size are whole b-tree nodes; of larger ones a node is a quarter. */
const NODE_BYTES_LIMIT = 256 * 1024;

export interface Geometry {
  /** The unit of journal and b-tree writes. */
  readonly blockSectors: number;
  readonly blockBytes: number;
  /** The unit of allocation. Bucket n begins at sector n * bucketSectors. */
  readonly bucketSectors: number;
  readonly bucketBytes: number;
  /** All buckets, with those before `firstBucket`. */
  readonly bucketCount: number;
  readonly firstBucket: number;
  /** What metadata (priorities, the UUID table) uses of a bucket. */
  readonly metaBytes: number;
  /** The size of new b-tree nodes. Read a node with the SIZE of the key that points to it. */
  readonly nodeSectors: number;
  readonly nodeBytes: number;
  /** Blocks in a node. */
  readonly nodeBlocks: number;
  /** Buckets described by one prio_set. */
  readonly priosPerSet: number;
  readonly prioSetCount: number;
  /** Slots of the UUID table. */
  readonly uuidEntryCount: number;
  /** Journal buckets as the superblock has them; a new set gets `newJournalBucketCount`. */
  readonly journalBucketCount: number;
  readonly newJournalBucketCount: number;
  /** The cache's number in its set: DEV of its pointers. */
  readonly cacheIndex: number;
}

/**
 * The geometry of a cache with this superblock. Throws BadFormat for a device with too few buckets
 * to run, which Linux refuses as well, and NotSupported for one with more than memory can hold.
 */
export function geometryOf(superblock: Superblock, name: string): Geometry {
  assert(superblock.kind === "cache", "only caches have a geometry");
  const { bucketCount, bucketSectors, blockSectors } = superblock;
  if (bucketCount < RUNNING_BUCKETS_MIN) {
    throw new BcacheError("BadFormat", `${name}: ${tooFewBuckets(bucketCount, bucketSectors)}`);
  }
  if (bucketCount > RUNNING_BUCKETS_MAX) {
    throw new BcacheError(
      "NotSupported",
      `${name}: superblock: ${bucketCount} buckets, expected at most ${RUNNING_BUCKETS_MAX}; ` +
        "make a cache of this size with larger buckets (-b)",
    );
  }
  const bucketBytes = bucketSectors * SECTOR_BYTES;
  const metaBytes = Math.min(bucketBytes, META_BYTES_MAX);
  const nodeBytes = nodeBytesOf(metaBytes);
  const perSet = priosPerSet(metaBytes);
  const geometry: Geometry = {
    blockSectors,
    blockBytes: blockSectors * SECTOR_BYTES,
    bucketSectors,
    bucketBytes,
    bucketCount,
    firstBucket: superblock.firstBucket,
    metaBytes,
    nodeSectors: nodeBytes / SECTOR_BYTES,
    nodeBytes,
    nodeBlocks: nodeBytes / (blockSectors * SECTOR_BYTES),
    priosPerSet: perSet,
    prioSetCount: Math.ceil(bucketCount / perSet),
    uuidEntryCount: Math.floor(metaBytes / UUID_ENTRY_BYTES),
    journalBucketCount: superblock.journalBucketCount,
    newJournalBucketCount: newJournalBucketCount(bucketCount),
    cacheIndex: superblock.cacheIndex,
  };
  assert(Number.isInteger(geometry.nodeBlocks), "a node is a whole number of blocks");
  return geometry;
}

/** What to tell somebody whose device has too few buckets. */
export function tooFewBuckets(bucketCount: number, bucketSectors: number): string {
  const bytes = bucketSectors * SECTOR_BYTES;
  const found = `${bucketCount} buckets of ${formatSize(bytes)}`;
  const need = `a cache needs ${RUNNING_BUCKETS_MIN}, ${formatSize(RUNNING_BUCKETS_MIN * bytes)}`;
  return `${found}, but ${need}; make it larger or its buckets smaller (-b)`;
}

function nodeBytesOf(metaBytes: number): number {
  return metaBytes <= NODE_BYTES_LIMIT ? metaBytes : Math.max(metaBytes / 4, NODE_BYTES_LIMIT);
}

/** Journal buckets of a new set with so many buckets. */
export function newJournalBucketCount(bucketCount: number): number {
  return Math.min(Math.max(Math.floor(bucketCount / 128), 2), JOURNAL_BUCKETS_MAX);
}

/** The bucket that journal index `index` lies in. */
export function journalBucket(geometry: Geometry, index: number): number {
  return geometry.firstBucket + index;
}
