/** Counting what is dirty in the index, while the index changes. */
import { describe, test } from "bun:test";
import { assertEquals, assertGreater } from "@std/assert";
import { BatchBuilder } from "../../../lib/cache/request_parts.ts";
import { DirtyMap } from "../../../lib/cache/dirty/dirty_map.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { type EngineWorld, freshWorld } from "../engine_world.ts";

const DEVICE_SECTORS = 40_000;
const STRIPE = 8192;

/** Dirty sectors of an inode by stripe, as the index has them. */
async function truth(world: EngineWorld, inode: number): Promise<number[]> {
  const counts = new Array<number>(Math.ceil(DEVICE_SECTORS / STRIPE)).fill(0);
  for (const extent of await world.extents()) {
    if (extent.inode !== inode || !extent.dirty) continue;
    for (let at = extent.start; at < extent.start + extent.sectors; at++) {
      counts[Math.floor(at / STRIPE)]!++;
    }
  }
  return counts;
}

function stripedMap(world: EngineWorld): DirtyMap {
  const device = Object.assign(new MemoryDevice(DEVICE_SECTORS), { optimalIoSectors: STRIPE });
  return new DirtyMap(device, world.clock);
}

function regionSums(map: DirtyMap): number {
  return map.regions.counts.reduce((sum, count) => sum + count, 0);
}

/** An index of several leaves with dirty and clean extents of devices 1, 2 and 3. */
async function filledWorld(): Promise<EngineWorld> {
  const world = await freshWorld({ bucketCount: 1800 });
  const random = new SimRandom(3);
  for (let step = 0; step < 1800; step++) {
    const start = random.below(DEVICE_SECTORS - 8);
    await world.put(1 + random.below(3), start, 1 + random.below(8), { dirty: random.chance(0.7) });
  }
  assertGreater((await world.countNodes()).leaves, 3);
  return world;
}

describe("counting dirty keys", () => {
  test("finds those of the device, from its first key on, and no other's", async () => {
    const world = await filledWorld();
    for (const inode of [1, 2, 3]) {
      const map = stripedMap(world);
      await world.run(map.follow(world.engine.dirty, world.engine.btree, inode));
      const counts = await truth(world, inode);
      assertEquals([...map.stripes.counts], counts);
      const sum = counts.reduce((a, b) => a + b);
      assertEquals([regionSums(map), world.engine.dirty.of(inode)], [sum, sum]);
    }
    await world.stop();
  });

  test("is exact although keys change and nodes split meanwhile", async () => {
    const world = await filledWorld();
    const random = new SimRandom(9);
    const { btree } = world.engine;
    const map = stripedMap(world);
    // Between two leaves of the count a few keys change, anywhere.
    const walk = btree.walk.bind(btree);
    let changes = 0;
    btree.walk = async (level, from, visit) =>
      await walk(level, from, async (leaf) => {
        const goOn = await visit(leaf);
        for (let change = 0; change < 20; change++) {
          const start = random.below(DEVICE_SECTORS - 64);
          const sectors = 1 + random.below(24);
          if (random.chance(0.3)) await drop(world, 2, start, sectors);
          else await put(world, 2, start, sectors, random.chance(0.6));
          changes++;
        }
        return goOn;
      });
    await world.run(map.follow(world.engine.dirty, btree, 2));
    btree.walk = walk;
    assertGreater(changes, 60);
    const counts = await truth(world, 2);
    assertEquals([...map.stripes.counts], counts);
    assertEquals(regionSums(map), counts.reduce((a, b) => a + b));
    assertEquals(world.engine.dirty.of(2), regionSums(map));
    await world.stop();
  });

  test("a device without dirty data needs no count", async () => {
    const world = await filledWorld();
    const map = stripedMap(world);
    const { btree, dirty } = world.engine;
    btree.walk = () => Promise.reject(new Error("the index is not asked"));
    await world.run(map.follow(dirty, btree, 7));
    assertEquals(map.stripes.complete, true);
    await world.abandon();
  });
});

/** As the world's own, but from within simulated time. */
async function put(
  world: EngineWorld,
  inode: number,
  start: number,
  sectors: number,
  dirty: boolean,
): Promise<void> {
  const { open, allocator, committer } = world.engine;
  for (let at = start; at < start + sectors;) {
    while (!open.tryAllocate(start + sectors - at, dirty)) await allocator.whenAvailable(3, 1);
    const { bucket, gen, sector, sectors: granted } = open.grant;
    const grant = { bucket, gen, sector, sectors: granted };
    const builder = new BatchBuilder();
    builder.addData(inode, at, grant, dirty);
    while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
    open.settle(grant.bucket);
    at += grant.sectors;
  }
}

async function drop(
  world: EngineWorld,
  inode: number,
  start: number,
  sectors: number,
): Promise<void> {
  const { committer } = world.engine;
  const builder = new BatchBuilder();
  builder.addHole(inode, start, start + sectors);
  while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
}
