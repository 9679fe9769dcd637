/** Keys of devices that were detached for good are collected; others never are. */
import { describe, test } from "bun:test";
import { assertEquals, assertGreater } from "@std/assert";
import { RESERVE } from "../../../lib/buckets/reserves.ts";
import { freeSlot } from "../../../lib/cache/members/slots.ts";
import { emptyUuidEntry, INVALID_UUID } from "../../../lib/ondisk/uuid_entry.ts";
import type { UuidEntry } from "../../../lib/ondisk/uuid_entry.ts";
import { EngineWorld, freshWorld } from "../engine_world.ts";

const GONE = 1;
const AWAY = 2;
/** Beyond what the test world gives to somebody. */
const NEVER = 9;

function invalidated(entry: UuidEntry): UuidEntry {
  return { ...entry, uuid: Uint8Array.from(INVALID_UUID), invalidated: 12345 };
}

async function invalidate(world: EngineWorld, inode: number): Promise<void> {
  const { uuids, allocator } = world.engine;
  uuids.set(inode, invalidated(uuids.entry(inode)));
  await world.run(uuids.write(allocator, () => world.engine.commitMetadata()));
}

async function filled(): Promise<EngineWorld> {
  const world = await freshWorld({ bucketCount: 1200 });
  for (const inode of [GONE, AWAY]) {
    for (let index = 0; index < 400; index++) {
      await world.put(inode, index * 16, 8, { dirty: index % 2 === 0 });
    }
  }
  await world.drop(GONE, 100_000, 64);
  return world;
}

async function keysOf(world: EngineWorld, inode: number): Promise<number> {
  return (await world.extents()).filter((each) => each.inode === inode).length;
}

describe("keys of an invalidated slot", () => {
  test("are dropped, dirty or not; nothing of a device that is merely away", async () => {
    const world = await filled();
    const { dirty } = world.engine;
    await world.collect();
    assertEquals([await keysOf(world, GONE), await keysOf(world, AWAY)], [400, 400]);
    await invalidate(world, GONE);
    await world.collect();
    assertEquals([await keysOf(world, GONE), await keysOf(world, AWAY)], [0, 400]);
    assertEquals([dirty.of(GONE), dirty.of(AWAY)], [0, 200 * 8]);
    await world.stop();

    const again = new EngineWorld({ device: world.device });
    await again.start();
    assertEquals([await keysOf(again, GONE), await keysOf(again, AWAY)], [0, 400]);
    await again.stop();
  });

  test("are kept while the disk does not say so yet, and when it says so no more", async () => {
    const world = await filled();
    const { uuids } = world.engine;
    const before = uuids.entry(GONE);
    uuids.set(GONE, invalidated(before));
    await world.collect();
    assertEquals(await keysOf(world, GONE), 400, "only in memory");
    await invalidate(world, GONE);
    uuids.set(GONE, before);
    await world.collect();
    assertEquals(await keysOf(world, GONE), 400, "the slot was given to somebody again");
    await world.stop();
  });

  test("of a slot that was never used only clean ones are dropped", async () => {
    const world = await freshWorld();
    for (let index = 0; index < 20; index++) {
      await world.put(NEVER, index * 16, 8, { dirty: index % 2 === 0 });
    }
    await world.collect();
    const left = await world.extents();
    assertEquals(left.map(({ dirty }) => dirty), Array(10).fill(true));
    await world.stop();
  });
});

test("of the UUID table a collection decodes the slots that have keys, each once", async () => {
  const world = await filled();
  const { uuids, collector } = world.engine;
  // All of a table of thousands in one step would keep requests waiting for milliseconds.
  const asked: number[] = [];
  const slotState = uuids.slotState.bind(uuids);
  uuids.slotState = (inode) => {
    asked.push(inode);
    return slotState(inode);
  };
  await invalidate(world, GONE);
  collector.alwaysRewrite = true;
  await world.collect();
  assertEquals(asked.toSorted((a, b) => a - b), [GONE, AWAY]);
  await world.stop();
});

test("a start leaves buckets of dead keys alone until their generation moved on", async () => {
  const world = await filled();
  await invalidate(world, GONE);
  const bucketOf = ({ sector }: { sector: number }) =>
    Math.floor(sector / world.engine.geometry.bucketSectors);
  const dead = new Set((await world.extents()).filter(({ inode }) => inode === GONE).map(bucketOf));
  await world.stop();

  const again = new EngineWorld({ device: world.device });
  await again.start();
  const { allocator } = again.engine;
  const taken: number[] = [];
  for (let bucket = 0; bucket >= 0;) {
    bucket = allocator.tryTake(RESERVE.btree);
    if (bucket >= 0) taken.push(bucket);
  }
  assertGreater(taken.length, 2);
  assertEquals(taken.filter((bucket) => dead.has(bucket)), []);
  await again.abandon();
});

test("a slot that is used again has no keys and nothing dirty", async () => {
  const world = await filled();
  const { uuids, allocator } = world.engine;
  await invalidate(world, GONE);
  for (let index = 0; index < uuids.capacity; index++) {
    if (index === GONE || index === AWAY) continue;
    const uuid = new Uint8Array(16).fill(0x77);
    uuid.set([index & 0xff, index >> 8]);
    uuids.set(index, { ...emptyUuidEntry(), uuid });
  }
  world.engine.dirty.add(GONE, 0, 8);
  assertEquals(await world.run(freeSlot(world.engine, "a test")), GONE);
  assertEquals([await keysOf(world, GONE), world.engine.dirty.of(GONE)], [0, 0]);
  uuids.set(GONE, { ...emptyUuidEntry(), uuid: new Uint8Array(16).fill(0x99) });
  await world.run(uuids.write(allocator, () => world.engine.commitMetadata()));
  await world.abandon();
  const again = new EngineWorld({ device: world.device });
  await again.start();
  assertEquals([await keysOf(again, GONE), again.engine.dirty.of(GONE)], [0, 0]);
  assertEquals(await keysOf(again, AWAY), 400);
  await again.stop();
});

test("no bucket that dead keys point to is given out as a set starts", async () => {
  const world = await filled();
  await world.run(world.engine.settleKeys());
  const { bucketSectors } = world.engine.buckets;
  const held = new Map<number, number>();
  for (const { inode, sector, gen } of await world.extents()) {
    if (inode === GONE) held.set(Math.floor(sector / bucketSectors), gen);
  }
  await invalidate(world, GONE);
  await world.abandon();
  const again = new EngineWorld({ device: world.device });
  await again.start();
  // Its generation would be in memory alone, and the keys as good as before after the next start.
  const { buckets } = again.engine;
  const givenOut = [...held].filter(([bucket, gen]) => buckets.gen[bucket] !== gen);
  assertEquals([held.size > 0, givenOut], [true, []]);
  await again.stop();
});
