/**
 * Lets the Linux kernel judge every combination of maker, mode, block size and end:
 *
 *   npm run test:kernel -- [--seed N] [--count M] [--case ID | --slice K/N] [--cuts C]
 *       [--record FILE]
 *
 * Runs them with seeds N to N+M-1. Eight cases share three boots, so one seed takes some minutes;
 * `--slice 1/4` runs the first of every four such batches. The case `cuts` is one run of the kernel
 * with the power cut at C moments (see support/kernel_cuts.ts). The images of what failed stay in a
 * temporary folder, whose name is printed. `--record` leaves what was done in a file. The exit
 * status is 1 when something failed.
 */
// deno-lint-ignore-file no-console
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeRecord } from "../assurance/record.ts";
import {
  argumentsOf,
  oneOf,
  recordOption,
  refuse,
  seedOption,
  sliceOption,
  wholeNumber,
} from "../support/arguments.ts";
import { installFor } from "../support/install.ts";
import { whenInterrupted } from "../support/interrupted.ts";
import { counted } from "../support/lines.ts";
import { allCases, type Case, QUICK_CASES, roundTripsOf } from "./support/cases.ts";
import { runCases } from "./support/chain.ts";
import { cutTheKernel, type KernelCuts } from "./support/kernel_cuts.ts";

const PER_BATCH = 8;
const CUTS = "cuts";
const TABLE = [...QUICK_CASES, ...allCases()];
const DECLARED = {
  command: "npm run test:kernel",
  about: "Lets the Linux kernel, in an emulated machine, judge every combination of maker, mode, " +
    "block size and end, and recovers what power cuts leave of what the kernel writes. One seed " +
    "takes some minutes. The images of what failed stay; the exit status is 1 then.",
  options: {
    seed: seedOption("the first seed"),
    count: wholeNumber("how many seeds", { from: 1, fallback: 1 }),
    case: oneOf("one case instead of all", [...TABLE.map(({ id }) => id), CUTS], {
      takes: "ID",
      shown: `q1 to q${QUICK_CASES.length}, a0 to a${allCases().length - 1}, ${CUTS}`,
    }),
    slice: sliceOption(`batches of ${PER_BATCH} cases, without ${CUTS}`),
    cuts: wholeNumber(`how many power cuts the case ${CUTS} has`, { from: 1, fallback: 100 }),
    record: recordOption,
  },
};
const { values } = argumentsOf(DECLARED);
const slice = values.slice ?? { number: 1, of: 1 };
const wanted = TABLE.filter(({ id }) => values.case === undefined || values.case === id);
const wantsCuts = (values.case ?? CUTS) === CUTS && slice.of === 1;
const batches = Math.ceil(wanted.length / PER_BATCH);
if (slice.number > batches && !wantsCuts) {
  const found = `${slice.number}/${slice.of} of ${counted(batches, "batch", "batches")}`;
  refuse(DECLARED, `--slice: found ${found}, expected one that has cases in it`);
}
installFor(["test:kernel"], "kernel");
const begun = performance.now();
const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-kernel-"));
const failures: string[] = [];
// The images of what failed stay, as at the end.
whenInterrupted(() => {
  if (failures.length === 0) rmSync(scratch, { recursive: true, force: true });
});
const judged: Case[] = [];
const cutRuns: KernelCuts[] = [];
let boots = 0;

async function runBatch(batch: readonly Case[], seed: number): Promise<void> {
  const names = `${batch[0]!.id} to ${batch.at(-1)!.id}, seed ${seed}`;
  const started = performance.now();
  const folder = join(scratch, `${batch[0]!.id}-${seed}`);
  try {
    boots += await runCases(batch, { folder, seed });
    judged.push(...batch);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(`ok   ${names}: ${counted(batch.length, "case")} (${seconds} s)`);
  } catch (error) {
    const id = batch.find(({ id }) => String(error).includes(`id ${id},`))?.id;
    const which = id === undefined ? "" : ` --case ${id}`;
    failures.push(`npx bun tests/kernel/run.ts --seed ${seed}${which}`);
    console.error(`FAIL ${names}, images in ${folder}: ${String(error)}`);
  }
}

