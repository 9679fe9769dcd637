/** The UUID table on disk: always in a fresh bucket, and named only when it is there. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { TracedDevice } from "../../lib/device/traced.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { emptyUuidEntry } from "../../lib/ondisk/uuid_entry.ts";
import { BUCKET_SECTORS, EngineWorld } from "./engine_world.ts";

async function traced() {
  const done: Array<{ what: "wrote" | "flush begun" | "flushed" | "writes"; bucket: number }> = [];
  const device = new TracedDevice(new MemoryDevice(600 * BUCKET_SECTORS), {
    begin: ({ kind, atSector }) => {
      const bucket = Math.floor(atSector / BUCKET_SECTORS);
      if (kind === "flush") done.push({ what: "flush begun", bucket });
      if (kind === "write") done.push({ what: "writes", bucket });
    },
    end: ({ kind, atSector }) => {
      const bucket = Math.floor(atSector / BUCKET_SECTORS);
      if (kind === "flush") done.push({ what: "flushed", bucket });
      if (kind === "write") done.push({ what: "wrote", bucket });
    },
  });
  const world = new EngineWorld({ device });
  await world.format();
  await world.start();
  done.length = 0;
  return { world, done };
}

function entryOf(byte: number) {
  return { ...emptyUuidEntry(), uuid: new Uint8Array(16).fill(byte), firstRegistered: byte };
}

describe("the UUID table", () => {
  test("goes to a fresh bucket, stable before the journal entry that names it", async () => {
    const { world, done } = await traced();
    const { allocator, uuids, superblock } = world.engine;
    for (let round = 1; round <= 5; round++) {
      const old = uuids.bucket;
      uuids.set(round, entryOf(round));
      done.length = 0;
      let journaled = false;
      await world.run(uuids.write(allocator, async () => {
        assertNotEquals(uuids.bucket, old);
        assert(world.engine.buckets.pins[old]! > 0, "the old one is in force still");
        await world.engine.commitMetadata();
        journaled = true;
      }));
      assert(journaled, "it is valid only when an entry names it");
      assertEquals(world.engine.buckets.pins[old], 0);
      const inOrder = [
        done.findIndex(({ what, bucket }) => what === "wrote" && bucket === uuids.bucket),
        done.findIndex(({ what }) => what === "flush begun"),
        done.findIndex(({ what }) => what === "flushed"),
        done.findLastIndex(({ what }) => what === "writes"),
      ];
      assert(inOrder[0]! >= 0);
      assertEquals(inOrder, inOrder.toSorted((a, b) => a - b));
      const last = done.at(-1)!.bucket;
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
