/**
 * `checkCache`: finds nothing in what the kernel and the engine leave behind, finds each damage
 * that is planted, and ends with a report for any bytes.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch } from "@std/assert";
import fc from "fast-check";
import { crc64 } from "../../lib/base/crc64.ts";
import type { Device } from "../../lib/device/device.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import type { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache, type CheckReport } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import type { IndexView } from "../../lib/offline/index_view.ts";
import { setBackingState, setSynchronous } from "../../lib/ondisk/superblock.ts";
import {
  genAt,
  prioAt,
  putPrio,
  readPrioSetHeader,
  sealPrioSet,
} from "../../lib/ondisk/prio_set.ts";
import { pointerSector } from "../../lib/ondisk/bkey.ts";
import { readJsetHeader, sealJset } from "../../lib/ondisk/jset.ts";
import { fixtures, unpackFixture } from "../support/fixtures.ts";
import {
  BUCKET_SECTORS,
  changeSuperblock,
  copyOf,
  entrySector,
  indexOf,
  MAGICS,
  openSet,
  patch,
  type SmallSet,
  smallSet,
} from "./world.ts";

const LIMIT_MS = 60_000;

function textsOf(report: CheckReport): string[] {
  return report.findings.map(findingText);
}

/** What must be found in each damaged fixture; the others are sound. */
const DAMAGED: Readonly<Record<string, RegExp>> = {
  "damaged-cache-superblock": /^error: .*cache\.img: superblock: sector 8: checksum 0x.*restore/,
  "damaged-backing-superblock": /^error: .*backing1\.img: backing: sector 8: checksum 0x/,
  "damaged-btree-root": /^error: .*btree: bucket 19, sector 1216: .*level 1, block 0: bad checksum/,
  "damaged-btree-leaf": /^error: .*btree: bucket 575, .*level 0, block 0: bad checksum/,
  "damaged-btree-append": /^error: .*btree: bucket 437, .*level 0, block 6: bad checksum/,
  "damaged-priorities": /^error: .*priorities: bucket 22, sector 2816: .*bad checksum/,
  "damaged-journal-middle": /^error: .*journal: bucket 5, sector 704: entries 57-64 missing/,
  "damaged-journal-newest": /^warning: .*journal: bucket 7, sector 920: an incomplete entry.* 83/,
};

describe("images that the kernel wrote", () => {
  for (const entry of fixtures()) {
    const pattern = DAMAGED[entry.name];
    test(
      `${entry.name}: ${pattern === undefined ? "nothing is found" : "the damage"}`,
      async () => {
        const unpacked = unpackFixture(entry.name);
        const names = Object.keys(entry.images).filter((name) => name.startsWith("backing"));
        const open = (name: string) => openFileDevice(unpacked.pathOf(name), { readOnly: true });
        const cache = await open("cache.img");
        const backings = await Promise.all(names.map(open));
        try {
          const report = await checkCache({ cache, backings });
          const texts = textsOf(report);
          if (pattern === undefined) assertEquals(texts, []);
          else {
            assertEquals(texts.length, 1, texts.join("\n"));
            assertMatch(texts[0]!, pattern);
          }
          assertEquals(report.clean, pattern === undefined || entry.name.endsWith("newest"));
          for (const [image, kernel] of Object.entries(entry.kernel.devices)) {
            if (kernel.dirty_bytes === undefined || !report.clean) continue;
            const uuid = entry.images[image]!.uuid;
            const device = report.devices.find((device) => device.uuid === uuid);
            assertEquals(device?.dirtyBytes, kernel.dirty_bytes, image);
          }
        } finally {
          await Promise.all([cache, ...backings].map((device) => device.close()));
          unpacked.remove();
        }
      },
      LIMIT_MS,
    );
  }
});

