/** Collections of a whole engine: what they free, coalesce and rewrite, and what starts them. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { MARK } from "../../../lib/buckets/table.ts";
import { RESERVE } from "../../../lib/buckets/reserves.ts";
import { EngineWorld, freshWorld } from "../engine_world.ts";

/** Puts `count` extents of 8 sectors, far enough apart to stay keys of their own. */
async function putMany(world: EngineWorld, count: number, options = {}): Promise<void> {
  for (let index = 0; index < count; index++) await world.put(0, index * 16, 8, options);
}

async function dropRange(world: EngineWorld, from: number, to: number): Promise<void> {
  for (let at = from; at < to; at += 16384) {
    await world.drop(0, at, Math.min(16384, to - at));
  }
}

describe("coalescing neighbours", () => {
  test("leaves that lost most keys become fewer, and nothing else changes", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 3000);
    const before = await world.countNodes();
    assertGreater(before.leaves, 3);
    // Of every ten extents one stays.
    for (let index = 0; index < 3000; index += 10) await world.drop(0, index * 16 + 16, 140);
    const left = await world.extents();
    await world.collect();
    const after = await world.countNodes();
    const { collector, replacer } = world.engine;
    assertLess(after.leaves, before.leaves);
    assertGreater(collector.nodesCoalesced, 0);
    assertEquals(collector.nodesCoalesced, replacer.coalesced);
    assertEquals(await world.extents(), left);
    world.engine.allocator.checkInvariants();
    await world.stop();

    const again = new EngineWorld({ device: world.device });
    await again.start();
    assertEquals(await again.extents(), left);
    assertEquals((await again.countNodes()).leaves, after.leaves);
    await again.stop();
  });

  test("is left undone, without any effect, when buckets are short", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 3000);
    await dropRange(world, 0, 46_000);
    const { allocator, collector, replacer, btree } = world.engine;
    const before = await world.countNodes();
    const taken: number[] = [];
    // Nothing is left to replace a node with, and no collection frees anything for it.
    while (allocator.available(RESERVE.btree) > 3) taken.push(allocator.tryTake(RESERVE.btree));
    const first = await world.run(btree.loadLeaf(0, 0));
    const second = await world.run(btree.loadNode(0, first.endInode, first.endOffset));
    const held = allocator.available(RESERVE.btree);
    assertEquals(await world.run(replacer.coalesce([first, second])), false);
    assertEquals(await world.run(replacer.rewrite(first)), false);
    assertEquals([first.freed, second.freed, first.holds], [false, false, 0]);
    assertEquals(allocator.available(RESERVE.btree), held);
    assertEquals((await world.countNodes()).leaves, before.leaves);
    for (const bucket of taken) allocator.giveBack(bucket, RESERVE.btree);
    await world.collect();
    assertGreater(collector.nodesCoalesced, 0);
    await world.stop();
  });

  test("keys that come in meanwhile are kept", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 3000);
    await dropRange(world, 0, 46_000);
    const collecting = world.engine.collector.collect(new AbortController().signal);
    for (let index = 0; index < 60; index++) await world.put(0, index * 700, 8, { dirty: true });
    await world.run(collecting);
    const dirty = (await world.extents()).filter((each) => each.dirty);
    assertEquals(dirty.map(({ start }) => start), Array.from({ length: 60 }, (_, at) => at * 700));
    assertEquals(world.engine.dirty.of(0), 60 * 8);
    await world.stop();
  });
});

describe("while buckets are short", () => {
  /** Takes every bucket there is for nodes; nothing else comes free. */
  async function takeAll(world: EngineWorld): Promise<number[]> {
    const { allocator, buckets } = world.engine;
    for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
      if (!buckets.isHeld(bucket)) buckets.pin(bucket);
    }
    const taken: number[] = [];
    while (allocator.available(RESERVE.btree) > 0) {
      while (allocator.available(RESERVE.btree) > 0) taken.push(allocator.tryTake(RESERVE.btree));
      await world.run(world.clock.sleep(100));
    }
    return taken;
  }

  test("a collection ends though a full leaf waits for buckets that it may free", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 3000);
    await dropRange(world, 0, 46_000);
    const { allocator, btree, collector, replacer } = world.engine;
    collector.alwaysRewrite = true;
    const taken = await takeAll(world);
    const next = await world.run(btree.loadLeaf(0, 30_000));
    next.hasRoom = () => false;
    const starved = replacer.replaceSoon(next);
    await world.collect();
    assertEquals(next.freed, false, "it waits still");
    for (const bucket of taken.slice(0, 12)) allocator.giveBack(bucket, RESERVE.btree);
    await world.run(starved);
    assert(next.freed);
    await world.stop();
  });

  test("a collection in line with a full leaf goes on when that one comes to wait", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 3000);
    const { allocator, btree, cache, collector, replacer } = world.engine;
    collector.alwaysRewrite = true;
    const taken = await takeAll(world);
    for (const bucket of taken.splice(0, 10)) allocator.giveBack(bucket, RESERVE.btree);
    const held = Promise.withResolvers<void>();
    const write = cache.write.bind(cache);
    cache.write = async (atSector, from, options) => {
      await held.promise;
      await write(atSector, from, options);
    };
    const first = await world.run(btree.loadLeaf(0, 47_000));
    const second = await world.run(btree.loadLeaf(0, 30_000));
    first.hasRoom = () => false;
    second.hasRoom = () => false;
    const replacing = replacer.replaceSoon(first);
    const starved = replacer.replaceSoon(second);
    await world.run(world.clock.sleep(1));
    assert(first.replacement !== undefined && second.replacement === undefined);
    // The collection comes to wait for the first one's end, as the second does.
    const before = collector.collections;
    collector.wake();
    await world.run(world.clock.sleep(1000));
    while (allocator.available(RESERVE.btree) > 0) taken.push(allocator.tryTake(RESERVE.btree));
    held.resolve();
    await world.run(replacing);
    await world.run(world.clock.sleep(1000));
    assertEquals(second.freed, false, "it waits still");
    assertGreater(collector.collections, before);
    for (const bucket of taken.slice(0, 12)) allocator.giveBack(bucket, RESERVE.btree);
    await world.run(starved);
    assert(second.freed);
    await world.stop();
  });
});

