import { describe, test } from "bun:test";
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { TimeStats } from "../../lib/base/time_stats.ts";

describe("time statistics", () => {
  test("before the first sample everything is zero and the last never was", () => {
    const stats = new TimeStats();
    const { averageDurationMs, averageFrequencyMs, maxDurationMs } = stats;
    assertEquals([averageDurationMs, averageFrequencyMs, maxDurationMs], [0, 0, 0]);
    assertEquals(stats.sinceLastMs(500), -1);
  });

  test("the first sample starts the duration, the second the frequency", () => {
    const stats = new TimeStats();
    stats.record(90, 100);
    assertEquals([stats.averageDurationMs, stats.averageFrequencyMs], [10, 0]);
    stats.record(982, 1000);
    assertEquals([stats.averageDurationMs, stats.averageFrequencyMs], [11, 900]);
    assertEquals([stats.maxDurationMs, stats.sinceLastMs(1250)], [18, 250]);
  });

  test("a new sample weighs an eighth; the longest stays", () => {
    const stats = new TimeStats();
    stats.record(0, 80);
    for (let at = 1; at <= 100; at++) stats.record(at * 1000, at * 1000 + 8);
    assertAlmostEquals(stats.averageDurationMs, 8, 0.001);
    assertAlmostEquals(stats.averageFrequencyMs, 1000, 0.01);
    assertEquals(stats.maxDurationMs, 80);
  });

  test("a clock that stood still or a start after the end counts as no time", () => {
    const stats = new TimeStats();
    stats.record(10, 5);
    assertEquals([stats.averageDurationMs, stats.maxDurationMs], [0, 0]);
  });
});