describe("what the engine leaves behind", () => {
  const ends = ["close", "cut"] as const;
  for (const end of ends) {
    for (const mode of ["writeback", "writethrough"] as const) {
      test(`${mode}, ${end}: nothing is found, before and after a drain`, async () => {
        const set = await smallSet({ mode, end, writes: 900, seed: 3 });
        const report = await checkCache({ cache: set.cache, backings: [set.backing] });
        assertEquals(textsOf(report), []);
        assert(report.btree!.levels > 1, "the index has levels");
        if (mode === "writeback") assert(report.devices[0]!.dirtyBytes > 0);
        const again = await openSet(set, { seed: 5 });
        await again.flushDirty(undefined);
        await again.close();
        const drained = await checkCache({ cache: set.cache, backings: [set.backing] });
        assertEquals(textsOf(drained), []);
        assertEquals(drained.backings[0]!.state, "clean");
      }, LIMIT_MS);
    }
  }

  test("a set that never ran has nothing to be checked", async () => {
    const { cache, backing } = await smallSet({ writes: 1, mode: "writethrough" });
    await changeSuperblock(cache, (superblock) => setSynchronous(superblock, false));
    const report = await checkCache({ cache, backings: [backing] });
    assertEquals([report.clean, report.started, report.btree], [true, false, undefined]);
  });

  test("a superblock that says so of a set that ran is told by a dirty device", async () => {
    const { cache, backing } = await smallSet({ writes: 1 });
    await changeSuperblock(cache, (superblock) => setSynchronous(superblock, false));
    const report = await checkCache({ cache, backings: [backing] });
    assertMatch(textsOf(report).join(), /^error: backing: backing: has dirty data .* never ran/);
  });

  test("a superblock that says so of a set that ran is told by the journal", async () => {
    const sound = await smallSet({ writes: 1, mode: "writethrough" });
    const set = await openSet(sound, { seed: 5 });
    for (let entry = 0; entry < 20; entry++) {
      await set.volumes[0]!.write(4096 * entry, new Uint8Array(4096).fill(entry));
      await set.volumes[0]!.flush();
    }
    await set.close();
    await changeSuperblock(sound.cache, (superblock) => setSynchronous(superblock, false));
    const report = await checkCache({ cache: sound.cache });
    assertMatch(textsOf(report).join(), /^error: cache: superblock: bucket \d+: says .* never ran/);
  });
});

interface Plant {
  readonly name: string;
  readonly end?: "close" | "cut";
  readonly pattern: RegExp;
  readonly plant: (set: SmallSet, index: IndexView) => Promise<void>;
}

/** The sector of the newest journal entry that is needed, and of the one `back` before it. */
function sectorOfEntry({ journal }: IndexView, back = 0): number {
  return entrySector(journal.place, journal.needed.at(-1 - back)!);
}

/** Where the last leaf with many keys is. */
function leafSector(index: IndexView): number {
  const leaf = index.tree.leaves.at(-2)!;
  return (leaf.key![4]! >>> 8) + (leaf.key![5]! & 0x7_ffff) * 0x100_0000;
}

const flip = (device: Device, sector: number, byte: number) =>
  patch(device, sector, 1, (bytes) => {
    bytes[byte] = bytes[byte]! ^ 0x40;
  });

/** Changes the generation that the first prio_set says of a bucket. */
async function changeGen(
  { cache }: SmallSet,
  index: IndexView,
  bucket: number,
  by: number,
): Promise<void> {
  const first = index.journal.head.prioBucket;
  await patch(cache, first * BUCKET_SECTORS, BUCKET_SECTORS, (bytes) => {
    putPrio(bytes, bucket, prioAt(bytes, bucket), (genAt(bytes, bucket) + by) & 0xff);
    sealPrioSet(bytes, readPrioSetHeader(bytes), MAGICS.prioSet);
  });
}

/** A bucket with data, among those of the first prio_set. */
function dataBucket(index: IndexView): number {
  const leaf = index.tree.leaves[0]!.kept!;
  return Math.floor((leaf.words[4]! >>> 8) / BUCKET_SECTORS);
}

