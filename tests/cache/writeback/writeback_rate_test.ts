/** The rate controller: its terms one by one, its bounds, and how fast writeback then is. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { WritebackGroup } from "../../../lib/cache/writeback/writeback_group.ts";
import { RateController, type RateState } from "../../../lib/cache/writeback/writeback_rate.ts";
import { KIB, writebackWorld } from "./writeback_world.ts";

/** Of a cache of `writebackWorld`. */
const BUCKET_BYTES = 32 * KIB;

const CALM: RateState = {
  dirtySectors: 0,
  targetSectors: 0,
  inUsePercent: 10,
  bucketsInUse: 100,
  bucketSectors: 1024,
  nowMs: 1e6,
};

/** A controller that cannot keep up: its next I/O was allowed long ago. */
function behind(): RateController {
  const rate = new RateController();
  rate.reset(0);
  return rate;
}

describe("the controller", () => {
  test("is proportional to what is dirty beyond the target, at least the minimum", () => {
    const rate = behind();
    rate.update({ ...CALM, dirtySectors: 100_000, targetSectors: 20_000 });
    assertEquals([rate.proportional, rate.integralScaled, rate.rate], [2000, 0, 2000]);
    assertEquals(rate.change, 2000 - 1024);
    rate.update({ ...CALM, dirtySectors: 19_000, targetSectors: 20_000 });
    assertEquals([rate.proportional, rate.rate], [-25, 8]);
    rate.tunables.rateMinimum = 500;
    rate.update({ ...CALM, dirtySectors: 19_959, targetSectors: 20_000 });
    assertEquals([rate.proportional, rate.rate], [-1, 500], "divisions cut towards zero");
  });

  test("integrates the error only while the device keeps up, and unwinds to zero", () => {
    const rate = behind();
    const above = { ...CALM, dirtySectors: 120_000, targetSectors: 20_000 };
    rate.update(above);
    assertEquals(rate.integralScaled, 0, "not keeping up");
    rate.reset(CALM.nowMs);
    rate.update(above);
    assertEquals(rate.integralScaled, 50); // 100000 * 5 / 10000
    rate.update(above);
    assertEquals([rate.integralScaled, rate.rate], [100, 2500 + 100]);
    // Below the target it shrinks, keeping up or not, and never begins to count below zero.
    const below = { ...CALM, dirtySectors: 0, targetSectors: 100_000, nowMs: 2e6 };
    rate.update(below);
    assertEquals(rate.integralScaled, 50);
    rate.update(below);
    rate.update(below);
    assertEquals(rate.integralScaled, 0);
  });

  test("few dirty sectors in many buckets raise the rate, by how full the cache is", () => {
    const sparse = { ...CALM, dirtySectors: 20_000, targetSectors: 20_000, bucketsInUse: 100 };
    const rateAt = (inUsePercent: number): number => {
      const rate = behind();
      rate.update({ ...sparse, inUsePercent });
      return rate.rate;
    };
    // 20000 dirty sectors in 100 buckets: 200 times the term; 100 * 1024 / 20000 = 5 > 3.
    assertEquals(rateAt(50), 8);
    assertEquals(rateAt(51), 200 * 1);
    assertEquals(rateAt(57), 200 * 7);
    assertEquals(rateAt(58), 200 * 10);
    assertEquals(rateAt(64), 200 * 70);
    assertEquals(rateAt(65), 200 * 1000);
    assertEquals(rateAt(70), 200 * 6000);
  });

  test("buckets that are fairly full of dirty data are no reason, nor when told so", () => {
    const rate = behind();
    const full = { ...CALM, dirtySectors: 25_600, targetSectors: 25_600, inUsePercent: 60 };
    rate.update({ ...full, bucketsInUse: 100 }); // 102400 / 25600 = 4
    assertEquals(rate.rate, 256 * 30);
    rate.update({ ...full, bucketsInUse: 99 }); // 3: full enough
    assertEquals(rate.rate, 8);
    rate.tunables.considerFragment = false;
    rate.update({ ...full, bucketsInUse: 100 });
    assertEquals(rate.rate, 8);
  });

  test("fewer dirty sectors than buckets still raise the rate", () => {
    const rate = behind();
    rate.update({ ...CALM, dirtySectors: 50, targetSectors: 50, inUsePercent: 66 });
    assertEquals(rate.rate, 1000); // 50 / 100 * 2000, not 0 * 2000
  });

  test("a sleep is bounded, and so is what may be caught up with", () => {
    const rate = behind();
    rate.rate = 100;
    rate.reset(10_000);
    rate.charge(100, 10_000, true);
    assertEquals(rate.waitMs(10_000, true), 1000);
    rate.charge(100_000, 10_000, true);
    assertEquals(rate.waitMs(10_000, true), 2500);
    rate.charge(0, 60_000, true);
    rate.charge(200, 60_000, true); // 2 s behind at most: just caught up.
    assertEquals(rate.waitMs(60_000, true), 0);
    rate.charge(100, 60_000, true);
    assertEquals(rate.waitMs(60_000, true), 1000);
    assertEquals(rate.waitMs(60_000, false), 0, "unpaced");
    rate.tunables.percent = 0;
    assertEquals(rate.waitMs(60_000, true), 0, "no limit to the rate");
  });

  test("the maximum is above everything, and is not saved up", () => {
    const rate = behind();
    rate.setMaximum(1000);
    rate.update({ ...CALM, dirtySectors: 1e7 });
    assertEquals(rate.rate, 1000);
    rate.boost();
    assertEquals(rate.rate, 1000);
    rate.tunables.percent = 0;
    rate.charge(5000, 100_000, false);
    assertEquals(rate.waitMs(100_000, false), 5000, "longer than any sleep at the rate");
    rate.charge(1000, 200_000, false);
    assertEquals(rate.waitMs(200_000, false), 1000);
    rate.setMaximum(2000);
    assertEquals(rate.waitMs(200_000, false), 0);
  });

  test("shows its state as the kernel does, in seven lines", () => {
    const rate = behind();
    rate.update({ ...CALM, dirtySectors: 81_920, targetSectors: 1920 });
    rate.reset(CALM.nowMs);
    rate.charge(1000, CALM.nowMs, true);
    const state = { dirtySectors: 81_920, nowMs: CALM.nowMs };
    assertEquals(
      rate.debugText({ ...state, running: true }),
      "rate:\t\t0.9M/sec\ndirty:\t\t40.0M\ntarget:\t\t960.0k\nproportional:\t0.9M\n" +
        "integral:\t0.0k\nchange:\t\t488.0k/sec\nnext io:\t500ms",
    );
    const stopped = rate.debugText({ ...state, running: false });
    assert(stopped.includes("rate:\t\t0.0k/sec"), stopped);
    assert(stopped.includes("next io:\t0ms"), stopped);
  });
});

