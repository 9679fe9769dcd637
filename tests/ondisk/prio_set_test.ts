import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import { AssertionError } from "../../lib/base/assert.ts";
import {
  genAt,
  PRIO_BTREE,
  prioAt,
  priosPerSet,
  putPrio,
  readPrioSetHeader,
  sealPrioSet,
  verifyPrioSet,
} from "../../lib/ondisk/prio_set.ts";

const magic = { low: 0x0b3a191e, high: 0x201fd5fd };

function sealed(): Uint8Array {
  const bytes = new Uint8Array(4096);
  putPrio(bytes, 32, 32768, 2);
  putPrio(bytes, 33, PRIO_BTREE, 1);
  sealPrioSet(bytes, { sequence: 6, nextBucket: 35 }, magic);
  return bytes;
}

test("a set describes as many buckets as the kernel puts into one", () => {
  assertEquals(priosPerSet(128 * 1024), 43677);
  assertEquals(priosPerSet(16 * 1024), 5448);
});

test("entries are three packed bytes as the kernel writes them", () => {
  const bytes = sealed();
  assertEquals([...bytes.subarray(40 + 96, 40 + 102)], [0x00, 0x80, 0x02, 0xff, 0xff, 0x01]);
  assertEquals([prioAt(bytes, 32), genAt(bytes, 32)], [32768, 2]);
  assertEquals([prioAt(bytes, 33), genAt(bytes, 33)], [65535, 1]);
  assertEquals([prioAt(bytes, 34), genAt(bytes, 34)], [0, 0]);
});

test("a sealed set is good and its header reads back", () => {
  const bytes = sealed();
  assertEquals(verifyPrioSet(bytes, magic), undefined);
  assertEquals(readPrioSetHeader(bytes), { sequence: 6, nextBucket: 35 });
});

test("a changed byte anywhere is found, in the unused tail too", () => {
  for (const at of [0, 8, 16, 24, 32, 40, 137, 4000, 4095]) {
    const bytes = sealed();
    bytes[at]! ^= 1;
    assertEquals(verifyPrioSet(bytes, magic)?.reason, "bad checksum", `byte ${at}`);
  }
});

test("another set's priorities have a bad magic", () => {
  const fault = verifyPrioSet(sealed(), { low: 1, high: 2 });
  assertEquals(fault?.reason, "bad magic");
  assertEquals(fault?.detail, "magic 0x201fd5fd0b3a191e, expected 0x0000000200000001");
});

test("an entry beyond the set is a bug", () => {
  assertThrows(() => putPrio(new Uint8Array(64), 8, 1, 1), AssertionError);
  assertThrows(() => prioAt(new Uint8Array(64), 8), AssertionError);
});
