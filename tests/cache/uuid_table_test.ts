/** The UUID table on disk: always in a fresh bucket, and named only when it is there. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { TracedDevice } from "../../lib/device/traced.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { emptyUuidEntry } from "../../lib/ondisk/uuid_entry.ts";
import { BUCKET_SECTORS, EngineWorld } from "./engine_world.ts";

async function traced() {
  const writes: Array<{ bucket: number; fua: boolean }> = [];
  const device = new TracedDevice(new MemoryDevice(600 * BUCKET_SECTORS), {
    end: ({ kind, atSector, fua }) => {
      if (kind === "write") writes.push({ bucket: Math.floor(atSector / BUCKET_SECTORS), fua });
    },
  });
  const world = new EngineWorld({ device });
  await world.format();
  await world.start();
  writes.length = 0;
  return { world, writes };
}

function entryOf(byte: number) {
  return { ...emptyUuidEntry(), uuid: new Uint8Array(16).fill(byte), firstRegistered: byte };
}

describe("the UUID table", () => {
  test("goes to a fresh bucket, stable before the journal entry that names it", async () => {
    const { world, writes } = await traced();
    const { allocator, uuids, superblock } = world.engine;
    for (let round = 1; round <= 5; round++) {
      const old = uuids.bucket;
      uuids.set(round, entryOf(round));
      let journaled = false;
      await world.run(uuids.write(allocator, async () => {
        assertNotEquals(uuids.bucket, old);
        const table = writes.find(({ bucket }) => bucket === uuids.bucket);
        assert(table?.fua, "the table is on the device, and stable");
        assert(world.engine.buckets.pins[old]! > 0, "the old one is in force still");
        await world.engine.commitMetadata();
        journaled = true;
      }));
      assert(journaled, "it is valid only when an entry names it");
      assertEquals(world.engine.buckets.pins[old], 0);
      const last = writes.at(-1)!.bucket;
      assert(last < superblock.firstBucket + superblock.journalBucketCount, "the entry came last");
    }
    await world.abandon();
  });

  test("is found whole after a power cut", async () => {
    const { world } = await traced();
    const { allocator, uuids } = world.engine;
    for (const byte of [3, 4, 5]) {
      uuids.set(byte, entryOf(byte));
      await world.run(uuids.write(allocator, () => world.engine.commitMetadata()));
    }
    await world.abandon();
    const again = new EngineWorld({ device: world.device });
    await again.start();
    for (const byte of [3, 4, 5]) {
      assertEquals(again.engine.uuids.entry(byte).uuid, entryOf(byte).uuid);
      assertEquals(again.engine.uuids.entry(byte).firstRegistered, byte);
    }
    await again.stop();
  });
});
