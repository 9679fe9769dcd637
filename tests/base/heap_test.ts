import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { CheapestHeap } from "../../lib/base/heap.ts";

test("a heap keeps the cheapest and gives them cheapest first, equals by number", () => {
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 12 }),
    fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 60 }),
    fc.boolean(),
    (capacity, costs, backwards) => {
      const heap = new CheapestHeap(capacity);
      const items = costs.map((cost, item) => ({ cost, item }));
      for (const { cost, item } of backwards ? items.toReversed() : items) heap.offer(item, cost);
      assertEquals(heap.length, Math.min(capacity, costs.length));
      const expected = items.toSorted((a, b) => a.cost - b.cost || a.item - b.item)
        .slice(0, capacity).map(({ item }) => item);
      assertEquals([...heap.drain()], expected);
      assertEquals(heap.length, 0);
    },
  ));
});

test("a drained heap can be used again", () => {
  const heap = new CheapestHeap(2);
  heap.offer(1, 5);
  heap.drain();
  heap.offer(2, 9);
  heap.offer(3, 1);
  heap.offer(4, 4);
  assertEquals([...heap.drain()], [3, 4]);
});