async function runCuts(seed: number): Promise<void> {
  const started = performance.now();
  const folder = join(scratch, `${CUTS}-${seed}`);
  mkdirSync(folder);
  try {
    const done = await cutTheKernel({ folder, seed, cuts: values.cuts });
    boots++;
    cutRuns.push(done);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(
      `ok   ${CUTS}, seed ${seed}: ${done.mode}, ${counted(done.cuts, "power cut")} in ` +
        `${counted(done.operations, "operation")} (${seconds} s)`,
    );
    rmSync(folder, { recursive: true });
  } catch (error) {
    const options = `--case ${CUTS} --cuts ${values.cuts} --seed ${seed}`;
    failures.push(`npx bun tests/kernel/run.ts ${options}`);
    console.error(`FAIL ${options}, images in ${folder}: ${String(error)}`);
  }
}

/** How many chains had which property, and how often these went from here to there and back. */
function rowsOf(): Array<readonly [string, number, number]> {
  const kinds: ReadonlyArray<readonly [string, (one: Case) => boolean]> = [
    ...(["writeback", "writethrough", "writearound", "none"] as const)
      .map((mode) => [`mode ${mode}`, (one: Case) => one.mode === mode] as const),
    ["formatted here", ({ maker }) => maker === "ours"],
    ["formatted by the kernel's tools", ({ maker }) => maker === "kernel"],
    ["clean stop on both sides", (one) => one.ourEnd === "close" && one.kernelEnd === "stop"],
    ["our process killed", ({ ourEnd }) => ourEnd === "kill"],
    ["power cut under our engine", ({ ourEnd }) => ourEnd === "cut"],
    ["power cut under the kernel", ({ kernelEnd }) => kernelEnd === "cut"],
    ["one backing device", ({ backings }) => backings === 1],
    ["two backing devices", ({ backings }) => backings === 2],
    ["volume on the cache beside a backing device", (one) => !!one.flash && one.backings > 0],
    ["volume on the cache and nothing else", ({ backings }) => backings === 0],
    ["moving collection", ({ moving }) => moving === true],
    ["image with a sidecar", ({ sidecar }) => sidecar === true],
  ];
  return kinds.map(([name, has]) => {
    const own = judged.filter(has);
    return [name, own.length, own.reduce((sum, one) => sum + roundTripsOf(one), 0)];
  });
}

function record(file: string): void {
  writeRecord(file, {
    part: "kernel",
    what: "Cache sets go between this engine and Debian's Linux kernel in an emulated machine. " +
      "Each side reads every byte, writes, collects garbage, and ends cleanly or not. A round " +
      "trip is from here to the kernel and back: both reads compared every byte. What only the " +
      "kernel's own tools formatted counts from when this engine first wrote it. In further runs " +
      "all that the kernel writes is logged, and what a disk with a volatile cache may hold at " +
      "many moments of it is recovered here.",
    command: `npx bun tests/kernel/run.ts ${process.argv.slice(2).join(" ")}`,
    counts: {
      ...(judged.length === 0 ? {} : {
        "kernel round trips": judged.reduce((sum, one) => sum + roundTripsOf(one), 0),
        "cache sets that went there and back": judged.length,
      }),
      ...(cutRuns.length === 0 ? {} : {
        "power cuts under the kernel": cutRuns.reduce((sum, { cuts }) => sum + cuts, 0),
      }),
      "boots of the kernel": boots,
    },
    tables: [
      ...(judged.length === 0 ? [] : [{
        title: "Round trips by property",
        columns: ["sets with", "sets", "round trips"],
        rows: rowsOf(),
      }]),
      ...(cutRuns.length === 0 ? [] : [{
        title: "Power cuts in the kernel's own writes",
        columns: ["mode", "runs", "operations logged", "power cuts"],
        rows: cutRuns.map(({ mode, operations, cuts }) => [mode, 1, operations, cuts]),
      }]),
    ],
    failures,
    wallSeconds: (performance.now() - begun) / 1000,
  });
}

for (let seed = values.seed; seed < values.seed + values.count; seed++) {
  for (let at = 0; at < wanted.length; at += PER_BATCH) {
    if (at / PER_BATCH % slice.of !== slice.number - 1) continue;
    await runBatch(wanted.slice(at, at + PER_BATCH), seed);
  }
  if (wantsCuts) await runCuts(seed);
}
if (values.record !== undefined) record(values.record);
if (failures.length > 0) process.exitCode = 1;
else rmSync(scratch, { recursive: true });
