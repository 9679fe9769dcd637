/**
 * The simulator for as long as one likes. Without a scenario it is the swarm (swarm/command.ts):
 *
 *   npm run simulate -- [--seed N] [--count M] [--only STEPS] ...
 *
 * With one, crash exploration; NAME may be "all":
 *
 *   npm run simulate -- --scenario NAME [--seed N] [--count M] [--every K]
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
import { replayLine, writeRecord } from "../assurance/record.ts";
import {
  argumentsOf,
  flag,
  oneOf,
  recordOption,
  Refusal,
  refuse,
  seedOption,
  text,
  wholeNumber,
} from "../support/arguments.ts";
import { counted } from "../support/lines.ts";
import { explore, SimulationFailure } from "./explorer.ts";
import { exploreFaults } from "./fault_explorer.ts";
import {
  FAULT_DISKS,
  FAULT_ERRNOS,
  FAULT_OPERATIONS,
  FAULT_STAGES,
  faultPlace,
  planOf,
} from "./fault_plan.ts";
import { AUDIT_STARTS } from "./recovery_audit.ts";
import { RECIPE_NAMES, scenarioOf } from "./scenarios.ts";
import type { RecipeName } from "./scenarios.ts";
import { FAULT_KINDS } from "./sim_faults.ts";
import { swarmCommand } from "./swarm/command.ts";

if (!process.argv.some((argument) => /^--scenario(=|$)/.test(argument))) {
  process.exit(await swarmCommand(process.argv.slice(2)));
}

const DECLARED = {
  command: "npm run simulate",
  about: "Crash exploration: workloads of the engine on simulated disks; the power is cut at " +
    "their writes and flushes, or operations meet a fault. A failure prints the line that shows " +
    "it again; the exit status is 1 then.",
  options: {
    scenario: oneOf("the scenario", ["all", ...RECIPE_NAMES], { takes: "NAME", fallback: "all" }),
    seed: seedOption("the first seed"),
    count: wholeNumber("how many seeds", { from: 1, fallback: 1 }),
    every: wholeNumber("one moment in K, or one operation in K", { takes: "K", from: 1 }),
    audit: wholeNumber("looks more closely at one recovery in K", { takes: "K", from: 1 }),
    cut: wholeNumber("only the moment with this number", { takes: "C" }),
    fault: text(
      "what meets a fault instead of power cuts, as cache:write, or cache:write:7 for one of " +
        `them; disks ${FAULT_DISKS.join(", ")}; operations ${FAULT_OPERATIONS.join(", ")}`,
      "DISK:OPERATION[:NUMBER]",
      placeOf,
    ),
    kind: oneOf("the kind of fault", FAULT_KINDS, { takes: "KIND", fallback: "error" }),
    errno: oneOf("what an error is", FAULT_ERRNOS, { takes: "ERRNO", fallback: "EIO" }),
    stage: oneOf("of a set just made, or of one that starts after a cut", FAULT_STAGES, {
      takes: "STAGE",
      fallback: "first",
    }),
    sticky: flag("faults are for good"),
    subsets: flag("keeps every subset of up to 8 unflushed writes in turn"),
    first: flag("the first failure ends the run"),
    record: recordOption,
    verbose: flag("names each moment when it is cut"),
  },
} as const;
const { values } = argumentsOf(DECLARED);
if (values.fault === undefined) {
  const alone = ["kind", "errno", "stage", "sticky"] as const;
  const found = alone.find((name) => values[name] !== DECLARED.options[name].fallback);
  if (found !== undefined) refuse(DECLARED, `--${found} goes with --fault`);
} else if (values.cut !== undefined) {
  refuse(DECLARED, "--cut and --fault exclude each other");
}

function placeOf(place: string): string {
  try {
    faultPlace(place);
    return place;
  } catch (error) {
    throw new Refusal(error instanceof Error ? error.message : String(error));
  }
}

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
    command: `npx bun tests/simulation/run.ts ${process.argv.slice(2).join(" ")}`,
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
    ...(values.every === undefined ? {} : { cutOneIn: values.every }),
    ...(values.audit === undefined ? {} : { auditOneIn: values.audit }),
    ...(values.subsets ? { subsets: true } : {}),
    ...(values.cut === undefined ? {} : { onlyCut: values.cut }),
  };
  try {
    if (values.fault !== undefined) {
      const { fault, kind, errno, stage, sticky } = values;
      const plan = planOf({ fault, kind, errno, stage, sticky, oneIn: values.every ?? 10 });
      const report = await exploreFaults(scenarioOf(name, seed), plan);
      count(name, { faults: report.injected });
      console.log(
        `${name} seed ${seed}: ${counted(report.runs, "run")}, ` +
          `${counted(report.injected, "operation")} met by the fault, ` +
          `${counted(report.recoveries, "recovery", "recoveries")}, ` +
          `${counted(report.refused, "start")} refused, ` +
          `${counted(report.damagedData, "damaged data block")} served, ` +
          `${counted(report.told, "loss", "losses")} told of, ` +
          `${counted(report.untold, "loss", "losses")} without a trace`,
      );
      return true;
    }
    const onCut = values.verbose ? (where: string) => console.error(where) : () => undefined;
    const report = await explore({ ...scenarioOf(name, seed, over), onCut });
    count(name, report);
    console.log(
      `${name} seed ${seed}: ${counted(report.moments, "moment")}, ` +
        `${counted(report.cuts, "cut")}, ` +
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

/** Recoveries and faults together: none of either is a run that showed nothing. */
function doneOfAll(): number {
  return [...done.values()].reduce((sum, { cuts, faults }) => sum + cuts + faults, 0);
}

const names = RECIPE_NAMES.filter((name) => values.scenario === name || values.scenario === "all");
for (let seed = values.seed; seed < values.seed + values.count; seed++) {
  for (const name of names) {
    if (await runOne(name, seed)) continue;
    if (values.first) process.exit(1);
  }
}
if (values.record !== undefined) record(values.record);
if (failures.length > 0) {
  console.error(`${failures.length} failed`);
  process.exitCode = 1;
} else if ((values.cut ?? values.fault) !== undefined && doneOfAll() === 0) {
  const what = values.fault === undefined ? "no moment was cut" : "no operation met the fault";
  console.error(
    `simulate: ${what} in ${counted(done.size, "scenario")}: there is none of this number`,
  );
  process.exitCode = 1;
}
