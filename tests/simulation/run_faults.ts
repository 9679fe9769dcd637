/**
 * Every fault at every operation, as a routine:
 *
 *   bun tests/simulation/run_faults.ts [--scenario NAME] [--seed N] [--count M] [--every K]
 *       [--long L] [--kind KIND] [--record FILE] [--verbose]
 *
 * For seeds N to N+M-1 of one scenario, or of all: each kind of fault (or only KIND) on each disk
 * and each operation, once and for good, of a set that was just made and of one that starts after
 * a power cut; after each fault the power is cut, and what was acknowledged must be there. One
 * operation in K is met (1: every one); of scenarios longer than a few dozen requests at most L of
 * each plan. A failure prints the line that shows it again; the exit status is 1 then.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { replayLine, writeRecord } from "../assurance/record.ts";
import { planText } from "./fault_plan.ts";
import { newFaultSweep, SWEEP_COLUMNS, sweepFaults, sweepRows } from "./fault_sweep.ts";
import { RECIPE_NAMES } from "./scenarios.ts";

const { values } = parseArgs({
  options: {
    scenario: { type: "string" },
    seed: { type: "string", default: "1" },
    count: { type: "string", default: "1" },
    every: { type: "string", default: "1" },
    long: { type: "string", default: "6" },
    kind: { type: "string" },
    record: { type: "string" },
    verbose: { type: "boolean", default: false },
  },
});
const names = RECIPE_NAMES.filter((name) => (values.scenario ?? name) === name);
if (names.length === 0) {
  console.error(`no scenario ${values.scenario}; there are ${RECIPE_NAMES.join(", ")}`);
  process.exit(2);
}
const started = performance.now();
const sweep = newFaultSweep();
const first = Number(values.seed);
for (let seed = first; seed < first + Number(values.count); seed++) {
  for (const name of names) {
    const before = performance.now();
    const failed = sweep.failures.length;
    await sweepFaults(name, seed, {
      oneIn: Number(values.every),
      longRunsMax: Number(values.long),
      plans: ({ kind }) => (values.kind ?? kind) === kind,
      onPlan: (_, plan) => {
        if (values.verbose) console.error(`${name} seed ${seed} ${planText(plan, 0)}`);
      },
    }, sweep);
    for (const message of sweep.failures.slice(failed)) console.error(message);
    console.log(`${name} seed ${seed}: ${((performance.now() - before) / 1000).toFixed(1)} s`);
  }
}
const rows = sweepRows(sweep);
const sum = (column: number) => rows.reduce((total, row) => total + Number(row[column]), 0);
const wallSeconds = (performance.now() - started) / 1000;
for (const row of [SWEEP_COLUMNS, ...rows]) {
  console.log(row.map((cell, at) => `${cell}`.padEnd(SWEEP_COLUMNS[at]!.length)).join("  "));
}
console.log(`${sum(1)} runs, ${sum(3)} recoveries in ${wallSeconds.toFixed(0)} s`);
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "faults",
    what: "Workloads of the engine on simulated disks that fail: every operation of each disk " +
      "meets each kind of fault in a run of its own, and power cuts after it. No answer may be " +
      "wrong, and what was acknowledged must be there; data blocks, which have no checksums, " +
      "are served as the disk returns them.",
    command: `bun tests/simulation/run_faults.ts ${process.argv.slice(2).join(" ")}`,
    counts: {
      "runs with a fault": sum(1),
      "operations met by a fault": sum(2),
      "power cuts after a fault": sum(3),
    },
    tables: [{ title: "Faults by kind", columns: SWEEP_COLUMNS, rows }],
    failures: sweep.failures.map(replayLine),
    wallSeconds,
  });
}
if (sweep.failures.length > 0) {
  console.error(`${sweep.failures.length} failed`);
  process.exitCode = 1;
}
