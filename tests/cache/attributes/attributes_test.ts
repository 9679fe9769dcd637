/** Attributes: what they take and refuse, in words, and what of it survives a restart. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import type { AttributeInfo } from "../../../lib/cache/ports.ts";
import { STATS_TICK_MS } from "../../../lib/cache/stats.ts";
import { type OneDevice, oneDevice } from "../one_device.ts";

const OWNERS = [undefined, "bcache0"] as const;

async function valueOf(one: OneDevice, device: string | undefined, name: string): Promise<string> {
  return (await one.run(one.set.attributes(device, name)))[0]!.value;
}

async function set(one: OneDevice, device: string | undefined, name: string, value: string) {
  return (await one.run(one.set.setAttribute(device, name, value))).value;
}

/** Tries a value that must be refused; returns the message. Nothing may have changed. */
async function refusal(
  one: OneDevice,
  device: string | undefined,
  name: string,
  value: string,
): Promise<string> {
  const before = await valueOf(one, device, name);
  const error = await assertRejects(
    () => one.run(one.set.setAttribute(device, name, value)),
    BcacheError,
    "",
  );
  assert(error.code === "InvalidArgument" || error.code === "OutOfRange", error.code);
  // One rule: a whole number that is refused is refused for its size.
  const isNumber = /^-?\d+$/.test(value) && error.message.includes("whole number");
  if (isNumber) assertEquals(error.code, "OutOfRange", `${name}: ${value}`);
  assert(!error.message.includes("\n"), error.message);
  assertEquals(await valueOf(one, device, name), before, name);
  return error.message;
}

/** Numbers that say their range in figures, of the set and of the device. */
async function numbers(one: OneDevice): Promise<Array<[string | undefined, AttributeInfo]>> {
  const found: Array<[string | undefined, AttributeInfo]> = [];
  for (const device of OWNERS) {
    for (const attribute of await one.run(one.set.attributes(device))) {
      if (attribute.writable && attribute.unit !== undefined) found.push([device, attribute]);
    }
  }
  return found;
}

describe("attributes that are numbers", () => {
  test("refuse what is no number or out of range, name the range, and stay", async () => {
    const one = await oneDevice();
    let ranges = 0;
    for (const [device, { name, range }] of await numbers(one)) {
      for (const wrong of ["", "x", "-1", "1.5", "0x10", "1e3", "99999999999999999999"]) {
        assertStringIncludes(await refusal(one, device, name, wrong), name);
      }
      const limits = /^(\d+) to (\d+)\b/.exec(range!);
      if (limits === null) continue;
      ranges++;
      const [, min, max] = limits;
      for (const wrong of [Number(min) - 1, Number(max) + 1]) {
        if (wrong < 0) continue;
        const message = await refusal(one, device, name, String(wrong));
        for (const word of [name, String(wrong), min!, max!]) assertStringIncludes(message, word);
      }
    }
    assert(ranges >= 8, `${ranges} ranges were tried`);
    await one.close();
  });

  test("take both ends of their range and read back what was written", async () => {
    // The rate reads 0 while writeback is stopped.
    const one = await oneDevice({ settings: [["writeback_running", "1"]] });
    // Terms and cutoffs bound each other, pruning is done once, and these are kept in steps.
    const special =
      /^(writeback_rate_fp_term_|cutoff_writeback|prune_cache|stripe_size|io_error_halflife)/;
    for (const [device, { name, range }] of await numbers(one)) {
      const limits = /^(\d+) to (\d+)\b/.exec(range!);
      if (limits === null || special.test(name)) continue;
      for (const end of limits.slice(1)) {
        assertEquals(await set(one, device, name, end!), end, name);
      }
    }
    await one.close();
  });

  test("writeback_percent goes up to cutoff_writeback", async () => {
    const one = await oneDevice();
    assertEquals(await set(one, "bcache0", "writeback_percent", "40"), "40");
    const beyond = await refusal(one, "bcache0", "writeback_percent", "41");
    assertStringIncludes(beyond, "to 40 (cutoff_writeback)");
    await set(one, undefined, "cutoff_writeback", "50");
    assertEquals(await set(one, "bcache0", "writeback_percent", "50"), "50");
    await one.close();
  });

  test("cutoff_writeback never goes below a writeback_percent", async () => {
    const one = await oneDevice();
    await set(one, undefined, "cutoff_writeback", "60");
    await set(one, "bcache0", "writeback_percent", "55");
    for (const lower of ["54", "0"]) {
      assertStringIncludes(
        await refusal(one, undefined, "cutoff_writeback", lower),
        `found ${lower}, expected at least the writeback_percent of bcache0 (55); ` +
          "set bcache0/writeback_percent lower first",
      );
    }
    assertEquals(await set(one, undefined, "cutoff_writeback", "55"), "55");
    await set(one, "bcache0", "writeback_percent", "3");
    assertEquals(await set(one, undefined, "cutoff_writeback", "5"), "5");
    await one.close();
  });

  test("that are sizes take bytes and suffixes, as the documentation shows them", async () => {
    const one = await oneDevice();
    for (
      const [text, bytes] of [["4194304", 4194304], ["4M", 4194304], ["512k", 524288], ["0", 0]]
    ) {
      assertEquals(await set(one, "bcache0", "sequential_cutoff", String(text)), String(bytes));
    }
    await refusal(one, "bcache0", "sequential_cutoff", "4G");
    await refusal(one, "bcache0", "sequential_cutoff", "4 apples");
    await one.close();
  });
});