describe("several devices", () => {
  const member = (backingSectors: number) => ({ rate: new RateController(), backingSectors });

  test("share the target by size; flash-only volumes leave less of it", () => {
    let flash = 0;
    const group = new WritebackGroup({
      cacheSectors: 1_000_000,
      flashDirtySectors: () => flash,
    });
    const [small, large, tiny] = [member(1000), member(3000), member(0)];
    group.join(small);
    assertEquals(group.targetSectors(small, 10), 100_000);
    group.join(large);
    assertEquals(group.targetSectors(small, 10), 25_000);
    assertEquals(group.targetSectors(large, 10), 75_000);
    flash = 200_000;
    assertEquals(group.targetSectors(large, 10), 60_000);
    group.join(tiny);
    assertEquals(group.targetSectors(tiny, 10), Math.floor(80_000 / 16384), "never nothing");
    group.leave(large);
    assertEquals(group.targetSectors(small, 10), 80_000);
  });

  test("a share of very large devices is exact", () => {
    const group = new WritebackGroup({ cacheSectors: 2 ** 42, flashDirtySectors: () => 0 });
    const [one, other] = [member(2 ** 43 - 1), member(2 ** 43 - 1)];
    group.join(one);
    group.join(other);
    assertEquals(group.targetSectors(one, 40), Math.floor((2 ** 42 * 40) / 100 / 2));
  });

  test("are idle after six runs of each controller, times the devices", () => {
    for (const count of [1, 2, 3]) {
      const group = new WritebackGroup({ cacheSectors: 1, flashDirtySectors: () => 0 });
      const members = Array.from({ length: count }, () => member(1));
      for (const each of members) group.join(each);
      const idle = () => {
        let runs = 1;
        while (!group.noteControllerRun(false)) runs++;
        return runs;
      };
      assertEquals(idle(), 6 * count * count);
      for (const { rate } of members) rate.boost();
      group.noteRequest();
      assertEquals(members.map(({ rate }) => rate.rate), members.map(() => 1));
      assertEquals(idle(), 6 * count * count, "from the beginning");
      assertEquals(group.noteControllerRun(true), false, "not while collecting");
      group.idleMaxRate = false;
      assertEquals(group.noteControllerRun(false), false);
    }
  });
});

