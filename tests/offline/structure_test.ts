/**
 * Damage that checksums do not show: nodes, journal entries and priorities that say impossible
 * things and are sealed rightly. Each is found and named; and whatever is sealed so, a check ends.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import fc from "fast-check";
import { BcacheError } from "../../lib/base/errors.ts";
import type { KeySet } from "../../lib/bset/key_set.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { type IndexView, openIndex } from "../../lib/offline/index_view.ts";
import {
  clearPointer,
  copySlot,
  keyOffset,
  keySizeSectors,
  pointerGen,
  pointerSector,
  setDirty,
  setOffset,
  setPointer,
  setSize,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { JSET, JSET_HEADER_BYTES, readJsetHeader } from "../../lib/ondisk/jset.ts";
import { viewOf, writeU64 } from "../../lib/ondisk/layout.ts";
import { PRIO_SET, readPrioSetHeader, sealPrioSet } from "../../lib/ondisk/prio_set.ts";
import { sealSuperblock, SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { USE } from "../../lib/offline/bucket_view.ts";
import { LAST_POSITION } from "../../lib/offline/node_scan.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";
import { unpackFixture } from "../support/fixtures.ts";
import {
  BUCKET_SECTORS,
  copyOf,
  imageOf,
  indexOf,
  inNewestEntry,
  openSet,
  patch,
  patchSuperblock,
  plantChildren,
  resealNode,
  rewriteNode,
  type SmallSet,
  smallSet,
} from "./world.ts";

const LIMIT_MS = 60_000;
const NODE_BYTES = BUCKET_SECTORS * 512;

const LAST = (keys: KeySet) => (keys.count - 1) * SLOT_WORDS;

interface Plant {
  readonly name: string;
  readonly pattern: RegExp;
  readonly plant: (cache: MemoryDevice, index: IndexView) => Promise<void>;
}

/** Rewrites the second leaf, which has neighbours on both sides. */
const inLeaf =
  (change: (keys: KeySet, index: IndexView) => void): Plant["plant"] => (cache, index) =>
    rewriteNode(cache, index.tree.leaves[1]!.key!, 0, (keys) => change(keys, index));

const inRoot =
  (change: (keys: KeySet, index: IndexView) => void): Plant["plant"] => (cache, index) => {
    const { rootKey, rootLevel } = index.journal.head;
    assert(rootLevel > 0, "the index has levels");
    return rewriteNode(cache, rootKey, rootLevel, (keys) => {
      dropDead(keys, index);
      change(keys, index);
    });
  };

/** Leaves only the keys of children, without freed and replaced nodes. */
function dropDead(keys: KeySet, { buckets }: IndexView): void {
  for (let number = keys.count - 1; number >= 0; number--) {
    const at = number * SLOT_WORDS;
    const bucket = Math.floor(pointerSector(keys.words, at) / BUCKET_SECTORS);
    const isStale = buckets.staleness(bucket, pointerGen(keys.words, at)) > 0;
    if (isStale || keyOffset(keys.words, at) === 0) keys.removeAt(number);
  }
}

test("children that cannot be read are one range, however many", async () => {
  const { cache } = await smallSet({ seed: 3 });
  await plantChildren(cache, 300);
  const leaves = (await openIndex(await imageOf(cache), { report: () => {} }))!.tree.leaves;
  assertEquals(leaves.map(({ key, lower, upper }) => [key !== undefined, lower, upper]), [
    [true, { inode: 0, offset: 0 }, { inode: leaves[0]!.upper.inode, offset: 1 }],
    [false, leaves[0]!.upper, LAST_POSITION],
  ]);
});

