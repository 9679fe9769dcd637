/** When a collection writes a node anew for its stale pointers, and when it hurries. */
import { test } from "bun:test";
import { assertEquals, assertGreater, assertLess } from "@std/assert";
import { RESERVE } from "../../../lib/buckets/reserves.ts";
import { BUCKET_SECTORS, freshWorld } from "../engine_world.ts";

test("a pointer more than ten generations behind has its node written anew", async () => {
  const world = await freshWorld();
  const { buckets, collector } = world.engine;
  // Each in a bucket of its own, so that most keys stay good.
  for (let index = 0; index < 5; index++) {
    await world.put(0, index * 100, BUCKET_SECTORS);
  }
  const first = (await world.extents())[0]!;
  for (let bump = 0; bump < 10; bump++) {
    buckets.bumpGen(Math.floor(first.sector / BUCKET_SECTORS));
  }
  await world.collect();
  assertEquals(collector.nodesRewritten, 0, "ten are borne");
  buckets.bumpGen(Math.floor(first.sector / BUCKET_SECTORS));
  await world.collect();
  assertEquals(collector.nodesRewritten, 1);
  const { root } = world.engine.btree;
  assertEquals(root.base.count + root.delta.count, 4, "without the stale key");
  await world.stop();
});

test("while somebody waits for a bucket a collection takes no rests", async () => {
  const world = await freshWorld({ bucketCount: 1200 });
  for (let index = 0; index < 6000; index++) await world.put(0, index * 16, 8);
  assertGreater((await world.countNodes()).leaves, 10);
  const { allocator, buckets, collector } = world.engine;
  await world.run(world.clock.sleep(2000));
  buckets.rescale(1);
  await world.collect();
  assertGreater(collector.lastDurationMs, 99, "it rests when nobody waits");
  // Nothing can be dropped any more, and everything there was is taken.
  for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
    if (!buckets.isHeld(bucket)) buckets.pin(bucket);
  }
  const wait = async (): Promise<void> => {
    while (allocator.tryTake(RESERVE.none) >= 0);
    await allocator.whenAvailable(RESERVE.none, 1);
    await wait();
  };
  const before = collector.collections;
  const waiting = wait().catch(() => undefined);
  for (let ms = 0; ms < 500 && collector.collections === before; ms++) {
    await world.run(world.clock.sleep(1));
  }
  assertGreater(collector.collections, before);
  assertLess(collector.lastDurationMs, 99);
  await world.abandon();
  await waiting;
});
