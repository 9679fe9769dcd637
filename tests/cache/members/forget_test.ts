/** What becomes of the data of a device that never returns, step by step. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { forget } from "../../../lib/cache/members/uuid_list.ts";
import { ForwardingDevice } from "../../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { formatUuid } from "../../../lib/ondisk/uuid.ts";
import { isInvalidated } from "../../../lib/ondisk/uuid_entry.ts";
import { BUCKET_SECTORS, EngineWorld, freshWorld } from "../engine_world.ts";

const GONE = 1;
const AWAY = 2;
const BUCKETS = 600;
/** Sectors that each of the two has, in extents of a bucket each. */
const SECTORS = 100 * BUCKET_SECTORS;

async function fill(world: EngineWorld): Promise<void> {
  for (const inode of [GONE, AWAY]) {
    for (let at = 0; at < SECTORS; at += BUCKET_SECTORS) {
      await world.put(inode, at, BUCKET_SECTORS, { dirty: true });
    }
  }
}

function forgetGone(world: EngineWorld): Promise<void> {
  const { engine } = world;
  const uuid = formatUuid(engine.uuids.entry(GONE).uuid);
  return world.run(forget(engine, uuid, { nameOf: () => undefined, force: true }));
}

async function sectorsOf(world: EngineWorld, inode: number): Promise<number> {
  const extents = await world.extents();
  return extents.reduce((sum, each) => sum + (each.inode === inode ? each.sectors : 0), 0);
}

describe("forgetting a device", () => {
  test("by force gives up its dirty data, and its buckets; the others stay", async () => {
    const world = await freshWorld({ bucketCount: BUCKETS });
    await fill(world);
    const { dirty, buckets } = world.engine;
    assertEquals([dirty.of(GONE), dirty.of(AWAY)], [SECTORS, SECTORS]);
    await world.collect();
    assertGreater(buckets.inUsePercent(), 30);
    await forgetGone(world);
    // At once: no collection has come by yet.
    assertEquals([dirty.of(GONE), dirty.of(AWAY)], [0, SECTORS]);
    assertEquals([await sectorsOf(world, GONE), await sectorsOf(world, AWAY)], [0, SECTORS]);
    await world.collect();
    assertLess(buckets.inUsePercent(), 20);
    assertEquals([await sectorsOf(world, GONE), await sectorsOf(world, AWAY)], [0, SECTORS]);
    await world.stop();
  });

  test("leaves the table before its data goes, wherever the power is cut", async () => {
    const disk = new SlowDisk(BUCKETS * BUCKET_SECTORS);
    const world = await freshWorld({ bucketCount: BUCKETS, device: disk });
    await fill(world);
    await world.run(world.engine.journal.commit());
    // Each write takes longer than a key waits for its journal entry.
    disk.beforeWrite = () => world.clock.sleep(10 * world.engine.journal.delayMs);
    await forgetGone(world);
    await world.run(world.engine.journal.commit());
    disk.beforeWrite = undefined;
    await world.stop();
    assertGreater(disk.cuts.length, 2);
    const known: boolean[] = [];
    for (const cut of disk.cuts) {
      const after = new EngineWorld({ device: cut });
      const { uuids } = await after.start();
      const isKnown = !isInvalidated(uuids.entry(GONE));
      known.push(isKnown);
      // A device that is known finds all that the cache had of it.
      if (isKnown) assertEquals(await sectorsOf(after, GONE), SECTORS);
      assertEquals(await sectorsOf(after, AWAY), SECTORS);
      await after.abandon();
    }
    assert(known.includes(true) && known.includes(false), "some cuts are before, some behind");
  });
});

/** A disk whose writes can be made slow; it then keeps what it had before each of them. */
class SlowDisk extends ForwardingDevice {
  readonly cuts: MemoryDevice[] = [];
  beforeWrite: (() => Promise<void>) | undefined;

  constructor(sizeSectors: number) {
    super(new MemoryDevice(sizeSectors));
  }

  override async write(atSector: number, from: Uint8Array): Promise<void> {
    if (this.beforeWrite !== undefined) {
      await this.beforeWrite();
      const bytes = new Uint8Array(this.sizeSectors * 512);
      await this.inner.read(0, bytes);
      const cut = new MemoryDevice(this.sizeSectors);
      await cut.write(0, bytes);
      this.cuts.push(cut);
    }
    await this.inner.write(atSector, from);
  }
}
