/**
 * Runs the suite: every `*_test.ts` under tests/, in a process of its own, under Bun and under
 * Deno. One crash, hang or leaked handle then costs one file, not the run. Files that mount, use
 * ports or loop devices run alone, one after the other; the others two at a time.
 *
 *   npm test -- [--runtime=bun|deno] [PART_OF_A_PATH]…
 *
 * The last line says how many tests really ran: `N passed, N failed`. A file that ends badly
 * without a failed test (a crash, a time-out, an error while loading, no test at all) counts as
 * one failure. In CI (environment CI) a skipped test is a failure too.
 */
// deno-lint-ignore-file no-console
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { argumentsOf, oneOf, refuse } from "./support/arguments.ts";
import { clearDeadMounts } from "./support/dead_mounts.ts";
import { installFor } from "./support/install.ts";
import { notWhileEnding, whenInterrupted } from "./support/interrupted.ts";

type Runtime = "bun" | "deno";
interface Job {
  readonly runtime: Runtime;
  readonly file: string;
}
interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Folders whose tests share the machine's mounts, ports, loop devices or all of its processors. */
const ALONE = [
  "tests/api/",
  "tests/bench/",
  "tests/e2e/",
  "tests/fuse/",
  "tests/kernel/",
  "tests/processes/",
];
const FILE_LIMIT_MS = 8 * 60_000;
/** For a test under Bun that names no limit of its own; the default of 5 s suits idle machines. */
const TEST_LIMIT_MS = 60_000;
/** What the tests that were interrupted get to take down what they have set up. */
const ENDING_LIMIT_MS = 15_000;

const top = join(import.meta.dirname!, "..");
const DECLARED = {
  command: "npm test",
  about: "Runs the test suite under Bun and under Deno. The last line says how many tests really " +
    "ran; the exit status is 1 when one failed.",
  options: { runtime: oneOf("under one of them", ["bun", "deno"], { takes: "RUNTIME" }) },
  words: {
    takes: "PART_OF_A_PATH",
    help: "only the test files with one of these in their path",
    most: Infinity,
  },
} as const;
const asked = argumentsOf(DECLARED);
const files = wantedFiles(asked.words);
installFor(["test", "test:bun", "test:deno"], "test", "kernel");
const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-suite-"));
const children = new Set<ChildProcess>();

function wantedFiles(parts: readonly string[]): string[] {
  const all = readdirSync(join(top, "tests"), { recursive: true })
    .map((name) => `tests/${String(name)}`)
    .filter((name) => name.endsWith("_test.ts"))
    .sort();
  const missing = parts.find((part) => !all.some((name) => name.includes(part)));
  if (missing !== undefined) refuse(DECLARED, `no test file has "${missing}" in its path`);
  return all.filter((name) => parts.length === 0 || parts.some((part) => name.includes(part)));
}

function commandOf(job: Job, report: string): string[] {
  if (job.runtime === "bun") {
    const limit = `--timeout=${TEST_LIMIT_MS}`;
    return [
      "bun",
      "test",
      limit,
      "--reporter=junit",
      `--reporter-outfile=${report}`,
      `./${job.file}`,
    ];
  }
  return ["deno", "test", "-A", "--no-check", `--junit-path=${report}`, `./${job.file}`];
}

/**
 * Counts the tests of a JUnit report; the two runtimes agree on these elements. Deno also lists
 * every group as if it were a test: a group only counts when it failed and none of its tests did,
 * in its set-up, say.
 */
function countsOf(report: string): Counts {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  if (!existsSync(report)) return counts;
  const cases = [
    ...readFileSync(report, "utf8").matchAll(
      /<testcase name="([^"]*)"[^>]*?(?:\/>|>([^]*?)<\/testcase>)/g,
    ),
  ].map(([, name, inside]) => ({
    name: name!,
    failed: /<(failure|error)\b/.test(inside ?? ""),
    skipped: /<skipped\b/.test(inside ?? ""),
  }));
  for (const { name, failed, skipped } of cases) {
    const members = cases.filter((other) => other.name.startsWith(`${name} &gt; `));
    if (members.length > 0 && (!failed || members.some((member) => member.failed))) continue;
    if (failed) counts.failed++;
    else if (skipped) counts.skipped++;
    else counts.passed++;
  }
  return counts;
}

