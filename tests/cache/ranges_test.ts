/** Ranges that something is going on in: who waits for whom, and which fills are cancelled. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Fills, RangeLocks } from "../../lib/cache/ranges.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";

describe("locks of ranges", () => {
  test("overlapping changes wait for each other, others do not", async () => {
    const locks = new RangeLocks();
    const first = await locks.acquire(8, 16);
    await locks.acquire(16, 24);
    await locks.acquire(0, 8);
    const order: string[] = [];
    const second = locks.acquire(15, 17).then(() => order.push("overlaps both"));
    await drainMicrotasks();
    assertEquals(order, []);
    locks.release(first);
    await drainMicrotasks();
    assertEquals(order, [], "the other one is held still");
    assertEquals(locks.count, 2);
    void second;
  });

  test("writeback and a change of the backing device exclude each other", async () => {
    const locks = new RangeLocks();
    const writeback = await locks.acquire(8, 16, true);
    assertEquals(locks.tryAcquire(0, 9, false), undefined);
    const waiting = locks.acquire(12, 13);
    locks.release(writeback);
    const change = await waiting;
    assertEquals(locks.tryAcquire(8, 16, true), undefined);
    locks.release(change);
    assert(locks.tryAcquire(8, 16, true) !== undefined);
  });

  test("a write to the cache alone waits for changes under way, not for writeback", async () => {
    const locks = new RangeLocks();
    await locks.acquire(8, 16, true);
    assert(!locks.isChanging(8, 16));
    await locks.acquire(20, 24);
    assert(locks.isChanging(23, 30));
    assert(!locks.isChanging(24, 30));
    assert(!locks.isChanging(16, 20));
  });

  test("letting go of what is not held is a bug that is noticed", () => {
    const locks = new RangeLocks();
    assertThrows(() => locks.release({ start: 0, end: 8 }));
  });
});

describe("fills of the cache", () => {
  test("end with a change in their range, of their device", () => {
    const fills = new Fills();
    const fill = fills.begin(1, 8, 16)!;
    assert(!fills.cancel(2, 8, 16), "another device");
    assert(!fills.cancel(1, 0, 8) && !fills.cancel(1, 16, 24), "beside it");
    assert(fill.valid);
    assert(fills.cancel(1, 15, 100));
    assert(!fill.valid);
  });

  test("are one at a time in a range, until cancelled or done", () => {
    const fills = new Fills();
    const fill = fills.begin(1, 8, 16)!;
    assertEquals(fills.begin(1, 12, 20), undefined);
    const other = fills.begin(1, 16, 24)!;
    fills.cancel(1, 8, 9);
    assert(fills.begin(1, 8, 16) !== undefined, "a cancelled one stands in nobody's way");
    fills.end(fill);
    fills.end(other);
    assertEquals(fills.count, 1);
    assert(!other.valid, "a fill that is done inserts nothing more");
  });
});
