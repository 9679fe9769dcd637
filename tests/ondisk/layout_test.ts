import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import { AssertionError } from "../../lib/base/assert.ts";
import { JSET } from "../../lib/ondisk/jset.ts";
import { layout, readU64, viewOf, wordsOf, writeU64 } from "../../lib/ondisk/layout.ts";
import { PRIO_SET } from "../../lib/ondisk/prio_set.ts";
import { SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { UUID_ENTRY } from "../../lib/ondisk/uuid_entry.ts";

test("a table gives every field its offset", () => {
  const table = layout("t", 24, [["a", "u32"], ["b", "u16:2"], ["c", "u64"], ["d", "bytes:8"]]);
  assertEquals(table as Record<string, number>, { a: 0, b: 4, c: 8, d: 16 });
});

test("a table that does not add up cannot be loaded", () => {
  assertThrows(() => layout("t", 16, [["a", "u64"]]), AssertionError, "its rows are 8");
});

test("a table with a misaligned or doubled field cannot be loaded", () => {
  assertThrows(
    () => layout("t", 12, [["a", "u32"], ["b", "u64"]]),
    AssertionError,
    "t.b is aligned",
  );
  assertThrows(() => layout("t", 8, [["a", "u32"], ["a", "u32"]]), AssertionError, "once");
});

test("the tables have the offsets of the kernel's structures", () => {
  assertEquals(SUPERBLOCK.magic, 0x18);
  assertEquals(SUPERBLOCK.uuid, 0x28);
  assertEquals(SUPERBLOCK.set_uuid, 0x38);
  assertEquals(SUPERBLOCK.label, 0x48);
  assertEquals(SUPERBLOCK.flags, 0x68);
  assertEquals(SUPERBLOCK.seq, 0x70);
  assertEquals(SUPERBLOCK.feature_ro_compat, 0x88);
  assertEquals(SUPERBLOCK.nbuckets, 0xb8);
  assertEquals(SUPERBLOCK.block_size, 0xc0);
  assertEquals(SUPERBLOCK.last_mount, 0xc8);
  assertEquals(SUPERBLOCK.keys, 0xce);
  assertEquals(SUPERBLOCK.d, 0xd0);
  assertEquals(SUPERBLOCK.obso_bucket_size_hi, 0x8d0);
  assertEquals([JSET.last_seq, JSET.uuid_bucket, JSET.btree_root], [32, 40, 104]);
  assertEquals([JSET.btree_level, JSET.prio_bucket], [168, 176]);
  assertEquals([PRIO_SET.seq, PRIO_SET.version, PRIO_SET.next_bucket], [16, 24, 32]);
  assertEquals([UUID_ENTRY.first_reg, UUID_ENTRY.flags, UUID_ENTRY.sectors], [48, 60, 64]);
});

test("64-bit fields are exact below 2^53 and stay too large above", () => {
  const bytes = new Uint8Array(8);
  const view = viewOf(bytes);
  for (const value of [0, 1, 0xffff_ffff, 0x1_0000_0000, Number.MAX_SAFE_INTEGER]) {
    writeU64(view, 0, value);
    assertEquals(readU64(view, 0), value);
    assertEquals(view.getBigUint64(0, true), BigInt(value));
  }
  view.setBigUint64(0, 2n ** 53n + 1n, true);
  assertEquals(Number.isSafeInteger(readU64(view, 0)), false);
  assertThrows(() => writeU64(view, 0, -1), AssertionError);
  assertThrows(() => writeU64(view, 0, 2 ** 53), AssertionError);
});

test("a view of words is the same memory", () => {
  const bytes = Uint8Array.of(1, 0, 0, 0, 0, 1, 0, 0);
  assertEquals([...wordsOf(bytes)], [1, 256]);
  assertThrows(() => wordsOf(bytes.subarray(1)), AssertionError);
});
