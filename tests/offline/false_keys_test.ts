/**
 * Keys that cannot be true under right checksums: a start refuses them, with the device's name and
 * what to do, `check` reports errors, `extract` wants --rescue, and that saves all the rest.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import type { KeySet } from "../../lib/bset/key_set.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import { findingText } from "../../lib/offline/findings.ts";
import type { IndexView } from "../../lib/offline/index_view.ts";
import {
  clearPointer,
  type KeyFields,
  keyInode,
  keyOffset,
  keyPointers,
  keyStart,
  setDirty,
  setKey,
  setOffset,
  setSize,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { JSET_HEADER_BYTES, readJsetHeader, sealJset } from "../../lib/ondisk/jset.ts";
import {
  BUCKET_SECTORS,
  copyOf,
  DATA_OFFSET,
  indexOf,
  MAGICS,
  openSet,
  patch,
  rewriteNode,
  type SmallSet,
  smallSet,
  VOLUME_BYTES,
} from "./world.ts";

interface Plant {
  readonly name: string;
  /** What the start says behind the device's name. */
  readonly pattern: RegExp;
  readonly plant: (cache: MemoryDevice, index: IndexView) => Promise<void>;
}

const inLeaf = (change: (keys: KeySet) => void): Plant["plant"] => (cache, index) =>
  rewriteNode(cache, index.tree.leaves[1]!.key!, 0, change);

/** Appends keys to the newest journal entry. */
function journaled(keysOf: (index: IndexView) => readonly KeyFields[]): Plant["plant"] {
  return async (cache, index) => {
    const { place, needed } = index.journal;
    const { index: bucket, block } = needed.at(-1)!;
    const sector = place.buckets[bucket]! * BUCKET_SECTORS + block * place.blockSectors;
    await patch(cache, sector, BUCKET_SECTORS - block * place.blockSectors, (bytes) => {
      const words = new Uint32Array(bytes.buffer);
      for (const key of keysOf(index)) {
        const slot = new Uint32Array(SLOT_WORDS);
        setKey(slot, 0, key);
        const length = 4 + 2 * keyPointers(slot, 0);
        words.set(slot.subarray(0, length), JSET_HEADER_BYTES / 4 + words[7]! * 2);
        words[7]! += length / 2;
      }
      sealJset(bytes, readJsetHeader(bytes), MAGICS.jset);
    });
  };
}

/** The last bucket that nothing uses. */
function freeBucket({ buckets }: IndexView): number {
  return buckets.use.lastIndexOf(0, buckets.bucketCount - 2);
}

function dirtyKey(
  index: IndexView,
  number: number,
  more: { gen?: number; device?: number } = {},
): KeyFields {
  const bucket = freeBucket(index);
  const pointer = { sector: bucket * BUCKET_SECTORS, gen: index.buckets.gen[bucket]!, ...more };
  return { inode: 0, offset: 108 + 8 * number, sizeSectors: 8, dirty: true, pointer };
}

const PLANTS: readonly Plant[] = [
  {
    name: "an extent of a leaf that ends before it",
    pattern: /b-tree node \(level 0\) at bucket \d+: key 0:13 len 3 .*begins before its node, /,
    plant: inLeaf(({ words }) => {
      setSize(words, 0, 3);
      setOffset(words, 0, 16);
    }),
  },
  {
    name: "an extent of a leaf that begins before it",
    pattern: /key 0:0 len .*begins before its node, which begins at 0:\d+;/,
    plant: inLeaf(({ words }) => {
      setKey(words, 0, { inode: 0, offset: keyOffset(words, 0), sizeSectors: keyOffset(words, 0) });
    }),
  },
  {
    name: "a dirty extent without a pointer, in a leaf",
    pattern: /b-tree node \(level 0\) at bucket \d+, block 0: key .* dirty has no pointer to its/,
    plant: inLeaf(({ words }) => {
      const key = { inode: 0, offset: keyOffset(words, 0), sizeSectors: 1, dirty: true };
      setKey(words, 0, key);
    }),
  },
  ...[1, 9, 4095].map((device): Plant => ({
    name: `a dirty extent on cache device ${device}, in a leaf`,
    pattern: new RegExp(`key .* dirty lies on cache device ${device}, expected device 0`),
    plant: inLeaf(({ words }) => {
      setDirty(words, 0, true);
      words[5] = words[5]! | (device << 19);
    }),
  })),
  {
    name: "a dirty key without a pointer, in the journal",
    pattern: /journal entry \d+: key 0:92 len 8 dirty has no pointer to its data;/,
    plant: journaled(() => [{ inode: 0, offset: 100, sizeSectors: 8, dirty: true }]),
  },
  ...[1, 4095].map((device): Plant => ({
    name: `a dirty key on cache device ${device}, in the journal`,
    pattern: new RegExp(`journal entry .* dirty lies on cache device ${device}, expected device 0`),
    plant: journaled((index) => [dirtyKey(index, 0, { device })]),
  })),
  {
    name: "generations that contradict each other, in the journal",
    pattern: /journal entry \d+: key 0:100 .* contradicts others about its bucket \d+, .* 192;/,
    plant: journaled((index) =>
      [0, 64, 128, 192].map((gen, number) => dirtyKey(index, number, { gen }))
    ),
  },
];

