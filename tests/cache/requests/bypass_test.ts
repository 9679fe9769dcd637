/** Which requests go past the cache, for which reason, and that each is counted. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { Bypass } from "../../../lib/cache/requests/bypass.ts";
import { Congestion } from "../../../lib/cache/devices/congestion.ts";
import { REQUEST_METADATA, REQUEST_READAHEAD, REQUEST_SYNC } from "../../../lib/cache/ports.ts";
import { ManualClock } from "../../support/manual_clock.ts";
import { filled, SetWorld } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

function decide() {
  const random = { nextU32: () => 0 };
  const clock = new ManualClock();
  const congestion = new Congestion(random);
  const bypass = new Bypass({ clock, random, congestion, blockSectors: 8 });
  const set = { mode: "writeback" as "writeback" | "writearound" | "none", inUsePercent: 0 };
  const ask = (start: number, sectors: number, isWrite = false, detaching = false) =>
    bypass.reason(start, sectors, isWrite, { ...set, detaching });
  return { bypass, congestion, set, ask };
}

describe("the reasons", () => {
  test("are asked for in the kernel's order", () => {
    const { bypass, congestion, set, ask } = decide();
    const all = { start: 1, sectors: 8192 };
    const now = () => ask(all.start, all.sectors, true);
    congestion.note(false, -500, 0);
    bypass.sequentialCutoffBytes = 512;
    bypass.torture = true;
    bypass.readaheadPolicy = "meta-only";
    bypass.flags = REQUEST_READAHEAD;
    set.mode = "none";
    set.inUsePercent = 96;
    assertEquals(ask(1, 8192, true, true), "detaching");
    assertEquals(now(), "full");
    set.inUsePercent = 95;
    assertEquals(now(), "mode");
    set.mode = "writeback";
    assertEquals(now(), "readahead");
    bypass.flags = 0;
    assertEquals(now(), "unaligned");
    all.start = 8;
    assertEquals(now(), "none", "torture by chance, and nothing after it");
    bypass.torture = false;
    assertEquals(now(), "sequential");
    bypass.sequentialCutoffBytes = 0;
    assertEquals(now(), "congested");
    congestion.readThresholdUs = 0;
    congestion.writeThresholdUs = 0;
    assertEquals(now(), "none");
  });

  test("writearound lets writes pass the cache, none also reads", () => {
    const { set, ask } = decide();
    set.mode = "writearound";
    assertEquals([ask(0, 8, true), ask(0, 8, false)], ["mode", "none"]);
    set.mode = "none";
    assertEquals([ask(0, 8, true), ask(0, 8, false)], ["mode", "mode"]);
  });

  test("read-ahead is cached, unless the policy is meta-only and it is not metadata", () => {
    const { bypass, ask } = decide();
    bypass.flags = REQUEST_READAHEAD;
    assertEquals(ask(0, 8), "none");
    bypass.readaheadPolicy = "meta-only";
    assertEquals(ask(0, 8), "readahead");
    bypass.flags = REQUEST_READAHEAD | REQUEST_METADATA;
    assertEquals(ask(0, 8), "none");
  });

  test("a stream passes when it has come to the cutoff, whoever carries it on", () => {
    const { bypass, ask } = decide();
    bypass.sequentialCutoffBytes = 16384;
    assertEquals([ask(0, 8), ask(8, 16), ask(24, 8), ask(32, 8)], [
      "none",
      "none",
      "sequential",
      "sequential",
    ]);
  });

  test("with the torture test every fourth request passes by chance", () => {
    let next = 0;
    const random = { nextU32: () => next++ };
    const congestion = new Congestion(random);
    const clock = new ManualClock();
    const bypass = new Bypass({ clock, random, congestion, blockSectors: 1 });
    bypass.torture = true;
    const set = { mode: "writeback" as const, inUsePercent: 0, detaching: false };
    const reasons = [0, 1, 2, 3, 4, 5, 6, 7].map((at) => bypass.reason(at, 1, true, set));
    assertEquals(reasons.filter((reason) => reason === "torture").length, 2);
  });
});

describe("requests past the cache", () => {
  test("are counted by their reason, in attributes and in the status", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET, blockSectors: 8 });
    await world.run(world.set.setAttribute("bcache0", "sequential_cutoff", "64k"));
    await world.write(0, 65536, 1);
    await world.run(world.volume.zero(8192, 4096));
    await world.run(world.set.setAttribute("bcache0", "cache_mode", "none"));
    await world.read(1 << 20, 4096);
    await world.read(1 << 20, 4096);
    assertEquals((await world.set.status()).devices[0]!.bypassReasons, {
      sequential: 1,
      discard: 1,
      mode: 2,
    });
    assertEquals(await world.attribute("bypass_reasons/mode"), "2");
    assertEquals(await world.attribute("stats_total/bypassed"), String(65536 + 4096 + 8192));
    await world.close();
  });

  test("a task that reads a long run does not take others past the cache with it", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.run(world.set.setAttribute("bcache0", "sequential_cutoff", "1M"));
    for (let index = 0; index < 24; index++) {
      world.volume.describeNext!(10, 0);
      await world.read(index * 65536, 65536); // Task 10 reads a long run ...
      world.volume.describeNext!(11, 0);
      await world.write((3 << 20) + (index % 5) * 8192, 4096, index); // ... task 11 here and there.
    }
    assertEquals(await world.attribute("bypass_reasons/sequential"), "9", "the run's end only");
    await world.close();
  });
});

describe("between the cutoffs", () => {
  async function world(sync: string): Promise<SetWorld> {
    const made = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await made.write(2 << 20, 512 << 10, 9); // So that more than 1 percent are in use.
    await made.run(made.set.flushDirty(undefined));
    await made.run(made.set.setAttribute("bcache0", "writeback_percent", "1"));
    await made.run(made.set.setAttribute(undefined, "cutoff_writeback", "1"));
    await made.run(made.set.setAttribute(undefined, "cutoff_writeback_sync", sync));
    return made;
  }

  test("only synchronous and metadata writes stay in the cache alone", async () => {
    const made = await world("70");
    await made.write(0, 4096, 1);
    assertEquals(await made.onBacking(0, 4096), filled(4096, 1));
    assertEquals((await made.set.status()).devices[0]!.dirtyBytes, 0);
    for (const [index, flag] of [REQUEST_SYNC, REQUEST_METADATA].entries()) {
      made.volume.describeNext!(1, flag);
      await made.write(8192 + index * 4096, 4096, 2);
      assertEquals(await made.onBacking(8192 + index * 4096, 4096), filled(4096, 0));
      assertEquals((await made.set.status()).devices[0]!.dirtyBytes, (index + 1) * 4096);
    }
    await made.close();
  });

  test("above the second, no write does", async () => {
    const made = await world("1");
    made.volume.describeNext!(1, REQUEST_SYNC);
    await made.write(0, 4096, 1);
    assertEquals(await made.onBacking(0, 4096), filled(4096, 1));
    assertEquals((await made.set.status()).devices[0]!.dirtyBytes, 0);
    await made.close();
  });

  test("0 stands for the kernel's value, and the first is never above the second", async () => {
    const made = await world("30");
    const set = (name: string, value: string) =>
      made.run(made.set.setAttribute(undefined, name, value));
    const refused = await assertRejects(() => set("cutoff_writeback", "31"), BcacheError);
    assertEquals(refused.message.includes("at most cutoff_writeback_sync (30)"), true);
    await assertRejects(
      () => set("cutoff_writeback", "0"),
      BcacheError,
      "found 0, expected at most",
    );
    await set("cutoff_writeback_sync", "0");
    assertEquals(await made.attribute("cutoff_writeback_sync", "set"), "70");
    await set("cutoff_writeback", "0");
    assertEquals(await made.attribute("cutoff_writeback", "set"), "40");
    await assertRejects(() => set("cutoff_writeback_sync", "91"), BcacheError, "0 to 90");
    await assertRejects(() => set("cutoff_writeback_sync", "39"), BcacheError, "at least cutoff");
    await assertRejects(() => set("cutoff_writeback", "71"), BcacheError, "0 to 70");
    await made.close();
  });
});
