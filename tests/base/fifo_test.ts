import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { AssertionError } from "../../lib/base/assert.ts";
import { U32Fifo } from "../../lib/base/fifo.ts";

test("a queue behaves like an array with a bound", () => {
  fc.assert(fc.property(
    fc.integer({ min: 0, max: 5 }),
    fc.array(fc.option(fc.integer({ min: 0, max: 0xffff_ffff })), { maxLength: 60 }),
    (capacity, steps) => {
      const queue = new U32Fifo(capacity);
      const twin: number[] = [];
      for (const step of steps) {
        if (step === null) assertEquals(queue.shift(), twin.shift() ?? -1);
        else {
          const fits = twin.length < capacity;
          assertEquals(queue.push(step), fits);
          if (fits) twin.push(step);
        }
        assertEquals(queue.length, twin.length);
        assertEquals(queue.room, capacity - twin.length);
        assertEquals(twin.map((_, index) => queue.at(index)), twin);
      }
    },
  ));
});

test("a queue has no element behind its end", () => {
  const queue = new U32Fifo(2);
  queue.push(1);
  assertThrows(() => queue.at(1), AssertionError);
  assertThrows(() => queue.at(-1), AssertionError);
});
