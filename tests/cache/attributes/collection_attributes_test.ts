/** What can be read and set of collections and buckets. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { MARK } from "../../../lib/buckets/table.ts";
import { writeAttribute } from "../../../lib/cache/attributes/attribute.ts";
import { COLLECTION_ATTRIBUTES } from "../../../lib/cache/attributes/collection.ts";
import type { SetTarget } from "../../../lib/cache/attributes/tables.ts";
import { priorityStats } from "../../../lib/cache/collection/priority_stats.ts";
import { discardsBuckets } from "../../../lib/ondisk/superblock.ts";
import { emptyTable } from "../../buckets/support.ts";
import { EngineWorld, freshWorld } from "../engine_world.ts";

function attribute(name: string) {
  const found = COLLECTION_ATTRIBUTES.find((each) => each.name === name);
  assert(found, name);
  return found;
}

const targetOf = (world: EngineWorld) => ({ engine: world.engine }) as unknown as SetTarget;
const read = (world: EngineWorld, name: string) => attribute(name).read(targetOf(world));
const set = (world: EngineWorld, name: string, text: string) =>
  world.run(writeAttribute(attribute(name), targetOf(world), text));

describe("attributes of collection", () => {
  test("btree_gc_* tell how often and how long; -1 before the first", async () => {
    const world = await freshWorld();
    assertEquals(read(world, "btree_gc_last_sec"), "-1");
    assertEquals(read(world, "btree_gc_average_duration_ms"), "0");
    for (let round = 0; round < 3; round++) {
      await world.collect();
      await world.run(world.clock.sleep(7000));
    }
    assertEquals(read(world, "btree_gc_last_sec"), "7");
    assertEquals(read(world, "btree_gc_average_frequency_sec"), "7");
    assertEquals(read(world, "gc_runs"), "3");
    assertMatch(read(world, "gc_longest_slice_us"), /^\d+$/);
    await world.stop();
  });

  test("switches are off at first and take what they say", async () => {
    const world = await freshWorld();
    for (const name of ["gc_always_rewrite", "copy_gc_enabled", "gc_after_writeback"]) {
      assertEquals(read(world, name), "0");
      await set(world, name, "1");
      assertEquals(read(world, name), "1");
      const error = await assertRejects(() => set(world, name, "maybe"), BcacheError);
      assertMatch(error.message, /found "maybe", expected 0 or 1/);
      assertEquals(read(world, name), "1");
    }
    await world.stop();
  });

  test("trigger_gc starts a collection", async () => {
    const world = await freshWorld();
    await set(world, "trigger_gc", "1");
    await world.run(world.clock.sleep(1000));
    assertEquals(read(world, "gc_runs"), "1");
    await world.stop();
  });

  test("discard is kept in the superblock, and reaches the device", async () => {
    const world = await freshWorld();
    assertEquals(read(world, "discard"), "0");
    await set(world, "discard", "1");
    await assertRejects(() => set(world, "discard", "x"), BcacheError, "expected 0 or 1");
    await world.stop();
    const again = new EngineWorld({ device: world.device });
    await again.start();
    assertEquals(read(again, "discard"), "1");
    const { cache } = again.engine;
    const discarded: number[] = [];
    cache.discard = (atSector) => {
      discarded.push(atSector);
      return Promise.resolve();
    };
    for (let index = 0; index < 200; index++) await again.put(0, index * 32, 32);
    await again.run(again.clock.sleep(1000));
    assert(discarded.length > 0);
    assert(discarded.every((sector) => sector % 32 === 0), "whole buckets");
    await again.stop();
  });

  test("discard that cannot be stored stays as it was", async () => {
    const world = await freshWorld();
    const { cache } = world.engine;
    const write = cache.write.bind(cache);
    cache.write = () => Promise.reject(new BcacheError("DeviceIo", "planted"));
    await assertRejects(() => set(world, "discard", "1"), BcacheError, "planted");
    cache.write = write;
    assert(!discardsBuckets(world.engine.superblock));
    await world.stop();
  });
});

describe("priority_stats", () => {
  test("shares, the average age and 31 quantiles of what has an age", () => {
    const table = emptyTable(1001, 64);
    for (let bucket = 1; bucket <= 1000; bucket++) {
      const mark = bucket <= 320 ? MARK.reclaimable : bucket <= 640 ? MARK.dirty : MARK.none;
      if (bucket <= 640) {
        table.setMark(bucket, mark);
        table.addSectorsUsed(bucket, 64);
        table.priority[bucket] = 32768 - bucket * 10;
      } else if (bucket <= 700) {
        table.setMark(bucket, MARK.metadata);
        table.addSectorsUsed(bucket, 64);
        table.priority[bucket] = 0xffff;
      }
    }
    const stats = priorityStats(table);
    assertEquals([stats.unused, stats.clean, stats.dirty, stats.metadata], [30, 32, 32, 6]);
    assertEquals([stats.average, stats.sectorsPerQuantile], [3205, 640 * 64 / 32]);
    assertEquals(stats.quantiles.length, 31);
    assertEquals(stats.quantiles, Array.from({ length: 31 }, (_, at) => ((at + 1) * 20 + 1) * 10));
  });

  test("of a cache that holds nothing all is unused and nothing has aged", () => {
    const stats = priorityStats(emptyTable(600, 64));
    assertEquals([stats.unused, stats.average, stats.sectorsPerQuantile], [100, 0, 0]);
    assertEquals(new Set(stats.quantiles), new Set([0]));
  });

  test("of a large cache a part is looked at, evenly", () => {
    const table = emptyTable(1_000_001, 64);
    for (let bucket = 1; bucket <= 500_000; bucket++) {
      table.setMark(bucket, MARK.dirty);
      table.addSectorsUsed(bucket, 1);
      table.priority[bucket] = 32768 - 5;
    }
    const stats = priorityStats(table);
    assertEquals([stats.unused, stats.dirty, stats.average], [50, 50, 5]);
  });

  test("is shown in the kernel's seven lines", async () => {
    const world = await freshWorld();
    const lines = read(world, "priority_stats").split("\n");
    assertMatch(lines[0]!, /^Unused:\t\t\d+%$/);
    assertMatch(lines[3]!, /^Metadata:\t\d+%$/);
    assertMatch(lines[6]!, /^Quantiles:\t\[(\d+ ){30}\d+\]$/);
    assertEquals(lines.length, 7);
    await world.stop();
  });
});
