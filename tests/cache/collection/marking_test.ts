/** Marking nodes a part at a time: how much work a slice is, and that nothing is left out. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater } from "@std/assert";
import { MARK } from "../../../lib/buckets/table.ts";
import { BatchBuilder } from "../../../lib/cache/request_parts.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { BUCKET_SECTORS, type EngineWorld, freshWorld } from "../engine_world.ts";

/** Extents of 8 sectors with as long a gap behind each. */
const SPACING = 16;

async function fill(world: EngineWorld, count: number): Promise<void> {
  for (let index = 0; index < count; index++) await world.put(0, index * SPACING, 8);
}

describe("the work of one slice", () => {
  const BUCKETS = 600;
  const STEP_KEYS = 100;
  const UNITS = 600;

  /** A leaf of 3,000 keys, and slices of a tenth of that. */
  async function largeLeaf(): Promise<EngineWorld> {
    const world = await freshWorld({
      bucketCount: BUCKETS,
      bucketSectors: 512,
      blockSectors: 8,
    });
    await fill(world, 3000);
    const { collector, btree } = world.engine;
    await world.run(world.engine.nodes.writeAllDirty());
    assertEquals(btree.root.level, 0, "all keys are in one leaf");
    collector.slices.budget = { ms: 1, units: UNITS, stepUnits: STEP_KEYS };
    return world;
  }

  test("is a part of a large leaf, not the whole of it", async () => {
    const world = await largeLeaf();
    await world.collect();
    const { slices } = world.engine.collector;
    assertGreater(slices.longestUnits, STEP_KEYS);
    assert(slices.longestUnits <= UNITS + STEP_KEYS, `${slices.longestUnits} keys`);
    await world.stop();
  });

  test("is one node at the most when nodes are written anew", async () => {
    const world = await largeLeaf();
    const { collector, btree } = world.engine;
    collector.alwaysRewrite = true;
    await world.collect();
    assertEquals(collector.nodesRewritten, 1);
    const keys = btree.root.base.count;
    assertEquals(keys, 3000);
    assertGreater(collector.slices.longestUnits, keys - 1, "the meter was told of the node");
    assert(collector.slices.longestUnits <= keys, `${collector.slices.longestUnits} keys`);
    await world.stop();
  });

  test("is one node when four become three", async () => {
    const world = await freshWorld({ bucketCount: 1200 });
    await fill(world, 3000);
    for (let index = 0; index < 3000; index += 10) {
      await world.drop(0, index * SPACING + SPACING, 9 * SPACING - 4);
    }
    const { collector, btree } = world.engine;
    collector.slices.budget = { ms: 1, units: 16, stepUnits: 16 };
    let most = 0;
    await world.run(btree.walk(0, { inode: 0, offset: 0 }, (leaf) => {
      most = Math.max(most, leaf.base.count + leaf.delta.count);
      return true;
    }));
    await world.collect();
    assertGreater(collector.nodesCoalesced, 0);
    const { longestUnits } = collector.slices;
    assert(longestUnits <= Math.max(most, 1200 + 16), `${longestUnits} units, ${most} keys`);
    await world.stop();
  });
});

