/**
 * What a superblock says, for people and for programs: the text of Debian's bcache-super-show,
 * byte for byte, and the same as an object for JSON.
 *
 * Only the page is looked at, as that program does: a device that Linux would refuse for another
 * reason is shown all the same. Versions 5 and 6, which that program calls unknown and does not
 * show, are shown in full here.
 */
import { crc64 } from "../base/crc64.ts";
import { assert } from "../base/assert.ts";
import { decodeLabel, LABEL_BYTES } from "./label.ts";
import { readU64, viewOf } from "./layout.ts";
import {
  checksumEnd,
  DATA_OFFSET_SECTORS_DEFAULT,
  FEATURE_INCOMPAT,
  hasSuperblockMagic,
  JOURNAL_BUCKETS_MAX,
  SUPERBLOCK,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
  VERSION,
} from "./superblock.ts";
import { kindOfVersion } from "./superblock_verify.ts";
import { formatUuid, UUID_BYTES } from "./uuid.ts";

export interface SuperblockText {
  /** For standard output: whole lines. */
  readonly text: string;
  /** For standard error, without a newline: why the text ends early. */
  readonly error?: string;
  /** 0; 2 for what is no superblock or is damaged; 3 for an old experimental format. */
  readonly exitCode: 0 | 2 | 3;
}

const REPLACEMENTS = ["lru", "fifo", "random"];
const MODES = ["writethrough", "writeback", "writearound", "no caching"];
const STATES = ["detached", "clean", "dirty", "inconsistent"];

/** The text for a superblock's page. `force` shows one with a bad checksum (`-f`). */
export function showSuperblock(page: Uint8Array, force: boolean = false): SuperblockText {
  assert(page.length === SUPERBLOCK_BYTES, "a superblock's page is 4096 bytes");
  const view = viewOf(page);
  const sum = checksumOf(page);
  let text = `sb.magic\t\t${hasSuperblockMagic(page) ? "ok" : "bad magic"}\n`;
  if (!hasSuperblockMagic(page)) {
    return { text, error: "Invalid superblock (bad magic)", exitCode: 2 };
  }
  const offset = view.getBigUint64(SUPERBLOCK.offset, true);
  const isHere = offset === BigInt(SUPERBLOCK_SECTOR);
  const whether = isHere ? "[match]" : `[expected ${SUPERBLOCK_SECTOR}s]`;
  text += `sb.first_sector\t\t${offset} ${whether}\n`;
  if (!isHere) return { text, error: "Invalid superblock (bad sector)", exitCode: 2 };

  const expected = sum.matches ? "[match]" : `[expected ${upperHex(sum.expected)}]`;
  text += `sb.csum\t\t\t${upperHex(sum.found)} ${expected}\n`;
  if (!sum.matches && !force) {
    return { text, error: "Corrupt superblock (bad csum)", exitCode: 2 };
  }
  const version = readU64(view, SUPERBLOCK.version);
  const kind = kindOfVersion(version);
  const name = kind === undefined ? "unknown" : `${kind} device`;
  text += `sb.version\t\t${view.getBigUint64(SUPERBLOCK.version, true)} [${name}]\n`;
  if (kind === undefined) return { text, exitCode: 0 };
  text += commonLines(page, view);
  if (kind === "cache") {
    text += cacheLines(view, version);
  } else {
    const isPlain = version === VERSION.backing;
    const hasOldList = view.getUint16(SUPERBLOCK.keys, true) === 1 ||
      view.getBigUint64(SUPERBLOCK.d, true) !== 0n;
    if (!isPlain && hasOldList) {
      const error = "Possible experimental format detected, bailing";
      return { text, error, exitCode: 3 };
    }
    text += backingLines(view, isPlain);
  }
  text += `\ncset.uuid\t\t${uuidAt(page, SUPERBLOCK.set_uuid)}\n`;
  return { text, exitCode: 0 };
}

function commonLines(page: Uint8Array, view: DataView): string {
  const raw = page.subarray(SUPERBLOCK.label, SUPERBLOCK.label + LABEL_BYTES);
  return `\ndev.label\t\t${escapedLabel(raw) || "(empty)"}\n` +
    `dev.uuid\t\t${uuidAt(page, SUPERBLOCK.uuid)}\n` +
    `dev.sectors_per_block\t${view.getUint16(SUPERBLOCK.block_size, true)}\n` +
    `dev.sectors_per_bucket\t${bucketSectors(view)}\n`;
}