describe("rewriting nodes", () => {
  test("a leaf with more bad keys than good ones is written anew without them", async () => {
    const world = await freshWorld();
    await putMany(world, 100);
    for (let index = 0; index < 60; index++) await world.drop(0, index * 16, 8);
    const { root } = world.engine.btree;
    assertEquals(root.level, 0);
    await world.collect();
    assertEquals(world.engine.collector.nodesRewritten, 1);
    const keys = (await world.extents()).length;
    const now = world.engine.btree.root;
    assert(now !== root, "the root itself was replaced");
    assertEquals(now.base.count + now.delta.count, keys);
    await world.stop();
  });

  test("gc_always_rewrite writes every node anew; else a good one is left alone", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 1200);
    const { collector } = world.engine;
    await world.collect();
    const once = collector.nodesRewritten;
    await world.collect();
    assertEquals(collector.nodesRewritten, once);
    collector.alwaysRewrite = true;
    const extents = await world.extents();
    const { all } = await world.countNodes();
    await world.collect();
    assertEquals(collector.nodesRewritten - once, all);
    assertEquals(await world.extents(), extents);
    await world.stop();
  });

  test("generations go round: after thousands of reuses no stale pointer looks good", async () => {
    const world = await freshWorld({ bucketCount: 520, bucketSectors: 16 });
    const { buckets, collector } = world.engine;
    const reuses = new Map<number, number>();
    // Seven buckets' worth of data are written over and over, each time to another bucket.
    for (let round = 0; round < 55_000; round++) {
      await world.put(0, 16 + (round % 7) * 16, 16);
      const where = Math.floor(world.engine.open.grant.sector / buckets.bucketSectors);
      reuses.set(where, (reuses.get(where) ?? 0) + 1);
      assert(buckets.gcGen(where) <= 96);
    }
    assertGreater(Math.max(...reuses.values()), 96);
    assertGreater(collector.collections, 0);
    const extents = await world.extents();
    const buckets7 = extents.map(({ sector }) => Math.floor(sector / buckets.bucketSectors));
    assertEquals(new Set(buckets7).size, buckets7.length, "no two extents in one bucket");
    await world.stop();
  });

  test("a bucket reused 600 times between collections never runs more than 96 ahead", async () => {
    const world = await freshWorld();
    const { buckets } = world.engine;
    const bucket = 300;
    let refused = 0;
    for (let round = 0; round < 600; round++) {
      if (!buckets.canInvalidate(bucket)) {
        refused++;
        await world.collect();
        assert(buckets.canInvalidate(bucket), "a collection lets it go on");
      }
      buckets.invalidate(bucket);
      buckets.take(bucket, false);
      buckets.release(bucket);
      buckets.unpin(bucket);
      assert(buckets.gcGen(bucket) <= 96);
    }
    assertEquals([refused, buckets.gen[bucket]], [6, 600 & 0xff]);
    await world.stop();
  });
});

