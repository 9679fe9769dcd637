/**
 * The simulator's own test: a store that keeps its promises passes, and every mistake of a list
 * is caught within a bounded number of seeds. A check that cannot fail would show here.
 */
import { test } from "bun:test";
import {
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertMatch,
  assertRejects,
} from "@std/assert";
import { explore, SimulationFailure, USUAL_CUTS } from "./explorer.ts";
import type { Report, Scenario } from "./explorer.ts";
import { exploreFaults } from "./fault_explorer.ts";
import type { FaultPlan } from "./fault_plan.ts";
import { TOY_MISTAKES, toyKind } from "./toy_store.ts";
import type { ToyMistake } from "./toy_store.ts";
import { USUAL_WORKLOAD } from "./workload.ts";

const SEEDS_MAX = 12;
/** Most mistakes show with the first seeds; these need a rare order of events. */
const FIRST_SEED: Partial<Record<ToyMistake, number>> = {
  "trust a journal block without its checksum": 34,
};

function scenario(seed: number, mistake?: ToyMistake): Scenario {
  return {
    ...USUAL_CUTS,
    kind: toyKind(mistake),
    seed,
    sync: false,
    workload: { ...USUAL_WORKLOAD, steps: 120, spanBytes: 128 << 10 },
    cutOneIn: 5,
    nestedOneIn: 400,
    auditOneIn: Infinity, // It has no check.
  };
}

async function outcomeOf(seed: number, mistake?: ToyMistake): Promise<Report | SimulationFailure> {
  try {
    return await explore(scenario(seed, mistake));
  } catch (error) {
    if (error instanceof SimulationFailure) return error;
    throw error;
  }
}

test("a store that keeps its promises survives every power cut", async () => {
  const report = await explore(scenario(1));
  assertGreater(report.cuts, 100);
  assertGreater(report.nestedCuts, 0);
});

test("the same seed makes the same run, on every runtime", async () => {
  const uncut = async (seed: number) => {
    const { moments, traceHash } = await explore({ ...scenario(seed), cutOneIn: Infinity });
    return `${moments} ${traceHash}`;
  };
  // Printed by Bun and by Deno. A change of the simulator, the workload or the toy changes them.
  assertEquals(await uncut(7), "219 6174b1a6");
  assertEquals(await uncut(8), "247 75a6f376");
});

const PLANS: readonly FaultPlan[] = [
  { disk: "cache", operation: "write", times: 1, oneIn: 4 },
  { disk: "cache", operation: "flush", times: 1, oneIn: 2 },
  { disk: "cache", operation: "read", times: Infinity, oneIn: 20 },
  { disk: "backing", operation: "write", times: 1, errno: "ENOSPC", oneIn: 4 },
  { disk: "backing", operation: "flush", times: Infinity, oneIn: 1 },
];

test("a store that keeps its promises fails requests, not data, when its disks fail", async () => {
  for (const plan of PLANS) {
    const report = await exploreFaults(scenario(1), plan);
    assertGreater(report.runs, 0);
    assertGreaterOrEqual(report.injected, report.runs);
  }
});

test("a store that goes on after a failed write is caught", async () => {
  const broken = scenario(1, "go on after a failed write");
  await assertRejects(async () => {
    for (const plan of PLANS) await exploreFaults(broken, plan);
  }, SimulationFailure);
});

for (const mistake of TOY_MISTAKES) {
  if (mistake === "go on after a failed write") continue; // Needs a disk that fails: see above.
  test(`a store that makes this mistake is caught: ${mistake}`, async () => {
    let caught: SimulationFailure | undefined;
    const first = FIRST_SEED[mistake] ?? 1;
    for (let tried = 0; tried < SEEDS_MAX && caught === undefined; tried++) {
      const outcome = await outcomeOf(first + tried, mistake);
      if (outcome instanceof SimulationFailure) caught = outcome;
    }
    assertMatch(caught?.message ?? `nothing was found with ${SEEDS_MAX} seeds`, /seed \d+, /);
  }, 60_000);
}