describe("keys that cannot be true", () => {
  const sets = new Map<string, SmallSet>();
  beforeAll(async () => {
    for (const end of ["cut", "close"] as const) {
      sets.set(end, await smallSet({ writes: 1000, seed: 5, end }));
    }
  });

  for (const { name, pattern, plant } of PLANTS) {
    for (const end of ["cut", "close"]) {
      test(`${name}: ${end}`, async () => {
        const { backing, cache: sound } = sets.get(end)!;
        const cache = await copyOf(sound);
        await plant(cache, await indexOf(cache));
        const error = await assertRejects(() => openSet({ cache, backing }, { seed: 9 }));
        assert(error instanceof BcacheError && error.code === "BadFormat", String(error));
        assertMatch(error.message, pattern);
        assertMatch(error.message, /^cache: .*; see what is left with `check`, .* --rescue`/);
        const { errors } = await checkCache({ cache, backings: [backing] });
        assert(errors > 0, "a check finds what a start refuses");
        await assertRejects(
          () => planExtract({ cache, of: { backing }, rescue: false }),
          BcacheError,
          "--rescue extracts what can be read",
        );
      });
    }
  }

  test("however many of one journal entry or leaf are one finding, which counts them", async () => {
    const { cache: sound } = sets.get("cut")!;
    const key = { inode: 0, offset: 100, sizeSectors: 8, dirty: true };
    for (const count of [1, 2, 100]) {
      const journal = await copyOf(sound);
      await journaled(() => new Array(count).fill(key))(journal, await indexOf(journal));
      const leaf = await copyOf(sound);
      await inLeaf(({ words }) => {
        for (let at = 0; at < count * SLOT_WORDS; at += SLOT_WORDS) {
          clearPointer(words, at);
          setDirty(words, at, true);
        }
      })(leaf, await indexOf(leaf));
      for (const cache of [journal, leaf]) {
        const texts = (await checkCache({ cache })).findings.map(findingText);
        const faults = texts.filter((text) => /dirty has no pointer to its data/.test(text));
        const of = count === 1 ? "" : ` (the first of ${count} such keys)`;
        assertEquals(faults.length, 1);
        assert(faults[0]!.includes(`dirty has no pointer to its data${of}; `), faults[0]);
      }
    }
  });

  test("a rescue takes the keys behind one that cannot be true, and lists that one", async () => {
    const { backing, cache: sound, model } = sets.get("close")!;
    const cache = await copyOf(sound);
    let [start, end] = [0, 0];
    await rewriteNode(cache, (await indexOf(cache)).tree.leaves[1]!.key!, 0, ({ words }) => {
      [start, end] = [keyStart(words, 0), keyOffset(words, 0)];
      assertEquals(keyInode(words, 0), 0);
      setDirty(words, 0, true);
      words[5] = words[5]! | (1 << 19);
    });
    const plan = await planExtract({ cache, of: { backing }, rescue: true });
    const output = new MemoryDevice(plan.sizeSectors);
    const { doubtful } = await plan.copyTo(output);
    assertEquals(doubtful.map(({ startByte, endByte }) => [startByte, endByte]), [
      [(start - 16) * 512, (end - 16) * 512],
    ]);
    const image = new Uint8Array(model.length);
    await output.read(0, image);
    image.set(model.subarray((start - 16) * 512, (end - 16) * 512), (start - 16) * 512);
    assertEquals(Buffer.compare(image, model), 0);
  });

  test("clean keys without data in this cache are holes, as in Linux", async () => {
    const { backing, cache: sound, model } = sets.get("cut")!;
    const cache = await copyOf(sound);
    const index = await indexOf(cache);
    const sizeSectors = 1;
    const offset = DATA_OFFSET + VOLUME_BYTES / 512;
    const { pointer } = dirtyKey(index, 0, { device: 4095 });
    await journaled(() => [{ inode: 0, offset, sizeSectors, pointer: pointer! }])(cache, index);
    const set = await openSet({ cache, backing: await copyOf(backing) }, { seed: 9 });
    const bytes = new Uint8Array(512);
    await set.volumes[0]!.read(model.length - 512, bytes);
    assertEquals(Buffer.compare(bytes, model.subarray(model.length - 512)), 0);
    await set.close();
  });
});
