/** Copying together what is left in sparsely used buckets. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { RESERVE } from "../../../lib/buckets/reserves.ts";
import { BatchBuilder } from "../../../lib/cache/request_parts.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { BUCKET_SECTORS, EngineWorld, freshWorld } from "../engine_world.ts";

const COUNT = 4000;

interface Sparse {
  readonly dirty?: boolean;
  readonly count?: number;
  /** Which extents are kept; else the first of the four in a bucket. */
  readonly keeps?: (index: number) => boolean;
}

/** Some buckets' worth of extents, of which most were dropped. */
async function sparse(options: Sparse = {}): Promise<EngineWorld> {
  const { count = 60, keeps = (index) => index % 4 === 0 } = options;
  const world = await freshWorld({ bucketCount: COUNT });
  for (let index = 0; index < count; index++) {
    await world.put(0, index * 16, 8, { dirty: options.dirty ?? false, fill: index + 1 });
  }
  for (let index = 0; index < count; index++) {
    if (!keeps(index)) await world.drop(0, index * 16, 8);
  }
  await untilReserved(world);
  return world;
}

/** The allocator fills its lists by the way. */
async function untilReserved(world: EngineWorld): Promise<void> {
  await world.run(world.clock.sleep(1000));
}

const bucketsOf = (extents: readonly { sector: number }[]) =>
  new Set(extents.map(({ sector }) => Math.floor(sector / BUCKET_SECTORS)));

async function assertFilled(world: EngineWorld): Promise<void> {
  const { cache } = world.engine;
  for (const { start, sectors, sector } of await world.extents()) {
    const bytes = new Uint8Array(sectors * 512);
    await world.run(cache.read(sector, bytes));
    assertEquals(bytes, new Uint8Array(sectors * 512).fill(start / 16 + 1), `at ${start}`);
  }
}

