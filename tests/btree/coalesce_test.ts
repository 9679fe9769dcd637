/** Which keys go where when neighbours become one fewer. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { coalesceKeys, mayCoalesce } from "../../lib/btree/coalesce.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { keyOffset, setExtent, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";

// 512-byte blocks: a header of 32 bytes and keys of 24.
const SHAPE = { blocks: 16, blockBytes: 512 };
const FILLED = Math.floor((10 * 512 - 32) / 24);
const FULL = Math.floor((16 * 512 - 32) / 24);

/** Nodes with so many keys each; key n ends at sector 8 (n + 1), each node where its last does. */
function nodes(...counts: number[]) {
  let next = 0;
  const sets: KeySet[] = [];
  const ends: Uint32Array[] = [];
  for (const count of counts) {
    const keys = new KeySet(count);
    const slot = new Uint32Array(SLOT_WORDS);
    for (let index = 0; index < count; index++) {
      setExtent(slot, 0, 0, ++next * 8, 8);
      setPointer(slot, 0, 4096 + next * 8, 1);
      keys.push(slot, 0);
    }
    // The range of a node goes on behind its last key.
    setExtent(slot, 0, 0, next * 8 + 4, 8);
    ends.push(slot);
    sets.push(keys);
  }
  return { sets, ends };
}

const offsets = (keys: KeySet) =>
  Array.from({ length: keys.count }, (_, index) => keyOffset(keys.words, index * SLOT_WORDS));

describe("coalescing", () => {
  test("is worth while when all fit into one node fewer, each two thirds full", () => {
    const words = (keys: number) => keys * SLOT_WORDS;
    assert(!mayCoalesce(words(1), 1, SHAPE), "one node has no neighbour");
    assert(mayCoalesce(words(FILLED), 2, SHAPE));
    assert(!mayCoalesce(words(FILLED + 1), 2, SHAPE));
    const three = Math.floor((30 * 512 - 32) / 24);
    assert(mayCoalesce(words(three), 4, SHAPE));
    assert(!mayCoalesce(words(three + 1), 4, SHAPE));
  });

  test("keys go to the left, two thirds each; the last survivor takes the end over", () => {
    const { sets, ends } = nodes(100, 150, 150, 100);
    const plan = coalesceKeys(sets, ends, SHAPE)!;
    assertEquals(plan.map(({ keys }) => keys.count), [FILLED, 250 - FILLED + 150, 100]);
    assertEquals(keyOffset(plan[0]!.end, 0), FILLED * 8, "its last key is its end");
    assertEquals(keyOffset(plan[1]!.end, 0), 400 * 8);
    assertEquals(keyOffset(plan[2]!.end, 0), 500 * 8 + 4, "the end of the one that is gone");
  });

  test("a node that takes nothing keeps its end", () => {
    const { sets, ends } = nodes(FILLED, 10, 5);
    const plan = coalesceKeys(sets, ends, SHAPE)!;
    assertEquals(plan.map(({ keys }) => keys.count), [FILLED, 15]);
    assertEquals(keyOffset(plan[0]!.end, 0), FILLED * 8 + 4);
  });

  test("the last survivor may become quite full, and more than that is refused", () => {
    const fits = nodes(FULL - 10, 10);
    assertEquals(coalesceKeys(fits.sets, fits.ends, SHAPE)!.length, 1);
    const over = nodes(FULL - 10, 11);
    assertEquals(coalesceKeys(over.sets, over.ends, SHAPE), undefined);
    assertEquals(over.sets.map((set) => set.count), [FULL - 10, 11], "nothing was changed");
  });

  test("whatever the numbers, every key is there once, in order, inside its node", () => {
    const counts = fc.array(fc.integer({ min: 0, max: FULL }), { minLength: 2, maxLength: 4 });
    fc.assert(fc.property(counts, (list) => {
      const { sets, ends } = nodes(...list);
      const plan = coalesceKeys(sets, ends, SHAPE);
      if (plan === undefined) return;
      assertEquals(plan.length, list.length - 1);
      assertEquals(plan.flatMap(({ keys }) => offsets(keys)), sets.flatMap(offsets));
      let end = 0;
      for (const { keys, end: last } of plan) {
        assert(offsets(keys).every((offset) => offset > end && offset <= keyOffset(last, 0)));
        end = keyOffset(last, 0);
      }
      assertEquals(end, keyOffset(ends.at(-1)!, 0));
    }));
  });
});
