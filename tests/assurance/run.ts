/**
 * Everything that shows that nothing is lost, at the scale a release asks for, and the report of it
 * in docs/assurance.md:
 *
 *   bun tests/assurance/run.ts [--scale X] [--only PART[,PART…]] [--continue] [--report FILE]
 *       [--report-only] [--list]
 *
 * Two jobs run at a time: one lane has all that mounts, boots or kills, one after the other, the
 * other what only computes. Each job leaves a record, so a run that was interrupted goes on with
 * `--continue`, as long as the commit is the same. `--report-only` makes the report of the records
 * that are there. With a scale other than 1 or with `--only` the report goes to FILE or is printed,
 * never to docs. The exit status is 1 when anything failed.
 */
// deno-lint-ignore-file no-console
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Job, type Part, PARTS } from "./parts.ts";
import { type AssuranceRecord, readRecord } from "./record.ts";
import { assuranceReport, type JobResult } from "./report.ts";

const TOP = join(import.meta.dirname!, "../..");
const RECORDS = join(TOP, "node_modules/.cache/assurance");
const DOCUMENT = join(TOP, "docs/assurance.md");
/** A job that takes longer hangs. */
const JOB_LIMIT_MS = 60 * 60_000;
const LANES = 2;

const { values } = parseArgs({
  options: {
    scale: { type: "string", default: "1" },
    only: { type: "string" },
    continue: { type: "boolean", default: false },
    report: { type: "string" },
    "report-only": { type: "boolean", default: false },
    list: { type: "boolean", default: false },
  },
});

interface Planned {
  readonly part: Part;
  readonly job: Job;
}

function planned(scale: number): Planned[] {
  const only = values.only?.split(",");
  const unknown = (only ?? []).filter((name) => !PARTS.some((part) => part.name === name));
  if (unknown.length > 0 || !(scale > 0)) {
    const names = PARTS.map(({ name }) => name).join(", ");
    console.error(`--only takes parts among ${names}; --scale a number above 0`);
    process.exit(2);
  }
  return PARTS.filter(({ name }) => only?.includes(name) ?? true)
    .flatMap((part) => part.jobs(scale).map((job) => ({ part, job })));
}

function git(...args: string[]): string {
  return execFileSync("git", ["-c", "safe.directory=*", ...args], { cwd: TOP, encoding: "utf8" })
    .trim();
}

/** The commit, and whether files differ from it (the report itself does not count). */
function commitName(): string {
  const changed = git("status", "--porcelain").split("\n")
    .filter((line) => line !== "" && !line.endsWith("docs/assurance.md"));
  return git("rev-parse", "--short=12", "HEAD") + (changed.length > 0 ? " with changes" : "");
}

function runtimeVersions(): string[] {
  const firstLine = (text: string) => text.split("\n")[0]!;
  const version = (program: string) => execFileSync(program, ["--version"], { encoding: "utf8" });
  return [`Bun ${version("bun").trim()}`, firstLine(version("deno")).replace("deno", "Deno")];
}

const children = new Set<ChildProcess>();
/** Interrupted: what runs is told to end and leaves no record. */
let stopping = false;

/** Runs one job to its end; its record, or one that says how it ended instead. */
async function run({ part, job }: Planned, folder: string): Promise<void> {
  const started = performance.now();
  const file = join(folder, `${job.name}.record`);
  const head = job.runtime === "deno" ? ["deno", "run", "-A", "--no-check"] : ["bun"];
  const [program, ...args] = [...head, ...job.args, "--record", file];
  const child = spawn(program!, args, { cwd: TOP, stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  let output = "";
  const listen = (chunk: unknown) => output = (output + String(chunk)).slice(-20_000);
  child.stdout.on("data", listen);
  child.stderr.on("data", listen);
  const limit = setTimeout(() => child.kill("SIGKILL"), JOB_LIMIT_MS);
  const ending = await new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("close", (code, signal) => resolve(signal ?? `status ${code}`));
  });
  clearTimeout(limit);
  children.delete(child);
  if (stopping) return;
  const wallSeconds = (performance.now() - started) / 1000;
  const record = recordOrEnding(file, { job, ending, output, wallSeconds });
  const result: JobResult = { part: part.name, runtime: job.runtime, args: job.args, record };
  // Whoever continues takes what has this name for finished.
  writeFileSync(`${file}.new`, `${JSON.stringify(result, null, 2)}\n`);
  renameSync(`${file}.new`, join(folder, `${job.name}.json`));
  rmSync(file, { force: true });
  const { failures } = record;
  const word = failures.length === 0 ? "ok  " : "FAIL";
  console.log(`${word} ${job.name} (${wallSeconds.toFixed(0)} s)`);
  for (const failure of failures) console.log(`     ${failure}`);
}

