/**
 * The journal entry (jset): a header of 240 bytes, then `keys` 64-bit words of leaf keys in the
 * order in which they were inserted.
 *
 * An entry begins on a block boundary, never crosses the end of its bucket and is at most 32 KiB.
 * Nothing erases old entries: magic, checksum and sequence number alone say which ones count.
 * Kernel: struct jset in bcache_ondisk.h; journal.c (journal_read_bucket, journal_write_unlocked).
 */
import { assert } from "../base/assert.ts";
import { crc64, hex64 } from "../base/crc64.ts";
import { layout, readU64, viewOf, writeU64 } from "./layout.ts";
import type { Magic } from "./magic.ts";

export const JSET_HEADER_BYTES = 240;
/** Eight pages of 4 KiB. */
export const JSET_BYTES_MAX = 32768;
/** What we write. Version 0 says that the UUID table has the old 64-byte entries. */
export const JSET_VERSION = 1;
export const JSET_VERSION_OLD_UUIDS = 0;
/** `uuid_bucket` and `btree_root` hold one key each, padded to this size. */
export const JSET_KEY_BYTES = 64;
/** Slots of `prio_bucket`; the index is the cache's number in the set. */
export const JSET_CACHES = 8;

/** Byte offsets in a journal entry. */
export const JSET = layout("jset", JSET_HEADER_BYTES, [
  ["csum", "u64"],
  ["magic", "u64"],
  ["seq", "u64"],
  ["version", "u32"],
  ["keys", "u32"],
  ["last_seq", "u64"],
  ["uuid_bucket", "u64:8"],
  ["btree_root", "u64:8"],
  ["btree_level", "u16"],
  ["pad", "bytes:6"],
  ["prio_bucket", "u64:8"],
]);

/** The header's scalar fields. The keys stay in the buffer, at the offsets of `JSET`. */
export interface JsetHeader {
  sequence: number;
  version: number;
  /** 64-bit words of keys, not keys. */
  keyWords: number;
  /** The oldest entry that replay still needed when this one was written. */
  lastSequence: number;
  btreeLevel: number;
  /** The bucket number of the first prio_set of the cache that was asked for. */
  prioBucket: number;
}

/** Bytes of an entry with `keyWords` 64-bit words of keys, before rounding up to a block. */
export function jsetBytes(keyWords: number): number {
  return JSET_HEADER_BYTES + 8 * keyWords;
}

export type JsetFaultReason =
  | "bad magic"
  | "past its bucket"
  | "too large"
  | "incomplete"
  | "bad checksum"
  | "bad sequence";

/** Why bytes are not a journal entry. Expected behind the newest entry: not an error as such. */
export interface JsetFault {
  readonly reason: JsetFaultReason;
  /** One phrase with found and expected values. */
  readonly detail: string;
}

/**
 * Checks the entry at the start of `bytes`, in the kernel's order. `leftBytes` is what remains of
 * its bucket from there, `bytes` may be less. "incomplete" means: valid so far, read more.
 * Never throws, whatever the bytes are.
 */
