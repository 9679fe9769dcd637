/** Load averages: the share of time in which something was under way. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { LOAD_PERIODS_MINUTES, LoadAverages } from "../../lib/base/load.ts";

const SECOND_MS = 1000;

/** Runs `busyMs` of work at the beginning of every second, for so long, ticking each 13.6 s. */
function run(load: LoadAverages, from: number, seconds: number, busyMs: number): number {
  let nextTick = from + 13_636;
  for (let now = from; now < from + seconds * SECOND_MS; now += SECOND_MS) {
    if (busyMs > 0) {
      load.begin(now);
      load.end(now + busyMs);
    }
    if (now >= nextTick) {
      load.tick(now + SECOND_MS);
      nextTick += 13_636;
    }
  }
  load.tick(from + seconds * SECOND_MS);
  return from + seconds * SECOND_MS;
}

describe("load averages", () => {
  test("all come to the true share, the short one first, and fall again", () => {
    const load = new LoadAverages(0);
    const after = run(load, 0, 60, 250);
    const soon = LOAD_PERIODS_MINUTES.map((minutes) => load.percent(minutes));
    assert(soon[0]! > soon[1]! && soon[1]! > soon[2]!, `short first: ${soon.join(" ")}`);
    const later = run(load, after, 2 * 3600, 250);
    assertEquals(LOAD_PERIODS_MINUTES.map((minutes) => load.percent(minutes)), [25, 25, 25]);
    run(load, later, 120, 0);
    const fallen = LOAD_PERIODS_MINUTES.map((minutes) => load.percent(minutes));
    assert(fallen[0]! < fallen[1]! && fallen[1]! < fallen[2]!, `short first: ${fallen.join(" ")}`);
  });

  test("operations at the same time count once, and one that goes on counts so far", () => {
    const load = new LoadAverages(0);
    load.begin(0);
    load.begin(100);
    load.end(500);
    for (let now = 1000; now <= 3600_000; now += 1000) load.tick(now);
    assertEquals(load.percent(15), 98);
    load.end(3600_000);
    for (let now = 3601_000; now <= 2 * 3600_000; now += 1000) load.tick(now);
    assertEquals(load.percent(15), 2);
  });

  test("a clock that stands still or goes back changes nothing", () => {
    const load = new LoadAverages(1000);
    load.begin(1000);
    load.tick(1000);
    load.tick(500);
    load.end(900);
    assertEquals(load.percent(1), 0);
  });
});
