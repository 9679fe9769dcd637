/**
 * The superblock: 4096 bytes at byte 4096 of every bcache device, cache or backing.
 *
 * In memory it is a plain object with the fields decoded, plus the page it came from: writing it
 * back changes only what Linux changes and preserves every other byte (encodeSuperblock). Old and
 * new versions (0, 1, 3, 4, 5, 6) are one object; `kind` and the flags say what counts.
 * Kernel: struct cache_sb_disk in bcache_ondisk.h; __write_super in super.c. Reading and its
 * checks are in superblock_verify.ts.
 */
import { assert } from "../base/assert.ts";
import { crc64 } from "../base/crc64.ts";
import { LABEL_BYTES } from "./label.ts";
import { layout, viewOf, writeU64 } from "./layout.ts";

/** The size of the page and where it is. */
export const SUPERBLOCK_BYTES = 4096;
export const SUPERBLOCK_SECTOR = 8;
/** Data of a backing device begins here unless its superblock says otherwise; the minimum, too. */
export const DATA_OFFSET_SECTORS_DEFAULT = 16;
/** Slots for journal buckets. */
export const JOURNAL_BUCKETS_MAX = 256;
/** The kernel's check of the superblock; running needs more, see geometry.ts. */
export const BUCKETS_MIN = 128;
export const CACHES_PER_SET_MAX = 8;
/** bcache counts in pages of 4 KiB here. */
export const PAGE_SECTORS = 8;

/** Byte offsets in the superblock. */
export const SUPERBLOCK = layout("cache_sb", 0x8d8, [
  ["csum", "u64"],
  ["offset", "u64"],
  ["version", "u64"],
  ["magic", "bytes:16"],
  ["uuid", "bytes:16"],
  ["set_uuid", "bytes:16"],
  ["label", "bytes:32"],
  ["flags", "u64"],
  ["seq", "u64"],
  ["feature_compat", "u64"],
  ["feature_incompat", "u64"],
  ["feature_ro_compat", "u64"],
  ["pad", "u64:5"],
  // A cache: nbuckets. A backing device of version 4 or 6: data_offset, in sectors.
  ["nbuckets", "u64"],
  ["block_size", "u16"],
  ["bucket_size", "u16"],
  ["nr_in_set", "u16"],
  ["nr_this_dev", "u16"],
  ["last_mount", "u32"],
  ["first_bucket", "u16"],
  ["keys", "u16"],
  ["d", "u64:256"],
  // Outside the checksum.
  ["obso_bucket_size_hi", "u16"],
  ["tail", "bytes:6"],
]);

