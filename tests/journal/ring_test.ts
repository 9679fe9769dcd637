/** Where journal entries go: the rules of `mayPlace` one by one, and the reserve they keep. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { Ring } from "../../lib/journal/ring.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const BLOCKS = 4;

/** A ring whose first bucket is the current one, with `newest` in its buckets. */
function ringOf(
  newest: readonly number[],
  lastSeq: number,
  more: { usedBlocks?: number; keepReserve: boolean },
): Ring {
  const { usedBlocks = BLOCKS, keepReserve } = more;
  const start = { currentIndex: 0, currentUsedBlocks: usedBlocks, bucketNewestSeq: newest };
  const ring = new Ring({ ...start, lastSeq }, BLOCKS);
  ring.keepReserve = keepReserve;
  return ring;
}

describe("an entry that fits into the current bucket", () => {
  test("a: may fill it while another bucket is free", () => {
    // Two are free, and the first of them is entered.
    const ring = ringOf([10, 5, 6], 7, { keepReserve: true });
    ring.place(11, 1, 7);
    assertEquals([ring.free, ring.freeWith(7), ring.blocksLeft], [1, 1, 3]);
    assert(ring.mayPlace(3, 7));
  });

  for (const keepReserve of [true, false]) {
    const when = keepReserve ? "while the engine serves" : "during recovery";
    test(`b: may fill it when it frees a bucket itself, ${when}`, () => {
      const ring = ringOf([10, 5, 6], 5, { usedBlocks: 2, keepReserve });
      assertEquals([ring.free, ring.blocksLeft], [0, 2]);
      assert(!ring.mayPlace(2, 5), "none would be free, and no block left");
      assert(ring.mayPlace(2, 6));
    });
  }

  test("c: may leave a block in it for one that frees a bucket", () => {
    const ring = ringOf([10, 5, 6], 5, { usedBlocks: 1, keepReserve: false });
    assertEquals([ring.free, ring.freeWith(5), ring.blocksLeft], [0, 0, 3]);
    assert(!ring.mayPlace(3, 5), "no block would be left");
    assert(ring.mayPlace(2, 5));
    ring.place(11, 2, 5);
    assert(!ring.mayPlace(1, 5), "the last block is for one that frees a bucket");
    assertThrows(() => ring.place(12, 1, 5), Error, "has a place");
    assertEquals(ring.place(12, 1, 6), { index: 0, block: 3 });
  });
});

describe("an entry that needs another bucket", () => {
  for (const keepReserve of [true, false]) {
    const when = keepReserve ? "while the engine serves" : "during recovery";
    test(`finds no place where none is free, ${when}`, () => {
      const ring = ringOf([10, 5, 6], 5, { keepReserve });
      assert(!ring.mayPlace(1, 5));
      assert(!ring.mayPlace(1, 10), "what it frees is free only once it is durable");
    });

    test(`a: may take one and leave another one free, ${when}`, () => {
      const ring = ringOf([10, 5, 6], 7, { keepReserve });
      assertEquals(ring.free, 2);
      assert(ring.mayPlace(BLOCKS, 7), "a whole one");
    });

    test(`b: may take the last one when it frees the next one itself, ${when}`, () => {
      const ring = ringOf([10, 5, 6], 6, { keepReserve });
      assertEquals(ring.free, 1);
      assert(!ring.mayPlace(BLOCKS, 6));
      assert(ring.mayPlace(BLOCKS, 7));
      assertEquals(ring.place(11, BLOCKS, 7), { index: 1, block: 0 });
      assertEquals(ring.free, 0, "not yet");
      ring.durable(7);
      assertEquals(ring.free, 1);
    });
  }

  test("c: may take the last one during recovery, and leaves a block of it", () => {
    const ring = ringOf([10, 5, 6], 6, { keepReserve: false });
    assert(!ring.mayPlace(BLOCKS, 6), "no block would be left");
    assert(ring.mayPlace(BLOCKS - 1, 6));
  });

  test("while the engine serves it leaves the last one for a recovery", () => {
    const ring = ringOf([10, 5, 6], 6, { keepReserve: true });
    assert(!ring.mayPlace(1, 6));
    ring.keepReserve = false;
    assert(ring.mayPlace(1, 6));
  });
});

/** Offers entries, durable sooner or later; `check` after each that was placed. */
function useRing(seed: number, keepReserve: boolean, check: (ring: Ring, last: number) => void) {
  const random = new SimRandom(seed);
  const buckets = random.between(2, 5);
  let lastSeq = 1;
  const ring = ringOf(new Array<number>(buckets).fill(0), lastSeq, { keepReserve });
  let seq = 1;
  let refused = 0;
  for (let offered = 0; offered < 500; offered++) {
    const blocks = random.between(1, BLOCKS);
    if (random.chance(0.2)) lastSeq = random.between(lastSeq, seq);
    if (random.chance(0.5)) ring.durable(lastSeq);
    if (ring.mayPlace(blocks, lastSeq)) {
      ring.place(seq++, blocks, lastSeq);
      check(ring, lastSeq);
    } else {
      refused++;
      if (random.chance(0.1)) lastSeq = seq;
    }
  }
  assertGreater(seq, 50, "it went round");
  assertGreater(refused, 0, "it came to its limits");
}

describe("after every entry", () => {
  test("a bucket is free, or is as soon as the entry is durable, while the engine serves", () => {
    for (let seed = 1; seed <= 100; seed++) {
      useRing(seed, true, (ring, lastSeq) => {
        assert(ring.freeWith(lastSeq) >= 1, `seed ${seed}`);
      });
    }
  });

  test("a bucket is free or will be, or a block is left for what frees one", () => {
    for (let seed = 1; seed <= 100; seed++) {
      useRing(seed, false, (ring, lastSeq) => {
        assert(ring.freeWith(lastSeq) >= 1 || ring.blocksLeft >= 1, `seed ${seed}`);
      });
    }
  });
});