describe("a node marked in parts", () => {
  const KEYS = 20;

  /** A leaf of 20 dirty extents, each in a bucket of its own, all of them forgotten. */
  async function forgotten() {
    const world = await freshWorld();
    for (let index = 0; index < KEYS; index++) {
      await world.put(0, index * 100, BUCKET_SECTORS, { dirty: true });
    }
    await world.run(world.engine.nodes.writeAllDirty());
    const { btree, buckets, collector } = world.engine;
    await world.collect();
    assert(buckets.beginGc());
    return { world, buckets, marker: collector.marker, leaf: btree.root };
  }

  async function bucketAt(world: EngineWorld, start: number): Promise<number> {
    const found = (await world.extents()).find((extent) => extent.start === start);
    assert(found !== undefined, `there is an extent at ${start}`);
    return Math.floor(found.sector / BUCKET_SECTORS);
  }

  test("what came to the delta of a key not reached yet is marked", async () => {
    const { world, buckets, marker, leaf } = await forgotten();
    const bucket = await bucketAt(world, 1500);
    marker.begin(leaf);
    assertEquals(marker.markSome(5), undefined);
    // The key is cut in two, its upper half goes to the delta; then its lower half goes.
    await world.put(0, 1510, 4, { dirty: true });
    await world.put(0, 1500, 10, { dirty: true });
    assertEquals(await bucketAt(world, 1514), bucket);
    assertEquals(buckets.mark[bucket], MARK.none);
    while (marker.markSome(5) === undefined);
    assertEquals(buckets.mark[bucket], MARK.dirty);
    await world.abandon();
  });

  test("is marked from the beginning when its sets were merged meanwhile", async () => {
    const { world, buckets, marker, leaf } = await forgotten();
    // In the delta before the collection began, between keys that will have been passed.
    await world.put(0, 250, BUCKET_SECTORS, { dirty: true });
    const bucket = await bucketAt(world, 250);
    buckets.mark[bucket] = MARK.none;
    marker.begin(leaf);
    assertEquals(marker.markSome(5), undefined);
    const { base } = leaf;
    await world.run(world.engine.nodes.write(leaf));
    assert(leaf.base !== base && leaf.delta.count === 0, "the delta is part of the base now");
    while (marker.markSome(5) === undefined);
    assertEquals(buckets.mark[bucket], MARK.dirty);
    await world.abandon();
  });

  test("is marked in one step when its sets are merged again and again", async () => {
    const { world, marker, leaf } = await forgotten();
    marker.begin(leaf);
    let steps = 0;
    for (let merges = 0; marker.markSome(5) === undefined; merges++) {
      await world.put(0, 250 + merges * 8, 8, { dirty: true });
      await world.run(world.engine.nodes.write(leaf));
      assert(++steps < 10, "it ends");
    }
    assertEquals(steps, 3);
    await world.abandon();
  });
});

describe("a collection with others having their turn after every few keys", () => {
  /** Dirty data is written here and there, whole and in parts, until `over`. */
  async function writer(world: EngineWorld, random: SimRandom, over: () => boolean) {
    const { open, committer, nodes } = world.engine;
    let written = 0;
    while (!over()) {
      for (let count = random.below(4); count > 0; count--) {
        const start = random.below(600 * SPACING);
        const sectors = 1 + random.below(8);
        const builder = new BatchBuilder();
        if (!open.tryAllocate(sectors, true)) break;
        const { bucket, gen, sector, sectors: granted } = open.grant;
        builder.addData(0, start, { bucket, gen, sector, sectors: granted }, true);
        while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
        open.settle(bucket);
        written++;
      }
      const leaf = world.engine.btree.findLeaf(0, random.below(600 * SPACING));
      // A write makes another base of base and delta.
      if (leaf !== undefined && random.chance(0.2)) void nodes.write(leaf);
      await world.clock.turn();
    }
    return written;
  }

  for (let seed = 1; seed <= 12; seed++) {
    test(`marks all dirty data there is, old and new (seed ${seed})`, async () => {
      const world = await freshWorld({ bucketCount: 6000, seed });
      const { collector, buckets, allocator } = world.engine;
      for (let index = 0; index < 600; index++) {
        await world.put(0, index * SPACING, 8, { dirty: true });
      }
      collector.slices.budget = { ms: 1, units: 8, stepUnits: 8 };
      // The collector's own task: at most one collection is under way.
      const before = collector.collections;
      const over = () => collector.collections > before;
      collector.wake();
      const written = await world.run(writer(world, new SimRandom(seed), over));
      assertGreater(written, 20);
      for (const { start, sector, dirty } of await world.extents()) {
        if (!dirty) continue;
        const bucket = Math.floor(sector / BUCKET_SECTORS);
        assertEquals(buckets.mark[bucket], MARK.dirty, `bucket ${bucket} of sector ${start}`);
      }
      allocator.checkInvariants();
      await world.stop();
    });
  }
});
