/**
 * Disks that fail, in every way there is: a slice of what run_faults.ts goes through. What may come
 * of which fault is said in fault_explorer.ts.
 */
import { test } from "bun:test";
import { assertEquals, assertGreater, assertThrows } from "@std/assert";
import {
  allPlans,
  FAULT_ERRNOS,
  FAULT_STAGES,
  faultPlace,
  planOf,
  planText,
} from "./fault_plan.ts";
import { newFaultSweep, sweepFaults, sweepRows } from "./fault_sweep.ts";
import type { RecipeName } from "./scenarios.ts";
import { FAULT_KINDS, type FaultKind } from "./sim_faults.ts";

/** Together about 25 seconds; another operation is met in every plan. */
const SLICES: ReadonlyArray<readonly [RecipeName, number]> = [
  ["writeback", 2],
  ["small-blocks", 1],
  ["come-and-go", 1],
  ["flash-volume", 1],
];

for (const [name, seed] of SLICES) {
  test(`faults of every kind, each followed by power cuts: ${name}`, async () => {
    const sweep = await sweepFaults(name, seed, { oneIn: 1, runsMax: 1, longRunsMax: 1 });
    assertEquals(sweep.failures, []);
    assertEquals(sweepRows(sweep).map(([kind]) => kind), [...FAULT_KINDS]);
    for (const [kind, { runs, injected, recoveries }] of sweep.byKind) {
      assertGreater(runs, 0, kind);
      assertGreater(injected, 0, kind);
      assertGreater(recoveries, runs, kind);
    }
    // Errors that are told of, and time, cost nothing that was acknowledged.
    for (const kind of ["error", "slow", "short"] as const) {
      const { refused, damagedData, told, untold } = sweep.byKind.get(kind)!;
      assertEquals([refused, damagedData, told, untold], [0, 0, 0, 0], kind);
    }
    // One bit: either a block of data is served as it lies there, or it is told of.
    assertEquals(sweep.byKind.get("rot")!.untold, 0);
  }, 120_000);
}

test("a failed flush of one backing device concerns no other", async () => {
  // A seed with writes past the cache over dirty data that a flush, which loses them, meets.
  const sweep = await sweepFaults("neighbours", 4, {
    oneIn: 1,
    longRunsMax: 1,
    plans: ({ disk, operation, kind, stage }) =>
      disk === "backing" && operation === "flush" && kind === "error" && stage === "first",
  });
  assertEquals(sweep.failures, []);
  const { runs, injected, recoveries } = sweep.byKind.get("error")!;
  assertGreater(runs, 10);
  assertGreater(injected, runs);
  assertGreater(recoveries, 4 * runs);
}, 120_000);

test("every plan can be asked for by what its failure says", () => {
  assertEquals(newFaultSweep().byKind.size, FAULT_KINDS.length);
  for (const plan of allPlans({ oneIn: 1 })) {
    const words = planText(plan, 7).split(" ");
    const word = <Word extends string>(option: string, otherwise: Word) => {
      const at = words.indexOf(option);
      return at < 0 ? otherwise : words[at + 1]! as Word;
    };
    const asked = planOf({
      fault: word("--fault", ""),
      kind: word<FaultKind>("--kind", "error"),
      errno: word<(typeof FAULT_ERRNOS)[number]>("--errno", "EIO"),
      stage: word<(typeof FAULT_STAGES)[number]>("--stage", "first"),
      sticky: words.includes("--sticky"),
      oneIn: 10,
    });
    assertEquals(asked, { errno: "EIO", ...plan, onlyOperation: 7 });
  }
});

test("a place for a fault that there is not is refused by what there is", () => {
  const refused = (place: string, words: string) =>
    assertThrows(() => faultPlace(place), Error, words);
  refused("tape:read", "expected one of cache, backing");
  refused("cache:trim", "expected one of read, write");
  refused("cache", "expected one of read, write");
  refused("cache:read:x", "expected DISK:OPERATION or DISK:OPERATION:NUMBER");
  refused("cache:read:1:2", "expected DISK:OPERATION or DISK:OPERATION:NUMBER");
});
