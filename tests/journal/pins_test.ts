import { describe, test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { type PinHolder, Pins } from "../../lib/journal/pins.ts";

function holder(): PinHolder {
  return { flushForJournal: () => Promise.resolve() };
}

describe("journal pins", () => {
  test("the oldest entry is the oldest one that somebody holds", () => {
    const pins = new Pins(1, 1, () => {}, 8);
    const leaf = holder();
    assertEquals(pins.oldest(), 1);
    assertEquals([pins.open(), pins.open(), pins.open()], [1, 2, 3]);
    pins.pin(1, leaf);
    pins.release(1);
    pins.release(2);
    assertEquals(pins.oldest(), 1);
    assertEquals(pins.holdersOfOldest(8), [leaf]);
    pins.unpin(1, leaf);
    assertEquals(pins.oldest(), 3);
    assertEquals(pins.used, 1);
    assertEquals(pins.holdersOfOldest(8), []);
    pins.release(3);
    assertEquals(pins.oldest(), 4);
  });

  test("entries found by recovery are held once until each has been replayed", () => {
    const pins = new Pins(5, 8, () => {}, 4);
    assertEquals(pins.oldest(), 5);
    assertEquals(pins.open(), 8);
    pins.release(6);
    assertEquals(pins.oldest(), 5);
    pins.release(5);
    assertEquals(pins.oldest(), 7);
  });

  test("a leaf may pin one entry twice, and holds it until it let go twice", () => {
    const pins = new Pins(1, 1, () => {}, 4);
    const leaf = holder();
    const seq = pins.open();
    pins.pin(seq, leaf);
    pins.pin(seq, leaf);
    pins.release(seq);
    pins.unpin(seq, leaf);
    assertEquals(pins.isPinnedBy(seq, leaf), true);
    assertEquals(pins.oldest(), seq);
    pins.unpin(seq, leaf);
    assertEquals(pins.isPinnedBy(seq, leaf), false);
    assertEquals(pins.oldest(), seq + 1);
  });

  test("no more holders are named than asked for", () => {
    const pins = new Pins(1, 1, () => {}, 4);
    const seq = pins.open();
    const leaves = [holder(), holder(), holder()];
    for (const leaf of leaves) pins.pin(seq, leaf);
    assertEquals(pins.holdersOfOldest(2), leaves.slice(0, 2));
  });

  test("letting go of what is not held is a bug that is noticed", () => {
    const pins = new Pins(1, 1, () => {}, 4);
    const seq = pins.open();
    assertThrows(() => pins.unpin(seq, holder()), Error, "was pinned by this holder");
    assertThrows(() => pins.pin(seq + 1, holder()), Error, "has been opened");
    pins.hold(seq);
    pins.release(seq);
    pins.release(seq);
    assertThrows(() => pins.release(seq), Error, "was held");
    pins.oldest();
    assertThrows(() => pins.hold(seq), Error, "is still active");
  });

  test("opening past the capacity is a bug that is noticed", () => {
    const pins = new Pins(1, 1, () => {}, 4);
    for (let count = 0; count < 4; count++) pins.open();
    assertEquals(pins.free, 0);
    assertThrows(() => pins.open(), Error, "has room");
  });

  test("the wrapped ring agrees with a plain map, beyond 2^32 as well", () => {
    const operation = fc.tuple(fc.nat(3), fc.nat(15), fc.nat(2));
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 200 }), (operations) => {
        const start = 2 ** 32 - 20;
        const pins = new Pins(start, start, () => {}, 16);
        const leaves = [holder(), holder(), holder()];
        const held = new Map<number, Array<PinHolder | undefined>>();
        let next = start;
        const oldest = () => Math.min(...held.keys(), next);
        for (const [kind, distance, which] of operations) {
          const seq = oldest() + distance;
          const holders = held.get(seq);
          if (kind <= 1) {
            if (next - oldest() === 16) continue;
            held.set(next++, [undefined]);
            pins.open();
          } else if (kind === 2 && seq < next) {
            held.set(seq, [...(holders ?? []), leaves[which]]);
            pins.pin(seq, leaves[which]!);
          } else if (holders !== undefined) {
            const last = holders.pop();
            if (holders.length === 0) held.delete(seq);
            if (last) pins.unpin(seq, last);
            else pins.release(seq);
          }
          assertEquals(pins.oldest(), oldest());
          assertEquals(pins.used, next - oldest());
          const expected = new Set(held.get(oldest())?.filter((one) => one !== undefined));
          assertEquals(new Set(pins.holdersOfOldest(8)), expected);
        }
      }),
      { numRuns: 100 },
    );
  });
});
