import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { decodeStamp, encodeStamp, STAMP_BYTES } from "../../lib/ondisk/image_stamp.ts";
import { SUPERBLOCK_BYTES } from "../../lib/ondisk/superblock.ts";

const STATE = { sizeBytes: 5_000_000_001, modifiedNs: 1_795_284_039_472_884_501n };
const page = new Uint8Array(SUPERBLOCK_BYTES).fill(7);

test("a stamp reads as it was written, times before 1970 too", () => {
  for (const state of [STATE, { sizeBytes: 0, modifiedNs: -1n }]) {
    const bytes = encodeStamp(state, page);
    assertEquals(bytes.length, STAMP_BYTES);
    assertEquals(decodeStamp(bytes, page), state);
  }
});

test("a stamp that is damaged, or of another superblock, is none", () => {
  const bytes = encodeStamp(STATE, page);
  for (let at = 0; at < STAMP_BYTES; at++) {
    const damaged = bytes.slice();
    damaged[at]! ^= 1 << (at % 8);
    assertEquals(decodeStamp(damaged, page), undefined, `byte ${at}`);
  }
  assertEquals(decodeStamp(new Uint8Array(STAMP_BYTES), page), undefined);
  assertEquals(decodeStamp(bytes, page.slice().fill(8)), undefined);
});
