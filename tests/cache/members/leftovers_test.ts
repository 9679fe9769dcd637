/** What a crash left of data that nobody can ask for: given up at the next start. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import type { CacheSet } from "../../../lib/cache/cache_set.ts";
import { type Alone, dropLeftovers } from "../../../lib/cache/members/leftovers.ts";
import { invalidated } from "../../../lib/cache/members/slots.ts";
import { Mutex } from "../../../lib/base/sync.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { viewOf, writeU64 } from "../../../lib/ondisk/layout.ts";
import { emptyUuidEntry, UUID_ENTRY, UUID_ENTRY_BYTES } from "../../../lib/ondisk/uuid_entry.ts";
import { indexOf, patch } from "../../offline/world.ts";
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

/** The bytes of the cache after every write of a resize to less. */
async function cutsWhileResized(made: MadeSet): Promise<Uint8Array[]> {
  const { cache } = made;
  const set = await made.open();
  await set.createVolume({ sizeBytes: MIB });
  await write(volumeNamed(set, "bcache0"), 0, MIB, 5);
  await volumeNamed(set, "bcache0").flush();
  const copies: Uint8Array[] = [];
  const whole = MemoryDevice.prototype.write.bind(cache);
  cache.write = async (at, from, options) => {
    await whole(at, from, options);
    const copy = new Uint8Array(cache.sizeSectors * 512);
    await cache.read(0, copy);
    copies.push(copy);
  };
  await set.resizeVolume("bcache0", SMALL, { force: true });
  cache.write = whole;
  await set.close();
  return copies;
}

async function usedBytes(set: CacheSet): Promise<number> {
  return (await set.status()).volumes[0]!.usedBytes;
}

test("a crash while a volume becomes smaller leaves nothing behind its end", async () => {
  const made = await makeSet(0);
  const copies = await cutsWhileResized(made);
  const sizes = new Set<number>();
  for (const copy of copies) {
    await made.cache.write(0, copy);
    const set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    const { sizeBytes } = volume;
    sizes.add(sizeBytes);
    assert(await usedBytes(set) <= sizeBytes, "nothing lies behind the end");
    assertEquals(await valuesIn(volume, 0, SMALL), [5]);
    await set.resizeVolume("bcache0", SMALL, { force: true });
    await set.resizeVolume("bcache0", MIB);
    assertEquals(await usedBytes(set), SMALL);
    assertEquals(await valuesIn(volume, SMALL, MIB - SMALL), [0]);
    await set.close();
  }
  assertEquals(sizes, new Set([MIB, SMALL]));
});

test("a size in the table that is too small costs no data", async () => {
  const made = await makeSet(0);
  let set = await made.open();
  await set.createVolume({ sizeBytes: MIB });
  await write(volumeNamed(set, "bcache0"), 0, MIB, 5);
  await set.close();
  await setSizeInTable(made.cache, SMALL);
  set = await made.open();
  assertEquals(volumeNamed(set, "bcache0").sizeBytes, SMALL);
  await pause(500);
  await set.close();
  await setSizeInTable(made.cache, MIB);
  set = await made.open();
  assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, MIB), [5]);
  await set.close();
});

/** Damages the UUID table, which has no checksum: another size for its first volume. */
async function setSizeInTable(cache: MemoryDevice, sizeBytes: number): Promise<void> {
  const { uuids, image } = await indexOf(cache);
  const inode = uuids!.entries.findIndex(({ sectors }) => sectors > 0);
  const place = Math.floor((inode * UUID_ENTRY_BYTES) / 512);
  await patch(cache, uuids!.bucket * image.geometry.bucketSectors + place, 1, (bytes) => {
    const at = (inode * UUID_ENTRY_BYTES) % 512 + UUID_ENTRY.sectors;
    writeU64(viewOf(bytes), at, sizeBytes / 512);
  });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
