/**
 * The swarm as a command, for as long as one likes:
 *
 *   npm run simulate -- [--seed N] [--count M] [--only STEPS] [--jobs J] [--first]
 *       [--record FILE] [--verbose]
 *
 * Runs the plans of seeds N to N+M-1. A plan that fails is made small, and the line that shows it
 * again is printed: `--only` runs some steps of a seed's plan. With `--verbose` each step is named
 * when it begins. The exit status is 1 when one failed; `--first` ends with that. `--record` leaves
 * what was done in a file; `--jobs` divides the seeds among so many processes.
 */
// deno-lint-ignore-file no-console
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type AssuranceRecord,
  readRecord,
  replayLine,
  writeRecord,
} from "../../assurance/record.ts";
import {
  argumentsOf,
  flag,
  recordOption,
  Refusal,
  refuse,
  seedOption,
  text,
  wholeNumber,
} from "../../support/arguments.ts";
import { whenInterrupted } from "../../support/interrupted.ts";
import { counted } from "../../support/lines.ts";
import { SimulationFailure } from "../explorer.ts";
import { Trace } from "../sim_random.ts";
import { makePlan } from "./make_plan.ts";
import { type Kept, parseKept } from "./minimise.ts";
import { describeStep } from "./plan.ts";
import { swarm } from "./swarm.ts";

const WHAT = "A seed decides the geometry, one to three cached devices and volumes beside them, " +
  "their modes, the requests, attributes that change and devices that come and go while they " +
  "run, faults of the disks, and power cuts, also in the recoveries from them. After each the " +
  "offline check must find no error, the engine must count the dirty bytes that the check " +
  "counted, and every sector must be as a flush acknowledged it or newer; at the end the backing " +
  "devices alone must hold it all.";

interface Arguments {
  readonly seed: number;
  readonly count: number;
  readonly only?: readonly number[];
  readonly jobs: number;
  readonly first: boolean;
  readonly verbose: boolean;
  readonly record?: string;
}

const DECLARED = {
  command: "npm run simulate",
  about:
    "The swarm: whole lives of caches that a seed decides, with power cuts and faults of the " +
    "disks. A failure is made small, and the line that shows it again is printed; the exit " +
    "status is 1 then. With --scenario NAME it is crash exploration instead, which has options " +
    'of its own: "npm run simulate -- --scenario all --help" tells them.',
  options: {
    seed: seedOption("the first seed"),
    count: wholeNumber("how many seeds", { from: 1, fallback: 1 }),
    only: text("only these steps of the one seed's plan, as 0-3,7", "STEPS", keptOf),
    jobs: wholeNumber("divides the seeds among so many processes", { from: 1, fallback: 1 }),
    first: flag("the first failure ends the run"),
    record: recordOption,
    verbose: flag("names each step when it begins"),
  },
};

function keptOf(steps: string): Kept {
  try {
    return parseKept(steps);
  } catch {
    throw new Refusal("expected numbers of steps, as 0-3,7");
  }
}

function parse(args: readonly string[]): Arguments {
  const { seed, count, only, jobs, first, record, verbose } = argumentsOf(DECLARED, args).values;
  if (only !== undefined) {
    if (count > 1) refuse(DECLARED, `--only: found --count ${count}, expected a single seed`);
    const { length } = makePlan(seed).steps;
    const missing = only.find((step) => step >= length);
    if (missing !== undefined) {
      refuse(DECLARED, `--only: found step ${missing}, expected steps 0 to ${length - 1}`);
    }
  }
  return {
    seed,
    count,
    jobs,
    first,
    verbose,
    ...(only === undefined ? {} : { only }),
    ...(record === undefined ? {} : { record }),
  };
}

/** The seeds that were run, which are fewer than asked for after a failure with --first. */
function seedsText({ seed, count }: Arguments, ran: number, isInOrder: boolean): string {
  if (ran === 1 && isInOrder) return `1 seed (${seed})`;
  const last = seed + (isInOrder ? ran : count) - 1;
  return `${counted(ran, "seed")} (${ran < count && !isInOrder ? "of " : ""}${seed} to ${last})`;
}

