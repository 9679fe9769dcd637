/** Space for data: what a grant is, when a bucket is given up, and what is pinned meanwhile. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { MARK } from "../../lib/buckets/table.ts";
import { BUCKET_SECTORS, type EngineWorld, freshWorld } from "./engine_world.ts";

const BLOCK = 4;

function world(): Promise<EngineWorld> {
  return freshWorld({ blockSectors: BLOCK, bucketSectors: BUCKET_SECTORS });
}

function grant(of: EngineWorld, sectors: number, dirty = false) {
  const { open } = of.engine;
  assert(open.tryAllocate(sectors, dirty), "there is a bucket");
  const { bucket, gen, sector, sectors: granted } = open.grant;
  return { bucket, gen, sector, sectors: granted };
}

describe("space for data", () => {
  test("is at most what was asked for, contiguous, and ends with its bucket", async () => {
    const w = await world();
    const first = grant(w, 12);
    const second = grant(w, 12);
    const third = grant(w, 12);
    assertEquals([first.sectors, second.sectors, third.sectors], [12, 12, 8]);
    assertEquals(second.sector, first.sector + 12);
    assertEquals(third.sector, second.sector + 12);
    assertEquals(first.sector % BUCKET_SECTORS, 0);
    assertEquals(first.gen, w.engine.buckets.gen[first.bucket]);
    const fourth = grant(w, 12);
    assertNotEquals(fourth.bucket, third.bucket);
    assertEquals(w.engine.open.grantedSectors, 12 + 12 + 8 + 12);
    for (const each of [first, second, third, fourth]) w.engine.open.settle(each.bucket);
    await w.stop();
  });

  test("leaves a rest below one block alone", async () => {
    const w = await world();
    const first = grant(w, BUCKET_SECTORS - BLOCK + 1);
    const second = grant(w, BLOCK);
    assertNotEquals(second.bucket, first.bucket);
    for (const each of [first, second]) w.engine.open.settle(each.bucket);
    await w.stop();
  });

  test("pins its bucket once for each grant, and once while it is open", async () => {
    const w = await world();
    const { buckets, open } = w.engine;
    const { bucket } = grant(w, 8);
    grant(w, 8);
    assertEquals(buckets.pins[bucket], 3);
    open.settle(bucket);
    open.settle(bucket);
    assertEquals(buckets.pins[bucket], 1);
    grant(w, 16);
    open.settle(bucket);
    assertEquals(buckets.pins[bucket], 0, "full and settled");
    await w.stop();
  });

  test("of dirty data lies apart from clean data, and is marked at once", async () => {
    const w = await world();
    const { buckets, open } = w.engine;
    const clean = grant(w, 8);
    const dirty = grant(w, 8, true);
    assertNotEquals(clean.bucket, dirty.bucket);
    assertEquals(buckets.mark[clean.bucket], MARK.reclaimable);
    assertEquals(buckets.mark[dirty.bucket], MARK.dirty);
    for (const each of [clean, dirty]) open.settle(each.bucket);
    await w.collect();
    assertEquals(buckets.mark[dirty.bucket], MARK.dirty, "its key may not be in the index yet");
    await w.stop();
  });

  test("is refused without waiting when no bucket is free", async () => {
    const w = await world();
    const { allocator, open } = w.engine;
    // No await: the allocator cannot refill.
    while (allocator.tryTake(3) >= 0);
    assertEquals(open.tryAllocate(8, false), false);
    await w.abandon();
  });
});
