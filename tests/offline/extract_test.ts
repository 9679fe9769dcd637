/**
 * `extract`: the image is what the kernel, or the engine, would serve; the inputs stay as they
 * are; a rescue takes what can be read and lists the rest.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Device } from "../../lib/device/device.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { type ExtractResult, planExtract } from "../../lib/offline/extract.ts";
import { USE } from "../../lib/offline/bucket_view.ts";
import { effectiveLeaves, type IndexView } from "../../lib/offline/index_view.ts";
import {
  keyPointers,
  keySizeSectors,
  pointerSector,
  setKey,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { JSET, JSET_HEADER_BYTES } from "../../lib/ondisk/jset.ts";
import { viewOf } from "../../lib/ondisk/layout.ts";
import { SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { findByJournal } from "../../lib/offline/lost_superblock.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { SparseWriter } from "../../lib/offline/sparse_writer.ts";
import { fixtures, unpackFixture, zeroTail } from "../support/fixtures.ts";
import {
  BUCKET_SECTORS,
  copyOf,
  DATA_OFFSET,
  failingAt,
  imageOf,
  indexOf,
  openSet,
  patch,
  patchSuperblock,
  resealJset,
  type SmallSet,
  smallSet,
} from "./world.ts";

const LIMIT_MS = 60_000;

async function extract(
  cache: Device,
  of: { backing: Device } | { volume: number | Uint8Array },
  rescue = false,
): Promise<{ image: Uint8Array; result: ExtractResult }> {
  const plan = await planExtract({ cache, of, rescue });
  const output = new MemoryDevice(plan.sizeSectors, { name: "output" });
  const result = await plan.copyTo(output);
  const image = new Uint8Array(plan.sizeSectors * 512);
  await output.read(0, image);
  return { image, result };
}

/** Adds keys to the newest journal entry. */
async function appendToJournal(
  cache: Device,
  { journal: { place, needed } }: IndexView,
  keys: readonly Uint32Array[],
): Promise<void> {
  const { index, block } = needed.at(-1)!;
  const sector = place.buckets[index]! * BUCKET_SECTORS + block;
  await patch(cache, sector, BUCKET_SECTORS - block, (bytes) => {
    const words = new Uint32Array(bytes.buffer);
    for (const key of keys) {
      words.set(key, JSET_HEADER_BYTES / 4 + words[JSET.keys / 4]! * 2);
      words[JSET.keys / 4]! += SLOT_WORDS / 2;
    }
    resealJset(bytes);
  });
}

const hashOf = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** Of these two the kernel dropped clean data as it registered them; see fixtures_test.ts. */
const DROPPED = ["gc-reuse", "writearound-fifo-discard"];

describe("images that the kernel wrote", () => {
  for (const entry of fixtures()) {
    const served = Object.entries(entry.kernel.devices).filter(([, device]) =>
      device.sha256 !== undefined
    );
    if (served.length === 0) continue;
    test(`${entry.name}: the image is what the kernel served`, async () => {
      const unpacked = unpackFixture(entry.name);
      const open = (name: string) => openFileDevice(unpacked.pathOf(name), { readOnly: true });
      const cache = await open("cache.img");
      try {
        for (const [name, kernel] of served) {
          const volume = /^volume(\d+)$/.exec(name)?.[1];
          if (volume !== undefined) {
            const { image } = await extract(cache, { volume: Number(volume) });
            assertEquals(hashOf(image), kernel.sha256, name);
            continue;
          }
          const backing = await open(name);
          const { image, result } = await extract(cache, { backing });
          assertEquals(hashOf(image), kernel.sha256, name);
          assertEquals(result.doubtful, []);
          await backing.close();
          if (DROPPED.includes(entry.name)) continue;
          zeroTail(unpacked.pathOf(name), entry.images[name]!.data_offset_sectors! * 512);
          const blank = await open(name);
          const { image: fromCache } = await extract(cache, { backing: blank });
          await blank.close();
          assertEquals(hashOf(fromCache), kernel.sha256_with_backing_data_zeroed, name);
        }
      } finally {
        await cache.close();
        unpacked.remove();
      }
    }, LIMIT_MS);
  }
});

