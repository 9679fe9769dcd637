/** Splits, growth, compaction: what the tree looks like afterwards, and what cannot go wrong. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater } from "@std/assert";
import { MARK } from "../../lib/buckets/table.ts";
import { RESERVE } from "../../lib/buckets/reserves.ts";
import { keyOffset, keySizeSectors, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { EXTENT_SECTORS, SmallIndex } from "./small_index.ts";

/** Buckets that hold metadata but for journal, UUIDs and priorities: the nodes. */
function nodeBuckets(index: SmallIndex): number {
  const { buckets, superblock, prios } = index.engine;
  const marked = buckets.mark.reduce((sum, mark) => sum + (mark === MARK.metadata ? 1 : 0), 0);
  return marked - superblock.journalBucketCount - prios.liveBuckets().length - 1;
}

describe("a full leaf", () => {
  test("splits at three fifths, and the root grows above the two", async () => {
    const index = await SmallIndex.make();
    const { btree, replacer } = index.engine;
    // 16 blocks of 21 keys: some 300 fit, less what the page writes round up.
    await index.run(index.putAll(0, 330));
    await index.run(index.clock.sleep(1000));
    assertEquals([btree.root.level, replacer.splits], [1, 1]);
    const [lower, upper, ...rest] = await index.run(index.level(0));
    assertEquals(rest, []);
    const last = (lower!.base.count - 1) * SLOT_WORDS;
    assertEquals(lower!.endOffset, keyOffset(lower!.base.words, last), "it ends with its last key");
    assertEquals([upper!.endInode, btree.root.endInode], [0xf_ffff, 0xf_ffff]);
    const share = lower!.base.count / (lower!.base.count + upper!.base.count);
    assert(share > 0.45 && share < 0.65, `the lower node has ${share} of the keys`);
    assertEquals(await index.run(index.count(0, 330)), 330);
    assertEquals(nodeBuckets(index), 3, "the old leaf's bucket was given back");
    await index.close();
  });

  test("the grown root is what a restart finds, with nothing closed in order", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 400));
    await index.run(index.clock.sleep(1000));
    const { bucket } = index.engine.btree.root;
    await index.run(index.engine.journal.commit());
    await index.cut();
    await index.start();
    assertEquals(index.engine.btree.root.bucket, bucket);
    assertEquals(await index.run(index.count(0, 400)), 400);
    await index.close();
  });

  test("of overwritten keys is compacted: no split, and no bucket is lost", async () => {
    const index = await SmallIndex.make();
    const { replacer, btree } = index.engine;
    for (let round = 0; round < 40; round++) {
      await index.run(index.putAll(0, 60));
      await index.run(index.engine.nodes.writeAllDirty());
    }
    await index.run(index.clock.sleep(100));
    assertEquals([btree.root.level, replacer.splits], [0, 0]);
    assertGreater(replacer.compactions, 3);
    assertEquals(nodeBuckets(index), 1);
    assertEquals(await index.run(index.count(0, 60)), 60);
    await index.close();
  });
});

describe("a deep tree", () => {
  test("splits interior nodes too, each level ending where its children end", async () => {
    const index = await SmallIndex.make({ bucketSectors: 8, bucketCount: 6000 });
    const { btree } = index.engine;
    for (let from = 0; from < 30_000; from += 600) {
      await index.run(index.putAll(from, from + 600));
      await index.run(index.clock.sleep(200));
    }
    assertEquals(btree.root.level, 2);
    const middle = await index.run(index.level(1));
    assertGreater(middle.length, 1);
    const leaves = await index.run(index.level(0));
    const ends = leaves.map((leaf) => leaf.endOffset);
    for (const node of middle) assert(ends.includes(node.endOffset), "levels agree on their ends");
    assertEquals(nodeBuckets(index), 1 + middle.length + leaves.length);
    assertEquals(await index.run(index.count(0, 30_000)), 30_000);
    const { bucket } = btree.root;
    await index.run(index.engine.settleKeys());
    await index.cut();
    await index.start();
    assertEquals(index.engine.btree.root.bucket, bucket);
    assertEquals(await index.run(index.count(0, 30_000)), 30_000);
    await index.close();
  }, 60_000);

  test("freed-node keys stay in the parent and lead nowhere", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 900));
    await index.run(index.clock.sleep(1000));
    const { root } = index.engine.btree;
    assertEquals(root.level, 1);
    const freed: number[] = [];
    for (let at = 0; at < root.base.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (keyOffset(root.base.words, at) === 0) freed.push(at);
    }
    assertGreater(freed.length, 0);
    for (const at of freed) {
      assertEquals(keySizeSectors(root.base.words, at), 16);
      assert(index.engine.btree.isBad(root.base.words, at, 1), "a freed-node key is no child");
    }
    const leaf = index.engine.btree.findLeaf(0, 0)!;
    assertEquals(leaf.freed, false);
    await index.close();
    await index.start();
    assertEquals(await index.run(index.count(0, 900)), 900);
    await index.close();
  });
});