describe("how fast writeback is", () => {
  test("keeps to the rate in the background, and a drain does not", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_running", "0");
    for (let at = 0; at < 200; at++) await world.write(at * 64 * KIB, 4096);
    await world.changeSet("idle_max_writeback_rate", "0");
    await world.change("writeback_rate_minimum", "16");
    await world.change("writeback_rate", "16");
    await world.change("writeback_running", "1");
    await world.pass(60);
    const written = world.backing.writes.length;
    // Two blocks a second, and what it may be behind at the start.
    assertGreater(written, 100);
    assertLess(written, 140);
    await world.drain();
    assertEquals(world.backing.writes.length, 200);
    await world.close();
  });

  test("an idle set is written back at full speed, and a request ends that", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_running", "0");
    for (let at = 0; at < 200; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_rate", "8");
    await world.change("writeback_running", "1");
    await world.pass(28);
    assertLess(world.backing.writes.length, 60);
    await world.pass(5);
    assertEquals(world.backing.writes.length, 200, "the sixth run of the controller");
    await world.pass(40);
    await world.write(0, 4096);
    assertEquals(await world.get("writeback_rate"), "1");
    await world.close();
  });

  test("a set without requests is not idle while it is being collected", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_running", "0");
    for (let at = 0; at < 200; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_rate", "8");
    const collections = async () => Number(await world.ofSet("gc_runs"));
    const before = await collections();
    // The collection waits for its leaves.
    world.cache.writeMs = 60_000;
    await world.changeSet("trigger_gc", "1");
    await world.change("writeback_running", "1");
    await world.pass(55);
    assertEquals(await collections(), before);
    assertLess(world.backing.writes.length, 60);
    world.cache.writeMs = 0;
    await world.pass(40);
    assertGreater(await collections(), before);
    assertEquals(world.backing.writes.length, 200);
    await world.close();
  });

  test("a scan begins anew with the rate: a rest before it saves nothing up", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_delay", "20");
    await world.change("writeback_rate", "8");
    await world.write(0, 4096);
    await world.pass(10);
    assertEquals(world.backing.writes.length, 1, "the scan has ended");
    for (let at = 1; at <= 5; at++) await world.write(at * 64 * KIB, 4096);
    await world.pass(15);
    const atMs = world.backing.writes.slice(1).map((write) => Math.round(write.atMs));
    assertEquals(atMs.map((ms) => ms - atMs[0]!), [0, 1000, 2000, 3000, 4000]);
    await world.close();
  });

  test("a device that is used every few seconds is not idle", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_running", "0");
    for (let at = 0; at < 400; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_rate", "8");
    await world.change("writeback_running", "1");
    for (let round = 0; round < 15; round++) {
      await world.pass(10);
      await world.run(world.volume.read(0, new Uint8Array(512)));
    }
    assertLess(world.backing.writes.length, 250);
    await world.close();
  });

  test("sparse dirty data in a cache that fills up raises it above its minimum", async () => {
    const settings = [["sequential_cutoff", "0"], ["cutoff_writeback", "70"]] as const;
    const world = await writebackWorld({ settings });
    await world.change("writeback_running", "0");
    for (let at = 0; at < 372; at++) await world.write(at * BUCKET_BYTES, BUCKET_BYTES);
    for (let at = 0; at < 372; at++) {
      await world.run(world.volume.zero(at * BUCKET_BYTES + 4096, BUCKET_BYTES - 4096));
    }
    assertEquals(await world.dirtyBytes(), 372 * 4096);
    await world.pass(6); // A run of the controller.
    await world.change("writeback_running", "1");
    const rate = Number(await world.get("writeback_rate"));
    // 63 % in use are 6 above the middle mark: 10 for each, for hardly 8 dirty sectors a bucket.
    assertGreater(rate, 7 * 60);
    assertLess(rate, 8 * 60);
    await world.close();
  });

  test("nothing is faster than the maximum, a drain neither", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 64; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_rate_maximum", "64");
    const began = world.clock.nowMs();
    await world.drain();
    const seconds = (world.clock.nowMs() - began) / 1000;
    assertGreater(seconds, 63 * 8 / 64);
    assertLess(seconds, 66 * 8 / 64 + 1);
    await world.close();
  });

  test("a maximum that is lifted lets a drain go on at once", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 64; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_rate_maximum", "1");
    const draining = world.set.flushDirty(undefined);
    await world.pass(4);
    assertEquals(world.backing.writes.length, 1);
    await world.change("writeback_rate_maximum", "0");
    const began = world.clock.nowMs();
    await world.run(draining);
    assertLess(world.clock.nowMs() - began, 1000);
    await world.close();
  });
});

