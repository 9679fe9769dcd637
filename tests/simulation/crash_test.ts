/**
 * The engine under power cuts. Small workloads in every mode are cut at their writes and flushes;
 * longer ones, in which the journal wraps, nodes split and buckets are collected and reused, at a
 * sample of them. What is checked at each cut is in explorer.ts. More of the same, for as long as
 * one likes: `bun tests/simulation/run.ts`.
 */
import { test } from "bun:test";
import { assertGreater } from "@std/assert";
import { explore } from "./explorer.ts";
import { exploreFaults } from "./fault_explorer.ts";
import type { FaultPlan } from "./fault_plan.ts";
import { scenarioOf } from "./scenarios.ts";
import type { RecipeName } from "./scenarios.ts";

interface Slice {
  readonly name: RecipeName;
  readonly seeds: readonly number[];
  /** Looks at one moment in so many. */
  readonly cutOneIn: number;
}

/** Together about 30 seconds. Some seeds use synchronous devices, some do not. */
const SLICES: readonly Slice[] = [
  { name: "writeback", seeds: [1, 2, 6], cutOneIn: 5 },
  { name: "writethrough", seeds: [1, 2], cutOneIn: 6 },
  { name: "writearound", seeds: [1, 2], cutOneIn: 8 },
  { name: "none", seeds: [1], cutOneIn: 6 },
  { name: "writeback-only", seeds: [1, 2, 4], cutOneIn: 5 },
  { name: "small-blocks", seeds: [1, 2, 3], cutOneIn: 6 },
  { name: "writeback-runs", seeds: [1, 2], cutOneIn: 120 },
  { name: "writeback-stripes", seeds: [1], cutOneIn: 150 },
  { name: "change-settings", seeds: [1], cutOneIn: 100 },
  { name: "move-and-coalesce", seeds: [1, 4, 5], cutOneIn: 80 },
  { name: "flash-volume", seeds: [1, 2], cutOneIn: 9 },
  { name: "come-and-go", seeds: [1, 2, 3], cutOneIn: 9 },
  { name: "neighbours", seeds: [1, 2], cutOneIn: 50 },
  { name: "drain-often", seeds: [1, 3], cutOneIn: 30 },
  { name: "wrap-journal", seeds: [1], cutOneIn: 150 },
  { name: "split-nodes", seeds: [1], cutOneIn: 1500 },
  { name: "reuse-buckets", seeds: [1], cutOneIn: 1000 },
  { name: "fill-and-reuse", seeds: [2], cutOneIn: 1000 },
  { name: "fill-holes", seeds: [1, 2], cutOneIn: 400 },
  { name: "discard-buckets", seeds: [1], cutOneIn: 500 },
  { name: "read-and-reuse", seeds: [1, 2], cutOneIn: 400 },
  { name: "tiny-nodes", seeds: [1], cutOneIn: 600 },
];

const FAULTS: readonly FaultPlan[] = [
  { disk: "cache", operation: "write", times: 1, oneIn: 12 },
  { disk: "cache", operation: "flush", times: Infinity, oneIn: 3 },
  { disk: "cache", operation: "read", times: Infinity, oneIn: 16 },
  { disk: "backing", operation: "write", times: 1, errno: "ENOSPC", oneIn: 8 },
  { disk: "backing", operation: "flush", times: 1, oneIn: 2 },
];

for (const { name, seeds, cutOneIn } of SLICES) {
  test(`nothing flushed is lost, and nothing else made up, at power cuts: ${name}`, async () => {
    let cuts = 0;
    for (const seed of seeds) cuts += (await explore(scenarioOf(name, seed, { cutOneIn }))).cuts;
    assertGreater(cuts, 0);
  }, 120_000);
}

test(
  "nothing flushed is lost whichever unflushed writes a power cut keeps: every subset",
  async () => {
    const { cuts } = await explore(scenarioOf("writeback", 3, { cutOneIn: 40, subsets: true }));
    assertGreater(cuts, 20);
  },
  120_000,
);

for (const name of ["writeback", "writethrough"] as const) {
  test(`when a disk fails, requests fail but answers stay right: ${name}`, async () => {
    let injected = 0;
    for (const plan of FAULTS) {
      injected += (await exploreFaults(scenarioOf(name, 1), plan)).injected;
    }
    assertGreater(injected, FAULTS.length);
  }, 120_000);
}
