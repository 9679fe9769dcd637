/** Dirty sectors by stripe: the table itself, and what writeback and writes make of it. */
import { describe, test } from "bun:test";
import { assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { STRIPE_SECTORS_NONE, Stripes, stripeSectorsOf } from "../../../lib/cache/dirty/stripes.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import {
  DATA_OFFSET,
  KIB,
  STILL,
  WritebackWorld,
  writebackWorld,
} from "../writeback/writeback_world.ts";

const MIB = 1024 * KIB;

describe("the size of a stripe", () => {
  test("is a multiple of what the device likes, at least 4 MiB, and bounded in number", () => {
    assertEquals(stripeSectorsOf(0, 1e9), STRIPE_SECTORS_NONE);
    assertEquals(stripeSectorsOf(8, 1e9), 8192, "a tiny one makes no huge table");
    assertEquals(stripeSectorsOf(3 * 128, 1e9), 22 * 384, "not a power of two");
    assertEquals(stripeSectorsOf(20_000, 1e9), 20_000);
    const huge = 2 ** 43;
    assertEquals(stripeSectorsOf(8192, huge), 2 ** 21);
    assertEquals(new Stripes(stripeSectorsOf(8, huge), huge).counts.length, 2 ** 22);
    assertEquals(stripeSectorsOf(2 ** 40, huge), STRIPE_SECTORS_NONE, "a count fits 32 bits");
  });
});

describe("the table", () => {
  test("counts the same as a bitmap, for stripes that are no power of two", () => {
    const unit = 7;
    const sectors = 100;
    const stripes = new Stripes(unit, sectors);
    stripes.countNothing();
    const dirty = new Uint8Array(sectors);
    const random = new SimRandom(4);
    for (let step = 0; step < 2000; step++) {
      const start = random.below(sectors);
      const length = 1 + random.below(Math.min(20, sectors - start));
      const value = random.below(2);
      for (let at = start; at < start + length; at++) {
        if (dirty[at] !== value) stripes.add(at, value === 1 ? 1 : -1);
        dirty[at] = value;
      }
      const counts = Array.from(
        stripes.counts,
        (_, stripe) => dirty.subarray(stripe * unit, (stripe + 1) * unit).reduce((a, b) => a + b),
      );
      assertEquals([...stripes.counts], counts);
      assertEquals(stripes.full, counts.filter((count) => count === unit).length);
      const touched = counts.slice(
        Math.floor(start / unit),
        Math.floor((start + length - 1) / unit) + 1,
      );
      assertEquals(stripes.touchesDirty(start, length), touched.some((count) => count > 0));
    }
  });

  test("an extent over several stripes counts in each; the last stripe is short", () => {
    const stripes = new Stripes(10, 35);
    stripes.countNothing();
    stripes.add(5, 30);
    assertEquals([...stripes.counts], [5, 10, 10, 5]);
    assertEquals([stripes.full, stripes.nextFullRun(0)], [2, { first: 1, end: 3 }]);
    assertEquals(stripes.nextFullRun(2), { first: 2, end: 3 });
    assertEquals(stripes.nextFullRun(3), undefined);
    stripes.add(10, -1);
    assertEquals([stripes.full, stripes.nextFullRun(0)], [1, { first: 2, end: 3 }]);
  });

  test("what lies behind the device's end is no stripe's", () => {
    const stripes = new Stripes(10, 35);
    stripes.countNothing();
    stripes.add(38, 10);
    stripes.add(2 ** 43, 10);
    assertEquals([...stripes.counts], [0, 0, 0, 2]);
    assertEquals(stripes.touchesDirty(2 ** 43, 8), false);
    assertEquals(stripes.touchesDirty(35, 2 ** 20), true);
  });
});

/** A RAID with stripes of 4 MiB. */
async function raidWorld(): Promise<WritebackWorld> {
  const world = new WritebackWorld({
    bucketCount: 800,
    bucketSectors: 128,
    backingSectors: [32 * 2048],
    settings: STILL,
  });
  world.backing.optimalIoSectors = 8192;
  world.backing.partialStripesExpensive = true;
  await world.format();
  await world.open();
  world.backing.log.length = 0;
  return world;
}

/** Makes stripe `number` dirty from its start, all of it or a part. */
async function fillStripe(world: WritebackWorld, number: number, sectors = 8192): Promise<void> {
  // The device's stripes begin at its own start, before the data.
  const from = number * 8192 - DATA_OFFSET;
  for (let at = 0; at < sectors; at += 512) {
    await world.write((from + at) * 512, Math.min(512, sectors - at) * 512);
  }
}