describe("attributes that are words", () => {
  test("read as the word in force and refuse others, naming all there are", async () => {
    const one = await oneDevice({ mode: "writethrough", replacement: "lru" });
    assertEquals(await valueOf(one, "bcache0", "cache_mode"), "writethrough");
    const message = await refusal(one, "bcache0", "cache_mode", "writeburst");
    for (const word of ["writeburst", "writethrough", "writeback", "writearound", "none"]) {
      assertStringIncludes(message, word);
    }
    const policies = await refusal(one, undefined, "cache_replacement_policy", "mru");
    for (const word of ["lru", "fifo", "random"]) assertStringIncludes(policies, word);
    assertStringIncludes(await refusal(one, "bcache0", "writeback_running", "2"), "0 or 1");
    await one.close();
  });

  test("mode, policy and label are found again after a restart", async () => {
    const one = await oneDevice({ mode: "writethrough", replacement: "lru" });
    await set(one, "bcache0", "cache_mode", "writearound");
    await set(one, undefined, "cache_replacement_policy", "fifo");
    await set(one, "bcache0", "label", "photos");
    await one.close();
    await one.open();
    assertEquals(await valueOf(one, "bcache0", "cache_mode"), "writearound");
    assertEquals(await valueOf(one, undefined, "cache_replacement_policy"), "fifo");
    assertEquals(await valueOf(one, "bcache0", "label"), "photos");
    await refusal(one, "bcache0", "label", "x".repeat(33));
    await one.close();
  });
});

test("trigger_gc has a collection run, whatever is written to it", async () => {
  const one = await oneDevice();
  const runs = async () => Number(await valueOf(one, undefined, "gc_runs"));
  const before = await runs();
  await one.settle(1000);
  assertEquals(await runs(), before);
  await set(one, undefined, "trigger_gc", "1");
  await one.settle(1000);
  assertEquals(await runs(), before + 1);
  await one.close();
});

