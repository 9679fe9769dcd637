/**
 * Runs the suite: every `*_test.ts` under tests/, in a process of its own, under Bun and under
 * Deno. One crash, hang or leaked handle then costs one file, not the run. Files that mount, use
 * ports or loop devices run alone, one after the other; the others two at a time.
 *
 *   bun tests/run.ts [--runtime=bun|deno] [PART_OF_A_PATH]…
 *
 * The last line says how many tests really ran: `N passed, N failed`. A file that ends badly
 * without a failed test (a crash, a time-out, an error while loading, no test at all) counts as
 * one failure. In CI (environment CI) a skipped test is a failure too.
 */
// deno-lint-ignore-file no-console
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";

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

const top = join(import.meta.dirname!, "..");
const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-suite-"));

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
  let output = "";
  child.stdout.on("data", (chunk) => output += String(chunk));
  child.stderr.on("data", (chunk) => output += String(chunk));
  let late = false;
  const watchdog = setTimeout(() => {
    late = true;
    process.kill(-child.pid!, "SIGKILL");
  }, FILE_LIMIT_MS);
  const status = await new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(`did not start: ${error.message}`));
    child.once("exit", (code, signal) => resolve(signal ?? String(code)));
  });
  clearTimeout(watchdog);
  try {
    process.kill(-child.pid!, "SIGKILL"); // What a test that timed out has left running.
  } catch {
    // Nothing was left.
  }

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
  const args = process.argv.slice(2);
  const wanted = args.find((arg) => arg.startsWith("--runtime="))?.slice("--runtime=".length);
  if (wanted !== undefined && wanted !== "bun" && wanted !== "deno") {
    console.error(`run: unknown runtime ${wanted}; use bun or deno`);
    return 2;
  }
  const filters = args.filter((arg) => !arg.startsWith("--"));
  const files = readdirSync(join(top, "tests"), { recursive: true })
    .map((name) => `tests/${String(name)}`)
    .filter((name) => name.endsWith("_test.ts"))
    .filter((name) => filters.length === 0 || filters.some((part) => name.includes(part)))
    .sort();
  const runtimes: Runtime[] = wanted === undefined ? ["bun", "deno"] : [wanted];
  const jobs = files.flatMap((file) => runtimes.map((runtime): Job => ({ runtime, file })));
  const alone = (job: Job) => ALONE.some((folder) => job.file.startsWith(folder));

  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  await runAll(jobs.filter((job) => !alone(job)), Math.min(2, availableParallelism()), total);
  await runAll(jobs.filter(alone), 1, total);
  if (total.skipped > 0) console.log(`${total.skipped} skipped`);
  console.log(`${total.passed} passed, ${total.failed} failed`);
  return total.failed === 0 && total.passed > 0 ? 0 : 1;
}

try {
  process.exitCode = await main();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
