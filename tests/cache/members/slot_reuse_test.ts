/** A place in the UUID table that is used again: nothing of its old device may come back. */
import { test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { freeSlot, invalidated } from "../../../lib/cache/members/slots.ts";
import { emptyUuidEntry } from "../../../lib/ondisk/uuid_entry.ts";
import { EngineWorld, freshWorld } from "../engine_world.ts";

const GONE = 7;
const STAYS = 8;

test("a place is given out again without keys or dirty data, after a power cut too", async () => {
  const world = await freshWorld();
  const { uuids, dirty } = world.engine;
  for (let slot = 0; slot < uuids.capacity; slot++) {
    uuids.set(slot, { ...emptyUuidEntry(), uuid: new Uint8Array(16).fill(1 + slot) });
  }
  for (const inode of [GONE, STAYS]) {
    await world.put(inode, 0, 64);
    await world.put(inode, 1000, 64, { dirty: true });
  }
  await assertRejects(() => world.run(freeSlot(world.engine, "a test")), BcacheError, "in use");
  uuids.set(GONE, invalidated(uuids.entry(GONE), 100));
  assertEquals(await world.run(freeSlot(world.engine, "a test")), GONE);
  const left = (found: Awaited<ReturnType<EngineWorld["extents"]>>) =>
    found.map(({ inode }) => inode).filter((inode) => inode === GONE).length;
  const extents = await world.extents();
  assertEquals([left(extents), dirty.of(GONE), dirty.of(STAYS)], [0, 0, 64]);
  assert(extents.length > 0, "the other's are there");
  await world.abandon();

  // The table on the disk knows of none of this: only what became of the keys counts here.
  const again = new EngineWorld({ device: world.device });
  await again.start();
  assertEquals([left(await again.extents()), again.engine.dirty.of(GONE)], [0, 0]);
  assertEquals(again.engine.dirty.of(STAYS), 64);
  await again.abandon();
});

test("a place that a damaged table calls unused is emptied, or left alone when dirty", async () => {
  const world = await freshWorld();
  const { uuids, dirty } = world.engine;
  for (let slot = 0; slot < uuids.capacity; slot++) uuids.set(slot, emptyUuidEntry());
  await world.put(0, 0, 64, { dirty: true });
  await world.put(1, 0, 64);
  assertEquals(await world.run(freeSlot(world.engine, "a test")), 1);
  const inodes = (await world.extents()).map(({ inode }) => inode);
  assertEquals([new Set(inodes), dirty.of(0)], [new Set([0]), 64]);
  await world.abandon();
});
