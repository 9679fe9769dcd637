/**
 * The simulator for as long as one likes. Without a scenario it is the swarm (swarm/command.ts):
 *
 *   bun tests/simulation/run.ts [--seed N] [--count M] [--only STEPS] ...
 *
 * With one, crash exploration; NAME may be "all":
 *
 *   bun tests/simulation/run.ts --scenario NAME [--seed N] [--count M] [--every K]
 *       [--cut C | --fault DISK:OPERATION[:NUMBER] [--kind KIND] [--errno ENOSPC]
 *       [--stage restart] [--sticky]] [--subsets] [--audit K] [--first] [--record FILE]
 *       [--verbose]
 *
 * Runs seeds N to N+M-1 of one scenario, or of all, and cuts the power at one moment in K (1: at
 * every one), or at moment C only. With `--fault cache:write`, say, operations of that kind meet
 * a fault instead (an error unless `--kind` says otherwise), each in a run of its own (or only the
 * one with that number), once or for good: run_faults.ts goes through all of them. A failure
 * prints the line that shows it again; the exit status is 1 then. With `--subsets` every subset of
 * up to 8 unflushed writes is kept in turn, instead of a few outcomes of each kind. With `--first`
 * the first failure ends the run. With `--audit K` one recovery in K is looked at more closely.
 * `--record` leaves what was done in a file.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { replayLine, writeRecord } from "../assurance/record.ts";
import { explore, SimulationFailure } from "./explorer.ts";
import { exploreFaults } from "./fault_explorer.ts";
import { planOf } from "./fault_plan.ts";
import { AUDIT_STARTS } from "./recovery_audit.ts";
import { RECIPE_NAMES, scenarioOf } from "./scenarios.ts";
import type { RecipeName } from "./scenarios.ts";
import { swarmCommand } from "./swarm/command.ts";

if (!process.argv.some((argument) => /^--scenario(=|$)/.test(argument))) {
  process.exit(await swarmCommand(process.argv.slice(2)));
}

const { values } = parseArgs({
  options: {
    scenario: { type: "string", default: "all" },
    seed: { type: "string", default: "1" },
    count: { type: "string", default: "1" },
    every: { type: "string" },
    audit: { type: "string" },
    cut: { type: "string" },
    fault: { type: "string" },
    kind: { type: "string", default: "error" },
    errno: { type: "string", default: "EIO" },
    stage: { type: "string", default: "first" },
    sticky: { type: "boolean", default: false },
    subsets: { type: "boolean", default: false },
    first: { type: "boolean", default: false },
    record: { type: "string" },
    verbose: { type: "boolean", default: false },
  },
});

const started = performance.now();
const failures: string[] = [];
/** What was done in each scenario; a failed seed counts for nothing but its failure. */
const done = new Map<string, Done>();

interface Done {
  seeds: number;
  cuts: number;
  nestedCuts: number;
  twiceNestedCuts: number;
  audits: number;
  faults: number;
}

function count(name: string, more: Partial<Omit<Done, "seeds">>): void {
  const none = { seeds: 0, cuts: 0, nestedCuts: 0, twiceNestedCuts: 0, audits: 0, faults: 0 };
  const sums = done.get(name) ?? none;
  for (const key of Object.keys(none) as Array<keyof Done>) {
    sums[key] += key === "seeds" ? 1 : more[key] ?? 0;
  }
  done.set(name, sums);
}

function record(file: string): void {
  const all = [...done.values()];
  const sum = (key: keyof Done) => all.reduce((total, sums) => total + sums[key], 0);
  const nested = sum("nestedCuts") + sum("twiceNestedCuts");
  const counts = {
    "seeds of scenarios": sum("seeds"),
    "cut points": sum("cuts") + nested,
    "of these within a recovery": nested,
    "of these within the recovery from such a one": sum("twiceNestedCuts"),
    "recoveries": sum("cuts") + nested + AUDIT_STARTS * sum("audits"),
    "recoveries looked at more closely": sum("audits"),
    "operations failed": sum("faults"),
  };
  writeRecord(file, {
    part: "cuts",
    what: "Workloads of the engine on simulated disks; the power is cut at their writes and " +
      "flushes, and what a disk had not made stable is kept, lost or torn. After each cut the " +
      "engine starts, and every sector must be as a flush acknowledged it or newer; after more " +
      "work and a drain the backing device alone must hold it all. Of a sample the check finds " +
      "no error before and after, counts the same dirty bytes, and a second start changes nothing.",
    command: `bun tests/simulation/run.ts ${process.argv.slice(2).join(" ")}`,
    counts: Object.fromEntries(Object.entries(counts).filter(([, figure]) => figure > 0)),
    tables: [{
      title: "By scenario",
      columns: [
        "scenario",
        "seeds",
        "cut points",
        "in recoveries",
        "twice",
        "looked at closely",
        "operations failed",
      ],
      rows: [...done].map(([name, sums]) => [
        name,
        sums.seeds,
        sums.cuts,
        sums.nestedCuts,
        sums.twiceNestedCuts,
        sums.audits,
        sums.faults,
      ]),
    }],
    failures,
    wallSeconds: (performance.now() - started) / 1000,
  });
}

async function runOne(name: RecipeName, seed: number): Promise<boolean> {
  const over = {
    ...(values.every === undefined ? {} : { cutOneIn: Number(values.every) }),
    ...(values.audit === undefined ? {} : { auditOneIn: Number(values.audit) }),
    ...(values.subsets ? { subsets: true } : {}),
    ...(values.cut === undefined ? {} : { onlyCut: Number(values.cut) }),
  };
  try {
    if (values.fault !== undefined) {
      const { fault, kind, errno, stage, sticky } = values;
      const plan = planOf({ fault, kind, errno, stage, sticky, oneIn: Number(values.every ?? 10) });
      const report = await exploreFaults(scenarioOf(name, seed), plan);
      count(name, { faults: report.injected });
      const told = Object.entries(report).map(([what, figure]) => `${figure} ${what}`);
      console.log(`${name} seed ${seed}: ${told.join(", ")}`);
      return true;
    }
    const onCut = values.verbose ? (where: string) => console.error(where) : () => undefined;
    const report = await explore({ ...scenarioOf(name, seed, over), onCut });
    count(name, report);
    console.log(
      `${name} seed ${seed}: ${report.moments} moments, ${report.cuts} cuts, ` +
        `${report.nestedCuts + report.twiceNestedCuts} in recoveries, ` +
        `${report.audits} looked at closely, ${Math.round(report.simulatedMs)} ms simulated, ` +
        `trace ${report.traceHash}`,
    );
    return true;
  } catch (error) {
    if (!(error instanceof SimulationFailure)) throw error;
    console.error(error.message);
    failures.push(replayLine(error.message));
    return false;
  }
}

const names = RECIPE_NAMES.filter((name) => values.scenario === name || values.scenario === "all");
if (names.length === 0) {
  console.error(`no scenario ${values.scenario}; there are all, ${RECIPE_NAMES.join(", ")}`);
  process.exit(2);
}
const first = Number(values.seed);
for (let seed = first; seed < first + Number(values.count); seed++) {
  for (const name of names) {
    if (await runOne(name, seed)) continue;
    if (values.first) process.exit(1);
  }
}
if (values.record !== undefined) record(values.record);
if (failures.length > 0) {
  console.error(`${failures.length} failed`);
  process.exitCode = 1;
}
