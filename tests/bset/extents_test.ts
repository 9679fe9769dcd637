/** Key sets against a naive twin: what each sector of a small device is cached as. */
import { describe, test } from "bun:test";
import { assertEquals, assertLessOrEqual } from "@std/assert";
import fc from "fast-check";
import { insertExtent, InsertScratch } from "../../lib/bset/extents.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { ExtentMerge, mergeAll, mergeDelta, mergeExtents } from "../../lib/bset/merge.ts";
import {
  keyDirty,
  keyOffset,
  keyPointers,
  keySizeSectors,
  pointerGen,
  pointerSector,
  setKey,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";

const SECTORS = 96;
const BUCKET = 32;

interface Extent {
  readonly start: number;
  readonly size: number;
  readonly dirty: boolean;
  /** Where its data lies; undefined: a hole. */
  readonly at: number | undefined;
}

const extents = fc.array(
  fc.record({
    start: fc.nat(SECTORS - 9),
    size: fc.integer({ min: 1, max: 8 }),
    dirty: fc.boolean(),
    at: fc.option(fc.nat(40).map((bucket) => bucket * BUCKET + (bucket % 4) * 8), {
      nil: undefined,
    }),
  }),
  { minLength: 1, maxLength: 40 },
) as fc.Arbitrary<Extent[]>;

function slotOf(extent: Extent): Uint32Array {
  const words = new Uint32Array(SLOT_WORDS);
  setKey(words, 0, {
    inode: 3,
    offset: extent.start + extent.size,
    sizeSectors: extent.size,
    dirty: extent.dirty && extent.at !== undefined,
    ...(extent.at === undefined ? {} : { pointer: { sector: extent.at, gen: 7 } }),
  });
  return words;
}

/** Per sector: undefined, "hole", or the sector of its data, with a mark when dirty. */
type Picture = Array<string | undefined>;

function paint(picture: Picture, extent: Extent): void {
  for (let index = 0; index < extent.size; index++) {
    const { at } = extent;
    picture[extent.start + index] = at === undefined
      ? "hole"
      : `${at + index}${extent.dirty ? "*" : ""}`;
  }
}

function pictureOf(...sets: KeySet[]): Picture {
  const picture: Picture = new Array(SECTORS).fill(undefined);
  for (const set of sets) {
    for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
      const size = keySizeSectors(set.words, at);
      const start = keyOffset(set.words, at) - size;
      const pointer = keyPointers(set.words, at) > 0;
      if (pointer) assertEquals(pointerGen(set.words, at), 7);
      for (let index = 0; index < size; index++) {
        assertEquals(picture[start + index], undefined, "live extents overlap");
        picture[start + index] = pointer
          ? `${pointerSector(set.words, at) + index}${keyDirty(set.words, at) ? "*" : ""}`
          : "hole";
      }
    }
  }
  return picture;
}

class Leaf {
  base = new KeySet();
  delta = new KeySet();
  dirtySectors = 0;

  insert(extent: Extent): void {
    const ledger = {
      add: (_inode: number, _start: number, sectors: number) => {
        this.dirtySectors += sectors;
      },
    };
    const context = { ledger, scratch: new InsertScratch(), bucketSectors: BUCKET };
    insertExtent(this, slotOf(extent), 0, context);
  }

  write(): void {
    this.base = mergeDelta(this.base, this.delta, BUCKET);
    this.delta = new KeySet();
  }
}