/** What marks a bcache superblock, at offset `SUPERBLOCK.magic`. */
export const SUPERBLOCK_MAGIC: readonly number[] = [
  ...[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
  ...[0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81],
];

/** Whether the page carries bcache's magic at all, so that the device is one of ours. */
export function hasSuperblockMagic(page: Uint8Array): boolean {
  return SUPERBLOCK_MAGIC.every((byte, i) => page[SUPERBLOCK.magic + i] === byte);
}

export const VERSION = {
  /** As make-bcache writes it; Linux raises it to 3 with its first write. */
  cache: 0,
  backing: 1,
  cacheWithUuids: 3,
  backingWithOffset: 4,
  cacheWithFeatures: 5,
  backingWithFeatures: 6,
} as const;

/** The incompatible features there are. No compatible or read-only compatible ones exist. */
export const FEATURE_INCOMPAT = {
  /** Obsolete: the bucket size continues in `obso_bucket_size_hi`. Read-only devices only. */
  obsoleteLargeBucket: 0x1,
  /** `bucket_size` is the logarithm. */
  largeBucket: 0x2,
} as const;

/**
 * The incompatible features there are, as sysfs shows them: those of `superblock` in brackets.
 * Versions before the features have none.
 */
export function incompatibleFeatures(superblock: Superblock): string {
  const bits = superblock.version < VERSION.cacheWithFeatures ? 0 : incompatibleBits(superblock);
  const names = [["obso_large_bucket", FEATURE_INCOMPAT.obsoleteLargeBucket], [
    "large_bucket",
    FEATURE_INCOMPAT.largeBucket,
  ]] as const;
  return names.map(([name, bit]) => (bits & bit) !== 0 ? `[${name}]` : name).join(" ");
}

function incompatibleBits({ page }: Superblock): number {
  return new DataView(page.buffer, page.byteOffset).getUint32(SUPERBLOCK.feature_incompat, true);
}

export const REPLACEMENT_POLICIES: readonly ReplacementPolicy[] = ["lru", "fifo", "random"];
export type ReplacementPolicy = "lru" | "fifo" | "random";

/** `flags`, bits 0-3 of a backing device. */
export const CACHE_MODE_BITS = { writethrough: 0, writeback: 1, writearound: 2, none: 3 } as const;
export type CacheModeName = keyof typeof CACHE_MODE_BITS;

/** `flags`, bits 61-62 of a backing device. */
export const BACKING_STATE = { none: 0, clean: 1, dirty: 2, stale: 3 } as const;
export type BackingState = keyof typeof BACKING_STATE;

export interface Superblock {
  readonly kind: "cache" | "backing";
  version: number;
  uuid: Uint8Array;
  /** All zero on a detached backing device. */
  setUuid: Uint8Array;
  /** Raw, 32 bytes; see label.ts. */
  label: Uint8Array;
  flagsLow: number;
  flagsHigh: number;
  /** Incremented with every write of a cache's superblock; 0 on backing devices. */
  sequence: number;
  lastMountSeconds: number;
  /** The unit of journal and b-tree writes, in sectors. */
  readonly blockSectors: number;
  /** The unit of allocation, in sectors; decoded from the feature bits. */
  readonly bucketSectors: number;
  /** All buckets, with the one that holds the superblock. 0 on backing devices. */
  readonly bucketCount: number;
  /** Where a backing device's data begins. 0 on caches. */
  readonly dataOffsetSectors: number;
  readonly cachesInSet: number;
  readonly cacheIndex: number;
  firstBucket: number;
  /** Journal buckets are this many from `firstBucket` on; 0 until the set first ran. */
  journalBucketCount: number;
  /** The device uses the obsolete large-bucket feature: Linux lets it come up read-only. */
  readonly mustBeReadOnly: boolean;
  /** The 4096 bytes it was read from, or that make wrote. */
  readonly page: Uint8Array;
}

/** A cache: whether a valid journal and index exist. If not, Linux discards the contents. */
export function isSynchronous(superblock: Superblock): boolean {
  assert(superblock.kind === "cache", "SYNC is a flag of caches");
  return (superblock.flagsLow & 1) !== 0;
}

export function setSynchronous(superblock: Superblock, on: boolean): void {
  assert(superblock.kind === "cache", "SYNC is a flag of caches");
  superblock.flagsLow = ((superblock.flagsLow & ~1) | (on ? 1 : 0)) >>> 0;
}

/** A cache: whether buckets are discarded when they are reused. */
export function discardsBuckets(superblock: Superblock): boolean {
  assert(superblock.kind === "cache", "DISCARD is a flag of caches");
  return (superblock.flagsLow & 2) !== 0;
}

export function setDiscardsBuckets(superblock: Superblock, on: boolean): void {
  assert(superblock.kind === "cache", "DISCARD is a flag of caches");
  superblock.flagsLow = ((superblock.flagsLow & ~2) | (on ? 2 : 0)) >>> 0;
}

/** A cache's policy; a number without a meaning acts as lru, as in the kernel. */
export function replacementPolicy(superblock: Superblock): ReplacementPolicy {
  assert(superblock.kind === "cache", "REPLACEMENT is a flag of caches");
  return REPLACEMENT_POLICIES[(superblock.flagsLow >>> 2) & 7] ?? "lru";
}

export function setReplacementPolicy(superblock: Superblock, policy: ReplacementPolicy): void {
  assert(superblock.kind === "cache", "REPLACEMENT is a flag of caches");
  const number = REPLACEMENT_POLICIES.indexOf(policy);
  superblock.flagsLow = ((superblock.flagsLow & ~0x1c) | (number << 2)) >>> 0;
}

/** A backing device's mode; undefined for a number without a meaning. */
export function cacheMode(superblock: Superblock): CacheModeName | undefined {
  assert(superblock.kind === "backing", "the cache mode is a flag of backing devices");
  const number = superblock.flagsLow & 0xf;
  const names = Object.keys(CACHE_MODE_BITS) as CacheModeName[];
  return names.find((name) => CACHE_MODE_BITS[name] === number);
}

export function setCacheMode(superblock: Superblock, mode: CacheModeName): void {
  assert(superblock.kind === "backing", "the cache mode is a flag of backing devices");
  superblock.flagsLow = ((superblock.flagsLow & ~0xf) | CACHE_MODE_BITS[mode]) >>> 0;
}

const STATES: readonly BackingState[] = ["none", "clean", "dirty", "stale"];

export function backingState(superblock: Superblock): BackingState {
  assert(superblock.kind === "backing", "the state is a flag of backing devices");
  return STATES[(superblock.flagsHigh >>> 29) & 3]!;
}

export function setBackingState(superblock: Superblock, state: BackingState): void {
  assert(superblock.kind === "backing", "the state is a flag of backing devices");
  const bits = BACKING_STATE[state] << 29;
  superblock.flagsHigh = ((superblock.flagsHigh & ~(3 << 29)) | bits) >>> 0;
}

/**
 * The page to write: a copy of the page that was read with the changeable fields put in, as Linux
 * writes it. A cache of version 0 becomes version 3; the caller counts `sequence` up before.
 * Writes the new checksum. Sizes, block and bucket fields and unknown bytes stay as they were.
 */
export function encodeSuperblock(superblock: Superblock): Uint8Array<ArrayBuffer> {
  assert(superblock.page.length === SUPERBLOCK_BYTES, "a superblock's page is 4096 bytes");
  assert(superblock.label.length === LABEL_BYTES, "a superblock's label is 32 bytes");
  assert(superblock.journalBucketCount <= JOURNAL_BUCKETS_MAX, "at most 256 journal buckets");
  if (superblock.kind === "cache" && superblock.version === VERSION.cache) {
    superblock.version = VERSION.cacheWithUuids;
  }
  const page = new Uint8Array(superblock.page);
  putFields(page, superblock);
  sealSuperblock(page);
  return page;
}

/** Puts every field that Linux rewrites into `page`; the checksum is still to come. */
export function putFields(page: Uint8Array, superblock: Superblock): void {
  const view = viewOf(page);
  writeU64(view, SUPERBLOCK.offset, SUPERBLOCK_SECTOR);
  writeU64(view, SUPERBLOCK.version, superblock.version);
  page.set(superblock.uuid, SUPERBLOCK.uuid);
  page.set(superblock.setUuid, SUPERBLOCK.set_uuid);
  page.set(superblock.label, SUPERBLOCK.label);
  view.setUint32(SUPERBLOCK.flags, superblock.flagsLow, true);
  view.setUint32(SUPERBLOCK.flags + 4, superblock.flagsHigh, true);
  writeU64(view, SUPERBLOCK.seq, superblock.sequence);
  view.setUint32(SUPERBLOCK.last_mount, superblock.lastMountSeconds, true);
  view.setUint16(SUPERBLOCK.first_bucket, superblock.firstBucket, true);
  if (superblock.kind === "backing") return; // Its `keys` and `d` mean nothing and stay.
  view.setUint16(SUPERBLOCK.keys, superblock.journalBucketCount, true);
  for (let i = 0; i < superblock.journalBucketCount; i++) {
    writeU64(view, SUPERBLOCK.d + 8 * i, superblock.firstBucket + i);
  }
}

/** The end of what the checksum covers, from the page's own `keys`, which may be too many. */
export function checksumEnd(page: Uint8Array): number {
  return SUPERBLOCK.d + 8 * viewOf(page).getUint16(SUPERBLOCK.keys, true);
}

/** Writes the checksum of a complete page. */
export function sealSuperblock(page: Uint8Array): void {
  const view = viewOf(page);
  const sum = new Uint32Array(2);
  crc64(page, 8, checksumEnd(page), sum);
  view.setUint32(SUPERBLOCK.csum, sum[0]!, true);
  view.setUint32(SUPERBLOCK.csum + 4, sum[1]!, true);
}
