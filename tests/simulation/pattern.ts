/**
 * Content that says what it is: every sector written by the simulator names its seed, its sector
 * and its version, and all its other bytes follow from these three. A wrong byte can therefore be
 * told apart: stale, misplaced, torn, or never written at all.
 */
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { hashOf } from "./sim_random.ts";

const MAGIC = 0x5ec7_0bca;
const WORDS = SECTOR_BYTES / 4;

/** Fills one sector (512 bytes, any alignment) with version `version` of `sector`. */
export function fillSector(into: Uint8Array, seed: number, sector: number, version: number): void {
  const view = new DataView(into.buffer, into.byteOffset, SECTOR_BYTES);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, seed, true);
  view.setUint32(8, sector, true);
  view.setUint32(12, version, true);
  let state = hashOf(seed, sector, version) | 1;
  for (let word = 4; word < WORDS; word++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    view.setUint32(word * 4, state, true);
  }
}

/** True when both hold the same bytes; of `expected` as many as `actual` has from `at` on. */
export function sameBytes(actual: Uint8Array, expected: Uint8Array, at = 0): boolean {
  for (let index = 0; index < actual.length; index++) {
    if (actual[index] !== expected[at + index]) return false;
  }
  return true;
}

/** Which sector and version a sector claims to hold; undefined: it is no such content. */
export function patternOf(bytes: Uint8Array): { sector: number; version: number } | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== MAGIC) return undefined;
  return { sector: view.getUint32(8, true), version: view.getUint32(12, true) };
}

/** One phrase about what a whole sector holds. */
export function describeSector(bytes: Uint8Array): string {
  if (bytes.every((byte) => byte === 0)) return "zeroes";
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length !== SECTOR_BYTES || view.getUint32(0, true) !== MAGIC) {
    const start = Array.from(bytes.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0"));
    return `bytes nobody wrote (${start.join(" ")} ...)`;
  }
  const seed = view.getUint32(4, true);
  const sector = view.getUint32(8, true);
  const version = view.getUint32(12, true);
  const expected = new Uint8Array(SECTOR_BYTES);
  fillSector(expected, seed, sector, version);
  const differs = bytes.findIndex((byte, at) => byte !== expected[at]);
  const name = `version ${version} of sector ${sector}`;
  return differs < 0 ? name : `${name} up to byte ${differs}, then something else`;
}
