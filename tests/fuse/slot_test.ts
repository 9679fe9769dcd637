import { test } from "bun:test";
import { assert, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { alignToPage } from "../../fuse/channel_dev_fuse.ts";
import {
  DATA_OFFSET,
  PAGE_BYTES,
  RECEIVE_BYTES,
  REQUEST_OFFSET,
  type Slot,
  SlotPool,
} from "../../fuse/slot.ts";
import { openLibc } from "../../lib/runtime/libc.ts";

const MIB = 1024 * 1024;

test("the data of every slot begins on a page, in memory", async () => {
  const libc = await openLibc();
  const pool = new SlotPool(alignToPage(libc));
  for (const dataBytes of [0, 1, 4096, 4097, 128 * 1024, MIB, MIB]) {
    const slot = pool.tryTake(dataBytes)!;
    assert(slot.capacityBytes >= dataBytes);
    assertEquals(libc.addressValue(libc.addressOf(slot.bytes, DATA_OFFSET)) % PAGE_BYTES, 0);
  }
});

test("a slot that receives has room for the largest request", () => {
  const slot = new SlotPool(() => 0).tryTake(MIB)!;
  assertEquals(slot.bytes.length - REQUEST_OFFSET, RECEIVE_BYTES);
});

test("the pool is bounded, gives the smallest slot there is, and takes slots back once", () => {
  const pool = new SlotPool(() => 0);
  const slots: Slot[] = [];
  for (;;) {
    const slot = pool.tryTake(100);
    if (slot === undefined) break;
    slots.push(slot);
  }
  assertEquals(slots[0]!.capacityBytes, 4096);
  assertEquals(slots.at(-1)!.capacityBytes, MIB);
  const total = slots.reduce((sum, slot) => sum + slot.bytes.length, 0);
  assert(total < 40 * MIB);
  assertEquals(pool.taken, slots.length);
  pool.give(slots[0]!);
  assertEquals(pool.tryTake(4097), undefined);
  assertStrictEquals(pool.tryTake(4096), slots[0]!);
  for (const slot of slots) pool.give(slot);
  assertEquals(pool.taken, 0);
  assertThrows(() => pool.give(slots[0]!), Error, "given back once");
});

test("views of whole pages are made once", () => {
  const slot = new SlotPool(() => 0).tryTake(8192)!;
  assertStrictEquals(slot.data(8192), slot.data(8192));
  assertEquals(slot.data(4096).length, 4096);
  assertEquals(slot.data(100).byteOffset, slot.bytes.byteOffset + DATA_OFFSET);
  assertThrows(() => slot.data(slot.capacityBytes + 1), Error, "fits the slot");
});