test("collections are timed, and their switches are off until they are set", async () => {
  const one = await oneDevice();
  assertEquals(await valueOf(one, undefined, "btree_gc_last_sec"), "-1");
  await set(one, undefined, "trigger_gc", "1");
  await one.settle(7000);
  const last = Number(await valueOf(one, undefined, "btree_gc_last_sec"));
  assert(last >= 5 && last <= 7, `${last} seconds ago`);
  for (const name of ["gc_always_rewrite", "copy_gc_enabled", "gc_after_writeback"]) {
    assertEquals(await valueOf(one, undefined, name), "0", name);
    assertEquals(await set(one, undefined, name, "1"), "1", name);
  }
  const rewritten = Number(await valueOf(one, undefined, "gc_nodes_rewritten"));
  await set(one, undefined, "trigger_gc", "1");
  await one.settle(1000);
  assertEquals(await valueOf(one, undefined, "gc_nodes_rewritten"), String(rewritten + 1));
  const between = Number(await valueOf(one, undefined, "btree_gc_average_frequency_sec"));
  assert(between >= 5 && between <= 7, `${between} seconds between the two`);
  await one.close();
});

describe("attributes that are only read", () => {
  test("cannot be written, and unknown ones are answered with those there are", async () => {
    const one = await oneDevice();
    for (const device of OWNERS) {
      for (const { name, writable } of await one.run(one.set.attributes(device))) {
        if (writable) continue;
        const refused = await assertRejects(
          () => one.run(one.set.setAttribute(device, name, "1")),
          BcacheError,
          "can only be read",
        );
        assertEquals(refused.code, "ReadOnly");
      }
      const error = await assertRejects(
        () => one.run(one.set.setAttribute(device, "no_such", "1")),
        BcacheError,
        "no_such",
      );
      assertStringIncludes(error.message, "io_errors");
    }
    await one.close();
  });

  test("name the backing device by path and UUID", async () => {
    const one = await oneDevice();
    assertEquals(await valueOf(one, "bcache0", "backing_dev_name"), "backing");
    assertEquals(
      await valueOf(one, "bcache0", "backing_dev_uuid"),
      "02020202-0202-0202-0202-020202020202",
    );
    await one.close();
  });

  test("count requests of the device and of the set, in four periods", async () => {
    const one = await oneDevice({ mode: "writethrough" });
    await one.write(0, 8, 1);
    await one.read(0, 8);
    await one.read(0, 16);
    for (const device of OWNERS) {
      for (const period of ["total", "five_minute", "hour", "day"]) {
        const shown = async (name: string) => await valueOf(one, device, `stats_${period}/${name}`);
        assertEquals(
          [await shown("cache_hits"), await shown("cache_misses"), await shown("cache_hit_ratio")],
          ["1", "1", "50"],
          `${device} ${period}`,
        );
      }
    }
    await set(one, "bcache0", "clear_stats", "1");
    assertEquals(await valueOf(one, "bcache0", "stats_total/cache_hits"), "0");
    assertEquals(await valueOf(one, undefined, "stats_total/cache_hits"), "1");
    await set(one, undefined, "clear_stats", "1");
    assertEquals(await valueOf(one, undefined, "stats_total/cache_hits"), "0");
    assertEquals(await valueOf(one, undefined, "stats_day/cache_hits"), "1");
    await one.close();
  });

  test("statistics of device and set decay as time passes, each in its period", async () => {
    const one = await oneDevice({ mode: "writethrough" });
    const startMs = one.clock.nowMs();
    const hits = 320;
    await one.write(0, 8, 1);
    for (let read = 0; read < hits; read++) await one.read(0, 8);
    // How often the five minutes, the hour and the day have lost a 32nd after so many ticks.
    const losses = new Map([
      [0, [0, 0, 0]],
      [1, [1, 0, 0]],
      [12, [12, 1, 0]],
      [144, [144, 12, 0]],
      [288, [288, 24, 1]],
    ]);
    for (const [ticks, steps] of losses) {
      await one.settle(startMs + (ticks + 0.5) * STATS_TICK_MS - one.clock.nowMs());
      for (const device of OWNERS) {
        const shown = await Promise.all(
          ["total", "five_minute", "hour", "day"].map((period) =>
            valueOf(one, device, `stats_${period}/cache_hits`)
          ),
        );
        const left = steps.map((count) => Math.floor(hits * (31 / 32) ** count));
        assertEquals(shown.map(Number), [hits, ...left], `${device} after ${ticks} ticks`);
      }
    }
    await one.close();
  });
});
