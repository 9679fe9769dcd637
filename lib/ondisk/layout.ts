/**
 * One table per on-disk structure: `layout(name, sizeBytes, rows)` turns a list of fields into
 * their offsets. It throws while the module loads when the rows do not add up to the size or a
 * field is not aligned to its own size, so a wrong table cannot be used at all.
 *
 * Everything on disk is little-endian. Cold headers are read and written with the accessors
 * below; hot structures bind `offset / 4` to a constant and use a Uint32Array.
 */
import { assert } from "../base/assert.ts";

/** `u64:8` is an array of eight; `bytes:6` is six bytes without a meaning of their own. */
type FieldType =
  | "u8"
  | "u16"
  | "u32"
  | "u64"
  | `${"u8" | "u16" | "u32" | "u64" | "bytes"}:${number}`;
type Row = readonly [name: string, type: FieldType];

/** Field name to byte offset. */
export type Layout<Rows extends readonly Row[]> = {
  readonly [R in Rows[number] as R[0]]: number;
};

const UNIT_BYTES: Readonly<Record<string, number>> = { bytes: 1, u8: 1, u16: 2, u32: 4, u64: 8 };

/** Byte offsets of the fields of a structure of exactly `sizeBytes`. */
export function layout<const Rows extends readonly Row[]>(
  structure: string,
  sizeBytes: number,
  rows: Rows,
): Layout<Rows> {
  const offsets: Record<string, number> = {};
  let at = 0;
  for (const [name, type] of rows) {
    const [unit, count] = type.split(":");
    const unitBytes = UNIT_BYTES[unit ?? ""];
    assert(unitBytes !== undefined, `${structure}.${name} has a known type`);
    assert(at % unitBytes === 0, `${structure}.${name} is aligned`);
    assert(offsets[name] === undefined, `${structure}.${name} is listed once`);
    offsets[name] = at;
    at += unitBytes * (count === undefined ? 1 : Number(count));
  }
  assert(at === sizeBytes, `${structure} is ${sizeBytes} bytes, its rows are ${at}`);
  return Object.freeze(offsets) as Layout<Rows>;
}

// Uint32Array views of device bytes are used everywhere; on a big-endian machine they would lie.
assert(new Uint8Array(new Uint16Array([1]).buffer)[0] === 1, "the machine is little-endian");

/**
 * Sequence numbers that are read must not be larger, so that each can be counted on from, exactly,
 * for longer than any device lasts.
 */
export const SEQUENCE_MAX = 2 ** 52;

/** A DataView of exactly `bytes`. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The little-endian 32-bit words of `bytes`, without a copy. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  assert(bytes.byteOffset % 4 === 0, "a view of words begins on a word");
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2);
}

/**
 * A 64-bit field as a number: exact below 2^53. A larger one is rounded, but never to less than
 * 2^53, so that range checks refuse it all the same.
 */
export function readU64(view: DataView, offset: number): number {
  return view.getUint32(offset + 4, true) * 0x1_0000_0000 + view.getUint32(offset, true);
}

/** Writes a number in [0, 2^53) as a 64-bit field. */
export function writeU64(view: DataView, offset: number, value: number): void {
  assert(Number.isSafeInteger(value), "a 64-bit field is written from an exact number");
  assert(value >= 0, "a 64-bit field is written from a natural number");
  view.setUint32(offset, value >>> 0, true);
  view.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
}