describe("extents of a leaf", () => {
  test("a leaf says of every sector what the last insert over it said", () => {
    fc.assert(fc.property(extents, fc.integer({ min: 1, max: 9 }), (list, writeEvery) => {
      const leaf = new Leaf();
      const picture: Picture = new Array(SECTORS).fill(undefined);
      list.forEach((extent, index) => {
        leaf.insert(extent);
        paint(picture, extent);
        if (index % writeEvery === 0) leaf.write();
        leaf.base.checkInvariants("extents");
        leaf.delta.checkInvariants("extents");
        assertEquals(pictureOf(leaf.base, leaf.delta), picture);
        assertEquals(leaf.dirtySectors, picture.filter((each) => each?.endsWith("*")).length);
      });
    }));
  });

  test("sets read back merge to what was in memory, the newer winning", () => {
    fc.assert(fc.property(fc.array(extents, { minLength: 1, maxLength: 6 }), (rounds) => {
      const picture: Picture = new Array(SECTORS).fill(undefined);
      const written = rounds.map((list) => {
        // What one write appends: a delta over an empty base.
        const leaf = new Leaf();
        for (const extent of list) {
          leaf.insert(extent);
          paint(picture, extent);
        }
        return leaf.delta;
      });
      const merged = mergeAll(
        written,
        (older, newer) => mergeExtents(older, newer, { bucketSectors: BUCKET }),
      );
      merged.checkInvariants("extents");
      assertEquals(pictureOf(merged), picture);
    }));
  });

  test("a merge in steps of any length is the merge at once", () => {
    const steps = fc.integer({ min: 1, max: 9 });
    fc.assert(fc.property(extents, extents, steps, (old, fresh, keysMax) => {
      const [older, newer] = [new Leaf(), new Leaf()];
      for (const extent of old) older.insert(extent);
      for (const extent of fresh) newer.insert(extent);
      const options = { bucketSectors: BUCKET };
      const into = new KeySet();
      into.append(older.delta, 0, older.delta.count); // A leftover of the merge before.
      const merge = new ExtentMerge(older.delta, newer.delta, { ...options, into });
      let count = 1;
      while (!merge.step(keysMax)) count++;
      assertEquals(count, Math.max(1, Math.ceil(older.delta.count / keysMax)));
      const whole = mergeExtents(older.delta, newer.delta, options);
      assertEquals(merge.merged, into);
      assertEquals(
        into.words.slice(0, into.count * SLOT_WORDS),
        whole.words.slice(0, whole.count * SLOT_WORDS),
      );
    }));
  });

  test("a search finds the first key behind a position, from any guess", () => {
    fc.assert(fc.property(extents, fc.nat(SECTORS), fc.nat(50), (list, position, guess) => {
      const leaf = new Leaf();
      for (const extent of list) leaf.insert(extent);
      const { words, count } = leaf.delta;
      let expected = 0;
      while (expected < count && keyOffset(words, expected * SLOT_WORDS) <= position) expected++;
      assertEquals(leaf.delta.upperBound(3, position), expected);
      assertEquals(leaf.delta.upperBoundNear(3, position, guess), expected);
      assertEquals(leaf.delta.upperBound(2, position), 0);
      assertEquals(leaf.delta.upperBound(4, position), count);
    }));
  });

  test("a search among the keys of 512 KiB looks at 15 of them at most", () => {
    const count = Math.floor((512 * 1024) / 24); // 21845 keys of 24 bytes, less than 2^15.
    const set = new KeySet(count);
    const slot = new Uint32Array(SLOT_WORDS);
    for (let index = 0; index < count; index++) {
      setKey(slot, 0, { inode: 3, offset: 16 * index + 8, sizeSectors: 8, dirty: false });
      set.push(slot, 0);
    }
    const lookedAt = new Set<number>();
    set.words = new Proxy(set.words, {
      get(words, name) {
        lookedAt.add(Math.floor(Number(name) / SLOT_WORDS));
        return Reflect.get(words, name);
      },
    });
    for (let index = 0; index < count; index += 97) {
      lookedAt.clear();
      assertEquals(set.upperBound(3, 16 * index), index);
      assertLessOrEqual(lookedAt.size, 15);
    }
    lookedAt.clear();
    assertEquals(set.upperBoundNear(3, 16 * count, 1), count);
    assertLessOrEqual(lookedAt.size, 15 + 2, "a wrong guess costs two keys");
  });

  test("adjacent extents become one key only within a bucket and a kind", () => {
    const cases: Array<[Partial<Extent>, number]> = [
      [{}, 1],
      [{ dirty: true }, 2],
      [{ at: undefined }, 2],
      [{ at: 9 }, 2],
    ];
    for (const [change, keys] of cases) {
      const leaf = new Leaf();
      leaf.insert({ start: 8, size: 4, dirty: false, at: 0 });
      leaf.insert({ start: 12, size: 4, dirty: false, at: 4, ...change });
      assertEquals(leaf.delta.count, keys, JSON.stringify(change));
    }
    const leaf = new Leaf();
    leaf.insert({ start: 8, size: 4, dirty: false, at: BUCKET - 4 });
    leaf.insert({ start: 12, size: 4, dirty: false, at: BUCKET });
    assertEquals(leaf.delta.count, 2, "the bucket ends between them");
  });
});