const PLANTS: readonly Plant[] = [
  {
    name: "an extent behind the end of its leaf",
    pattern: /btree: .*short btree key: an extent lies behind the end of the node/,
    plant: inLeaf((keys) => {
      const at = LAST(keys);
      setOffset(keys.words, at, keyOffset(keys.words, at) + 4000);
    }),
  },
  {
    name: "an extent before the beginning of its leaf",
    pattern: /btree: .*leaf: an extent begins before its node/,
    plant: inLeaf((keys) => setOffset(keys.words, 0, keyOffset(keys.words, 0) - 600)),
  },
  {
    name: "extents out of order",
    pattern: /btree: .*is out of order/,
    plant: inLeaf(({ words }) => {
      const first = words.slice(0, SLOT_WORDS);
      copySlot(words, SLOT_WORDS, words, 0);
      copySlot(first, 0, words, SLOT_WORDS);
    }),
  },
  {
    name: "extents that overlap",
    pattern: /btree: .*is out of order/,
    plant: inLeaf(({ words }) => {
      // The second begins where the first does; both stay inside their buckets.
      setSize(words, 0, 1);
      setSize(words, SLOT_WORDS, 1);
      setOffset(words, SLOT_WORDS, keyOffset(words, 0));
    }),
  },
  {
    name: "an extent larger than its end",
    pattern: /btree: .*begins before sector 0/,
    plant: inLeaf(({ words }) => setOffset(words, 0, 1)),
  },
  {
    name: "an extent that crosses the end of its bucket",
    pattern: /btree: .*crosses the end of its bucket/,
    plant: inLeaf(({ words }) => {
      const bucket = Math.floor(pointerSector(words, 0) / BUCKET_SECTORS);
      setPointer(words, 0, (bucket + 1) * BUCKET_SECTORS - 1, pointerGen(words, 0));
      setSize(words, 0, Math.max(keySizeSectors(words, 0), 2));
    }),
  },
  {
    name: "an extent outside the device",
    pattern: /btree: .*points outside the device's buckets/,
    plant: inLeaf(({ words }) => setPointer(words, 0, 1200 * BUCKET_SECTORS, 1)),
  },
  {
    name: "an extent in a journal bucket",
    pattern: /btree: .*points into a bucket that belongs to the journal/,
    plant: inLeaf(({ words }) => {
      setPointer(words, 0, 2 * BUCKET_SECTORS, 0);
      setSize(words, 0, 1);
    }),
  },
  {
    name: "an extent in the bucket of a node",
    pattern: /btree: .*points into a bucket that belongs to a b-tree node/,
    plant: inLeaf(({ words }, { tree }) => {
      const node = tree.leaves[0]!.key!;
      setPointer(words, 0, pointerSector(node, 0), pointerGen(node, 0));
      setSize(words, 0, 1);
    }),
  },
  {
    name: "two extents in the same sectors",
    pattern: /btree: .*names sectors that another extent names as well/,
    plant: inLeaf(({ words }) => {
      setPointer(words, 0, pointerSector(words, SLOT_WORDS), pointerGen(words, SLOT_WORDS));
      setSize(words, 0, 1);
    }),
  },
  {
    name: "an extent of a device that nobody knows",
    pattern: /btree: .*\(2\.0 KiB dirty\) belong to device number 77, which the UUID table does/,
    plant: (cache, index) =>
      rewriteNode(cache, index.tree.leaves.at(-1)!.key!, 0, ({ words, count }) => {
        const at = (count - 1) * SLOT_WORDS;
        words[at] = (words[at]! & ~0xf_ffff) | 77;
      }),
  },
  {
    name: "a dirty extent on another cache device",
    pattern: /btree: .*key .* dirty lies on cache device 1, expected device 0/,
    plant: inLeaf(({ words }) => {
      setDirty(words, 0, true);
      words[5] = words[5]! | (1 << 19);
    }),
  },
  {
    name: "data before the device's data",
    pattern: /backing: the cache holds data of the part before the device's data/,
    plant: (cache, index) =>
      rewriteNode(cache, index.tree.leaves[0]!.key!, 0, ({ words }) => {
        setOffset(words, 0, 5);
        setSize(words, 0, 1);
      }),
  },
  {
    name: "children that leave a gap at the end",
    pattern: /btree: .*its children leave a gap at its end/,
    plant: inRoot((keys) => keys.removeAt(keys.count - 1)),
  },
  {
    name: "one bucket as two nodes",
    pattern: /btree: .*the bucket of a node .* belongs to a b-tree node already/,
    plant: inRoot(({ words }) => {
      setPointer(words, SLOT_WORDS, pointerSector(words, 0), pointerGen(words, 0));
    }),
  },
  {
    name: "a node that is its own child",
    pattern: /btree: .*belongs to a b-tree node already/,
    plant: inRoot((keys, { journal }) => {
      const { rootKey } = journal.head;
      setPointer(keys.words, LAST(keys), pointerSector(rootKey, 0), pointerGen(rootKey, 0));
    }),
  },
  {
    name: "a node in the bucket of the priorities",
    pattern: /btree: .*the bucket of a node .* belongs to priorities already/,
    plant: inRoot((keys, { journal, buckets }) => {
      const { prioBucket } = journal.head;
      setPointer(keys.words, LAST(keys), prioBucket * BUCKET_SECTORS, buckets.gen[prioBucket]!);
    }),
  },
  {
    name: "a node that begins inside its bucket",
    pattern: /btree: .*does not begin at the start of its bucket/,
    plant: inRoot((keys) => {
      const at = LAST(keys);
      const [sector, gen] = [pointerSector(keys.words, at), pointerGen(keys.words, at)];
      setPointer(keys.words, at, sector + 8, gen);
      setSize(keys.words, at, 8);
    }),
  },
  {
    name: "children that end at one position",
    pattern: /btree: .*child .* overlaps what is before it/,
    plant: inRoot(({ words, count }) => {
      const at = (count - 2) * SLOT_WORDS;
      copySlot(words, at, words, at - SLOT_WORDS);
    }),
  },
  {
    name: "a child without pointer",
    pattern: /btree: .*is a node pointer without pointer/,
    plant: inRoot((keys) => clearPointer(keys.words, LAST(keys))),
  },
  {
    name: "a stale child",
    pattern: /btree: .*(its children leave a gap at its end|bad checksum)/,
    plant: inRoot((keys) => {
      const at = LAST(keys);
      const gen = (pointerGen(keys.words, at) - 1) & 0xff;
      setPointer(keys.words, at, pointerSector(keys.words, at), gen);
    }),
  },
  {
    name: "unknown flags in the UUID table",
    pattern: /uuids: .*slot 0 has unknown flags: found 0x80/,
    plant: (cache, { uuids }) =>
      patch(cache, uuids!.bucket * BUCKET_SECTORS, 1, (bytes) => {
        bytes[60] = 0x80;
      }),
  },
  {
    name: "a UUID table whose pointer is stale",
    pattern: /btree: .*the pointer to the UUID table is stale/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => {
        const at = JSET.uuid_bucket + 16;
        bytes[at] = (bytes[at]! - 1) & 0xff;
      }),
  },
  {
    name: "a root that is deeper than any",
    pattern: /btree: journal entry \d+: the root's key .* is of level 99/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => viewOf(bytes).setUint16(JSET.btree_level, 99, true)),
  },
  {
    name: "a root that does not end at the last position",
    pattern: /btree: journal entry \d+: the root's key .* does not end at the last position/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => bytes.fill(0, JSET.btree_root + 12, 120)),
  },
  {
    name: "priorities that do not exist",
    pattern: /priorities: .*names no possible bucket for prio_set 0 of 1: found 0/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => writeU64(viewOf(bytes), JSET.prio_bucket, 0)),
  },
  {
    name: "a UUID table that does not exist",
    pattern: /uuids: journal entry \d+ names no possible place for the table/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => bytes.fill(0, JSET.uuid_bucket, 100)),
  },
  {
    name: "an entry of an unknown version",
    pattern: /journal: entry \d+ has an unknown version: found 9/,
    plant: (cache, index) =>
      inNewestEntry(cache, index, (bytes) => viewOf(bytes).setUint32(JSET.version, 9, true)),
  },
];

