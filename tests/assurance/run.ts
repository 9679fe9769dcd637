/**
 * Everything that shows that nothing is lost, at the scale a release asks for, and the report of it
 * in docs/assurance.md:
 *
 *   npm run assurance -- [--scale X] [--only PART[,PART…]] [--continue] [--report FILE]
 *       [--report-only] [--list]
 *
 * Two jobs run at a time: one lane has all that mounts, boots or kills, one after the other, the
 * other what only computes. Each job leaves a record, so a run that was interrupted goes on with
 * `--continue`, as long as the product is the same: a test may be mended meanwhile, and what failed
 * is done again. `--report-only` makes the report of the records that are there. With a scale
 * other than 1 or with `--only` the report goes to FILE or is printed, never to docs. The exit
 * status is 1 when anything failed or a report for docs lacks a goal.
 */
// deno-lint-ignore-file no-console
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
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
import { type Job, type Part, PARTS } from "./parts.ts";
import { type AssuranceRecord, readRecord } from "./record.ts";
import { assuranceReport, goalsNotReached, type JobResult } from "./report.ts";
import { argumentsOf, fileToWrite, flag, Refusal, refuse, text } from "../support/arguments.ts";
import { installFor } from "../support/install.ts";
import { counted } from "../support/lines.ts";

const TOP = join(import.meta.dirname!, "../..");
const RECORDS = join(TOP, "node_modules/.cache/assurance");
const DOCUMENT = join(TOP, "docs/assurance.md");
/** What the product is made of. */
const PRODUCT = ["api", "fuse", "lib", "mod.ts", "package-lock.json"];
/** A job that takes longer hangs. */
const JOB_LIMIT_MS = 60 * 60_000;
const LANES = 2;

const NAMES = PARTS.map(({ name }) => name);
const DECLARED = {
  command: "npm run assurance",
  about:
    "Everything that shows that nothing is lost, at the scale of a release, which takes many " +
    "hours, and the report of it in docs/assurance.md. Needs root.",
  options: {
    scale: text("a number above 0: what part of a release (default 1)", "X", (scale) => {
      if (Number(scale) > 0 && Number.isFinite(Number(scale))) return Number(scale);
      throw new Refusal("expected a number above 0");
    }),
    only: text(`only these parts: ${NAMES.join(", ")}`, "PART[,PART]", (parts) => {
      const unknown = parts.split(",").filter((part) => !NAMES.includes(part));
      if (unknown.length === 0) return parts.split(",");
      throw new Refusal(`expected parts among ${NAMES.join(", ")}`);
    }),
    continue: flag("goes on with what a run left or failed, of the same api, fuse and lib"),
    report: fileToWrite("the report goes to FILE"),
    "report-only": flag("runs nothing: a report of the records that are there"),
    list: flag("prints what would be run"),
  },
};
const { values } = argumentsOf(DECLARED);
const scale = values.scale ?? 1;
/** What a release asks for, all of it. */
const isWhole = scale === 1 && values.only === undefined;

interface Planned {
  readonly part: Part;
  readonly job: Job;
}

function planned(): Planned[] {
  return PARTS.filter(({ name }) => values.only?.includes(name) ?? true)
    .flatMap((part) => part.jobs(scale).map((job) => ({ part, job })));
}

function git(...args: string[]): string {
  return execFileSync("git", ["-c", "safe.directory=*", ...args], { cwd: TOP, encoding: "utf8" })
    .trim();
}

/** Whether files differ from the commit (the report itself does not count). */
function withChanges(...paths: string[]): string {
  const changed = git("status", "--porcelain", "--", ...paths).split("\n")
    .filter((line) => line !== "" && !line.endsWith("docs/assurance.md"));
  return changed.length > 0 ? " with changes" : "";
}

function commitName(): string {
  return git("rev-parse", "--short=12", "HEAD") + withChanges();
}