export function verifyJset(
  bytes: Uint8Array,
  leftBytes: number,
  magic: Magic,
): JsetFault | undefined {
  if (bytes.length < JSET_HEADER_BYTES) {
    return {
      reason: "incomplete",
      detail: `only ${bytes.length} bytes of a journal entry's header`,
    };
  }
  const view = viewOf(bytes);
  const low = view.getUint32(JSET.magic, true);
  const high = view.getUint32(JSET.magic + 4, true);
  if (low !== magic.low || high !== magic.high) {
    return { reason: "bad magic", detail: mismatch("magic", low, high, magic.low, magic.high) };
  }
  const lengthBytes = jsetBytes(view.getUint32(JSET.keys, true));
  if (lengthBytes > leftBytes) {
    const detail = `an entry of ${lengthBytes} bytes with ${leftBytes} left in its bucket`;
    return { reason: "past its bucket", detail };
  }
  if (lengthBytes > JSET_BYTES_MAX) {
    const detail = `an entry of ${lengthBytes} bytes, more than ${JSET_BYTES_MAX}`;
    return { reason: "too large", detail };
  }
  if (lengthBytes > bytes.length) {
    return { reason: "incomplete", detail: `${bytes.length} of ${lengthBytes} bytes` };
  }
  const sum = new Uint32Array(2);
  crc64(bytes, 8, lengthBytes, sum);
  const sumLow = view.getUint32(JSET.csum, true);
  const sumHigh = view.getUint32(JSET.csum + 4, true);
  if (sumLow !== sum[0] || sumHigh !== sum[1]) {
    const detail = mismatch("checksum", sumLow, sumHigh, sum[0]!, sum[1]!);
    return { reason: "bad checksum", detail };
  }
  // Sequence numbers are exact as numbers; no journal lives long enough to leave 2^53.
  const sequence = readU64(view, JSET.seq);
  const lastSequence = readU64(view, JSET.last_seq);
  if (sequence === 0 || !Number.isSafeInteger(sequence) || lastSequence > sequence) {
    const detail = `sequence ${sequence}, oldest needed ${lastSequence}, expected the oldest ` +
      "needed to be no newer, and the sequence from 1 to 2^53";
    return { reason: "bad sequence", detail };
  }
  return undefined;
}

function mismatch(what: string, low: number, high: number, wantLow: number, wantHigh: number) {
  return `${what} 0x${hex64(low, high)}, expected 0x${hex64(wantLow, wantHigh)}`;
}

/** The header of a verified entry, with the prio bucket of cache `cacheIndex` of the set. */
export function readJsetHeader(bytes: Uint8Array, cacheIndex: number = 0): JsetHeader {
  assert(cacheIndex < JSET_CACHES, "a set has at most eight caches");
  const view = viewOf(bytes);
  return {
    sequence: readU64(view, JSET.seq),
    version: view.getUint32(JSET.version, true),
    keyWords: view.getUint32(JSET.keys, true),
    lastSequence: readU64(view, JSET.last_seq),
    btreeLevel: view.getUint16(JSET.btree_level, true),
    prioBucket: readU64(view, JSET.prio_bucket + 8 * cacheIndex),
  };
}

/**
 * Finishes the entry at the start of `bytes`: writes the header's scalar fields and the checksum,
 * and zeroes everything behind the last key, so that nothing of this process leaks to the disk.
 * The keys, `uuid_bucket` and `btree_root` must be in place. `bytes` is a whole number of blocks.
 */
export function sealJset(
  bytes: Uint8Array,
  header: JsetHeader,
  magic: Magic,
  cacheIndex: number = 0,
): void {
  const lengthBytes = jsetBytes(header.keyWords);
  assert(lengthBytes <= bytes.length, "a journal entry fits its buffer");
  assert(lengthBytes <= JSET_BYTES_MAX, "a journal entry is at most 32 KiB");
  assert(header.lastSequence <= header.sequence, "an entry needs none newer than itself");
  const view = viewOf(bytes);
  view.setUint32(JSET.magic, magic.low, true);
  view.setUint32(JSET.magic + 4, magic.high, true);
  writeU64(view, JSET.seq, header.sequence);
  view.setUint32(JSET.version, header.version, true);
  view.setUint32(JSET.keys, header.keyWords, true);
  writeU64(view, JSET.last_seq, header.lastSequence);
  view.setUint16(JSET.btree_level, header.btreeLevel, true);
  bytes.fill(0, JSET.pad, JSET.pad + 6);
  bytes.fill(0, JSET.prio_bucket, JSET_HEADER_BYTES);
  writeU64(view, JSET.prio_bucket + 8 * cacheIndex, header.prioBucket);
  bytes.fill(0, lengthBytes);
  const sum = new Uint32Array(2);
  crc64(bytes, 8, lengthBytes, sum);
  view.setUint32(JSET.csum, sum[0]!, true);
  view.setUint32(JSET.csum + 4, sum[1]!, true);
}