const PLANTS: readonly Plant[] = [
  {
    name: "the cache's superblock",
    pattern: /superblock: sector 8: checksum/,
    plant: ({ cache }) => flip(cache, 8, 200),
  },
  {
    name: "priorities with a number that cannot be counted on",
    pattern: /priorities: bucket \d+, .*impossible number: found sequence 9007199254740992/,
    plant: ({ cache }, { journal }) =>
      patch(cache, journal.head.prioBucket * BUCKET_SECTORS, BUCKET_SECTORS, (bytes) => {
        new DataView(bytes.buffer).setBigUint64(16, 2n ** 53n, true);
        const sum = new Uint32Array(2);
        crc64(bytes, 8, bytes.length, sum);
        bytes.set(new Uint8Array(sum.buffer));
      }),
  },
  {
    name: "a journal entry in the middle hides the ones behind it",
    end: "cut",
    pattern: /journal: .*(missing|are intact, but recovery ends)/,
    plant: ({ cache }, index) => flip(cache, sectorOfEntry(index, 1), 100),
  },
  {
    name: "the newest journal entry",
    end: "cut",
    pattern: /warning: .*journal: .*incomplete entry behind the newest/,
    plant: ({ cache }, index) => flip(cache, sectorOfEntry(index), 100),
  },
  {
    name: "a journal entry that names an impossible root",
    pattern: /btree: journal entry \d+: the root's key .*points outside/,
    plant: ({ cache }, index) =>
      patch(cache, sectorOfEntry(index), BUCKET_SECTORS, (bytes) => {
        bytes.fill(0xff, 104 + 17, 104 + 22);
        sealJset(bytes, readJsetHeader(bytes), MAGICS.jset);
      }),
  },
  {
    name: "priorities",
    pattern: /priorities: bucket \d+, .*bad checksum/,
    plant: ({ cache }, { journal }) => flip(cache, journal.head.prioBucket * BUCKET_SECTORS, 99),
  },
  {
    name: "a generation that runs ahead of dirty data",
    pattern: /btree: .*dirty extent .* is stale/,
    plant: (set, index) => changeGen(set, index, dataBucket(index), 1),
  },
  {
    name: "a generation ahead of the root",
    pattern: /btree: .*the root's key .* is stale: its bucket is at generation/,
    plant: (set, index) => {
      const bucket = Math.floor(pointerSector(index.journal.head.rootKey, 0) / BUCKET_SECTORS);
      return changeGen(set, index, bucket, 1);
    },
  },
  {
    name: "a generation too far ahead",
    pattern: /btree: .*too stale/,
    plant: (set, index) => changeGen(set, index, dataBucket(index), 100),
  },
  {
    name: "the UUID table zeroed: nobody owns the extents",
    pattern: /extents .*belong to device number 0, which the UUID table does not know/,
    plant: ({ cache }, { uuids }) =>
      patch(cache, uuids!.bucket * BUCKET_SECTORS, BUCKET_SECTORS, (bytes) => bytes.fill(0)),
  },
  {
    name: "the UUID table: another UUID",
    pattern:
      /UUID table does not know it: .*copy; if that data is given up, .*make -B backing --force$/,
    plant: ({ cache }, { uuids }) => flip(cache, uuids!.bucket * BUCKET_SECTORS, 3),
  },
  {
    name: "the UUID table: two slots of one device",
    pattern: /uuids: .*slots 0 and 1 have one UUID/,
    plant: ({ cache }, { uuids }) =>
      patch(cache, uuids!.bucket * BUCKET_SECTORS, 1, (bytes) => bytes.copyWithin(128, 0, 128)),
  },
  {
    name: "a leaf",
    pattern: /btree: .*node of level 0, block \d+: bad checksum/,
    plant: ({ cache }, index) => flip(cache, leafSector(index), 77),
  },
  {
    name: "a leaf zeroed",
    pattern: /btree: .*node of level 0, block 0: bad btree header/,
    plant: ({ cache }, index) => cache.zero(leafSector(index), BUCKET_SECTORS),
  },
  {
    name: "the root",
    pattern: /btree: .*node of level [1-9], block 0: bad checksum/,
    plant: ({ cache }, { journal }) => {
      const [low, high] = [journal.head.rootKey[4]!, journal.head.rootKey[5]!];
      return flip(cache, (low >>> 8) + (high & 0x7_ffff) * 0x100_0000, 40);
    },
  },
  {
    name: "a leaf copied over another",
    pattern: /btree: .*node of level 0, block 0: bad checksum/,
    plant: async ({ cache }, index) => {
      const bytes = new Uint8Array(BUCKET_SECTORS * 512);
      await cache.read(leafSector(index), bytes);
      const first = index.tree.leaves[0]!.key!;
      await cache.write(first[4]! >>> 8, bytes);
    },
  },
  {
    name: "the backing device's superblock",
    pattern: /backing: sector 8: checksum/,
    plant: ({ backing }) => flip(backing, 8, 99),
  },
  {
    name: "a backing device that says clean",
    pattern: /backing: its superblock says clean, but \d+ sectors are dirty in the cache/,
    plant: ({ backing }) => changeSuperblock(backing, (sb) => setBackingState(sb, "clean")),
  },
  {
    name: "a backing device that was used alone",
    pattern: /error: backing: backing: was used without its cache.* dirty/,
    plant: ({ backing }) => changeSuperblock(backing, (sb) => setBackingState(sb, "stale")),
  },
  {
    name: "a dirty backing device that names no set and that nobody knows",
    pattern: /error: backing: backing: is attached and dirty, but .* does not know it/,
    plant: ({ backing }) =>
      changeSuperblock(backing, (sb) => {
        sb.setUuid = new Uint8Array(16);
        sb.uuid = new Uint8Array(16).fill(8);
      }),
  },
  {
    name: "a backing device of another set",
    pattern: /backing: belongs to another cache set/,
    plant: ({ backing }) =>
      changeSuperblock(backing, (sb) => {
        sb.setUuid = new Uint8Array(16).fill(9);
      }),
  },
];

