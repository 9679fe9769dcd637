/** `dump`: every structure of what the kernel wrote, and what is left of damaged ones. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch } from "@std/assert";
import fc from "fast-check";
import type { Device } from "../../lib/device/device.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { dump, DUMP_PARTS, type DumpItem, type DumpPart } from "../../lib/offline/dump.ts";
import { rescueJournal } from "../../lib/offline/journal_rescue.ts";
import { SUPERBLOCK, VERSION } from "../../lib/ondisk/superblock.ts";
import { unpackFixture } from "../support/fixtures.ts";
import { copyOf, imageOf, patch, patchSuperblock, plantChildren, smallSet } from "./world.ts";

async function itemsOf(device: Device, part: DumpPart): Promise<DumpItem[]> {
  const items: DumpItem[] = [];
  await dump(device, part, (item) => void items.push(item));
  return items;
}

async function withFixture(name: string, body: (cache: Device) => Promise<void>): Promise<void> {
  const unpacked = unpackFixture(name);
  const cache = await openFileDevice(unpacked.pathOf("cache.img"));
  try {
    await body(cache);
  } finally {
    await cache.close();
    unpacked.remove();
  }
}

interface ExtentJson {
  inode: number;
  start: number;
  sectors: number;
  dirty: boolean;
}

describe("dump", () => {
  test("shows every structure of an image that the kernel wrote", () =>
    withFixture("multilevel-powercut", async (cache) => {
      const [superblock] = await itemsOf(cache, "superblock");
      assertMatch(superblock!.text, /^sb\.magic\t\tok\n/);

      const entries = (await itemsOf(cache, "journal")).map((item) =>
        item.json as { seq: number; needed: boolean; keys: unknown[] }
      );
      const needed = entries.filter((entry) => entry.needed).map((entry) => entry.seq);
      assertEquals(needed.sort((a, b) => a - b), Array.from({ length: 19 }, (_, at) => 106 + at));

      const uuids = await itemsOf(cache, "uuids");
      assertMatch(uuids[0]!.text, /^0: bbcb1d4e-89ef-4e93-94bb-dc49a1d08460 cached device/);
      assertMatch(uuids[0]!.text, /first registered \d{4}-\d\d-\d\dT[\d:]{8}Z, last \d{4}-/);
      assertEquals(uuids.length, 1);

      const priorities = await itemsOf(cache, "priorities");
      assert(priorities.some((item) => item.text === "19: prio 65535 gen 1"));

      const nodes = await itemsOf(cache, "btree");
      assertMatch(nodes[0]!.text, /^level 1 bucket 19 sector 1216 gen 1: behind 0:0 up to max:max/);
      assertEquals(nodes.length, 7);

      const extents = await itemsOf(cache, "extents");
      assertMatch(extents[0]!.text, /^0:16 len 8 -> \[0:20648 gen 1\] dirty$/);
      const dirty = extents.map((item) => item.json as ExtentJson).filter((key) => key.dirty);
      const sectors = dirty.reduce((sum, key) => sum + key.sectors, 0);
      assertEquals(sectors * 512, 18739200, "what the kernel wrote back of it");
      assert([...nodes, ...extents].every((item) => !item.unreadable));
    }));

  test("goes on behind damage, and says what could not be read", async () => {
    await withFixture("damaged-btree-leaf", async (cache) => {
      const extents = await itemsOf(cache, "extents");
      const bad = extents.filter((item) => item.unreadable).map((item) => item.text);
      assertEquals(bad.length, 2);
      assertMatch(bad[0]!, /unreadable: .*bucket 575, .*bad checksum/);
      assertMatch(bad[1]!, /^unreadable: extents behind 0:92520 up to 0:154576 may be missing/);
      assert(extents.length > 3000);
    });
    await withFixture("damaged-journal-middle", async (cache) => {
      const items = await itemsOf(cache, "journal");
      const seqs = items.filter((item) => !item.unreadable)
        .map((item) => (item.json as { seq: number }).seq);
      assert(seqs.includes(58) && seqs.includes(64), "entries that the damage hides");
      assert(!seqs.includes(57));
      assertMatch(items.find((item) => item.unreadable)!.text, /bucket 5, sector 704: checksum/);
    });
    await withFixture("damaged-cache-superblock", async (cache) => {
      const [superblock] = await itemsOf(cache, "superblock");
      assertEquals(superblock!.unreadable, true);
      assertMatch(superblock!.text, /sb\.version\t\t3/);
      const [extents] = await itemsOf(cache, "extents");
      assertMatch(extents!.text, /^unreadable: error: .*superblock/);
    });
  });

  test("keeps a thousand findings until it can tell them, and counts the rest", () =>
    withFixture("multilevel-powercut", async (cache) => {
      await plantChildren(cache, 1300);
      for (const part of ["btree", "extents"] as const) {
        const items = await itemsOf(cache, part);
        const findings = items.filter(({ text }) => text.startsWith("unreadable: error: "));
        assertMatch(findings[1]!.text, /ends at 0:2 belongs to a b-tree node already/);
        const [rest] = items.filter(({ text }) => /^unreadable: \.\.\. and \d+ more$/.test(text));
        // A child with keys behind its end, 1299 in its bucket, and the gap behind them.
        assertEquals([findings.length, rest?.places], [1000, 301]);
        assertEquals(rest!.json, { unreadable: { omitted: 301 } });
        assertEquals(rest!.unreadable, true);
      }
    }));

  test("counts no farther than the device, whatever its superblock says of buckets", async () => {
    const { cache } = await smallSet({ end: "cut", writes: 100, seed: 32 });
    await patchSuperblock(cache, (page) => {
      const view = new DataView(page.buffer, page.byteOffset);
      view.setBigUint64(SUPERBLOCK.version, BigInt(VERSION.cacheWithFeatures), true);
      view.setBigUint64(SUPERBLOCK.feature_incompat, 2n, true);
      view.setUint16(SUPERBLOCK.bucket_size, 31, true); // 1 TiB.
    });
    const items = await itemsOf(cache, "journal");
    const buckets = (await imageOf(cache)).superblock.journalBucketCount;
    const ends = items.filter(({ text }) => /the device ends at sector 19200$/.test(text));
    assertEquals(ends.length, buckets);
    assertEquals(items.length, buckets + 1, "and what is wrong with the superblock");
    assertEquals(await rescueJournal(await imageOf(cache), () => {}), undefined);
  }, 10_000);

  test("always ends, whatever the bytes are", async () => {
    const { cache: sound } = await smallSet({ end: "cut", writes: 300, seed: 31 });
    const { firstBucket, journalBucketCount } = (await imageOf(sound)).superblock;
    const sectors = (firstBucket + journalBucketCount + 24) * 16;
    const change = fc.tuple(
      fc.integer({ min: 8, max: sectors }),
      fc.integer({ min: 0, max: 500 }),
      fc.uint8Array({ minLength: 1, maxLength: 12 }),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(change, { minLength: 1, maxLength: 5 }),
        fc.constantFrom(...DUMP_PARTS),
        async (changes, part) => {
          const cache = await copyOf(sound);
          for (const [sector, at, bytes] of changes) {
            await patch(cache, sector, 1, (into) => into.set(bytes, at));
          }
          for (const item of await itemsOf(cache, part)) JSON.stringify(item.json);
        },
      ),
      { numRuns: 60, seed: 7 },
    );
  }, 60_000);
});
