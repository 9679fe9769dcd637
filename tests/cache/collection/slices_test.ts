import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { Slices } from "../../../lib/cache/collection/slices.ts";
import { SimClock } from "../../simulation/sim_clock.ts";

describe("a slice", () => {
  test("is over after so much work, though the clock stands still", () => {
    const slices = new Slices(new SimClock(), { ms: 1, units: 100, stepUnits: 10 });
    slices.begin();
    assert(!slices.spend(60));
    assert(slices.spend(40));
    slices.end();
    assertEquals([slices.longestUnits, slices.longestMs], [100, 0]);
  });

  test("is over after so much time, however little work it was", () => {
    let nowMs = 0;
    const clock = new SimClock();
    clock.nowMs = () => nowMs;
    const slices = new Slices(clock, { ms: 1, units: 100, stepUnits: 10 });
    slices.begin();
    assert(!slices.spend(1));
    nowMs = 1.5;
    assert(slices.spend(1));
    slices.end();
    assertEquals([slices.longestMs, slices.totalMs], [1.5, 1.5]);
  });

  test("waiting for others is not counted", async () => {
    const clock = new SimClock();
    const slices = new Slices(clock, { ms: 1, units: 100, stepUnits: 10 });
    await clock.run((async () => {
      slices.begin();
      slices.spend(5);
      await slices.waitFor(clock.sleep(500));
      slices.spend(7);
      await slices.turn();
      slices.end();
    })());
    assertEquals([slices.longestUnits, slices.longestMs < 1], [7, true]);
  });
});
