/**
 * Priorities and generations of all buckets: a chain of prio_sets, one bucket each, the first
 * named by the newest journal entry. A header of 40 bytes, then three packed bytes per bucket:
 * the 16-bit priority and the 8-bit generation.
 *
 * The checksum covers the whole meta area, its unused tail too. The last set's `next_bucket` means
 * nothing (the kernel leaves an older number there): stop by count.
 * Kernel: struct prio_set in bcache_ondisk.h; prio_read and bch_prio_write in super.c.
 */
import { assert } from "../base/assert.ts";
import { crc64, hex64 } from "../base/crc64.ts";
import { layout, readU64, viewOf, writeU64 } from "./layout.ts";
import type { Magic } from "./magic.ts";

export const PRIO_SET_HEADER_BYTES = 40;
/** One bucket's priority and generation. */
export const BUCKET_PRIO_BYTES = 3;
/** The priority of buckets that hold the index, the UUID table or priorities. */
export const PRIO_BTREE = 0xffff;
/** The priority of freshly allocated data. */
export const PRIO_INITIAL = 32768;

/** Byte offsets in a prio_set; the packed entries follow. */
export const PRIO_SET = layout("prio_set", PRIO_SET_HEADER_BYTES, [
  ["csum", "u64"],
  ["magic", "u64"],
  ["seq", "u64"],
  ["version", "u32"],
  ["pad", "u32"],
  ["next_bucket", "u64"],
]);

export interface PrioSetHeader {
  /** The same in all sets of one write, one more at the next write. */
  sequence: number;
  /** The bucket of the next set; meaningless in the last. */
  nextBucket: number;
}

/** Buckets described by one set that fills `metaBytes`. */
export function priosPerSet(metaBytes: number): number {
  return Math.floor((metaBytes - PRIO_SET_HEADER_BYTES) / BUCKET_PRIO_BYTES);
}

export interface PrioSetFault {
  readonly reason: "bad checksum" | "bad magic";
  /** One phrase with found and expected values. */
  readonly detail: string;
}

/** Checks a whole meta area (`bytes.length` is the set's metaBytes), in the kernel's order. */
export function verifyPrioSet(bytes: Uint8Array, magic: Magic): PrioSetFault | undefined {
  assert(bytes.length >= PRIO_SET_HEADER_BYTES, "a meta area holds a prio_set's header");
  const view = viewOf(bytes);
  const sum = new Uint32Array(2);
  crc64(bytes, 8, bytes.length, sum);
  const sumLow = view.getUint32(PRIO_SET.csum, true);
  const sumHigh = view.getUint32(PRIO_SET.csum + 4, true);
  if (sumLow !== sum[0] || sumHigh !== sum[1]) {
    const detail = `checksum 0x${hex64(sumLow, sumHigh)}, expected 0x${hex64(sum[0]!, sum[1]!)}`;
    return { reason: "bad checksum", detail };
  }
  const low = view.getUint32(PRIO_SET.magic, true);
  const high = view.getUint32(PRIO_SET.magic + 4, true);
  if (low !== magic.low || high !== magic.high) {
    const detail = `magic 0x${hex64(low, high)}, expected 0x${hex64(magic.low, magic.high)}`;
    return { reason: "bad magic", detail };
  }
  return undefined;
}

/** The header of a verified set. Check that `nextBucket` is a bucket before following it. */
export function readPrioSetHeader(bytes: Uint8Array): PrioSetHeader {
  const view = viewOf(bytes);
  return {
    sequence: readU64(view, PRIO_SET.seq),
    nextBucket: readU64(view, PRIO_SET.next_bucket),
  };
}

/** The priority in entry `index` of the set. */
export function prioAt(bytes: Uint8Array, index: number): number {
  const at = PRIO_SET_HEADER_BYTES + BUCKET_PRIO_BYTES * index;
  assert(at + BUCKET_PRIO_BYTES <= bytes.length, "a priority's entry lies inside its set");
  return bytes[at]! | (bytes[at + 1]! << 8);
}

/** The generation in entry `index` of the set. */
export function genAt(bytes: Uint8Array, index: number): number {
  const at = PRIO_SET_HEADER_BYTES + BUCKET_PRIO_BYTES * index;
  assert(at + BUCKET_PRIO_BYTES <= bytes.length, "a generation's entry lies inside its set");
  return bytes[at + 2]!;
}

/** Writes entry `index`. */
export function putPrio(bytes: Uint8Array, index: number, prio: number, gen: number): void {
  const at = PRIO_SET_HEADER_BYTES + BUCKET_PRIO_BYTES * index;
  assert(at + BUCKET_PRIO_BYTES <= bytes.length, "an entry lies inside its set");
  bytes[at] = prio;
  bytes[at + 1] = prio >>> 8;
  bytes[at + 2] = gen;
}

/** Finishes a set whose entries are in place (and whose tail is zero): header and checksum. */
export function sealPrioSet(bytes: Uint8Array, header: PrioSetHeader, magic: Magic): void {
  const view = viewOf(bytes);
  view.setUint32(PRIO_SET.magic, magic.low, true);
  view.setUint32(PRIO_SET.magic + 4, magic.high, true);
  writeU64(view, PRIO_SET.seq, header.sequence);
  view.setUint32(PRIO_SET.version, 0, true);
  view.setUint32(PRIO_SET.pad, 0, true);
  writeU64(view, PRIO_SET.next_bucket, header.nextBucket);
  const sum = new Uint32Array(2);
  crc64(bytes, 8, bytes.length, sum);
  view.setUint32(PRIO_SET.csum, sum[0]!, true);
  view.setUint32(PRIO_SET.csum + 4, sum[1]!, true);
}
