/** What a lookup says of a position, and what happens when a node on the way cannot be read. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { Segment } from "../../lib/btree/btree.ts";
import { BATCH_KEYS_MAX } from "../../lib/btree/insert.ts";
import { KEYS_PER_INSERT } from "../../lib/btree/node.ts";
import { Entry } from "../../lib/journal/entry.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { EXTENT_SECTORS, SmallIndex } from "./small_index.ts";

describe("a lookup", () => {
  test("sees data, holes between, and the hole up to the leaf's end", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 500));
    await index.run(index.clock.sleep(1000));
    const [first, second] = await index.run(index.level(0));
    const { btree } = index.engine;
    const segment = new Segment();
    const step = 2 * EXTENT_SECTORS;
    const end = first!.endOffset + 100;
    let at = 0;
    let kinds = "";
    for (let leaf = first!; at < end;) {
      btree.lookup(leaf, 0, at, end, segment);
      assertEquals(segment.cached, at % step < EXTENT_SECTORS, `sector ${at}`);
      assert(segment.end <= leaf.endOffset || leaf === second, "not past its leaf");
      kinds += segment.cached ? "d" : "h";
      at = segment.end;
      leaf = btree.findLeaf(0, at)!;
    }
    assert(/^(dh)+d?$/.test(kinds), kinds);
    await index.close();
  });

  test("passes over keys without pointer, of another device, of size 0, and stale", async () => {
    const index = await SmallIndex.make();
    const { btree, buckets } = index.engine;
    const { bucket } = index;
    const leaf = btree.root;
    const sector = bucket * index.shape.bucketSectors;
    const gen = buckets.gen[bucket]!;
    const slot = new Uint32Array(SLOT_WORDS);
    const base = new KeySet();
    const add = (offset: number, sizeSectors: number, pointer?: object): void => {
      setKey(slot, 0, {
        inode: 0,
        offset,
        sizeSectors,
        ...(pointer ? { pointer: { sector, gen, ...pointer } } : {}),
      });
      base.push(slot, 0);
    };
    add(8, 8);
    add(16, 8, { device: 0xfff });
    add(24, 0, {});
    add(32, 8, { gen: gen - 1 });
    add(40, 8, {});
    leaf.base = base;
    btree.cache.resized(leaf);
    const segment = new Segment();
    btree.lookup(leaf, 0, 0, 100, segment);
    assertEquals([segment.cached, segment.end], [false, 32]);
    btree.lookup(leaf, 0, 32, 100, segment);
    assertEquals([segment.cached, segment.end, segment.sector], [true, 40, sector]);
    await index.cut();
  });
});

describe("a node that cannot be read", () => {
  for (const how of ["damaged", "unreadable"] as const) {
    test(`because it is ${how} fails the set, and whoever needs it, with its place`, async () => {
      const index = await SmallIndex.make();
      await index.run(index.putAll(0, 500));
      await index.run(index.engine.settleKeys());
      const { btree, faults } = index.engine;
      const [first] = await index.run(index.level(0));
      btree.cache.drop(first!);
      if (how === "damaged") {
        const sector = new Uint8Array(512);
        await index.device.read(first!.sector, sector);
        sector[100]! ^= 1;
        await index.device.write(first!.sector, sector);
      } else {
        Object.defineProperty(index.device, "read", {
          value: () => Promise.reject(new BcacheError("DeviceIo", "memory: sector lost")),
        });
      }
      const error = await assertRejects(() => index.run(btree.loadLeaf(0, 0)), BcacheError);
      const wanted = how === "damaged"
        ? `memory: b-tree node (level 0) at bucket ${first!.bucket}, block 0`
        : "memory: sector lost";
      assert(error.message.startsWith(wanted), error.message);
      assertEquals(error.code, how === "damaged" ? "BadChecksum" : "DeviceIo");
      assert(faults.failed !== undefined, "the set has failed");
      await index.cut();
    });
  }

  test("that is read ahead only is nobody's fault", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 900));
    await index.run(index.engine.settleKeys());
    const { btree, faults } = index.engine;
    const leaves = await index.run(index.level(0));
    assertGreater(leaves.length, 2);
    const second = leaves[1]!;
    btree.cache.drop(second);
    await index.device.write(second.sector, new Uint8Array(512));
    let visited = 0;
    await index.run(btree.walk(0, { inode: 0, offset: 0 }, () => ++visited < 1));
    assertEquals([visited, faults.failed], [1, undefined]);
    await index.cut();
  });
});

describe("room", () => {
  test("a node takes a key while it and the part it may split off surely fit", async () => {
    const index = await SmallIndex.make();
    const leaf = index.engine.btree.root;
    assertEquals([leaf.blocks, leaf.writtenBlocks], [16, 1]);
    const fits = Math.floor((15 * 512 - 32) / 24);
    assert(leaf.hasRoom(fits) && !leaf.hasRoom(fits + 1), "header and whole keys");
    assertEquals(KEYS_PER_INSERT, 2);
    leaf.writtenBlocks = 16;
    assert(!leaf.hasRoom(1), "a node without blocks has none");
    await index.cut();
  });

  test("the largest batch fits an empty journal entry in the smallest bucket", () => {
    assert(BATCH_KEYS_MAX * SLOT_WORDS <= Entry.keyWordsIn(4096), "so it can always be journaled");
  });
});
