/** The age bound of dirty data. */
import { describe, test } from "bun:test";
import { assertEquals, assertGreater, assertLess } from "@std/assert";
import { DirtyRegions } from "../../../lib/cache/dirty/dirty_regions.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { KIB, type WritebackWorld, writebackWorld } from "./writeback_world.ts";

const MIB = 1024 * KIB;

async function passOn(clock: SimClock, ms: number): Promise<void> {
  await clock.run(clock.sleep(ms));
}

describe("regions", () => {
  test("a region's time is when it came to be dirty, and moves when that was written", async () => {
    const clock = new SimClock();
    const regions = new DirtyRegions(10 * 2048, clock);
    regions.countNothing();
    assertEquals(regions.oldest(), undefined);
    regions.add(3 * 2048, 8);
    await passOn(clock, 1000);
    regions.add(3 * 2048 + 8, 8);
    regions.add(5 * 2048, 8);
    assertEquals(regions.oldest(), { region: 3, sinceMs: 0 });
    regions.add(3 * 2048, -8);
    regions.writtenBack(3, 500);
    assertEquals(regions.oldest(), { region: 3, sinceMs: 500 });
    regions.add(3 * 2048 + 8, -8);
    assertEquals(regions.oldest(), { region: 5, sinceMs: 1000 });
    await passOn(clock, 1000);
    regions.add(3 * 2048, 8);
    assertEquals(regions.oldest(), { region: 5, sinceMs: 1000 });
  });

  test("there are 65536 at most, however large the device", () => {
    const regions = new DirtyRegions(2 ** 43, new SimClock());
    assertEquals(regions.counts.length, 65536);
    assertEquals(new DirtyRegions(100 * 2048, new SimClock()).unitSectors, 2048);
  });
});

/** Background writeback that would take hours. */
async function slowWorld(): Promise<WritebackWorld> {
  const world = await writebackWorld({
    backingSectors: [64 * 2048],
    bucketCount: 1200,
    settings: [
      ["sequential_cutoff", "0"],
      ["writeback_percent", "40"],
      ["writeback_rate", "1"],
      ["writeback_rate_minimum", "1"],
      ["writeback_delay", "100000"],
    ],
  });
  await world.changeSet("idle_max_writeback_rate", "0");
  return world;
}

describe("the age limit", () => {
  test("data that is dirty for longer is written whatever the rate", async () => {
    const world = await slowWorld();
    await world.change("writeback_age_limit", "60");
    for (let at = 0; at < 100; at++) await world.write(at * 8 * KIB, 4096, 1);
    await world.pass(40);
    for (let at = 0; at < 20; at++) await world.write(20 * MIB + at * 8 * KIB, 4096, 2);
    await world.pass(15);
    assertGreater(await world.dirtyBytes(), 80 * 4096);
    await world.pass(10);
    const left = await world.dirtyBytes();
    assertGreater(left, 14 * 4096, "what is younger, but for a few at the rate");
    assertLess(left, 21 * 4096);
    assertEquals(await world.backingByte(99 * 8 * KIB), 1);
    await world.pass(40);
    assertEquals([await world.dirtyBytes(), await world.state()], [0, "clean"]);
    await world.close();
  });

  test("data written again and again is written back all the same", async () => {
    const world = await slowWorld();
    await world.change("writeback_age_limit", "60");
    await world.write(0, 4096, 200);
    for (let round = 0; round < 30; round++) {
      await world.write(64 * KIB, 4096, round);
      await world.pass(10);
    }
    const times = world.backing.writes.filter(({ sectors }) => sectors === 8).length;
    assertGreater(times, 3);
    assertLess(times, 20);
    await world.close();
  });

  test("an extent that reaches out of its region is written with it", async () => {
    const world = await slowWorld();
    await world.change("writeback_age_limit", "30");
    await world.write(MIB - 64 * KIB, 128 * KIB, 3);
    await world.pass(35);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("with no limit, or with writeback off, nothing comes of age", async () => {
    const world = await slowWorld();
    for (let at = 0; at < 300; at++) await world.write(at * 8 * KIB, 4096);
    await world.pass(300);
    assertGreater(await world.dirtyBytes(), 0);
    await world.change("writeback_running", "0");
    await world.change("writeback_age_limit", "1");
    const before = await world.dirtyBytes();
    await world.pass(300);
    assertEquals(await world.dirtyBytes(), before);
    await world.change("writeback_running", "1");
    await world.pass(1);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("after a restart ages begin anew", async () => {
    const world = await slowWorld();
    await world.change("writeback_running", "0");
    for (let at = 0; at < 50; at++) await world.write(at * 8 * KIB, 4096);
    await world.pass(100);
    await world.close();
    await world.open([["writeback_age_limit", "60"], ["writeback_rate_minimum", "1"], [
      "writeback_percent",
      "40",
    ]]);
    await world.changeSet("idle_max_writeback_rate", "0");
    await world.change("writeback_rate", "1");
    await world.pass(50);
    assertGreater(await world.dirtyBytes(), 0);
    await world.pass(15);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("a full buffer of aged extents is followed by the rest of the region", async () => {
    const world = await slowWorld();
    await world.change("writeback_age_limit", "60");
    // Many small extents in one region of a megabyte: more than the buffer has slots.
    for (let at = 0; at < 900; at++) await world.write(at * 1024, 512, 1);
    await world.pass(70);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });
});