describe("planted damage", () => {
  const sets = new Map<string, SmallSet>();
  beforeAll(async () => {
    for (const end of ["close", "cut"] as const) {
      sets.set(end, await smallSet({ end, writes: 900, seed: 5 }));
    }
  });

  for (const { name, end = "close", pattern, plant } of PLANTS) {
    test(name, async () => {
      const sound = sets.get(end)!;
      const cache = await copyOf(sound.cache);
      const backing = await copyOf(sound.backing);
      await plant({ ...sound, cache, backing }, await indexOf(cache));
      const report = await checkCache({ cache, backings: [backing] });
      const texts = textsOf(report);
      assert(texts.some((text) => pattern.test(text)), `not found among:\n${texts.join("\n")}`);
      assertEquals(report.clean, texts.every((text) => text.startsWith("warning")));
      assert(texts.every((text) => !text.includes("\n")), "findings are lines");
    }, LIMIT_MS);
  }

  test("a backing device cut short", async () => {
    const { cache, backing } = sets.get("close")!;
    const { MemoryDevice } = await import("../../lib/device/memory.ts");
    const short = new MemoryDevice(backing.sizeSectors - 16384, { name: "short" });
    const bytes = new Uint8Array(short.sizeSectors * 512);
    await backing.read(0, bytes);
    await short.write(0, bytes);
    const texts = textsOf(await checkCache({ cache, backings: [short] }));
    assertEquals(texts.length, 1);
    assertMatch(texts[0]!, /^error: short: backing: the cache has dirty data behind the end/);
  });

  test("findings are bounded, what is over is counted", async () => {
    const cache = await copyOf(sets.get("close")!.cache);
    const index = await indexOf(cache);
    for (const leaf of index.tree.leaves) await flip(cache, leaf.key![4]! >>> 8, 50);
    const report = await checkCache({ cache, findingsMax: 2 });
    assertEquals([report.findings.length, report.errors - report.omitted], [2, 2]);
    assert(report.errors > 2);
  });
});

describe("any bytes", () => {
  /** Sectors that hold metadata. */
  async function metadataSectors(cache: MemoryDevice): Promise<number[]> {
    const index = await indexOf(cache);
    const sectors = [8, 9, 10];
    for (let bucket = 1; bucket < index.buckets.bucketCount; bucket++) {
      if (index.buckets.use[bucket]! < 2) continue;
      for (let at = 0; at < BUCKET_SECTORS; at++) sectors.push(bucket * BUCKET_SECTORS + at);
    }
    return sectors;
  }

  test("always end with a report", async () => {
    const sound = await smallSet({ end: "cut", writes: 500, seed: 8 });
    const sectors = await metadataSectors(sound.cache);
    const change = fc.record({
      sector: fc.integer({ min: 0, max: sectors.length - 1 }),
      at: fc.integer({ min: 0, max: 511 }),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 24 }),
      reseal: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
        const cache = await copyOf(sound.cache);
        for (const { sector, at, bytes } of changes) {
          await patch(cache, sectors[sector]!, 1, (into) => {
            into.set(bytes.subarray(0, 512 - at), at);
          });
        }
        const report = await checkCache({ cache, backings: [sound.backing] });
        assert(textsOf(report).every((text) => !text.includes("\n")));
      }),
      { numRuns: 60, seed: 11 },
    );
  }, LIMIT_MS);

  test("also where checksums are right: journal headers and keys of any value", async () => {
    const sound = await smallSet({ end: "cut", writes: 300, seed: 9 });
    const sector = sectorOfEntry(await indexOf(sound.cache));
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 16, max: 500 }),
        fc.uint8Array({ minLength: 1, maxLength: 16 }),
        async (at, bytes) => {
          const cache = await copyOf(sound.cache);
          await patch(cache, sector, BUCKET_SECTORS, (into) => {
            const header = readJsetHeader(into);
            into.set(bytes, at);
            const found = readJsetHeader(into);
            const { keyWords } = header;
            const sequence = Math.min(found.sequence, 2 ** 52);
            const lastSequence = Math.min(found.lastSequence, sequence);
            const prioBucket = Math.min(found.prioBucket, 2 ** 52);
            sealJset(into, { ...found, keyWords, sequence, lastSequence, prioBucket }, MAGICS.jset);
          });
          await checkCache({ cache, backings: [sound.backing] });
        },
      ),
      { numRuns: 60, seed: 12 },
    );
  }, LIMIT_MS);
});
