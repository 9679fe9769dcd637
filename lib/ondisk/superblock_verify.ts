/**
 * Reading a superblock: every check that Linux makes, in its order (only the magic goes before the
 * offset, for a better message), with a reason for each, then the decoded object. Any 4096 bytes
 * may be given; the outcome is a superblock or a fault.
 * Kernel: read_super, read_super_common and get_bucket_size in super.c.
 *
 * Stricter than Linux in a few places, where Linux fails later or not at all: more journal buckets
 * than slots are refused before the checksum (which would run past the page), a bucket must be left
 * behind the journal, a backing device's block size must be a power of two and its data must begin
 * before its end, and the write sequence must be a number that can be counted on from.
 */
import { BcacheError, type ErrorCode } from "../base/errors.ts";
import { crc64, hex64 } from "../base/crc64.ts";
import { LABEL_BYTES } from "./label.ts";
import { readU64, SEQUENCE_MAX, viewOf } from "./layout.ts";
import {
  BUCKETS_MIN,
  CACHES_PER_SET_MAX,
  checksumEnd,
  DATA_OFFSET_SECTORS_DEFAULT,
  FEATURE_INCOMPAT,
  hasSuperblockMagic,
  JOURNAL_BUCKETS_MAX,
  PAGE_SECTORS,
  SUPERBLOCK,
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
  VERSION,
} from "./superblock.ts";
import { isZeroUuid, UUID_BYTES } from "./uuid.ts";

export { hasSuperblockMagic };

/** What the checks need to know of the device the page was read from. */
export interface SuperblockPlace {
  /** For messages. */
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
}

/** Why a page is not a superblock that can be used. */
export interface SuperblockFault {
  readonly code: ErrorCode;
  /** Found, expected, and what to do: the end of a sentence. */
  readonly detail: string;
}

/** Decodes `page` (4096 bytes; copied) or throws a BcacheError that begins with the device. */
export function decodeSuperblock(page: Uint8Array, place: SuperblockPlace): Superblock {
  const fault = verifySuperblock(page, place);
  if (fault) throw new BcacheError(fault.code, `${place.name}: superblock: ${fault.detail}`);
  const view = viewOf(page);
  const version = readU64(view, SUPERBLOCK.version);
  const isBacking = kindOfVersion(version) === "backing";
  return {
    kind: isBacking ? "backing" : "cache",
    version,
    uuid: page.slice(SUPERBLOCK.uuid, SUPERBLOCK.uuid + UUID_BYTES),
    setUuid: page.slice(SUPERBLOCK.set_uuid, SUPERBLOCK.set_uuid + UUID_BYTES),
    label: page.slice(SUPERBLOCK.label, SUPERBLOCK.label + LABEL_BYTES),
    flagsLow: view.getUint32(SUPERBLOCK.flags, true),
    flagsHigh: view.getUint32(SUPERBLOCK.flags + 4, true),
    sequence: readU64(view, SUPERBLOCK.seq),
    lastMountSeconds: view.getUint32(SUPERBLOCK.last_mount, true),
    blockSectors: view.getUint16(SUPERBLOCK.block_size, true),
    bucketSectors: decodeBucketSectors(view, version),
    bucketCount: isBacking ? 0 : readU64(view, SUPERBLOCK.nbuckets),
    dataOffsetSectors: isBacking ? decodeDataOffset(view, version) : 0,
    cachesInSet: view.getUint16(SUPERBLOCK.nr_in_set, true),
    cacheIndex: view.getUint16(SUPERBLOCK.nr_this_dev, true),
    firstBucket: view.getUint16(SUPERBLOCK.first_bucket, true),
    journalBucketCount: isBacking ? 0 : view.getUint16(SUPERBLOCK.keys, true),
    mustBeReadOnly: version === VERSION.cacheWithFeatures &&
      (incompatBits(view) & FEATURE_INCOMPAT.obsoleteLargeBucket) !== 0,
    page: page.slice(),
  };
}