/** To a child and whatever it has started; nothing when none of them is left. */
function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch {
    // Nothing was left.
  }
}

/** Interrupted: what runs gets some time to take down its mounts, then it is killed. */
async function cleanUp(): Promise<void> {
  const running = [...children];
  // The test alone: what it has started it ends itself, in its own order.
  for (const child of running) child.kill("SIGTERM");
  const deadlineMs = performance.now() + ENDING_LIMIT_MS;
  while (children.size > 0 && performance.now() < deadlineMs) await sleep(20);
  for (const child of running) signalGroup(child, "SIGKILL");
  rmSync(scratch, { recursive: true, force: true });
}

async function run(job: Job): Promise<Counts> {
  const report = join(scratch, `${job.runtime}-${job.file.replaceAll("/", "-")}.xml`);
  const [program, ...args] = commandOf(job, report);
  const startedMs = performance.now();
  // A group of its own, so that a file that hangs takes what it started with it.
  const child = spawn(program!, args, {
    cwd: top,
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, PATH: `${join(top, "node_modules/.bin")}:${process.env["PATH"] ?? ""}` },
  });
  children.add(child);
  let output = "";
  child.stdout.on("data", (chunk) => output += String(chunk));
  child.stderr.on("data", (chunk) => output += String(chunk));
  let late = false;
  const watchdog = setTimeout(() => {
    late = true;
    signalGroup(child, "SIGKILL");
  }, FILE_LIMIT_MS);
  const status = await new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(`did not start: ${error.message}`));
    child.once("exit", (code, signal) => resolve(signal ?? String(code)));
  });
  clearTimeout(watchdog);
  children.delete(child);
  await notWhileEnding();
  signalGroup(child, "SIGKILL"); // What a test that timed out has left running.

  const counts = countsOf(report);
  const problems: string[] = [];
  if (late) problems.push(`not finished after ${FILE_LIMIT_MS / 1000} s`);
  else if (status !== "0" && counts.failed === 0) problems.push(`ended with ${status}`);
  if (counts.passed + counts.failed + counts.skipped === 0) problems.push("ran no test");
  if (problems.length > 0) counts.failed++;
  if (counts.skipped > 0 && process.env["CI"]) {
    problems.push(`${counts.skipped} skipped, which CI does not allow`);
    counts.failed += counts.skipped;
  }
  const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
  const bad = counts.failed > 0;
  const summary = `${counts.passed} passed` + (bad ? `, ${counts.failed} failed` : "") +
    (counts.skipped > 0 ? `, ${counts.skipped} skipped` : "");
  console.log(
    `${bad ? "FAIL" : "ok  "} ${job.runtime.padEnd(4)} ${job.file}: ${summary} (${seconds} s)`,
  );
  if (bad) console.log(output.trimEnd().replaceAll(/^/gm, "     | "));
  for (const problem of problems) console.log(`     ${job.runtime} ${job.file}: ${problem}`);
  return counts;
}

/** Runs `jobs`, `width` at a time, in order. */
async function runAll(jobs: readonly Job[], width: number, total: Counts): Promise<void> {
  const queue = [...jobs];
  const worker = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) {
      const counts = await run(job);
      total.passed += counts.passed;
      total.failed += counts.failed;
      total.skipped += counts.skipped;
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
}

async function main(): Promise<number> {
  // A developer's machine is not ours to tidy.
  if (process.env["CI"]) {
    for (const mountPoint of clearDeadMounts()) console.log(`cleared the dead mount ${mountPoint}`);
  }
  const wanted = asked.values.runtime;
  const runtimes: readonly Runtime[] = wanted === undefined ? ["bun", "deno"] : [wanted];
  const jobs = files.flatMap((file) => runtimes.map((runtime): Job => ({ runtime, file })));
  const alone = (job: Job) => ALONE.some((folder) => job.file.startsWith(folder));

  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  await runAll(jobs.filter((job) => !alone(job)), Math.min(2, availableParallelism()), total);
  await runAll(jobs.filter(alone), 1, total);
  if (total.skipped > 0) console.log(`${total.skipped} skipped`);
  console.log(`${total.passed} passed, ${total.failed} failed`);
  return total.failed === 0 && total.passed > 0 ? 0 : 1;
}

whenInterrupted(cleanUp);
try {
  process.exitCode = await main();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
