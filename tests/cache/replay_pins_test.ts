/** Buckets that only the journal's keys point to, while these are replayed. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { Allocator } from "../../lib/buckets/allocator.ts";
import { MARK } from "../../lib/buckets/table.ts";
import { BUCKET_SECTORS, EngineWorld, freshWorld } from "./engine_world.ts";

test("a bucket of journaled keys is marked and pinned before anything can be dropped", async () => {
  const world = await freshWorld();
  await world.put(0, 0, BUCKET_SECTORS);
  const bucket = Math.floor((await world.extents())[0]!.sector / BUCKET_SECTORS);
  await world.run(world.engine.journal.commit());
  await world.abandon();

  const original = Object.getOwnPropertyDescriptor(Allocator.prototype, "start")!;
  let seen: unknown[] = [];
  Allocator.prototype.start = function (tasks): void {
    const { pins, mark } = this.table;
    seen = [pins[bucket], mark[bucket], this.table.canInvalidate(bucket)];
    original.value.call(this, tasks);
  };
  const again = new EngineWorld({ device: world.device });
  try {
    await again.start();
  } finally {
    Object.defineProperty(Allocator.prototype, "start", original);
  }
  assertEquals(seen, [1, MARK.reclaimable, false]);
  const { buckets } = again.engine;
  assertEquals([buckets.pins[bucket], buckets.canInvalidate(bucket)], [0, true]);
  assertEquals((await again.extents()).length, 1);
  await again.stop();
});