/** The first check that `page` fails, in the kernel's order; undefined when it is good. */
export function verifySuperblock(
  page: Uint8Array,
  place: SuperblockPlace,
): SuperblockFault | undefined {
  if (page.length !== SUPERBLOCK_BYTES) {
    return bad(`${page.length} bytes, expected ${SUPERBLOCK_BYTES}`);
  }
  const view = viewOf(page);
  const fault = verifyCommon(page, view, place);
  if (fault) return fault;
  const version = readU64(view, SUPERBLOCK.version);
  switch (kindOfVersion(version)) {
    case "backing":
      return verifyBacking(view, version, place);
    case "cache":
      if (version === VERSION.cacheWithFeatures) {
        const unknown = unknownFeatures(view);
        if (unknown) return unknown;
      }
      return verifyCache(page, view, version, place);
    default:
      return {
        code: "NotSupported",
        detail: `version ${version}, expected 0, 1, 3, 4, 5 or 6; a newer program wrote it`,
      };
  }
}

/** Why a sound superblock's cache set cannot be run; undefined when it can. */
export function severalCachesFault(
  superblock: Superblock,
): { what: string; found: string; expected: string; advice: string } | undefined {
  const { cachesInSet, cacheIndex } = superblock;
  if (cachesInSet === 1 && cacheIndex === 0) return undefined;
  return {
    what: "belongs to a set of several cache devices, which nobody can run",
    found: `device ${cacheIndex} of ${cachesInSet}`,
    expected: "device 0 of 1",
    advice: "the superblock is damaged: restore sector 8 from a copy",
  };
}

/**
 * Why a backing device with blocks of `blockSectors` cannot be used through a cache with blocks of
 * `ofCache`: what the cache has of it could be no whole blocks of its own. Undefined: it can.
 */
export function smallBlocksFault(
  blockSectors: number,
  ofCache: number,
): { what: string; found: string; expected: string; advice: string } | undefined {
  if (blockSectors >= ofCache) return undefined;
  return {
    what: "its blocks are smaller than the cache's, so it cannot be attached",
    found: `${blockSectors * 512} bytes`,
    expected: `${ofCache * 512} or more`,
    advice:
      `make the cache with -w ${blockSectors * 512}; if they were used together, one of the ` +
      "superblocks is damaged: restore it from a copy",
  };
}

/** Of keys that lie before a backing device's data offset. Nothing ever has such keys. */
export const BEFORE_DATA =
  "the cache holds data of the part before the device's data, where the superblock is";

/** Which kind of device has a superblock of this version; undefined for unknown versions. */
export function kindOfVersion(version: number): "cache" | "backing" | undefined {
  switch (version) {
    case VERSION.cache:
    case VERSION.cacheWithUuids:
    case VERSION.cacheWithFeatures:
      return "cache";
    case VERSION.backing:
    case VERSION.backingWithOffset:
    case VERSION.backingWithFeatures:
      return "backing";
    default:
      return undefined;
  }
}

/** What can be done about numbers that nothing ever wrote. */
const DAMAGED = "the superblock is damaged: restore sector 8 from a copy, or save what can be " +
  "read with `extract --rescue`";

/** Every fault says what to do; mostly there is one thing. */
function bad(found: string, advice: string = DAMAGED): SuperblockFault {
  return { code: "BadFormat", detail: `${found}; ${advice}` };
}

