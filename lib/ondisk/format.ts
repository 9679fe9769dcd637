/**
 * Formatting, without I/O: the superblock page that makes a device a cache or a backing device,
 * as make-bcache 1.0.8 lays it out. Nothing else is needed: a cache without the SYNC flag gets its
 * journal and index when its set first runs. Buckets beyond 16 MiB take the large_bucket feature
 * (version 5), which Debian's make-bcache does not know but Linux does.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { RUNNING_BUCKETS_MIN, tooFewBuckets } from "./geometry.ts";
import { encodeLabel } from "./label.ts";
import { viewOf, writeU64 } from "./layout.ts";
import {
  CACHE_MODE_BITS,
  type CacheModeName,
  DATA_OFFSET_SECTORS_DEFAULT,
  FEATURE_INCOMPAT,
  PAGE_SECTORS,
  REPLACEMENT_POLICIES,
  type ReplacementPolicy,
  sealSuperblock,
  SUPERBLOCK,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_SECTOR,
  VERSION,
} from "./superblock.ts";
import { isZeroUuid, UUID_BYTES } from "./uuid.ts";

export const BUCKET_SECTORS_DEFAULT = 1024;
/** What make-bcache takes for files; a device with larger sectors needs at least its own. */
export const BLOCK_SECTORS_DEFAULT = 8;
/** The largest power of two in the 16-bit field; beyond it the field holds the logarithm. */
const PLAIN_BUCKET_SECTORS_MAX = 32768;
/** Beyond this a pointer's bucket number and SIZE stop making sense; 1 GiB is ample. */
const BUCKET_SECTORS_MAX = 2 ** 21;

interface CommonOptions {
  /** For messages: the device. */
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly uuid: Uint8Array;
  readonly setUuid: Uint8Array;
  /** Default 8 (4 KiB), or the device's own if larger. */
  readonly blockSectors?: number;
  /** Default 1024 (512 KiB). A backing device only records it. */
  readonly bucketSectors?: number;
  readonly label?: string;
}

export interface FormatCacheOptions extends CommonOptions {
  readonly discard?: boolean;
  readonly replacement?: ReplacementPolicy;
}

export interface FormatBackingOptions extends CommonOptions {
  /** Where data begins, at least 16. */
  readonly dataOffsetSectors?: number;
  readonly cacheMode?: CacheModeName;
}

/** The superblock page of a new cache device. Throws InvalidArgument for what cannot work. */
export function formatCache(options: FormatCacheOptions): Uint8Array<ArrayBuffer> {
  const { blockSectors, bucketSectors } = checkedSizes(options);
  if (blockSectors > PAGE_SECTORS) {
    invalid(options, `block size ${formatSize(blockSectors * 512)}, a cache's is at most 4.0k`);
  }
  const bucketCount = Math.floor(options.sizeSectors / bucketSectors);
  if (bucketCount < RUNNING_BUCKETS_MIN) {
    invalid(options, tooFewBuckets(bucketCount, bucketSectors));
  }
  const isLarge = bucketSectors > PLAIN_BUCKET_SECTORS_MAX;
  const page = begin(options, isLarge ? VERSION.cacheWithFeatures : VERSION.cache, blockSectors);
  const view = viewOf(page);
  if (isLarge) view.setUint32(SUPERBLOCK.feature_incompat, FEATURE_INCOMPAT.largeBucket, true);
  view.setUint16(SUPERBLOCK.bucket_size, isLarge ? Math.log2(bucketSectors) : bucketSectors, true);
  writeU64(view, SUPERBLOCK.nbuckets, bucketCount);
  view.setUint16(SUPERBLOCK.nr_in_set, 1, true);
  // The first 12 KiB (24 sectors) stay free of buckets.
  view.setUint16(SUPERBLOCK.first_bucket, Math.floor(23 / bucketSectors) + 1, true);
  const policy = REPLACEMENT_POLICIES.indexOf(options.replacement ?? "lru");
  view.setUint32(SUPERBLOCK.flags, (options.discard ? 2 : 0) | (policy << 2), true);
  sealSuperblock(page);
  return page;
}