/** The bucket size as the version and its features have it; what an unknown one means is raw. */
function bucketSectors(view: DataView): number {
  const field = view.getUint16(SUPERBLOCK.bucket_size, true);
  if (readU64(view, SUPERBLOCK.version) !== VERSION.cacheWithFeatures) return field;
  const features = view.getUint32(SUPERBLOCK.feature_incompat, true);
  if ((features & FEATURE_INCOMPAT.largeBucket) !== 0 && field <= 31) return 2 ** field;
  if ((features & FEATURE_INCOMPAT.obsoleteLargeBucket) === 0) return field;
  return field + view.getUint16(SUPERBLOCK.obso_bucket_size_hi, true) * 0x1_0000;
}

function cacheLines(view: DataView, version: number): string {
  const flags = view.getUint32(SUPERBLOCK.flags, true);
  const bucket = BigInt(bucketSectors(view));
  const first = BigInt(view.getUint16(SUPERBLOCK.first_bucket, true));
  const count = view.getBigUint64(SUPERBLOCK.nbuckets, true);
  const sectors = (buckets: bigint) => BigInt.asUintN(64, bucket * buckets);
  return `dev.cache.first_sector\t${BigInt.asUintN(32, bucket * first)}\n` +
    `dev.cache.cache_sectors\t${sectors(count - first)}\n` +
    `dev.cache.total_sectors\t${sectors(count)}\n` +
    `dev.cache.ordered\t${(flags & 1) !== 0 ? "yes" : "no"}\n` +
    `dev.cache.discard\t${(flags & 2) !== 0 ? "yes" : "no"}\n` +
    `dev.cache.pos\t\t${view.getUint16(SUPERBLOCK.nr_this_dev, true)}\n` +
    named("dev.cache.replacement", (flags >>> 2) & 7, REPLACEMENTS) +
    (version === VERSION.cacheWithFeatures ? featureLine(view) : "");
}

/** Only for version 5, of which bcache-super-show has nothing to say. */
function featureLine(view: DataView): string {
  return `dev.cache.features\t${featureNames(view).join(" ") || "(none)"}\n`;
}

function featureNames(view: DataView): string[] {
  const bits = view.getUint32(SUPERBLOCK.feature_incompat, true);
  const names: string[] = [];
  if ((bits & FEATURE_INCOMPAT.obsoleteLargeBucket) !== 0) names.push("obso_large_bucket");
  if ((bits & FEATURE_INCOMPAT.largeBucket) !== 0) names.push("large_bucket");
  return names;
}

function backingLines(view: DataView, isPlain: boolean): string {
  const first = isPlain
    ? BigInt(DATA_OFFSET_SECTORS_DEFAULT)
    : view.getBigUint64(SUPERBLOCK.nbuckets, true);
  const mode = view.getUint32(SUPERBLOCK.flags, true) & 0xf;
  const state = (view.getUint32(SUPERBLOCK.flags + 4, true) >>> 29) & 3;
  return `dev.data.first_sector\t${first}\n` + named("dev.data.cache_mode", mode, MODES) +
    named("dev.data.cache_state", state, STATES);
}

function named(field: string, value: number, names: readonly string[]): string {
  const name = names[value];
  return `${field}\t${value}${name === undefined ? "" : ` [${name}]`}\n`;
}

/** Letters, digits and `.-_` as they are, every other byte as `%` and its number. */
function escapedLabel(raw: Uint8Array): string {
  let text = "";
  for (const byte of raw) {
    if (byte === 0) break;
    const character = String.fromCharCode(byte);
    // Bytes from 128 on are negative characters there, printed with all 32 bits.
    const number = byte < 128 ? byte : byte + 0xffff_ff00;
    text += /[0-9A-Za-z._-]/.test(character) ? character : `%${number.toString(16)}`;
  }
  return text;
}

function uuidAt(page: Uint8Array, at: number): string {
  return formatUuid(page.subarray(at, at + UUID_BYTES));
}

function upperHex(value: bigint): string {
  return value.toString(16).toUpperCase();
}

function checksumOf(page: Uint8Array): { found: bigint; expected: bigint; matches: boolean } {
  const found = viewOf(page).getBigUint64(SUPERBLOCK.csum, true);
  const end = checksumEnd(page);
  // More keys than fit: no checksum could be right, since what it covers is not there.
  if (end > SUPERBLOCK.d + 8 * JOURNAL_BUCKETS_MAX) return { found, expected: 0n, matches: false };
  const sum = new Uint32Array(2);
  crc64(page, 8, end, sum);
  const expected = (BigInt(sum[1]!) << 32n) | BigInt(sum[0]!);
  return { found, expected, matches: found === expected };
}