/** Returns the exit status. */
export async function swarmCommand(args: readonly string[]): Promise<number> {
  const asked = parse(args);
  const started = performance.now();
  const isDivided = asked.jobs > 1 && asked.count > 1;
  const { counts, failures, trace } = isDivided ? await divide(asked) : await runAll(asked);
  const wallSeconds = (performance.now() - started) / 1000;
  const ran = counts["swarm seeds"] ?? 0;
  const rate = (ran / wallSeconds).toFixed(1);
  const seeds = seedsText(asked, ran, !isDivided);
  console.log(`${seeds} in ${wallSeconds.toFixed(0)} s, ${rate} per second`);
  if (trace !== undefined) console.log(`trace ${trace}`);
  for (const [name, count] of Object.entries(counts)) console.log(`  ${name}: ${count}`);
  if (asked.record !== undefined) {
    writeRecord(asked.record, {
      part: "swarm",
      what: WHAT,
      command: `npx bun run simulate --seed ${asked.seed} --count ${asked.count}`,
      counts,
      failures,
      wallSeconds,
    });
  }
  if (failures.length > 0) console.error(`${failures.length} failed`);
  return failures.length === 0 ? 0 : 1;
}

type Done = Pick<AssuranceRecord, "counts" | "failures"> & {
  /** A hash of all that happened, where one process did it all. */
  readonly trace?: string;
};

async function runAll({ seed: from, count, only, first, verbose }: Arguments): Promise<Done> {
  const counts = {
    "swarm seeds": 0,
    "steps": 0,
    "power cuts": 0,
    "of these within a recovery": 0,
    "recoveries": 0,
    "clean stops": 0,
    "operations of disks that failed or were slow": 0,
    "simulated minutes": 0,
  };
  const failures: string[] = [];
  const trace = new Trace();
  for (let seed = from; seed < from + count; seed++) {
    try {
      const report = await swarm(seed, {
        ...(only === undefined ? {} : { only }),
        ...(verbose ? { onStep: (step) => console.error(describeStep(step)) } : {}),
      });
      trace.note(Number.parseInt(report.traceHash, 16));
      counts["steps"] += report.steps;
      counts["power cuts"] += report.powerCuts;
      counts["of these within a recovery"] += report.nestedCuts;
      counts["recoveries"] += report.recoveries;
      counts["clean stops"] += report.cleanStops;
      counts["operations of disks that failed or were slow"] += report.faults;
      counts["simulated minutes"] += report.simulatedMs / 60_000;
    } catch (error) {
      if (!(error instanceof SimulationFailure)) throw error;
      console.error(error.message);
      failures.push(replayLine(error.message));
      if (first) break;
    } finally {
      counts["swarm seeds"]++;
    }
  }
  counts["simulated minutes"] = Math.round(counts["simulated minutes"]);
  return { counts, failures, trace: trace.hash };
}

/** Every process takes a part of the seeds, in one piece. */
async function divide(asked: Arguments): Promise<Done> {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-swarm-"));
  const children = new Set<ChildProcess>();
  const handled = whenInterrupted(() => {
    for (const child of children) child.kill("SIGTERM");
    rmSync(folder, { recursive: true, force: true });
  });
  try {
    const share = Math.ceil(asked.count / asked.jobs);
    const parts = Array.from({ length: asked.jobs }, (_, job) => {
      const count = Math.max(0, Math.min(share, asked.count - job * share));
      return { seed: asked.seed + job * share, count, file: join(folder, `${job}.json`) };
    }).filter(({ count }) => count > 0);
    await Promise.all(parts.map((part) => runPart(part, asked.first, children)));
    const records = parts.map(({ file }) => readRecord(file));
    const counts: Record<string, number> = {};
    for (const record of records) {
      for (const [name, count] of Object.entries(record.counts)) {
        counts[name] = (counts[name] ?? 0) + count;
      }
    }
    return { counts, failures: records.flatMap(({ failures }) => failures) };
  } finally {
    handled();
    rmSync(folder, { recursive: true, force: true });
  }
}

function runPart(
  part: { seed: number; count: number; file: string },
  first: boolean,
  children: Set<ChildProcess>,
): Promise<void> {
  const script = join(import.meta.dirname!, "../run.ts");
  const deno = process.versions["bun"] === undefined ? ["run", "-A", "--no-check"] : [];
  const args = ["--seed", `${part.seed}`, "--count", `${part.count}`, "--record", part.file];
  const child = spawn(process.execPath, [...deno, script, ...args, ...(first ? ["--first"] : [])], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  children.add(child);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", () => resolve()); // Its record says what failed.
  });
}