describe("attributes of the controller", () => {
  test("fragmentation terms rise, and a term out of turn is refused with its range", async () => {
    const world = await writebackWorld();
    const error = await assertRejects(
      () => world.change("writeback_rate_fp_term_low", "10"),
      BcacheError,
      "expected 1 to 9",
    );
    assertEquals(error.code, "OutOfRange");
    await assertRejects(() => world.change("writeback_rate_fp_term_mid", "1"), BcacheError, "2 to");
    await assertRejects(() => world.change("writeback_rate_fp_term_high", "10"), BcacheError, "11");
    await world.change("writeback_rate_fp_term_mid", "999");
    assertEquals(await world.get("writeback_rate_fp_term_mid"), "999");
    await world.close();
  });

  test("numbers beyond what fits are refused, never cut", async () => {
    const world = await writebackWorld();
    const limits: Array<[string, number, number]> = [
      ["writeback_rate", 1, 2 ** 31 - 1],
      ["writeback_rate_minimum", 1, 2 ** 31 - 1],
      ["writeback_rate_maximum", 0, 2 ** 31 - 1],
      ["writeback_rate_update_seconds", 1, 60],
      ["writeback_rate_p_term_inverse", 1, 2 ** 32 - 1],
      ["writeback_rate_i_term_inverse", 1, 2 ** 32 - 1],
      ["writeback_percent", 0, 40],
      ["writeback_delay", 0, 2 ** 32 - 1],
      ["writeback_in_flight", 1, 64],
      ["writeback_age_limit", 0, 2 ** 31 - 1],
    ];
    for (const [name, least, most] of limits) {
      const before = await world.get(name);
      for (const value of [most + 1, least - 1, 2 ** 32 + 1, 2 ** 60]) {
        await assertRejects(() => world.change(name, String(value)), BcacheError, "expected");
      }
      assertEquals(await world.get(name), before);
      await world.change(name, String(most));
      await world.change(name, String(least));
    }
    await world.close();
  });

  test("a delay longer than a timer takes is a long one", async () => {
    const world = await writebackWorld({ settings: [["writeback_percent", "0"]] });
    await world.change("writeback_delay", String(2 ** 32 - 1));
    await world.write(0, 4096);
    await world.pass(1);
    await world.write(64 * KIB, 4096);
    await world.pass(3600);
    assertEquals(world.backing.writes.length, 1);
    await world.close();
  });

  test("writeback_metadata is taken, and has no effect", async () => {
    const world = await writebackWorld();
    assertEquals(await world.get("writeback_metadata"), "1");
    await world.change("writeback_metadata", "0");
    assertEquals(await world.get("writeback_metadata"), "0");
    await world.close();
  });

  test("writeback_rate_debug has seven lines", async () => {
    const world = await writebackWorld();
    assertEquals((await world.get("writeback_rate_debug")).split("\n").length, 7);
    await world.close();
  });
});