describe("moving collection", () => {
  test("is off unless asked for", async () => {
    const world = await sparse();
    const before = await world.extents();
    await world.collect();
    assertEquals(await world.extents(), before);
    assertEquals(world.engine.moving.keysMoved, 0);
    await world.stop();
  });

  for (const dirty of [false, true]) {
    const kind = dirty ? "dirty" : "clean";
    test(`what is ${kind} comes to fewer buckets and stays the same`, async () => {
      const world = await sparse({ dirty });
      const { moving, buckets, dirty: ledger } = world.engine;
      const before = await world.extents();
      const freeBefore = bucketsOf(before);
      moving.enabled = true;
      await world.collect();
      const after = await world.extents();
      assertEquals(
        after.map(({ start, sectors, dirty }) => [start, sectors, dirty]),
        before.map(({ start, sectors, dirty }) => [start, sectors, dirty]),
      );
      assertGreater(moving.keysMoved, 3);
      assertEquals(moving.sectorsMoved, moving.keysMoved * 8);
      assertLess(bucketsOf(after).size, freeBefore.size);
      assertEquals(ledger.of(0), dirty ? before.length * 8 : 0);
      await assertFilled(world);
      assertEquals([moving.buffer.size, moving.collisions], [0, 0]);
      moving.enabled = false;
      await world.collect();
      const emptied = [...freeBefore].filter((bucket) => !bucketsOf(after).has(bucket));
      assert(emptied.length > 0 && emptied.every((bucket) => buckets.sectorsUsed[bucket] === 0));
      assert(emptied.every((bucket) => !buckets.isMoving(bucket)), "no flag is left");
      await world.stop();

      const again = new EngineWorld({ device: world.device });
      await again.start();
      assertEquals(await again.extents(), after);
      await assertFilled(again);
      await again.stop();
    });
  }

  test("dirty data that was moved is found after a power cut", async () => {
    const memory = new MemoryDevice(COUNT * BUCKET_SECTORS);
    const world = await freshWorld({ device: memory });
    for (let index = 0; index < 60; index++) {
      await world.put(0, index * 16, 8, { dirty: true, fill: index + 1 });
      if (index % 4 !== 0) await world.drop(0, index * 16, 8);
    }
    await untilReserved(world);
    world.engine.moving.enabled = true;
    await world.collect();
    assertGreater(world.engine.moving.keysMoved, 3);
    const moved = await world.extents();
    await world.run(world.engine.committer.flush());
    await world.abandon();
    const again = new EngineWorld({ device: memory });
    await again.start();
    assertEquals(await again.extents(), moved, "the journal had the new places");
    await assertFilled(again);
    await again.stop();
  });

  test("chooses the emptiest buckets, no more than the reserve has room for", async () => {
    // Every other bucket keeps three of its four extents.
    const keeps = (index: number) => index % 4 < (index % 8 < 4 ? 3 : 1);
    const world = await sparse({ count: 800, keeps });
    const { moving, allocator, buckets } = world.engine;
    await world.collect();
    await untilReserved(world);
    const room = allocator.freeCount(RESERVE.movingGc) * BUCKET_SECTORS;
    assertGreater(room, 0);
    const before = bucketsOf(await world.extents());
    const used = new Map([...before].map((bucket) => [bucket, buckets.sectorsUsed[bucket]!]));
    moving.enabled = true;
    await world.collect();
    assertGreater(moving.sectorsMoved, room / 2);
    assert(moving.sectorsMoved <= room, `${moving.sectorsMoved} of ${room}`);
    const after = bucketsOf(await world.extents());
    const emptied = [...before].filter((bucket) => !after.has(bucket));
    assertEquals(new Set(used.values()), new Set([24, 8]));
    assertEquals(new Set(emptied.map((bucket) => used.get(bucket))), new Set([8]));
    await world.stop();
  });

  test("lets pinned buckets be: somebody is at work in them", async () => {
    const world = await sparse();
    const { moving, buckets } = world.engine;
    // What is in a bucket is known from a collection before it is pinned.
    await world.collect();
    const [first, second] = await world.extents();
    const [pinned, other] = bucketsOf([first!, second!]);
    buckets.pin(pinned!);
    moving.enabled = true;
    await world.collect();
    const after = bucketsOf(await world.extents());
    assertEquals([after.has(pinned!), after.has(other!)], [true, false]);
    buckets.unpin(pinned!);
    await world.collect();
    assert(!bucketsOf(await world.extents()).has(pinned!));
    await world.stop();
  });

  test("has 64 extents on their way at a time", async () => {
    const world = await freshWorld({ bucketCount: COUNT });
    for (let index = 0; index < 800; index++) await world.put(0, index * 16, 1);
    for (let index = 0; index < 800; index++) {
      if (index % 4 !== 0) await world.drop(0, index * 16, 1);
    }
    await untilReserved(world);
    const { moving, cache } = world.engine;
    const read = cache.read.bind(cache);
    let reading = 0;
    let most = 0;
    cache.read = async (atSector, into) => {
      most = Math.max(most, ++reading);
      await world.clock.sleep(10);
      await read(atSector, into);
      reading--;
    };
    moving.enabled = true;
    await world.collect();
    assertGreater(moving.keysMoved, 64);
    assertEquals(most, 64);
    await world.stop();
  });

  test("what is overwritten while it is copied keeps its new data", async () => {
    const world = await sparse({ dirty: true });
    const { moving, cache } = world.engine;
    const read = cache.read.bind(cache);
    let overwritten = 0;
    cache.read = async (atSector, into) => {
      await read(atSector, into);
      if (overwritten++ > 0 || into.length !== 8 * 512) return;
      await overwrite();
    };
    const overwrite = async () => {
      const { open, committer } = world.engine;
      for (let start = 0; start < 60 * 16; start += 64) {
        assert(open.tryAllocate(8, true));
        const { bucket, gen, sector } = open.grant;
        const builder = new BatchBuilder();
        builder.addData(0, start, { bucket, gen, sector, sectors: 8 }, true);
        await cache.write(sector, new Uint8Array(8 * 512).fill(0xee));
        while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
        open.settle(bucket);
      }
    };
    moving.enabled = true;
    await world.collect();
    cache.read = read;
    assertGreater(moving.collisions, 0);
    for (const { sector } of await world.extents()) {
      const bytes = new Uint8Array(8 * 512);
      await world.run(read(sector, bytes));
      assertEquals(bytes, new Uint8Array(8 * 512).fill(0xee));
    }
    assertEquals(world.engine.dirty.of(0), 15 * 8);
    await world.stop();
  });

  test("a device that cannot be read ends it, and nothing is lost", async () => {
    const world = await sparse();
    const { moving, cache } = world.engine;
    const before = await world.extents();
    const read = cache.read.bind(cache);
    cache.read = () => Promise.reject(new Error("planted"));
    moving.enabled = true;
    await world.collect();
    cache.read = read;
    assertEquals(await world.extents(), before);
    assertEquals([moving.keysMoved, moving.buffer.size], [0, 0]);
    assert(world.log.some((line) => line.includes("moving collection stops for now: planted")));
    await world.stop();
  });
});