/** The superblock page of a new backing device. Throws InvalidArgument for what cannot work. */
export function formatBacking(options: FormatBackingOptions): Uint8Array<ArrayBuffer> {
  const { blockSectors, bucketSectors } = checkedSizes(options);
  const dataOffset = options.dataOffsetSectors ?? DATA_OFFSET_SECTORS_DEFAULT;
  if (!Number.isSafeInteger(dataOffset) || dataOffset < DATA_OFFSET_SECTORS_DEFAULT) {
    invalid(
      options,
      `data offset ${dataOffset} sectors; choose ${DATA_OFFSET_SECTORS_DEFAULT}` +
        " (8.0k) or more with -o",
    );
  }
  if (dataOffset % blockSectors !== 0) {
    invalid(
      options,
      `data offset ${dataOffset} sectors is not a whole number of blocks of ` +
        `${blockSectors} sectors; choose a multiple with -o`,
    );
  }
  if (options.sizeSectors < dataOffset + blockSectors) {
    invalid(
      options,
      `${options.sizeSectors} sectors leave no room for data behind data offset ` +
        `${dataOffset}; use a larger device`,
    );
  }
  const hasOffset = dataOffset !== DATA_OFFSET_SECTORS_DEFAULT;
  const version = hasOffset ? VERSION.backingWithOffset : VERSION.backing;
  const page = begin(options, version, blockSectors);
  const view = viewOf(page);
  if (hasOffset) writeU64(view, SUPERBLOCK.nbuckets, dataOffset);
  // Recorded as make-bcache does; it means nothing on a backing device.
  const recorded = Math.min(bucketSectors, PLAIN_BUCKET_SECTORS_MAX);
  view.setUint16(SUPERBLOCK.bucket_size, recorded, true);
  const mode = CACHE_MODE_BITS[options.cacheMode ?? "writethrough"];
  view.setUint32(SUPERBLOCK.flags, mode, true);
  sealSuperblock(page);
  return page;
}

function invalid(options: CommonOptions, detail: string): never {
  throw new BcacheError("InvalidArgument", `${options.name}: ${detail}`);
}

function checkedSizes(options: CommonOptions): { blockSectors: number; bucketSectors: number } {
  const blockSectors = options.blockSectors ??
    Math.max(BLOCK_SECTORS_DEFAULT, options.logicalBlockSectors);
  const bucketSectors = options.bucketSectors ?? BUCKET_SECTORS_DEFAULT;
  if (!isPowerOfTwo(blockSectors) || blockSectors > PLAIN_BUCKET_SECTORS_MAX) {
    invalid(
      options,
      `block size ${blockSectors * 512} bytes is not a power of two from 512; ` +
        "choose one with -w, 4k as a rule",
    );
  }
  if (blockSectors < options.logicalBlockSectors) {
    invalid(
      options,
      `block size ${blockSectors * 512} bytes is smaller than the device's own, ` +
        `${options.logicalBlockSectors * 512}; choose at least that with -w`,
    );
  }
  if (!isPowerOfTwo(bucketSectors) || bucketSectors < PAGE_SECTORS) {
    invalid(
      options,
      `bucket size ${bucketSectors * 512} bytes is not a power of two from 4k; ` +
        "choose one with -b, 512k as a rule",
    );
  }
  if (bucketSectors > BUCKET_SECTORS_MAX) {
    invalid(options, `bucket size ${formatSize(bucketSectors * 512)}; choose at most 1G with -b`);
  }
  if (bucketSectors < blockSectors) {
    invalid(
      options,
      `buckets of ${bucketSectors * 512} bytes are smaller than blocks of ` +
        `${blockSectors * 512}; choose a larger -b or a smaller -w`,
    );
  }
  return { blockSectors, bucketSectors };
}

function begin(options: CommonOptions, version: number, blockSectors: number) {
  assert(options.uuid.length === UUID_BYTES, "a device UUID is 16 bytes");
  assert(options.setUuid.length === UUID_BYTES, "a set UUID is 16 bytes");
  // A backing device need not belong to a set yet.
  const isCache = version !== VERSION.backing && version !== VERSION.backingWithOffset;
  if (isZeroUuid(options.uuid) || (isCache && isZeroUuid(options.setUuid))) {
    invalid(options, "a UUID that is all zero stands for none; choose another or leave it out");
  }
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  const view = viewOf(page);
  writeU64(view, SUPERBLOCK.offset, SUPERBLOCK_SECTOR);
  writeU64(view, SUPERBLOCK.version, version);
  page.set(SUPERBLOCK_MAGIC, SUPERBLOCK.magic);
  page.set(options.uuid, SUPERBLOCK.uuid);
  page.set(options.setUuid, SUPERBLOCK.set_uuid);
  page.set(encodeLabel(options.label ?? ""), SUPERBLOCK.label);
  view.setUint16(SUPERBLOCK.block_size, blockSectors, true);
  return page;
}

function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}
