/**
 * Every fault at every operation, as a routine:
 *
 *   npm run faults -- [--scenario NAME] [--seed N] [--count M] [--every K]
 *       [--long L] [--kind KIND] [--record FILE] [--verbose]
 *
 * For seeds N to N+M-1 of one scenario, or of all: each kind of fault (or only KIND) on each disk
 * and each operation, once and for good, of a set that was just made and of one that starts after
 * a power cut; after each fault the power is cut, and what was acknowledged must be there. One
 * operation in K is met (1: every one); of scenarios longer than a few dozen requests at most L of
 * each plan. A failure prints the line that shows it again; the exit status is 1 then.
 */
// deno-lint-ignore-file no-console
import { replayLine, writeRecord } from "../assurance/record.ts";
import {
  argumentsOf,
  flag,
  oneOf,
  recordOption,
  seedOption,
  wholeNumber,
} from "../support/arguments.ts";
import { alignedRows, counted } from "../support/lines.ts";
import { planText } from "./fault_plan.ts";
import { newFaultSweep, SWEEP_COLUMNS, sweepFaults, sweepRows } from "./fault_sweep.ts";
import { RECIPE_NAMES } from "./scenarios.ts";
import { FAULT_KINDS } from "./sim_faults.ts";

const { values } = argumentsOf({
  command: "npm run faults",
  about: "Every fault at every operation of simulated disks; after each the power is cut, and " +
    "what was acknowledged must be there. A failure prints the line that shows it again; the " +
    "exit status is 1 then.",
  options: {
    scenario: oneOf("one scenario instead of all", RECIPE_NAMES, { takes: "NAME" }),
    seed: seedOption("the first seed"),
    count: wholeNumber("how many seeds", { from: 1, fallback: 1 }),
    every: wholeNumber("one operation in K", { takes: "K", from: 1, fallback: 1 }),
    long: wholeNumber("at most so many of each plan in long scenarios", {
      takes: "L",
      from: 1,
      fallback: 6,
    }),
    kind: oneOf("one kind of fault instead of all", FAULT_KINDS, { takes: "KIND" }),
    record: recordOption,
    verbose: flag("names each plan when it begins"),
  },
});
const names = RECIPE_NAMES.filter((name) => (values.scenario ?? name) === name);
const started = performance.now();
const sweep = newFaultSweep();
for (let seed = values.seed; seed < values.seed + values.count; seed++) {
  for (const name of names) {
    const before = performance.now();
    const failed = sweep.failures.length;
    await sweepFaults(name, seed, {
      oneIn: values.every,
      longRunsMax: values.long,
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
for (const line of alignedRows([SWEEP_COLUMNS, ...rows])) console.log(line);
console.log(
  `${counted(sum(1), "run")}, ${counted(sum(3), "recovery", "recoveries")} in ${
    wallSeconds.toFixed(0)
  } s`,
);
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "faults",
    what: "Workloads of the engine on simulated disks that fail: every operation of each disk " +
      "meets each kind of fault in a run of its own, and power cuts after it. No answer may be " +
      "wrong, and what was acknowledged must be there; data blocks, which have no checksums, " +
      "are served as the disk returns them. A disk that lies (a flush succeeds and keeps " +
      "nothing) or puts a write of metadata elsewhere loses what was acknowledged; where an " +
      "older state is left that is whole in itself, or data alone was lost, nothing on the " +
      "disks tells of it: those are the losses without a trace. Of a lie no more is asked than " +
      "that nothing hangs, crashes or fails without a typed error.",
    command: `npx bun tests/simulation/run_faults.ts ${process.argv.slice(2).join(" ")}`,
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
} else if (sum(1) === 0) {
  console.error("faults: no operation met a fault: there is nothing of this kind in the scenario");
  process.exitCode = 1;
}