function verifyCommon(
  page: Uint8Array,
  view: DataView,
  place: SuperblockPlace,
): SuperblockFault | undefined {
  const offset = readU64(view, SUPERBLOCK.offset);
  if (!hasSuperblockMagic(page)) {
    return bad(
      "no bcache magic at byte 4120: not a bcache device, or its superblock was overwritten",
      "check the path, restore the superblock from a copy, or save what can be read with " +
        "`extract --rescue`; format it with `make` only if it never was one",
    );
  }
  if (offset !== SUPERBLOCK_SECTOR) {
    return bad(`it says it lives at sector ${offset}, expected ${SUPERBLOCK_SECTOR}`);
  }
  const keys = view.getUint16(SUPERBLOCK.keys, true);
  if (keys > JOURNAL_BUCKETS_MAX) {
    return bad(`${keys} journal buckets, expected at most ${JOURNAL_BUCKETS_MAX}`);
  }
  const sum = new Uint32Array(2);
  crc64(page, 8, checksumEnd(page), sum);
  const low = view.getUint32(SUPERBLOCK.csum, true);
  const high = view.getUint32(SUPERBLOCK.csum + 4, true);
  if (low !== sum[0] || high !== sum[1]) {
    const found = `checksum 0x${hex64(low, high)}, expected 0x${hex64(sum[0]!, sum[1]!)}`;
    return { code: "BadChecksum", detail: `${found}; ${DAMAGED}` };
  }
  if (isZeroUuid(page.subarray(SUPERBLOCK.uuid, SUPERBLOCK.uuid + UUID_BYTES))) {
    return bad("the device's UUID is all zero");
  }
  const sequence = readU64(view, SUPERBLOCK.seq);
  if (sequence > SEQUENCE_MAX) {
    return bad(`write sequence ${sequence}, expected at most 2^52`);
  }
  const blockSectors = view.getUint16(SUPERBLOCK.block_size, true);
  if (blockSectors === 0) return bad("block size 0 sectors");
  if (blockSectors < place.logicalBlockSectors) {
    const found = `block size ${blockSectors} sectors, smaller than the device's own`;
    return bad(`${found} (${place.logicalBlockSectors})`, "format it again with a larger -w");
  }
  return undefined;
}

function verifyBacking(
  view: DataView,
  version: number,
  place: SuperblockPlace,
): SuperblockFault | undefined {
  const dataOffset = decodeDataOffset(view, version);
  if (dataOffset < DATA_OFFSET_SECTORS_DEFAULT) {
    return bad(
      `data offset ${dataOffset} sectors, expected ${DATA_OFFSET_SECTORS_DEFAULT} or more`,
    );
  }
  if (dataOffset >= place.sizeSectors) {
    return bad(
      `data offset ${dataOffset} sectors, but the device ends at ${place.sizeSectors}`,
      "if it was cut short, restore its length; if not, the superblock is damaged: restore " +
        "sector 8 from a copy",
    );
  }
  const blockSectors = view.getUint16(SUPERBLOCK.block_size, true);
  if (!isPowerOfTwo(blockSectors)) {
    return bad(`block size ${blockSectors} sectors, expected a power of two`);
  }
  return undefined;
}

function verifyCache(
  page: Uint8Array,
  view: DataView,
  version: number,
  place: SuperblockPlace,
): SuperblockFault | undefined {
  const bucketCount = readU64(view, SUPERBLOCK.nbuckets);
  if (bucketCount < BUCKETS_MIN) {
    return bad(`${bucketCount} buckets, expected at least ${BUCKETS_MIN}`);
  }
  const blockSectors = view.getUint16(SUPERBLOCK.block_size, true);
  if (!isPowerOfTwo(blockSectors) || blockSectors > PAGE_SECTORS) {
    return bad(`block size ${blockSectors} sectors, expected a power of two up to ${PAGE_SECTORS}`);
  }
  const bucketSectors = decodeBucketSectors(view, version);
  if (!isPowerOfTwo(bucketSectors) || bucketSectors < PAGE_SECTORS) {
    const expected = `expected a power of two from ${PAGE_SECTORS}`;
    return bad(`bucket size ${bucketSectors} sectors, ${expected}`);
  }
  if (bucketCount * bucketSectors > place.sizeSectors) {
    const need = `${bucketCount} buckets of ${bucketSectors} sectors`;
    return bad(
      `${need}, but the device has only ${place.sizeSectors} sectors: it was cut short`,
      "restore all of it from a copy, or save what is left with `extract --rescue`",
    );
  }
  if (isZeroUuid(page.subarray(SUPERBLOCK.set_uuid, SUPERBLOCK.set_uuid + UUID_BYTES))) {
    return bad("the cache set's UUID is all zero");
  }
  const inSet = view.getUint16(SUPERBLOCK.nr_in_set, true);
  const index = view.getUint16(SUPERBLOCK.nr_this_dev, true);
  if (inSet < 1 || inSet > CACHES_PER_SET_MAX || index >= inSet) {
    return bad(`cache number ${index} of ${inSet}, expected at most ${CACHES_PER_SET_MAX} caches`);
  }
  return verifyJournalBuckets(view, bucketCount, bucketSectors);
}