describe("damage under right checksums", () => {
  let sound: SmallSet;
  beforeAll(async () => {
    sound = await smallSet({ writes: 900, seed: 41 });
  });

  for (const { name, pattern, plant } of PLANTS) {
    test(name, async () => {
      const cache = await copyOf(sound.cache);
      await plant(cache, await indexOf(cache));
      const { backing } = sound;
      const report = await checkCache({ cache, backings: [backing] });
      const texts = report.findings.map(findingText);
      assert(texts.some((text) => pattern.test(text)), `not found among:\n${texts.join("\n")}`);
      assertEquals(report.clean, false);
    }, LIMIT_MS);
  }

  test("a journal key that cannot be", async () => {
    const { cache, backing } = await smallSet({ end: "cut", writes: 300, seed: 42 });
    await inNewestEntry(cache, await indexOf(cache), (bytes) => bytes.fill(0xff, 240, 256));
    const report = await checkCache({ cache, backings: [backing] });
    assertMatch(
      findingText(report.findings[0]!),
      /journal: bucket \d+, .*: entry \d+: key 0 has 7 pointers/,
    );
  });

  test("a journal key without size that ends where no number is exact", async () => {
    const { cache, backing } = await smallSet({ end: "cut", writes: 300, seed: 42 });
    await inNewestEntry(cache, await indexOf(cache), (bytes) => {
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset + JSET_HEADER_BYTES, 4);
      words[0] = words[0]! & 0x000f_ffff; // The size's low bits, beside the inode.
      words[1] = words[1]! & 0xffff_fff0; // And its high ones.
      words[3] = 0x0020_0000;
      assertEquals(keySizeSectors(words, 0), 0);
    });
    const report = await checkCache({ cache, backings: [backing] });
    assertMatch(findingText(report.findings[0]!), /entry \d+: key 0 ends beyond sector 2\^53/);
    await assertRejects(
      () => openSet({ cache, backing }, { seed: 9 }),
      Error,
      "beyond sector 2^53",
    );
  });

  test("a journal key into the bucket of a node", async () => {
    const { cache, backing } = await smallSet({ end: "cut", writes: 300, seed: 42 });
    assertEquals((await checkCache({ cache, backings: [backing] })).errors, 0);
    const index = await indexOf(cache);
    const { rootKey } = index.journal.head;
    await inNewestEntry(cache, index, (bytes) => {
      assert(readJsetHeader(bytes).keyWords > 0, "the entry has keys");
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset + JSET_HEADER_BYTES, SLOT_WORDS);
      setPointer(words, 0, pointerSector(rootKey, 0), pointerGen(rootKey, 0));
    });
    const { findings } = await checkCache({ cache, backings: [backing] });
    assertEquals(findings.length, 1);
    assertMatch(
      findingText(findings[0]!),
      /the journal's extent .* points into a bucket that belongs to a b-tree node/,
    );
  });

  test("any words in any node, sealed rightly, end with a report and a rescue", async () => {
    const index = await indexOf(sound.cache);
    const nodes = [
      { key: index.journal.head.rootKey.slice(0, SLOT_WORDS) },
      ...index.tree.leaves.map((leaf) => ({ key: leaf.key! })),
    ];
    const change = fc.record({
      node: fc.nat(nodes.length - 1),
      at: fc.nat(NODE_BYTES / 4 - 1),
      // Single bits, and words as keys have them.
      word: fc.oneof(fc.nat(31).map((bit) => 1 << bit), fc.integer()),
      flip: fc.boolean(),
    });
    const { blockBytes } = index.image.geometry;
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 6 }), async (changes) => {
        const cache = await copyOf(sound.cache);
        for (const { node, at, word, flip } of changes) {
          const { key } = nodes[node]!;
          await patch(cache, pointerSector(key, 0), BUCKET_SECTORS, (bytes) => {
            const words = new Uint32Array(bytes.buffer);
            words[at] = flip ? words[at]! ^ word : word;
            resealNode(bytes, key, blockBytes);
          });
        }
        await checkCache({ cache, backings: [sound.backing] });
        const plan = await planExtract({ cache, of: { backing: sound.backing }, rescue: true });
        await plan.copyTo(new MemoryDevice(plan.sizeSectors));
      }),
      { numRuns: 40, seed: 13 },
    );
  }, LIMIT_MS);
});

