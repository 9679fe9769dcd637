/**
 * CRC-64 with the ECMA-182 polynomial, most significant bit first, as lib/crc64.c of Linux
 * computes it. All checksums of bcache are this one.
 *
 * A 64-bit value is two unsigned 32-bit words; nothing here allocates. Eight bytes are folded per
 * step with eight tables (two words each: 16 KiB in all, so that they stay in the first-level
 * cache beside the data).
 */
import { assert } from "./assert.ts";

const POLYNOMIAL_HIGH = 0x42f0e1eb;
const POLYNOMIAL_LOW = 0xa9ea3693;
const SLICES = 8;

/** What a byte contributes after `slice` further bytes: entry `slice * 256 + byte`. */
const HIGH = new Int32Array(SLICES * 256);
const LOW = new Int32Array(SLICES * 256);

for (let byte = 0; byte < 256; byte++) {
  let high = byte << 24;
  let low = 0;
  for (let bit = 0; bit < 8; bit++) {
    const carry = high < 0;
    high = (high << 1) | (low >>> 31);
    low <<= 1;
    if (carry) {
      high ^= POLYNOMIAL_HIGH;
      low ^= POLYNOMIAL_LOW;
    }
  }
  HIGH[byte] = high;
  LOW[byte] = low;
}
for (let entry = 256; entry < SLICES * 256; entry++) {
  const high = HIGH[entry - 256]!;
  const low = LOW[entry - 256]!;
  HIGH[entry] = ((high << 8) | (low >>> 24)) ^ HIGH[high >>> 24]!;
  LOW[entry] = (low << 8) ^ LOW[high >>> 24]!;
}

/**
 * The checksum of `bytes[start, end)` begun from a seed and inverted at the end:
 * `crc_be(seed, bytes) ^ ~0`. With the 64-bit first pointer of a b-tree node's key as the seed it
 * is the checksum of that node's sets. Writes the low word to `out[0]`, the high word to `out[1]`.
 */
export function crc64Seeded(
  bytes: Uint8Array,
  start: number,
  end: number,
  seedLow: number,
  seedHigh: number,
  out: Uint32Array,
): void {
  assert(start >= 0 && start <= end, "a checksum's range is not negative");
  assert(end <= bytes.length, "a checksum's range lies inside its buffer");
  let high = seedHigh | 0;
  let low = seedLow | 0;
  let at = start;
  const lastWhole = end - 8;
  while (at <= lastWhole) {
    const a = (high >>> 24) ^ bytes[at]!;
    const b = ((high >>> 16) & 0xff) ^ bytes[at + 1]!;
    const c = ((high >>> 8) & 0xff) ^ bytes[at + 2]!;
    const d = (high & 0xff) ^ bytes[at + 3]!;
    const e = (low >>> 24) ^ bytes[at + 4]!;
    const f = ((low >>> 16) & 0xff) ^ bytes[at + 5]!;
    const g = ((low >>> 8) & 0xff) ^ bytes[at + 6]!;
    const h = (low & 0xff) ^ bytes[at + 7]!;
    high = HIGH[1792 + a]! ^ HIGH[1536 + b]! ^ HIGH[1280 + c]! ^ HIGH[1024 + d]! ^
      HIGH[768 + e]! ^ HIGH[512 + f]! ^ HIGH[256 + g]! ^ HIGH[h]!;
    low = LOW[1792 + a]! ^ LOW[1536 + b]! ^ LOW[1280 + c]! ^ LOW[1024 + d]! ^
      LOW[768 + e]! ^ LOW[512 + f]! ^ LOW[256 + g]! ^ LOW[h]!;
    at += 8;
  }
  while (at < end) {
    const index = (high >>> 24) ^ bytes[at]!;
    high = ((high << 8) | (low >>> 24)) ^ HIGH[index]!;
    low = (low << 8) ^ LOW[index]!;
    at++;
  }
  out[0] = ~low;
  out[1] = ~high;
}

/**
 * The general checksum (superblock, journal entries, priorities, sets of version 0) of
 * `bytes[start, end)`. Writes the low word to `out[0]`, the high word to `out[1]`.
 */
export function crc64(bytes: Uint8Array, start: number, end: number, out: Uint32Array): void {
  crc64Seeded(bytes, start, end, 0xffff_ffff, 0xffff_ffff, out);
}

/** 64 bits as 16 hexadecimal digits, for messages. */
export function hex64(low: number, high: number): string {
  const digits = (word: number) => (word >>> 0).toString(16).padStart(8, "0");
  return digits(high) + digits(low);
}
