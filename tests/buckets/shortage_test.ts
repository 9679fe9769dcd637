import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { Shortage } from "../../lib/buckets/shortage.ts";

/** Collections that each find `found` buckets of data, until no further one is of use. */
function collectionsUntilExhausted(
  options: { found?: (gc: number) => number; changes?: () => number; inVainMax?: number } = {},
): number {
  const { found = () => 0, changes = () => 0, inVainMax = 100 } = options;
  const shortage = new Shortage(changes, inVainMax);
  for (let gc = 1;; gc++) {
    shortage.gcBegan();
    shortage.beginLook();
    for (let bucket = found(gc); bucket > 0; bucket--) shortage.noteFound();
    shortage.gcOver();
    if (shortage.conclude()) return gc;
  }
}

describe("a shortage of buckets", () => {
  test("ends with the first collection that finds nothing while nothing moves", () => {
    assertEquals(collectionsUntilExhausted(), 1);
    assertEquals(collectionsUntilExhausted({ found: (gc) => gc < 5 ? 1 : 0 }), 5);
  });

  test("ends after a few that find nothing, whatever moves", () => {
    let moved = 0;
    assertEquals(collectionsUntilExhausted({ changes: () => ++moved }), 4);
  });

  test("ends when all that is found is swallowed elsewhere, again and again", () => {
    assertEquals(collectionsUntilExhausted({ found: () => 1, inVainMax: 10 }), 11);
  });

  test("is concluded from only once a collection is over", () => {
    const shortage = new Shortage(() => 0, 10);
    shortage.gcBegan();
    assertEquals([shortage.isOpen, shortage.conclude()], [false, false]);
    shortage.gcOver();
    assertEquals([shortage.isOpen, shortage.conclude(), shortage.isOpen], [true, true, false]);
  });

  test("is hopeless until something moves, and over when the policy finds enough", () => {
    let moved = 0;
    const shortage = new Shortage(() => moved, 10);
    shortage.gcBegan();
    shortage.gcOver();
    shortage.conclude();
    assertEquals([shortage.exhausted, shortage.isHopeless], [true, true]);
    moved++;
    assertEquals([shortage.exhausted, shortage.isHopeless], [true, false]);
    shortage.noteEnough();
    assertEquals([shortage.exhausted, shortage.isHopeless], [false, false]);
  });
});