/** Which stripes were written, in order. */
function stripesWritten(world: WritebackWorld): number[] {
  const stripes = world.backing.writes.map(({ atSector }) => Math.floor(atSector / 8192));
  return stripes.filter((stripe, index) => stripe !== stripes[index - 1]);
}

describe("a backing device with stripes", () => {
  test("full stripes are written back first", async () => {
    const world = await raidWorld();
    await fillStripe(world, 1, 100);
    await fillStripe(world, 3);
    await fillStripe(world, 2, 100);
    await fillStripe(world, 5);
    await world.change("writeback_rate_maximum", "1");
    // One run goes at once, and every other waits: each change of the maximum lets one go.
    const draining = world.set.flushDirty(undefined);
    for (let run = 0; run < 3; run++) {
      await world.pass(0.1);
      await world.change("writeback_rate_maximum", "1");
    }
    assertEquals(stripesWritten(world).every((stripe) => stripe === 3 || stripe === 5), true);
    await world.change("writeback_rate_maximum", "0");
    await world.run(draining);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("without that they are written as they lie", async () => {
    const world = await raidWorld();
    await fillStripe(world, 1, 100);
    await fillStripe(world, 3);
    await world.change("partial_stripes_expensive", "0");
    await world.drain();
    assertEquals(stripesWritten(world), [1, 3]);
    await world.close();
  });

  test("a write to a dirty stripe stays in the cache even where it would be bypassed", async () => {
    const world = await raidWorld();
    await fillStripe(world, 1, 8);
    await world.change("sequential_cutoff", "64k");
    // One sequential stream over the end of stripe 1: bypassed only in stripe 2.
    const from = (2 * 8192 - DATA_OFFSET) * 512;
    await world.write(from - 128 * KIB, 128 * KIB, 5);
    assertEquals(world.backing.writes.length, 0);
    await world.write(from, 128 * KIB, 6);
    assertEquals(world.backing.writes.length, 1);
    assertEquals(await world.backingByte(from), 6);
    assertEquals(await world.dirtyBytes(), 8 * 512 + 128 * KIB);
    await world.change("partial_stripes_expensive", "0");
    await world.write(from - 256 * KIB, 128 * KIB, 7);
    assertEquals(world.backing.writes.length, 2, "the same without the rule");
    await world.close();
  });

  test("keeps no stripe together beyond cutoff_writeback_sync", async () => {
    const world = await raidWorld();
    await fillStripe(world, 1, 4096);
    const dirty = await world.dirtyBytes();
    await world.change("sequential_cutoff", "64k");
    const { inUsePercent } = await world.set.status();
    assertGreater(inUsePercent, 2);
    await world.changeSet("cutoff_writeback", "1");
    await world.changeSet("cutoff_writeback_sync", String(inUsePercent - 1));
    // A stream behind what is dirty of the stripe, long enough to be bypassed.
    const from = (8192 - DATA_OFFSET + 4096) * 512;
    await world.write(from, 128 * KIB, 5);
    assertEquals([world.backing.writes.length, await world.dirtyBytes()], [1, dirty]);
    assertEquals(await world.backingByte(from), 5);
    await world.changeSet("cutoff_writeback_sync", "70");
    await world.write(from + 128 * KIB, 128 * KIB, 6);
    assertEquals(world.backing.writes.length, 1, "below it the stripe is kept together");
    assertEquals(await world.dirtyBytes(), dirty + 128 * KIB);
    await world.close();
  });

  test("the counts are those of the index after a restart and after another size", async () => {
    const world = await raidWorld();
    await fillStripe(world, 3);
    await fillStripe(world, 6, 24);
    assertEquals(await world.get("stripe_size"), String(4 * MIB));
    await world.close();
    await world.open(STILL);
    // Only exact counts let the rule see that stripe 3 is full and stripe 4 clean.
    await world.change("writeback_rate_maximum", "1");
    const draining = world.set.flushDirty(undefined);
    await world.pass(0.1);
    assertEquals(stripesWritten(world), [3]);
    await world.change("stripe_size", String(5 * MIB));
    assertEquals(await world.get("stripe_size"), String(5 * MIB));
    await world.change("writeback_rate_maximum", "0");
    await world.run(draining);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("a file on a RAID can be told its stripes when it is mounted", async () => {
    const world = await writebackWorld({
      settings: [["stripe_size", "12M"], ["partial_stripes_expensive", "1"]],
    });
    assertEquals(await world.get("stripe_size"), String(12 * MIB));
    assertEquals(await world.get("partial_stripes_expensive"), "1");
    await assertRejects(() => world.change("stripe_size", "1000"), BcacheError, "multiple of 512");
    for (const none of ["0", "-0"]) {
      await world.change("stripe_size", none);
      assertEquals(await world.get("stripe_size"), "0", "it has none");
    }
    await world.close();
  });
});