test("stale copies of nodes, the UUID table and needed journal entries are found", async () => {
  const set = await smallSet({ writes: 500, seed: 51 });
  const earlier = await copyOf(set.cache);
  const life = await openSet(set, { seed: 9 });
  for (let step = 0; step < 900; step++) {
    await life.volumes[0]!.write((step * 7919) % 30000 * 512, new Uint8Array(1024).fill(3));
    await drainMicrotasks();
  }
  await life.volumes[0]!.flush();
  await life.close();
  const { buckets } = await indexOf(set.cache);
  const [stale, now] = [new Uint8Array(NODE_BYTES), new Uint8Array(NODE_BYTES)];
  let found = 0;
  for (let bucket = 1; bucket < buckets.bucketCount; bucket++) {
    const use = buckets.use[bucket]!;
    if (use < USE.journal) continue;
    await earlier.read(bucket * BUCKET_SECTORS, stale);
    await set.cache.read(bucket * BUCKET_SECTORS, now);
    if (Buffer.compare(stale, now) === 0) continue;
    const cache = await copyOf(set.cache);
    await cache.write(bucket * BUCKET_SECTORS, stale);
    const report = await checkCache({ cache, backings: [set.backing] });
    if (!report.clean) found++;
    // Earlier priorities, and a journal that only ends earlier, are sound in themselves.
    if (use !== USE.node && use !== USE.uuids) continue;
    assertEquals(report.clean, false, `bucket ${bucket}`);
  }
  assert(found > 5);
}, LIMIT_MS);

