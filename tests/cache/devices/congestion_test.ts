/** A slow cache device makes long streams go past it, and for as long as the kernel's would. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { Congestion } from "../../../lib/cache/devices/congestion.ts";
import { filled, SetWorld } from "../set_world.ts";

const always = (value: number) => ({ nextU32: () => value });
/** A millisecond of the kernel's clock, which counts 1024 units of 1024 ns. */
const MS = 1024 * 1024 / 1_000_000;

function slow(congestion: Congestion, ms: number, endMs: number): void {
  congestion.note(false, endMs - ms * MS, endMs);
}

describe("congestion", () => {
  test("begins with an operation above its threshold", () => {
    const congestion = new Congestion(always(0));
    congestion.note(false, 0, 2.0);
    assertEquals(congestion.limitSectors(2), 0, "2000 us are not more than 2000");
    congestion.note(true, 0, 20);
    assertEquals(congestion.limitSectors(20), 0, "a write may take ten times as long");
    congestion.note(false, 97, 100);
    assert(congestion.limitSectors(100) > 0);
  });

  test("has a limit that halves with every 64 milliseconds, to one sector", () => {
    for (
      const [ms, sectors] of [
        [2.5, (64 + 62) << 15 >> 6],
        [64, 1 << 15],
        [96, (64 + 32) << 14 >> 6],
        [128, 1 << 14],
        [512, 1 << 8],
        [960, 2],
        [1023, 1],
        [5000, 1],
      ] as const
    ) {
      const congestion = new Congestion(always(0));
      slow(congestion, ms + 0.01, 10_000);
      assertEquals(congestion.limitSectors(10_000), sectors, `${ms} ms`);
    }
  });

  test("a random number takes up to 32 sectors of it", () => {
    const congestion = new Congestion(always(0xffff_ffff));
    slow(congestion, 512.01, 10_000);
    assertEquals(congestion.limitSectors(10_000), 256 - 32);
    const near = new Congestion(always(0xf0));
    slow(near, 900, 10_000);
    assertEquals(near.limitSectors(10_000), 1, "never less than one sector");
  });

  test("passes with time, and with operations that are quick", () => {
    const congestion = new Congestion(always(0));
    slow(congestion, 512.01, 10_000);
    assertEquals(congestion.limitSectors(10_000 + 64.1 * MS), 512);
    assertEquals(congestion.limitSectors(10_000 + 511 * MS), (64 + 63) << 15 >> 6);
    assertEquals(congestion.limitSectors(10_000 + 513 * MS), 0);
    for (let index = 0; index < 256; index++) congestion.note(false, 10_000, 10_000.1);
    assertEquals(congestion.limitSectors(10_000), 1 << 12, "256 quick ones took 256 ms off");
    for (let index = 0; index < 256; index++) congestion.note(true, 10_000, 10_000.1);
    assertEquals(congestion.limitSectors(10_000), 0);
  });

  test("is off where the thresholds are 0", () => {
    const congestion = new Congestion(always(0));
    congestion.readThresholdUs = 0;
    slow(congestion, 500, 1000);
    assertEquals(congestion.limitSectors(1000), 0);
    congestion.readThresholdUs = 2000;
    slow(congestion, 500, 1000);
    assert(congestion.limitSectors(1000) > 0);
    congestion.readThresholdUs = 0;
    congestion.writeThresholdUs = 0;
    assertEquals(congestion.limitSectors(1000), 0);
  });
});

test("streams go past a slow cache device, and are counted", async () => {
  const settings: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];
  const world = await SetWorld.make({ mode: "writeback", settings, asyncOnly: true });
  await world.write(0, 65536, 1);
  assertEquals(await world.attribute("congested", "set"), "0");
  let slowly = true;
  world.cache.gate = (kind) => kind === "read" && slowly ? world.clock.sleep(2000) : undefined;
  await world.read(0, 4096);
  slowly = false;
  assert(Number(await world.attribute("congested", "set")) > 0);
  await world.write(1 << 20, 4096, 2);
  assertEquals(await world.onBacking(1 << 20, 4096), filled(4096, 2), "it went past the cache");
  assertEquals(await world.attribute("bypass_reasons/congested"), "1");
  await world.run(world.set.setAttribute(undefined, "congested_read_threshold_us", "0"));
  await world.run(world.set.setAttribute(undefined, "congested_write_threshold_us", "0"));
  await world.write(2 << 20, 4096, 3);
  assertEquals(await world.onBacking(2 << 20, 4096), filled(4096, 0));
  await world.close();
});