/** Equal for equal sources of the product, whatever the commit. */
function productName(): string {
  const hash = createHash("sha256").update(git("ls-tree", "HEAD", ...PRODUCT)).digest("hex");
  return hash.slice(0, 12) + withChanges(...PRODUCT);
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
  const commit = commitName();
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
  const { runtime, args: own } = job;
  const result: JobResult = { part: part.name, runtime, args: own, commit, record };
  // Whoever continues takes what has this name for finished.
  writeFileSync(`${file}.new`, `${JSON.stringify(result, null, 2)}\n`);
  renameSync(`${file}.new`, join(folder, `${job.name}.json`));
  rmSync(file, { force: true });
  const { failures } = record;
  const word = failures.length === 0 ? "ok  " : "FAIL";
  console.log(`${word} ${job.name} (${wallSeconds.toFixed(0)} s)`);
  for (const failure of failures) console.log(`     ${failure}`);
  const log = join(folder, `${job.name}.log`);
  rmSync(log, { force: true });
  if (failures.length === 0) return;
  writeFileSync(log, output);
  console.log(`     what it printed: ${log}`);
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
  const command = `npx ${job.runtime === "deno" ? "deno run -A" : "bun"} ${job.args.join(" ")}`;
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

/** Whether it went well, with the seeds that it has now. */
function isDone(job: Job, file: string): boolean {
  if (!existsSync(file)) return false;
  const { args, record } = JSON.parse(readFileSync(file, "utf8")) as JobResult;
  return record.failures.length === 0 && args.join(" ") === job.args.join(" ");
}

/** Wall time of this run and of those it continues. */
function addWallSeconds(folder: string, seconds: number): number {
  const file = join(folder, "run.json");
  const before = existsSync(file) ? Number(JSON.parse(readFileSync(file, "utf8")).wallSeconds) : 0;
  writeFileSync(file, JSON.stringify({ wallSeconds: before + seconds }));
  return before + seconds;
}

function report(folder: string, wallSeconds: number): JobResult[] {
  const results = resultsIn(folder);
  const facts = {
    version: String(JSON.parse(readFileSync(join(TOP, "package.json"), "utf8")).version),
    commit: commitName(),
    runtimes: runtimeVersions(),
    cores: availableParallelism(),
    memoryGib: Math.round(totalmem() / 2 ** 30),
    scale,
    wallSeconds,
  };
  const titles = new Map(PARTS.map(({ name, title }) => [name, title]));
  const text = assuranceReport(facts, titles, results);
  const file = values.report ?? (isWhole ? DOCUMENT : undefined);
  if (file === undefined) console.log(text);
  else writeFileSync(file, text);
  return results;
}

const jobs = planned();
if (values.list) {
  for (const { job } of jobs) console.log(`${job.name.padEnd(28)} ${job.args.join(" ")}`);
  process.exit(0);
}
const folder = join(RECORDS, `${productName().replaceAll(" ", "-")}-scale-${scale}`);
if (values["report-only"] && !(existsSync(folder) && resultsIn(folder).length > 0)) {
  refuse(
    DECLARED,
    `--report-only: found no record of this api, fuse and lib at scale ${scale}: run it without ` +
      "first",
  );
}
if (!values["report-only"]) installFor(["assurance"], "test", "kernel");
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
for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    stopping = true;
    for (const child of children) child.kill("SIGTERM");
  });
}
const left = jobs.filter(({ job }) => !isDone(job, join(folder, `${job.name}.json`)));
if (!values["report-only"]) await runAll(left, folder);
if (stopping) {
  elapsed();
  console.error("interrupted; npm run assurance -- --continue goes on with what is left");
  process.exit(130);
}
const results = report(folder, elapsed());
const failures = results.reduce((sum, { record }) => sum + record.failures.length, 0);
console.log(`${counted(results.length, "job")}, ${counted(failures, "failure")}`);
if (failures > 0) process.exitCode = 1;
const missing = isWhole ? goalsNotReached(results.map(({ record }) => record)) : [];
if (isWhole && values["report-only"] && left.length > 0) {
  missing.push(`${counted(left.length, "job")} of ${jobs.length} not run`);
}
if (missing.length > 0) {
  process.exitCode = 1;
  console.log(`goals not reached: ${missing.join("; ")}`);
}