describe("a collection is asked for", () => {
  async function running(): Promise<EngineWorld> {
    const world = await freshWorld();
    await world.run(world.clock.sleep(1000));
    return world;
  }

  async function collectionsWithin(world: EngineWorld, ms: number): Promise<number> {
    const before = world.engine.collector.collections;
    await world.run(world.clock.sleep(ms));
    return world.engine.collector.collections - before;
  }

  test("when a sixteenth of the cache was written, and not before", async () => {
    const world = await running();
    const { collector, geometry } = world.engine;
    const share = Math.floor((geometry.bucketCount * geometry.bucketSectors) / 16);
    collector.noteCached(share);
    assertEquals(await collectionsWithin(world, 1000), 0);
    collector.noteCached(1);
    assertEquals(await collectionsWithin(world, 1000), 1);
    collector.noteCached(share);
    assertEquals(await collectionsWithin(world, 1000), 0, "counted anew since the end of the last");
    await world.stop();
  });

  test("when pointers are far behind their bucket", async () => {
    const world = await running();
    const { buckets, collector } = world.engine;
    for (let bump = 0; bump < 64; bump++) buckets.bumpGen(400);
    collector.noteCached(1);
    assertEquals(await collectionsWithin(world, 1000), 1);
    collector.noteCached(1);
    assertEquals(await collectionsWithin(world, 1000), 0, "nothing points there any more");
    await world.stop();
  });

  test("when the allocator has found too little", async () => {
    const world = await running();
    const { allocator } = world.engine;
    const { buckets } = world.engine;
    for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
      if (!buckets.isHeld(bucket) && buckets.pins[bucket] === 0) buckets.pin(bucket);
    }
    while (allocator.tryTake(RESERVE.none) >= 0);
    assertGreater(await collectionsWithin(world, 1000), 0);
    await world.stop();
  });

  async function fillUp(world: EngineWorld): Promise<void> {
    const { allocator, buckets } = world.engine;
    for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
      if (buckets.isHeld(bucket) || buckets.pins[bucket] !== 0) continue;
      buckets.setMark(bucket, MARK.dirty);
      buckets.pin(bucket);
    }
    await world.collect();
    assertGreater(buckets.inUsePercent(), 90);
    while (buckets.inUsePercent() <= 95 && allocator.tryTake(RESERVE.none) >= 0);
    assertGreater(buckets.inUsePercent(), 95);
    await world.run(world.clock.sleep(5000));
  }

  test("again and again while the cache is full, since nothing else would", async () => {
    const world = await running();
    await fillUp(world);
    world.engine.collector.noteCached(1);
    assertGreater(await collectionsWithin(world, 65_000), 1);
    await world.stop();
  });

  /** Pins buckets until a collection says that so many percent are in use. */
  async function useUntil(world: EngineWorld, percent: number): Promise<void> {
    const { buckets } = world.engine;
    for (let bucket = buckets.firstBucket; buckets.inUsePercent() < percent; bucket++) {
      if (buckets.isHeld(bucket) || buckets.pins[bucket] !== 0) continue;
      buckets.pin(bucket);
      await world.collect();
    }
    assertEquals(buckets.inUsePercent(), percent);
  }

  test("after writeback when that was asked for and half the cache is in use", async () => {
    const world = await running();
    const { collector } = world.engine;
    await useUntil(world, 50);
    collector.noteWritebackControl();
    collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 0, "it was not asked for");
    collector.afterWriteback = true;
    collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 0, "not armed");
    collector.noteWritebackControl();
    collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 1);
    collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 0, "armed once");
    await world.stop();
  });

  test("not after writeback with less than half the cache in use", async () => {
    const world = await running();
    const { collector } = world.engine;
    collector.afterWriteback = true;
    await useUntil(world, 49);
    collector.noteWritebackControl();
    collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 0);
    await world.stop();
  });

  test("after writeback when the cache is full, whether it was asked for or not", async () => {
    const world = await running();
    await fillUp(world);
    assertEquals(await collectionsWithin(world, 1000), 0);
    world.engine.collector.noteClean();
    assertEquals(await collectionsWithin(world, 1000), 1);
    await world.stop();
  });
});

describe("a collection in slices", () => {
  test("no slice is longer than its budget and one step over the buckets", async () => {
    const world = await freshWorld({ bucketCount: 300_000, bucketSectors: 32 });
    await putMany(world, 1500);
    await world.collect();
    const { slices } = world.engine.collector;
    assertGreater(slices.longestUnits, 32_000);
    assert(slices.longestUnits <= 100_000 + 4096, `${slices.longestUnits} units`);
    await world.stop();
  }, 60_000);

  test("it rests after ten nodes, so that requests have the machine", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await putMany(world, 6000);
    const { leaves } = await world.countNodes();
    assertGreater(leaves, 10);
    const { buckets, collector } = world.engine;
    buckets.rescale(1);
    await world.collect();
    assertGreater(collector.lastDurationMs, 99);

    await world.stop();
  });

  test("leaves that were passed are durable before the marks are valid", async () => {
    const world = await freshWorld();
    await putMany(world, 50);
    const { btree, buckets, cache, collector, nodes } = world.engine;
    assertGreater(nodes.dirtyCount, 0);
    const { sector } = btree.root;
    const isLeaf = (at: number) => at >= sector && at < sector + buckets.bucketSectors;
    const held = Promise.withResolvers<void>();
    const write = cache.write.bind(cache);
    cache.write = async (atSector, from, options) => {
      // The last write of a set: with it the set counts.
      if (isLeaf(atSector) && options?.fua) await held.promise;
      await write(atSector, from, options);
    };
    const collecting = collector.collect(new AbortController().signal);
    await world.run(world.clock.sleep(10_000));
    assertEquals([nodes.dirtyCount, buckets.gcMarksValid], [0, false], "it is being written");
    held.resolve();
    await world.run(collecting);
    assert(buckets.gcMarksValid);
    await world.stop();
  });
});
