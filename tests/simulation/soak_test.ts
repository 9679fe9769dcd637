/**
 * A slice of the soak in every mode and policy: some simulated minutes with a clean stop, a power
 * cut and a drain. `npm run soak` is an hour of each.
 */
import { test } from "bun:test";
import { assertGreater } from "@std/assert";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { soak } from "./soak.ts";

const POLICIES: readonly ReplacementPolicy[] = ["lru", "fifo", "random"];

for (const [at, mode] of CACHE_MODES.entries()) {
  for (const [beside, replacement] of POLICIES.entries()) {
    test(`minutes of life end with every byte right: ${mode}, ${replacement}`, async () => {
      const seed = 100 + POLICIES.length * at + beside;
      const report = await soak({ mode, replacement, seed, minutes: 8 });
      assertGreater(report.restarts, 0);
      assertGreater(report.powerCuts, 0);
      assertGreater(report.requests, 1000);
      if (mode !== "none") assertGreater(report.collections, 10);
    }, 120_000);
  }
}
