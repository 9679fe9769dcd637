/**
 * What `npm run assurance` runs, as a table: every part of it is a number of jobs, each a run of
 * one of the test commands over seeds of its own, small enough that an interrupted run loses
 * little. How many there are follows from the scale: 1 is what a release asks for.
 */
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { RECIPE_NAMES } from "../simulation/scenarios.ts";
import type { RecipeName } from "../simulation/scenarios.ts";

export interface Job {
  /** Its record is kept under this name. */
  readonly name: string;
  /** The script, from the top of the project, and its arguments. */
  readonly args: readonly string[];
  readonly runtime: "bun" | "deno";
}

export interface Part {
  /** As `--only` names it. */
  readonly name: string;
  readonly title: string;
  /** Mounts, starts machines or kills processes: two of these at a time disturb each other. */
  readonly alone: boolean;
  jobs(scale: number): Job[];
}

interface Slices {
  readonly script: string;
  readonly args?: readonly string[];
  /** What the whole part counts at scale 1; a job does at most `perJob` of it. */
  readonly count: number;
  readonly perJob: number;
  /** The option that names the count: `--count`, unless said otherwise. */
  readonly option?: string;
  readonly runtime?: Job["runtime"];
}

/** Divides a count among jobs, whose seeds follow each other; one is left at any scale. */
export function slices(name: string, scale: number, what: Slices): Job[] {
  const { script, args = [], count, perJob, option = "--count", runtime = "bun" } = what;
  const total = Math.max(1, Math.round(count * scale));
  const jobs: Job[] = [];
  for (let done = 0; done < total; done += perJob) {
    const seed = 1 + done;
    const own = ["--seed", `${seed}`, option, `${Math.min(perJob, total - done)}`];
    jobs.push({ name: `${name}-${seed}`, args: [script, ...args, ...own], runtime });
  }
  return jobs;
}

const SIMULATE = "tests/simulation/run.ts";
/** Seeds of each scenario: together some 230,000 cut points. */
const CUT_SEEDS = 6;
const SOAK_MINUTES = 60;
/** As many as there are batches of cases that share a boot. */
const KERNEL_SLICES = 13;
const KERNEL_CUT_SEEDS = 8;
const MUTATION_SLICES = 15;
const POLICIES = ["lru", "fifo", "random"];

function cutJobs(scale: number): Job[] {
  return RECIPE_NAMES.flatMap((name: RecipeName) =>
    slices(`cuts-${name}`, scale, {
      script: SIMULATE,
      args: ["--scenario", name],
      count: CUT_SEEDS,
      perJob: 2,
    })
  );
}

/** Each fault at each operation; at smaller scales at one in so many. */
function faultJobs(scale: number): Job[] {
  const every = `${Math.max(1, Math.round(1 / scale))}`;
  return RECIPE_NAMES.map((name: RecipeName) => ({
    name: `faults-${name}`,
    args: ["tests/simulation/run_faults.ts", "--scenario", name, "--every", every, "--seed", "1"],
    runtime: "bun",
  }));
}

/** Every mode and policy under Bun, every mode under Deno too. */
function soakJobs(scale: number): Job[] {
  const minutes = ["--minutes", `${Math.max(4, Math.round(SOAK_MINUTES * scale))}`];
  return CACHE_MODES.flatMap((mode) =>
    POLICIES.flatMap((policy) => {
      const args = ["tests/simulation/run_soak.ts", "--mode", mode, "--policy", policy, ...minutes];
      const name = `soak-${mode}-${policy}`;
      const runtimes = policy === "lru" ? ["bun", "deno"] as const : ["bun"] as const;
      return runtimes.map((runtime) => ({ name: `${name}-${runtime}`, args, runtime }));
    })
  );
}

/** Every case in slices, and runs of the kernel with the power cut at a hundred moments each. */
function kernelJobs(scale: number): Job[] {
  const script = "tests/kernel/run.ts";
  const wanted = Math.max(1, Math.round(KERNEL_SLICES * scale));
  const jobs: Job[] = [];
  for (let slice = 1; slice <= Math.min(wanted, KERNEL_SLICES); slice++) {
    const args = [script, "--slice", `${slice}/${KERNEL_SLICES}`];
    jobs.push({ name: `kernel-${slice}`, args, runtime: "bun" });
  }
  const cuts = { script, args: ["--case", "cuts"], count: KERNEL_CUT_SEEDS, perJob: 2 };
  return [...jobs, ...slices("kernel-cuts", scale, cuts)];
}

/** In slices, so that they spread over the processors and little is lost by an interruption. */
function mutationJobs(): Job[] {
  return Array.from({ length: MUTATION_SLICES }, (_, at) => at + 1).map((slice) => ({
    name: `mutations-${slice}`,
    args: [
      "tests/simulation/mutations/run.ts",
      "--slice",
      `${slice}/${MUTATION_SLICES}`,
      "--jobs",
      "1",
    ],
    runtime: "bun",
  }));
}

/** In the order of the report. Of each lane the longest begin first. */
export const PARTS: readonly Part[] = [
  { name: "cuts", title: "Power cuts at every write", alone: false, jobs: cutJobs },
  { name: "faults", title: "Faults of the disks", alone: false, jobs: faultJobs },
  {
    name: "swarm",
    title: "Whole lives decided by a seed",
    alone: false,
    jobs: (scale) => slices("swarm", scale, { script: SIMULATE, count: 20_000, perJob: 1000 }),
  },
  { name: "soak", title: "Long lives", alone: false, jobs: soakJobs },
  {
    name: "fuzz",
    title: "Damaged and hostile input",
    alone: false,
    jobs: (scale) =>
      slices("fuzz", scale, { script: "tests/fuzz/run.ts", count: 1_000_000, perJob: 100_000 }),
  },
  {
    name: "processes",
    title: "Real processes, killed",
    alone: true,
    jobs: (scale) =>
      slices("processes", scale, {
        script: "tests/processes/run.ts",
        count: 500,
        perJob: 60,
        option: "--cycles",
      }),
  },
  { name: "kernel", title: "The Linux kernel as judge", alone: true, jobs: kernelJobs },
  { name: "mutations", title: "Deliberate breakages", alone: false, jobs: mutationJobs },
];