describe("images that the kernel wrote, without the cache's superblock", () => {
  const images = [
    ["flash-only", "volume1"],
    ["block512-offset", "backing1.img"],
    ["three-level", "backing1.img"],
    ["smallest", "backing1.img"],
    ["two-backings", "backing2.img"],
  ] as const;
  for (const [name, device] of images) {
    test(`${name}: ${device} is rescued whole`, async () => {
      const unpacked = unpackFixture(name);
      const cache = await openFileDevice(unpacked.pathOf("cache.img"), {});
      try {
        await cache.write(0, new Uint8Array(8192));
        const { sha256 } = fixtures().find((entry) => entry.name === name)!.kernel.devices[device]!;
        if (device === "volume1") {
          const { image, result } = await extract(cache, { volume: 1 }, true);
          assertEquals([hashOf(image), result.doubtful], [sha256, []]);
          return;
        }
        const backing = await openFileDevice(unpacked.pathOf(device), { readOnly: true });
        const { image, result } = await extract(cache, { backing }, true);
        await backing.close();
        assertEquals([hashOf(image), result.doubtful], [sha256, []]);
      } finally {
        await cache.close();
        unpacked.remove();
      }
    }, LIMIT_MS);
  }
});

describe("what the engine leaves behind", () => {
  let sound: SmallSet;
  beforeAll(async () => {
    sound = await smallSet({ end: "cut", writes: 900, seed: 21 });
  });

  test("the image is what was written, and the inputs are only read", async () => {
    const { cache, backing, model } = sound;
    const before = await Promise.all([cache, backing].map(contents));
    const { image } = await extract(cache, { backing });
    assertEquals(Buffer.compare(image, model), 0);
    const after = await Promise.all([cache, backing].map(contents));
    assert(before.every((bytes, at) => Buffer.compare(bytes, after[at]!) === 0));
  }, LIMIT_MS);

  test("a damaged leaf ends it, or is listed in a rescue, with the rest right", async () => {
    const cache = await copyOf(sound.cache);
    const leaf = (await indexOf(cache)).tree.leaves.at(-2)!;
    await patch(cache, leaf.key![4]! >>> 8, 1, (bytes) => bytes.fill(0xee, 40, 60));
    const { backing, model } = sound;
    await assertRejects(() => extract(cache, { backing }), BcacheError, "--rescue");
    const { image, result } = await extract(cache, { backing }, true);
    assertEquals(result.doubtful.length, 1);
    const { startByte, endByte } = result.doubtful[0]!;
    assertEquals(startByte, (leaf.lower.offset - 16) * 512);
    assertEquals(endByte, (leaf.upper.offset - 16) * 512);
    assertEquals(Buffer.compare(image.subarray(0, startByte), model.subarray(0, startByte)), 0);
    assertEquals(Buffer.compare(image.subarray(endByte), model.subarray(endByte)), 0);
  }, LIMIT_MS);

  test(
    "without priorities dirty data is taken as the index has it, and all is in doubt",
    async () => {
      const cache = await copyOf(sound.cache);
      const { journal } = await indexOf(cache);
      await patch(cache, journal.head.prioBucket * 16, 1, (bytes) => bytes.fill(1, 0, 8));
      const { image, result } = await extract(cache, { backing: sound.backing }, true);
      assertEquals(Buffer.compare(image, sound.model), 0);
      assertEquals(result.doubtful.length, 1);
      assertMatch(result.doubtful[0]!.why, /no generations/);
    },
    LIMIT_MS,
  );

  test("without a UUID table the only device with data is taken", async () => {
    const cache = await copyOf(sound.cache);
    const { uuids } = await indexOf(cache);
    await patch(cache, uuids!.bucket * 16, 16, (bytes) => bytes.fill(0));
    const { image, result } = await extract(cache, { backing: sound.backing }, true);
    assertEquals(Buffer.compare(image, sound.model), 0);
    assertMatch(result.doubtful[0]!.why, /took number 0, the only one/);
  }, LIMIT_MS);

  test("without a journal the backing device's data stands", async () => {
    const cache = await copyOf(sound.cache);
    await cache.zero(16, 16 * 9);
    const { image, result } = await extract(cache, { backing: sound.backing }, true);
    const backing = await contents(sound.backing);
    assertEquals(Buffer.compare(image, backing.subarray(16 * 512)), 0);
    assertEquals(result.fromCacheBytes, 0);
    assertMatch(result.doubtful[0]!.why, /nothing of the cache can be read/);
  }, LIMIT_MS);

  test("of a cache that was cut short a rescue takes all that lies inside", async () => {
    const { cache, backing, model } = sound;
    const last = (await lastDataSector(cache)) + 1;
    const cut = async (sectors: number): Promise<Device> => {
      const short = new MemoryDevice(sectors, { name: "short" });
      const bytes = new Uint8Array(sectors * 512);
      await cache.read(0, bytes);
      await short.write(0, bytes);
      return short;
    };
    const enough = await cut(last);
    await assertRejects(() => extract(enough, { backing }), BcacheError, "was cut short");
    const all = await extract(enough, { backing }, true);
    assertEquals(Buffer.compare(all.image, model), 0);
    assertEquals(all.result.doubtful, []);
    // The last sector but two of an extent is the last that is there.
    const { image, result } = await extract(await cut(last - 2), { backing }, true);
    assert(result.doubtful.length > 0);
    for (const { startByte, endByte, why } of result.doubtful) {
      assertMatch(why, /cache device cannot be read: older data/);
      assert(endByte - startByte <= 1024);
      image.set(model.subarray(startByte, endByte), startByte);
    }
    assertEquals(Buffer.compare(image, model), 0);
  }, LIMIT_MS);

  test("of a cache without superblock a rescue takes what its journal leads to", async () => {
    const cache = await copyOf(sound.cache);
    await cache.zero(0, 16);
    const { backing } = sound;
    await assertRejects(() => extract(cache, { backing }), BcacheError, "or was one");
    const { image, result } = await extract(cache, { backing }, true);
    assertEquals(Buffer.compare(image, sound.model), 0);
    assertEquals(result.doubtful, []);
    const plan = await planExtract({ cache, of: { backing }, rescue: true });
    assertMatch(findingText(plan.findings[1]!), /from the journal instead: buckets of 8\.0k/);
    const damaged = await copyOf(backing);
    await patch(damaged, 8, 1, (bytes) => bytes.fill(9, 0, 8));
    const both = await extract(cache, { backing: damaged }, true);
    assertEquals(Buffer.compare(both.image, sound.model), 0);
    assertMatch(both.result.doubtful[0]!.why, /superblock is damaged/);
    // Another set is not taken for it.
    const stranger = await copyOf(backing);
    await patchSuperblock(stranger, (page) => page.fill(9, 0x38, 0x48));
    const other = await extract(cache, { backing: stranger }, true);
    assertEquals(other.result.fromCacheBytes, 0);
    assertMatch(other.result.doubtful[0]!.why, /nothing of the cache can be read/);
  }, LIMIT_MS);

  test("bucket and block size are found by the journal, whatever they are", async () => {
    for (const [seed, blockSectors] of [1, 2, 4, 8, 1, 8].entries()) {
      const end = seed % 2 === 0 ? "close" : "cut";
      const { cache } = await smallSet({ writes: 300, seed, blockSectors, end });
      const { geometry } = await imageOf(cache);
      assertEquals(await findByJournal(cache, undefined, () => {}), undefined);
      await cache.zero(0, 16);
      const found = await findByJournal(cache, undefined, () => {});
      assertEquals(found?.geometry, geometry);
    }
  }, LIMIT_MS);

  test("a damaged superblock of the backing device is used as it is in a rescue only", async () => {
    const backing = await copyOf(sound.backing);
    await patch(backing, 8, 1, (bytes) => bytes.fill(9, 0, 8));
    await assertRejects(() => extract(sound.cache, { backing }), BcacheError, "--rescue");
    const { image, result } = await extract(sound.cache, { backing }, true);
    assertEquals(Buffer.compare(image, sound.model), 0);
    assertMatch(result.doubtful[0]!.why, /superblock is damaged/);
  }, LIMIT_MS);

  test("sectors that cannot be read end it, or are listed in a rescue", async () => {
    const failing = failingAt(sound.backing, 5000);
    await assertRejects(
      () => extract(sound.cache, { backing: failing }),
      BcacheError,
      "planted; --rescue goes on",
    );
    const { result } = await extract(sound.cache, { backing: failing }, true);
    assert(result.doubtful.some((range) => range.startByte <= 4984 * 512));
    assert(result.doubtful.every((range) => range.why.startsWith("the backing device cannot")));
  }, LIMIT_MS);

  test("extents of the journal that have errors are in doubt", async () => {
    const index = await indexOf(sound.cache);
    const { use, gen } = index.buckets;
    const free = use.findLastIndex((each, bucket) => each === USE.none && bucket < 1199);
    const extent = (start: number, device: number): Uint32Array => {
      const slot = new Uint32Array(SLOT_WORDS);
      const pointer = { sector: free * BUCKET_SECTORS, gen: gen[free]!, device };
      const offset = DATA_OFFSET + start + 4;
      setKey(slot, 0, { inode: 0, offset, sizeSectors: 4, dirty: true, pointer });
      return slot;
    };
    const planted: Array<[keys: Uint32Array[], why: RegExp]> = [
      [[extent(40, 0), extent(80, 0)], /its bucket in the cache has errors/],
      [[extent(40, 1), extent(80, 2)], /the cache has lost this dirty data/],
    ];
    for (const [keys, why] of planted) {
      const cache = await copyOf(sound.cache);
      await appendToJournal(cache, index, keys);
      const { image, result } = await extract(cache, { backing: sound.backing }, true);
      const ranges = result.doubtful.map(({ startByte, endByte }) => [startByte, endByte]);
      assertEquals(ranges, [[40 * 512, 44 * 512], [80 * 512, 84 * 512]]);
      for (const { startByte, endByte, why: told } of result.doubtful) {
        assertMatch(told, why);
        image.set(sound.model.subarray(startByte, endByte), startByte);
      }
      assertEquals(Buffer.compare(image, sound.model), 0, "all else is right");
    }
  }, LIMIT_MS);

  test("a device whose blocks are smaller than the cache's is refused, as by a mount", async () => {
    const { cache, backing } = await smallSet({ end: "cut", writes: 50, blockSectors: 2 });
    const smaller = (page: Uint8Array) => viewOf(page).setUint16(SUPERBLOCK.block_size, 1, true);
    await patchSuperblock(backing, smaller);
    const why = "backing: its blocks are smaller than the cache's";
    await assertRejects(() => extract(cache, { backing }), BcacheError, why);
    await assertRejects(() => openSet({ cache, backing }, { seed: 22 }), BcacheError, why);
    const { result } = await extract(cache, { backing }, true);
    const { startByte, endByte, why: told } = result.doubtful[0]!;
    assertEquals([startByte, endByte], [0, result.sizeBytes]);
    assertMatch(told, /its blocks are smaller than the cache's/);
  }, LIMIT_MS);

  test("devices that do not belong together are refused", async () => {
    const stranger = await copyOf(sound.backing);
    await patchSuperblock(stranger, (page) => page.fill(9, 0x38, 0x48));
    const { cache } = sound;
    await assertRejects(
      () => extract(cache, { backing: stranger }),
      BcacheError,
      "belongs to cache set",
    );
    await assertRejects(() => extract(cache, { backing: cache }), BcacheError, "give it with --ca");
    await assertRejects(() => extract(cache, { volume: 0 }), BcacheError, "no flash-only volume");
  });
});

test("an image is written without the blocks that are all zero", async () => {
  const output = new MemoryDevice(4096);
  const writer = new SparseWriter(output);
  for (let sector = 0; sector < 4096;) {
    const into = await writer.take(4096 - sector);
    into.fill(0);
    if (sector === 0) into[9000] = 7;
    sector += into.length / 512;
  }
  await writer.flush();
  assertEquals(writer.writtenBytes, 4096);
  const bytes = new Uint8Array(4096);
  await output.read(16, bytes);
  assertEquals(bytes[9000 - 8192], 7);
});

/** The last sector of the cache that anything in the index lies in. */
async function lastDataSector(cache: Device): Promise<number> {
  const index = await indexOf(cache);
  const { use, bucketSectors } = index.buckets;
  let last = 0;
  for (let bucket = 0; bucket < use.length; bucket++) {
    if (use[bucket] !== USE.none) last = (bucket + 1) * bucketSectors - 1;
  }
  for await (const { keys } of effectiveLeaves(index)) {
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (keyPointers(keys.words, at) === 0) continue;
      last = Math.max(last, pointerSector(keys.words, at) + keySizeSectors(keys.words, at) - 1);
    }
  }
  return last;
}

async function contents(device: Device): Promise<Uint8Array> {
  const bytes = new Uint8Array(device.sizeSectors * 512);
  await device.read(0, bytes);
  return bytes;
}
