/** What reads put into the cache, and what they must not. */
import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { filled, SetWorld } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

/** 24 buckets of 16 KiB: more than one batch of keys. */
const BYTES = 24 * 16384;

describe("a hole that was read", () => {
  for (const asyncOnly of [false, true]) {
    test(`is cached as a whole, however many buckets it takes (async: ${asyncOnly})`, async () => {
      const world = await SetWorld.make({
        mode: "writearound",
        settings: QUIET,
        asyncOnly,
        bucketCount: 40_000,
      });
      await world.write(0, BYTES, 7);
      await world.read(0, BYTES);
      await world.run(world.clock.sleep(1));
      world.backing.trace.length = 0;
      assertEquals(await world.read(0, BYTES), filled(BYTES, 7));
      assertEquals(world.backing.trace, []);
      await world.close();
    });
  }
});
