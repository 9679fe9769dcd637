/**
 * What an insert does to each kind of older key, rule by rule: in a set that is on disk, where keys
 * keep their places, and in the one that is still to be written.
 */
import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { insertExtent, insertPointer, InsertScratch } from "../../lib/bset/extents.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { mergeExtents, mergePointers } from "../../lib/bset/merge.ts";
import { keyText, setKey, setMaxKey, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";

const BUCKET_SECTORS = 1024;

/** `start+size@sector`, `*` when dirty; without `@`, a hole. */
function slot(text: string): Uint32Array {
  const [, start, size, sector, dirty] = /^(\d+)\+(\d+)(?:@(\d+))?(\*?)$/.exec(text)!;
  const words = new Uint32Array(SLOT_WORDS);
  setKey(words, 0, {
    inode: 0,
    offset: Number(start) + Number(size),
    sizeSectors: Number(size),
    dirty: dirty === "*",
    ...(sector === undefined ? {} : { pointer: { sector: Number(sector), gen: 0 } }),
  });
  return words;
}

function setOf(...keys: string[]): KeySet {
  const set = new KeySet();
  for (const key of keys) set.push(slot(key), 0);
  return set;
}

function textOf(set: KeySet): string[] {
  return Array.from({ length: set.count }, (_, index) => {
    const [, start, size, sector, dirty] = /^0:(\d+) len (\d+)(?: -> \[0:(\d+) gen 0\])?( dirty)?$/
      .exec(
        keyText(set.words, index * SLOT_WORDS),
      )!;
    return `${start}+${size}${sector ? `@${sector}` : ""}${dirty ? "*" : ""}`;
  });
}

interface Case {
  readonly name: string;
  readonly base?: readonly string[];
  readonly delta?: readonly string[];
  readonly insert: string;
  readonly baseAfter?: readonly string[];
  readonly deltaAfter: readonly string[];
  /** What the ledger is told, in all. */
  readonly dirty?: number;
}

const CASES: readonly Case[] = [
  {
    name: "beside others it is put in its place",
    delta: ["0+8@2000", "100+8@3000"],
    insert: "50+8@4000*",
    deltaAfter: ["0+8@2000", "50+8@4000*", "100+8@3000"],
    dirty: 8,
  },
  {
    name: "over the front of a written key: its front is cut",
    base: ["10+20@2000*"],
    insert: "5+10@4000",
    baseAfter: ["15+15@2005*"],
    deltaAfter: ["5+10@4000"],
    dirty: -5,
  },
  {
    name: "over the tail of a written key: its tail is cut",
    base: ["10+20@2000*"],
    insert: "25+10@4000*",
    baseAfter: ["10+15@2000*"],
    deltaAfter: ["25+10@4000*"],
    dirty: 10 - 5,
  },
  {
    name: "inside a written key: it is split, the upper part goes to the set to be written",
    base: ["10+20@2000*"],
    insert: "15+5@4000",
    baseAfter: ["10+5@2000*"],
    deltaAfter: ["15+5@4000", "20+10@2010*"],
    dirty: -5,
  },
  {
    name: "inside an unwritten key: it is split where it is",
    delta: ["10+20@2000*"],
    insert: "15+5@4000",
    deltaAfter: ["10+5@2000*", "15+5@4000", "20+10@2010*"],
    dirty: -5,
  },
  {
    name: "over the whole of a written key: it stays in its place, empty",
    base: ["10+20@2000*", "40+8@3000"],
    insert: "5+30",
    baseAfter: ["30+0@2020*", "40+8@3000"],
    deltaAfter: ["5+30"],
    dirty: -20,
  },
  {
    name: "over the whole of an unwritten key: that one goes",
    delta: ["10+20@2000*", "40+8@3000"],
    insert: "10+20@5000",
    deltaAfter: ["10+20@5000", "40+8@3000"],
    dirty: -20,
  },
  {
    name: "over many keys of both sets, from the middle of one to the middle of another",
    base: ["0+10@2000", "20+10@2100*", "40+10@2200*"],
    delta: ["10+10@3000*", "30+10@3100"],
    insert: "5+40@5000*",
    baseAfter: ["0+5@2000", "30+0@2110*", "45+5@2205*"],
    deltaAfter: ["5+40@5000*"],
    dirty: 40 - 10 - 10 - 5,
  },
  {
    name: "behind its own continuation it makes one key of both (back merge)",
    delta: ["10+5@2000*"],
    insert: "15+5@2005*",
    deltaAfter: ["10+10@2000*"],
    dirty: 5,
  },
  {
    name: "before its own continuation it makes one key of both (front merge)",
    delta: ["15+5@2005*"],
    insert: "10+5@2000*",
    deltaAfter: ["10+10@2000*"],
    dirty: 5,
  },
  {
    name: "a key that would be longer than a key can be stays apart",
    delta: ["0+65000"],
    insert: "65000+1000",
    deltaAfter: ["0+65000", "65000+1000"],
  },
];

describe("inserting an extent", () => {
  for (const each of CASES) {
    test(each.name, () => {
      const leaf = { base: setOf(...each.base ?? []), delta: setOf(...each.delta ?? []) };
      let dirty = 0;
      const ledger = { add: (_inode: number, _start: number, sectors: number) => dirty += sectors };
      insertExtent(leaf, slot(each.insert), 0, {
        ledger: { add: (...args) => void ledger.add(...args) },
        scratch: new InsertScratch(),
        bucketSectors: BUCKET_SECTORS,
      });
      const emptied = (key: string) => key.replace(/@\d+(\*?)$/, "@$1");
      const [found, wanted] = [textOf(leaf.base), [...each.baseAfter ?? each.base ?? []]]
        // Where an emptied key points to says nothing.
        .map((keys) => keys.map((key) => /\+0@/.test(key) ? emptied(key) : key));
      assertEquals(found, wanted);
      assertEquals(textOf(leaf.delta), each.deltaAfter);
      assertEquals(dirty, each.dirty ?? 0);
      leaf.base.checkInvariants("extents");
      leaf.delta.checkInvariants("extents");
    });
  }

  test("what a rewrite drops still hides what is under it", () => {
    const merged = mergeExtents(setOf("0+30@2000"), setOf("10+10@4000"), {
      bucketSectors: BUCKET_SECTORS,
      drop: (words, at) => keyText(words, at).includes("0:4000"),
    });
    assertEquals(textOf(merged), ["0+10@2000", "20+10@2020"]);
  });
});

describe("inserting a node pointer", () => {
  const pointer = (end: number, bucket: number): Uint32Array => {
    const words = new Uint32Array(SLOT_WORDS);
    setMaxKey(words, 0, 16);
    setKey(words, 0, {
      inode: 0,
      offset: end,
      sizeSectors: 16,
      pointer: { sector: bucket * 16, gen: 0 },
    });
    setPointer(words, 0, bucket * 16, 0);
    return words;
  };
  const buckets = (set: KeySet) =>
    Array.from({ length: set.count }, (_, index) => {
      const text = keyText(set.words, index * SLOT_WORDS);
      return Number(/:(\d+) gen/.exec(text)![1]) / 16;
    });

  test("of the same position the newer comes first, in memory and read back", () => {
    const delta = new KeySet();
    for (const [end, bucket] of [[100, 1], [200, 2], [100, 3], [50, 4], [200, 5]] as const) {
      insertPointer(delta, pointer(end, bucket), 0);
    }
    assertEquals(buckets(delta), [4, 3, 1, 5, 2]);
    const older = new KeySet();
    insertPointer(older, pointer(100, 7), 0);
    insertPointer(older, pointer(300, 8), 0);
    assertEquals(buckets(mergePointers(older, delta)), [4, 3, 1, 7, 5, 2, 8]);
    delta.checkInvariants("pointers");
  });
});