interface Ended {
  readonly job: Job;
  readonly ending: string;
  readonly output: string;
  readonly wallSeconds: number;
}

/** A job that failed without naming a failure in its record has failed all the same. */
function recordOrEnding(file: string, ended: Ended): AssuranceRecord {
  const { job, ending, output, wallSeconds } = ended;
  const command = `${job.runtime} ${job.args.join(" ")}`;
  const lastLine = output.trim().split("\n").at(-1) ?? "";
  const failure = `${command} ended with ${ending}: ${lastLine}`;
  if (!existsSync(file)) {
    return { part: job.name, what: "", command, counts: {}, failures: [failure], wallSeconds };
  }
  const record = readRecord(file);
  if (ending === "status 0" || record.failures.length > 0) return record;
  return { ...record, failures: [failure] };
}

/** Jobs that must run alone are all in the first lane, which comes first to what is left. */
async function runAll(jobs: readonly Planned[], folder: string): Promise<void> {
  const alone = jobs.filter(({ part }) => part.alone);
  const others = jobs.filter(({ part }) => !part.alone);
  const lane = async (own: Planned[]) => {
    for (;;) {
      const next = own.shift() ?? others.shift();
      if (next === undefined || stopping) return;
      await run(next, folder);
    }
  };
  await Promise.all(Array.from({ length: LANES }, (_, at) => lane(at === 0 ? alone : [])));
}

function resultsIn(folder: string): JobResult[] {
  return readdirSync(folder).filter((name) => name.endsWith(".json") && name !== "run.json")
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }))
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as JobResult);
}

/** Wall time of this run and of those it continues. */
function addWallSeconds(folder: string, seconds: number): number {
  const file = join(folder, "run.json");
  const before = existsSync(file) ? Number(JSON.parse(readFileSync(file, "utf8")).wallSeconds) : 0;
  writeFileSync(file, JSON.stringify({ wallSeconds: before + seconds }));
  return before + seconds;
}

function report(folder: string, scale: number, commit: string, wallSeconds: number): JobResult[] {
  const results = resultsIn(folder);
  const facts = {
    version: String(JSON.parse(readFileSync(join(TOP, "package.json"), "utf8")).version),
    commit,
    runtimes: runtimeVersions(),
    cores: availableParallelism(),
    memoryGib: Math.round(totalmem() / 2 ** 30),
    scale,
    wallSeconds,
  };
  const titles = new Map(PARTS.map(({ name, title }) => [name, title]));
  const text = assuranceReport(facts, titles, results);
  const whole = scale === 1 && values.only === undefined;
  const file = values.report ?? (whole ? DOCUMENT : undefined);
  if (file === undefined) console.log(text);
  else writeFileSync(file, text);
  return results;
}

const scale = Number(values.scale);
const jobs = planned(scale);
if (values.list) {
  for (const { job } of jobs) console.log(`${job.name.padEnd(28)} ${job.args.join(" ")}`);
  process.exit(0);
}
const commit = commitName();
const folder = join(RECORDS, `${commit.replaceAll(" ", "-")}-scale-${scale}`);
const keep = values.continue || values["report-only"];
if (!keep && values.only === undefined) rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
if (!keep) {
  for (const { job } of jobs) {
    rmSync(join(folder, `${job.name}.json`), { force: true });
  }
}
const started = performance.now();
const elapsed = () => addWallSeconds(folder, (performance.now() - started) / 1000);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    stopping = true;
    for (const child of children) child.kill("SIGTERM");
  });
}
const left = jobs.filter(({ job }) => !existsSync(join(folder, `${job.name}.json`)));
if (!values["report-only"]) await runAll(left, folder);
if (stopping) {
  elapsed();
  console.error("interrupted; `--continue` goes on with what is left");
  process.exit(130);
}
const results = report(folder, scale, commit, elapsed());
const failures = results.reduce((sum, { record }) => sum + record.failures.length, 0);
console.log(`${results.length} jobs, ${failures} failures`);
if (failures > 0) process.exitCode = 1;
