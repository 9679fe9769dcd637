/**
 * The benchmark: the mounted file, with all data cached, beside qemu-storage-daemon's FUSE export
 * of a plain file on the same disk, in the same run. Repeats alternate between the two, so that
 * what disturbs the machine disturbs both; medians and their ratios are printed.
 *
 *   npm run bench -- [--micro] [--quick] [--alone] [--write]
 *
 * --quick: tiny sizes, to see that it runs. --alone: without qemu-storage-daemon. --write: also
 * into docs/benchmark.md. Under `deno run -A` it measures the program under Deno.
 * --micro: instead of all that, the parts by themselves (micro.ts); with --write in their own
 * section of the page.
 */
// deno-lint-ignore-file no-console
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { inWorkshop, TOP } from "../e2e/support/workshop.ts";
import { argumentsOf, flag, refuse } from "../support/arguments.ts";
import { installFor } from "../support/install.ts";
import { type Contender, startOurs, startQemu } from "./contenders.ts";
import { micro, MICRO_FULL, MICRO_QUICK } from "./micro.ts";
import { fill, measure, median, type Sizes, type Workload, WORKLOADS } from "./workloads.ts";

const DECLARED = {
  command: "npm run bench",
  about: "Measures the mounted file, with all data cached, beside qemu-storage-daemon's FUSE " +
    "export of a plain file on the same disk, in the same run. Needs root.",
  options: {
    micro: flag("instead of all that, the parts by themselves"),
    quick: flag("tiny sizes, to see that it runs"),
    alone: flag("without qemu-storage-daemon"),
    write: flag("also into docs/benchmark.md"),
  },
};
const asked = argumentsOf(DECLARED).values;
if (asked.micro && asked.alone) refuse(DECLARED, "--alone is nothing that --micro could leave out");
if (!asked.micro) installFor(["bench"], "bench");

const FULL: Sizes = { dataMib: 1024, seconds: 4, repeats: 3 };
const QUICK: Sizes = { dataMib: 48, seconds: 1, repeats: 1 };
const MEMORY_LIMIT_MIB = 250;

function row(cells: readonly string[]): string {
  return `| ${cells.join(" | ")} |`;
}

function rounded(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

function resultRow(workload: Workload, medians: readonly number[]): string {
  const [ours, theirs] = medians;
  const ratio = theirs === undefined ? "-" : (ours! / theirs).toFixed(2);
  return row([
    workload.name,
    `${rounded(ours!)} ${workload.unit}`,
    theirs === undefined ? "-" : `${rounded(theirs)} ${workload.unit}`,
    ratio,
    workload.wantedRatio === undefined ? "" : `at least ${workload.wantedRatio}`,
  ]);
}

/** Medians of interleaved runs, one per contender. */
async function compare(
  workload: Workload,
  contenders: readonly Contender[],
  sizes: Sizes,
): Promise<number[]> {
  const results = contenders.map((): number[] => []);
  for (let repeat = 0; repeat < sizes.repeats; repeat++) {
    for (const [at, contender] of contenders.entries()) {
      results[at]!.push(await measure(workload, contender.file, sizes));
    }
  }
  return results.map(median);
}

/** What it runs on, for the page. */
function surroundings(): string {
  const runtime = process.versions["bun"] === undefined ? "Deno" : "Bun";
  const version = process.versions["bun"] ?? process.versions["deno"];
  const machine = `${cpus().length} × ${cpus()[0]!.model}, ${Math.round(totalmem() / 2 ** 30)} GiB`;
  return `${runtime} ${version}, Linux ${release()}, ${machine}.`;
}

function heading(sizes: Sizes): string {
  return [
    "# Benchmark",
    "",
    "The mounted file with all data cached, beside qemu-storage-daemon's FUSE " +
    "export of a plain file on the same disk in the same run: fio, direct I/O, medians of " +
    `${sizes.repeats} interleaved runs of ${sizes.seconds} s over ${sizes.dataMib} MiB. ` +
    "`npm run bench -- --write` makes this page.",
    "",
    surroundings(),
    "",
    row(["workload", "bcache-fuse", "qemu-storage-daemon", "ratio", "wanted"]),
    row(["---", "---:", "---:", "---:", "---:"]),
  ].join("\n");
}

async function main(): Promise<void> {
  const sizes = asked.quick ? QUICK : FULL;
  const lines: string[] = [];
  const say = (text: string) => {
    lines.push(text);
    console.log(text);
  };
  await inWorkshop(async (place) => {
    let filled: ReturnType<Contender["memory"]> | undefined;
    const { contender: ours, served } = await startOurs(place, sizes.dataMib);
    const contenders = [ours];
    if (!asked.alone) contenders.push(await startQemu(place, sizes.dataMib));
    say(heading(sizes));
    for (const how of ["in order", "scattered"] as const) {
      for (const contender of contenders) await fill(contender.file, sizes.dataMib, how);
      if (how === "scattered") filled = ours.memory();
      for (const workload of WORKLOADS.filter((each) => each.filled === how)) {
        say(resultRow(workload, await compare(workload, contenders, sizes)));
      }
    }
    const end = ours.memory();
    say("");
    say(
      `Resident set with ${sizes.dataMib} MiB cached as 4 KiB extents: ` +
        `${rounded(filled!.residentMib)} MiB (wanted: under ${MEMORY_LIMIT_MIB} MiB), ` +
        `${rounded(end.residentMib)} MiB after the runs, ${rounded(end.peakMib)} MiB at its peak.`,
    );
    await place.unmount(served);
  });
  if (asked.write) {
    const [, parts] = page();
    writeFileSync(PAGE, [lines.join("\n") + "\n", ...parts].join(PARTS_HEADING));
  }
}

const PAGE = join(TOP, "docs/benchmark.md");
const PARTS_HEADING = "\n## The parts by themselves\n";
const RUNTIME_HEADING = "\n### Under ";

/** The page as it is: what comes before the parts, and the sections of the parts by runtime. */
function page(): [whole: string, parts: string[]] {
  const [whole, ...parts] = readFileSync(PAGE, "utf8").split(PARTS_HEADING);
  return [whole!, parts];
}

/** Measures the parts under this runtime; the page keeps what other runtimes were measured at. */
async function parts(): Promise<void> {
  const runtime = process.versions["bun"] === undefined ? "Deno" : "Bun";
  const lines = ["", surroundings(), "", row(["what", "measured", "wanted"])];
  lines.push(row(["---", "---:", "---:"]));
  for (const line of lines) console.log(line);
  await micro(asked.quick ? MICRO_QUICK : MICRO_FULL, ({ what, value, wanted }) => {
    lines.push(row([what, value, wanted]));
    console.log(lines.at(-1));
  });
  if (!asked.write) return;
  const [whole, [old]] = page();
  const intro = "\nThe index, the journal and start-up on a device in memory. " +
    "`npm run bench -- --micro --write` makes this section, `deno run -A tests/bench/run.ts " +
    "--micro --write` the one of Deno. A slice is what a collection does before others " +
    "have their turn, in time of its thread on a processor; a turn of the event loop has in it " +
    "whatever else was ready, the runtime's garbage collector and the measuring. What a turn of " +
    "nothing but arithmetic takes by the clock is the machine's own part.\n";
  const others = (old ?? "").split(RUNTIME_HEADING).slice(1)
    .filter((section) => !section.startsWith(runtime));
  const sections = [intro, ...[...others, `${runtime}\n${lines.join("\n")}\n`].sort()];
  writeFileSync(PAGE, whole + PARTS_HEADING + sections.join(RUNTIME_HEADING));
}

await (asked.micro ? parts() : main());
