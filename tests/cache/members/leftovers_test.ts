/** What a crash left of data that nobody can ask for: given up at the next start. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import type { CacheSet } from "../../../lib/cache/cache_set.ts";
import { type Alone, dropLeftovers } from "../../../lib/cache/members/leftovers.ts";
import { invalidated } from "../../../lib/cache/members/slots.ts";
import { Mutex } from "../../../lib/base/sync.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { emptyUuidEntry } from "../../../lib/ondisk/uuid_entry.ts";
import { type EngineWorld, freshWorld } from "../engine_world.ts";
import { type MadeSet, makeSet, valuesIn, volumeNamed, write } from "../set_support.ts";

const MIB = 1024 * 1024;
const SMALL = 65536;
const GONE = 7;
const STAYS = 8;

/** Extents of a slot that lie apart, more of them than one piece takes. */
async function scatter(world: EngineWorld, inode: number, count: number): Promise<void> {
  for (let index = 0; index < count; index++) {
    await world.put(inode, index * 4, 1, { dirty: true });
  }
}

async function slotsInUse(): Promise<EngineWorld> {
  const world = await freshWorld();
  for (const inode of [GONE, STAYS]) {
    const uuid = new Uint8Array(16).fill(inode);
    world.engine.uuids.set(inode, { ...emptyUuidEntry(), uuid });
    await scatter(world, inode, 2500);
  }
  return world;
}

describe("what a crash left of a device that is gone", () => {
  test("is dropped piece by piece, each alone; the others stay", async () => {
    const world = await slotsInUse();
    const { engine } = world;
    engine.uuids.set(GONE, invalidated(engine.uuids.entry(GONE), 100));
    const turn = new Mutex();
    let pieces = 0;
    const insert = engine.committer.tryCommit.bind(engine.committer);
    engine.committer.tryCommit = (batch) => {
      assert(turn.held, "nothing is dropped while others may come and go");
      return insert(batch);
    };
    const alone: Alone = (step) => {
      pieces++;
      return turn.run(step);
    };
    await world.run(dropLeftovers(engine, alone, new AbortController().signal));
    assertEquals([engine.dirty.of(GONE), engine.dirty.of(STAYS)], [0, 2500]);
    assert(pieces > 1, "others have their turn between the pieces");
    await world.abandon();
  });

  test("is left to the new owner when its place is used again meanwhile", async () => {
    const world = await slotsInUse();
    const { engine } = world;
    const owner = engine.uuids.entry(GONE);
    engine.uuids.set(GONE, invalidated(owner, 100));
    const alone: Alone = async (step) => {
      const result = await step();
      engine.uuids.set(GONE, owner);
      return result;
    };
    await world.run(dropLeftovers(engine, alone, new AbortController().signal));
    const left = engine.dirty.of(GONE);
    assert(left > 0 && left < 2500, `${left} of 2500 sectors are left`);
    await world.abandon();
  });
});

/** The bytes of the cache as a power cut left them: the volume is smaller, its data still there. */
async function cutWhileResized(made: MadeSet): Promise<void> {
  const { cache } = made;
  const set = await made.open();
  await set.createVolume({ sizeBytes: MIB });
  await write(volumeNamed(set, "bcache0"), 0, MIB, 5);
  const copy = new Uint8Array(cache.sizeSectors * 512);
  const whole = MemoryDevice.prototype.write.bind(cache);
  let writes = 0;
  cache.write = async (at, from, options) => {
    await whole(at, from, options);
    // The table, then the journal entry that names it.
    if (++writes === 2) await cache.read(0, copy);
  };
  await set.resizeVolume("bcache0", SMALL);
  cache.write = whole;
  await set.close();
  await cache.write(0, copy);
}

async function usedBytes(set: CacheSet): Promise<number> {
  return (await set.status()).volumes[0]!.usedBytes;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

describe("what a crash left behind the end of a volume", () => {
  test("is given up at the next start; what is inside stays", async () => {
    const made = await makeSet(0);
    await cutWhileResized(made);
    const set = await made.open();
    assertEquals([volumeNamed(set, "bcache0").sizeBytes, await usedBytes(set)], [SMALL, MIB]);
    for (let tries = 0; tries < 100 && await usedBytes(set) > SMALL; tries++) await pause(20);
    assertEquals(await usedBytes(set), SMALL);
    await set.resizeVolume("bcache0", MIB);
    const volume = volumeNamed(set, "bcache0");
    assertEquals(await valuesIn(volume, 0, SMALL), [5]);
    assertEquals(await valuesIn(volume, SMALL, MIB - SMALL), [0]);
    await set.close();
  });

  test("is not touched while a device comes or goes", async () => {
    const made = await makeSet(1);
    await cutWhileResized({ ...made, open: (more) => made.open({ ...more, backings: [] }) });
    const set = await made.open({ backings: [] });
    const gate = Promise.withResolvers<void>();
    const disk = made.backings[0]!.device;
    const read = disk.read.bind(disk);
    disk.read = async (at, into) => {
      await gate.promise;
      await read(at, into);
    };
    const attaching = set.attach("/disk0");
    await pause(300);
    assertEquals(await usedBytes(set), MIB);
    gate.resolve();
    await attaching;
    for (let tries = 0; tries < 100 && await usedBytes(set) > SMALL; tries++) await pause(20);
    assertEquals(await usedBytes(set), SMALL);
    await set.close();
  });
});