/** What make-bcache prints of a device it has just made. */
export function madeText(page: Uint8Array): string {
  const made = superblockToJson(page);
  const rows: Array<readonly [string, string | number]> = [
    ["UUID:\t\t\t", made.uuid],
    ["Set UUID:\t\t", made.setUuid],
    ["version:\t\t", made.version],
  ];
  if (made.cache) {
    rows.push(["nbuckets:\t\t", made.cache.bucketCount]);
    rows.push(["block_size:\t\t", made.blockSectors]);
    rows.push(["bucket_size:\t\t", made.bucketSectors]);
    rows.push(["nr_in_set:\t\t", made.cache.cachesInSet]);
    rows.push(["nr_this_dev:\t\t", made.cache.index]);
    rows.push(["first_bucket:\t\t", made.cache.firstBucket]);
  } else {
    rows.push(["block_size:\t\t", made.blockSectors]);
    rows.push(["data_offset:\t\t", made.backing?.dataOffsetSectors ?? 0]);
  }
  return rows.map(([name, value]) => `${name}${value}\n`).join("");
}

/** The superblock as plain data. 64-bit fields that may exceed 2^53 are hexadecimal text. */
export interface SuperblockJson {
  kind: "cache" | "backing" | "unknown";
  magicOk: boolean;
  firstSector: number;
  checksum: string;
  checksumOk: boolean;
  version: number;
  label: string;
  uuid: string;
  setUuid: string;
  sequence: number;
  blockSectors: number;
  bucketSectors: number;
  cache?: {
    bucketCount: number;
    firstBucket: number;
    journalBuckets: number;
    index: number;
    cachesInSet: number;
    synchronous: boolean;
    discard: boolean;
    replacement: string;
    features: string[];
    lastMountSeconds: number;
  };
  backing?: { dataOffsetSectors: number; cacheMode: string; state: string };
}

/** The same facts as an object. Never throws for any 4096 bytes. */
export function superblockToJson(page: Uint8Array): SuperblockJson {
  assert(page.length === SUPERBLOCK_BYTES, "a superblock's page is 4096 bytes");
  const view = viewOf(page);
  const sum = checksumOf(page);
  const version = readU64(view, SUPERBLOCK.version);
  const magicOk = hasSuperblockMagic(page);
  const kind = (magicOk ? kindOfVersion(version) : undefined) ?? "unknown";
  return {
    kind,
    magicOk,
    firstSector: readU64(view, SUPERBLOCK.offset),
    checksum: sum.found.toString(16).padStart(16, "0"),
    checksumOk: sum.matches,
    version,
    label: decodeLabel(page.subarray(SUPERBLOCK.label, SUPERBLOCK.label + LABEL_BYTES)),
    uuid: uuidAt(page, SUPERBLOCK.uuid),
    setUuid: uuidAt(page, SUPERBLOCK.set_uuid),
    sequence: readU64(view, SUPERBLOCK.seq),
    blockSectors: view.getUint16(SUPERBLOCK.block_size, true),
    bucketSectors: bucketSectors(view),
    ...(kind === "cache" ? { cache: cacheJson(view, version) } : {}),
    ...(kind === "backing" ? { backing: backingJson(view, version) } : {}),
  };
}

function cacheJson(view: DataView, version: number): NonNullable<SuperblockJson["cache"]> {
  const flags = view.getUint32(SUPERBLOCK.flags, true);
  const policy = (flags >>> 2) & 7;
  return {
    bucketCount: readU64(view, SUPERBLOCK.nbuckets),
    firstBucket: view.getUint16(SUPERBLOCK.first_bucket, true),
    journalBuckets: view.getUint16(SUPERBLOCK.keys, true),
    index: view.getUint16(SUPERBLOCK.nr_this_dev, true),
    cachesInSet: view.getUint16(SUPERBLOCK.nr_in_set, true),
    synchronous: (flags & 1) !== 0,
    discard: (flags & 2) !== 0,
    replacement: REPLACEMENTS[policy] ?? String(policy),
    features: version === VERSION.cacheWithFeatures ? featureNames(view) : [],
    lastMountSeconds: view.getUint32(SUPERBLOCK.last_mount, true),
  };
}

function backingJson(view: DataView, version: number): NonNullable<SuperblockJson["backing"]> {
  const mode = view.getUint32(SUPERBLOCK.flags, true) & 0xf;
  const isPlain = version === VERSION.backing;
  return {
    dataOffsetSectors: isPlain ? DATA_OFFSET_SECTORS_DEFAULT : readU64(view, SUPERBLOCK.nbuckets),
    cacheMode: ["writethrough", "writeback", "writearound", "none"][mode] ?? String(mode),
    state: STATES[(view.getUint32(SUPERBLOCK.flags + 4, true) >>> 29) & 3]!,
  };
}
