/** Counters by period: folding, decay, the set's sum, and what clearing leaves alone. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { RequestStats, STATS_PERIODS, STATS_TICK_MS } from "../../lib/cache/stats.ts";

function ticks(stats: RequestStats, count: number): void {
  for (let tick = 0; tick < count; tick++) stats.tick();
}

function hits(stats: RequestStats): number[] {
  return STATS_PERIODS.map((period) => stats.value(period, "cacheHits"));
}

describe("request statistics", () => {
  test("a tick is the 22nd part of five minutes", () => {
    assertEquals(Math.round(STATS_TICK_MS * 22), 300_000);
  });

  test("each period halves in its time, total never", () => {
    const stats = new RequestStats();
    for (let read = 0; read < 100_000; read++) stats.read(true, false);
    assertEquals(hits(stats), [100_000, 100_000, 100_000, 100_000]);
    for (
      const [period, ticksToHalve] of [["five_minute", 22], ["hour", 264], ["day", 6336]] as const
    ) {
      const decaying = new RequestStats();
      for (let read = 0; read < 100_000; read++) decaying.read(true, false);
      ticks(decaying, ticksToHalve);
      // 31/32 to the 22nd is 0.4974.
      assertEquals(Math.round(decaying.value(period, "cacheHits") / 1000), 50, period);
      assertEquals(decaying.value("total", "cacheHits"), 100_000);
    }
  });

  test("a period decays on its own ticks alone: each, each 12th, each 288th", () => {
    const stats = new RequestStats();
    for (let read = 0; read < 3200; read++) stats.read(true, false);
    ticks(stats, 1);
    assertEquals(hits(stats), [3200, 3100, 3200, 3200]);
    ticks(stats, 11);
    assertEquals(hits(stats).slice(2), [3100, 3200]);
    ticks(stats, 276);
    assertEquals(hits(stats)[3], 3100);
  });

  test("clearing sets total back to zero, not the periods, and the clock goes on", () => {
    const stats = new RequestStats();
    for (let read = 0; read < 3200; read++) stats.read(true, false);
    ticks(stats, 11);
    stats.read(true, false);
    stats.clear();
    const [total, fiveMinutes, hour] = hits(stats);
    assertEquals([total, hour], [0, 3201]);
    assert(fiveMinutes! > 0);
    ticks(stats, 1);
    assertEquals(stats.value("hour", "cacheHits"), Math.floor(3201 * 31 / 32));
  });

  test("hits, misses and their ratio; those past the cache count apart", () => {
    const stats = new RequestStats();
    assertEquals(stats.snapshot("total").cacheHitRatio, 0);
    for (let read = 0; read < 13; read++) stats.read(true, false);
    for (let read = 0; read < 4; read++) stats.read(false, false);
    stats.read(true, true);
    stats.read(false, true);
    stats.read(false, true);
    stats.missCollision();
    stats.bypassed(9);
    assertEquals(stats.snapshot("total"), {
      cacheHits: 13,
      cacheMisses: 4,
      cacheBypassHits: 1,
      cacheBypassMisses: 2,
      cacheHitRatio: 76,
      cacheMissCollisions: 1,
      bypassedBytes: 9 * 512,
    });
  });

  test("a device's requests count for its set as well, another device's not for it", () => {
    const set = new RequestStats();
    const [one, other] = [new RequestStats(set), new RequestStats(set)];
    one.read(true, false);
    other.read(true, false);
    other.bypassed(8);
    assertEquals([one, other, set].map((stats) => stats.value("total", "cacheHits")), [1, 1, 2]);
    assertEquals(set.snapshot("total").bypassedBytes, 4096);
    one.clear();
    assertEquals(set.value("total", "cacheHits"), 2);
  });

  test("more than the kernel can count in a tick is counted", () => {
    const stats = new RequestStats();
    stats.bypassed(2 ** 40);
    ticks(stats, 1);
    assertEquals(stats.value("total", "bypassedSectors"), 2 ** 40);
    assertEquals(stats.value("five_minute", "bypassedSectors"), 2 ** 40 * 31 / 32);
  });
});