describe("a split without buckets", () => {
  test("waits before it changes anything; lookups and other keys go on", async () => {
    const index = await SmallIndex.make();
    const { allocator, btree, replacer } = index.engine;
    await index.run(index.putAll(0, 200));
    await index.run(index.clock.sleep(500));
    const root = btree.root;
    // Somebody else has them all.
    const taken: number[] = [];
    while (allocator.available(RESERVE.btree) > 0) taken.push(allocator.tryTake(RESERVE.btree));
    const work = index.putAll(200, 500);
    let done = false;
    void work.then(() => done = true);
    const giveBack = index.clock.sleep(5000).then(() => {
      assertEquals([done, btree.root === root, replacer.splits], [false, true, 0]);
      assert(index.has(0) && index.has(199), "lookups go on");
      for (const bucket of taken) allocator.giveBack(bucket, RESERVE.btree);
    });
    // Buckets come back from the allocator's rounds as well: it is never stuck.
    await index.run(Promise.race([work, giveBack]));
    await index.run(work);
    assertEquals(await index.run(index.count(0, 500)), 500);
    assertGreater(replacer.splits, 0);
    await index.run(giveBack.catch(() => undefined));
    await index.close();
  });
});

describe("a key over the end of a leaf", () => {
  test("goes to each leaf in its part, and a replay of it finds both in place", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 900));
    await index.run(index.clock.sleep(1000));
    const leaves = await index.run(index.level(0));
    assertGreater(leaves.length, 2);
    const boundary = leaves[0]!.endOffset;
    const before = Math.floor(boundary / (2 * EXTENT_SECTORS)) - 1;
    // A hole from the first leaf over all of the second into the third.
    const beyond = Math.ceil(leaves[1]!.endOffset / (2 * EXTENT_SECTORS)) + 1;
    const sectors = (beyond - before + 1) * 2 * EXTENT_SECTORS;
    await index.run(index.put(before, { sectors, hole: true }));
    const expected = 900 - (beyond - before + 1);
    assertEquals(await index.run(index.count(0, 900)), expected);
    for (const leaf of leaves) leaf.checkInvariants();
    await index.run(index.engine.journal.commit());
    await index.cut();
    for (let time = 0; time < 3; time++) {
      await index.start();
      assertEquals(await index.run(index.count(0, 900)), expected, "replayed as often as need be");
      await index.cut();
    }
  });
});

describe("stale pointers", () => {
  test("count as absent, and a rewrite leaves them out", async () => {
    const index = await SmallIndex.make();
    const { btree, buckets, replacer } = index.engine;
    await index.run(index.put(0, { dirty: false }));
    await index.run(index.put(2, { dirty: false }));
    buckets.bumpGen(index.bucket);
    assertEquals([index.has(0), index.has(2)], [false, false]);
    await index.run(index.put(4));
    assertEquals(await index.run(replacer.rewrite(btree.root)), true);
    assertEquals([index.has(0), index.has(2), index.has(4)], [false, false, true]);
    assertEquals(btree.root.base.count, 1);
    await index.close();
  });
});