test("a set of several cache devices is refused by name", async () => {
  const { cache } = await smallSet({ writes: 1 });
  await patchSuperblock(cache, (page) => viewOf(page).setUint16(SUPERBLOCK.nr_in_set, 2, true));
  const { findings } = await checkCache({ cache });
  assertMatch(findingText(findings[0]!), /several cache devices.*: found device 0 of 2, expected/);
});

test("any superblocks, sealed rightly, end with a report and a rescue", async () => {
  const sound = await smallSet({ end: "cut", writes: 200, seed: 43 });
  const { from, to } = { from: SUPERBLOCK.version, to: SUPERBLOCK.d + 8 * 12 };
  const change = fc.record({
    ofBacking: fc.boolean(),
    at: fc.integer({ min: from, max: to }),
    byte: fc.oneof(fc.nat(7).map((bit) => 1 << bit), fc.nat(255)),
    flip: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
      const cache = await copyOf(sound.cache);
      const backing = await copyOf(sound.backing);
      for (const { ofBacking, at, byte, flip } of changes) {
        await patch(ofBacking ? backing : cache, 8, 8, (page) => {
          page[at] = flip ? page[at]! ^ byte : byte;
          if (viewOf(page).getUint16(SUPERBLOCK.keys, true) <= 256) sealSuperblock(page);
        });
      }
      await checkCache({ cache, backings: [backing] });
      try {
        const plan = await planExtract({ cache, of: { backing }, rescue: true });
        await plan.copyTo(new MemoryDevice(plan.sizeSectors));
      } catch (error) {
        assert(error instanceof BcacheError, String(error));
      }
    }),
    { numRuns: 150, seed: 14 },
  );
}, LIMIT_MS);

/** A set of many prio_sets, in memory. */
async function manyPrioSets(): Promise<{ cache: MemoryDevice; chain: number[] }> {
  const unpacked = unpackFixture("three-level");
  const file = await openFileDevice(unpacked.pathOf("cache.img"), { readOnly: true });
  const cache = new MemoryDevice(file.sizeSectors, { name: "cache" });
  const bytes = new Uint8Array(file.sizeSectors * 512);
  await file.read(0, bytes);
  await cache.write(0, bytes);
  await file.close();
  unpacked.remove();
  const { buckets, geometry } = await indexOf(cache).then((index) => ({
    buckets: index.buckets,
    geometry: index.image.geometry,
  }));
  const chain = Array.from(buckets.use.keys()).filter((bucket) => buckets.use[bucket] === 3);
  assertEquals(chain.length, geometry.prioSetCount);
  return { cache, chain };
}

describe("the chain of priorities", () => {
  const plants: ReadonlyArray<readonly [string, RegExp, (view: DataView, own: number) => void]> = [
    [
      "that leads back to itself",
      /priorities: the one before names no possible bucket for .*which holds another/,
      (view, own) => writeU64(view, PRIO_SET.next_bucket, own),
    ],
    [
      "that leads out of the device",
      /priorities: the one before names no possible bucket for prio_set 1 of 13: found 99999/,
      (view) => writeU64(view, PRIO_SET.next_bucket, 99999),
    ],
    [
      "of two rounds",
      /priorities: .*prio_set 1 of 13 is of another round than the first/,
      (view) => writeU64(view, PRIO_SET.seq, 1),
    ],
  ];
  for (const [name, pattern, change] of plants) {
    test(name, async () => {
      const { cache } = await manyPrioSets();
      const index = await indexOf(cache);
      const { metaBytes, bucketSectors } = index.image.geometry;
      const first = index.journal.head.prioBucket;
      await patch(cache, first * bucketSectors, metaBytes / 512, (bytes) => {
        change(viewOf(bytes), first);
        sealPrioSet(bytes, readPrioSetHeader(bytes), index.image.magics.prioSet);
      });
      const { findings } = await checkCache({ cache });
      const texts = findings.map(findingText);
      assert(texts.some((text) => pattern.test(text)), texts.join("\n"));
    }, LIMIT_MS);
  }
});