function verifyJournalBuckets(
  view: DataView,
  bucketCount: number,
  bucketSectors: number,
): SuperblockFault | undefined {
  const firstBucket = view.getUint16(SUPERBLOCK.first_bucket, true);
  const keys = view.getUint16(SUPERBLOCK.keys, true);
  for (let i = 0; i < keys; i++) {
    const bucket = readU64(view, SUPERBLOCK.d + 8 * i);
    if (bucket !== firstBucket + i) {
      return bad(`journal bucket ${i} is bucket ${bucket}, expected ${firstBucket + i}`);
    }
  }
  if (firstBucket + keys >= bucketCount) {
    return bad(
      `buckets before ${firstBucket + keys} are the superblock's and the journal's, ` +
        `but there are only ${bucketCount} buckets`,
    );
  }
  if (firstBucket * bucketSectors < 16) {
    return bad(`first bucket ${firstBucket} lies over the superblock`);
  }
  return undefined;
}

const KNOWN_FEATURES = FEATURE_INCOMPAT.obsoleteLargeBucket | FEATURE_INCOMPAT.largeBucket;

/** Version 5: any bit without a meaning, in any of the three words, is fatal. */
function unknownFeatures(view: DataView): SuperblockFault | undefined {
  const words = [
    ["compatible", SUPERBLOCK.feature_compat, 0],
    ["read-only compatible", SUPERBLOCK.feature_ro_compat, 0],
    ["incompatible", SUPERBLOCK.feature_incompat, KNOWN_FEATURES],
  ] as const;
  for (const [what, offset, known] of words) {
    const low = (view.getUint32(offset, true) & ~known) >>> 0;
    const high = view.getUint32(offset + 4, true);
    if (low === 0 && high === 0) continue;
    const found = `unknown ${what} feature bits 0x${hex64(low, high)}`;
    const known_ = known === 0 ? "none are known" : "known are 0x1 (obso_large_bucket) and 0x2";
    const names = known === 0 ? known_ : `${known_} (large_bucket)`;
    return { code: "NotSupported", detail: `${found}; ${names}; a newer program wrote it` };
  }
  return undefined;
}

function incompatBits(view: DataView): number {
  return view.getUint32(SUPERBLOCK.feature_incompat, true);
}

/** 0 when the size cannot be represented, which the checks then refuse. */
function decodeBucketSectors(view: DataView, version: number): number {
  const field = view.getUint16(SUPERBLOCK.bucket_size, true);
  if (version !== VERSION.cacheWithFeatures) return field;
  const features = incompatBits(view);
  // The kernel looks for the new feature first.
  if ((features & FEATURE_INCOMPAT.largeBucket) !== 0) return field > 31 ? 0 : 2 ** field;
  if ((features & FEATURE_INCOMPAT.obsoleteLargeBucket) !== 0) {
    return field + view.getUint16(SUPERBLOCK.obso_bucket_size_hi, true) * 0x1_0000;
  }
  return field;
}

function decodeDataOffset(view: DataView, version: number): number {
  if (version === VERSION.backing) return DATA_OFFSET_SECTORS_DEFAULT;
  return readU64(view, SUPERBLOCK.nbuckets);
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}
