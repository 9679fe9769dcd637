/**
 * Lets the Linux kernel judge every combination of maker, mode, block size and end:
 *
 *   bun tests/kernel/run.ts [--seed N] [--count M] [--case ID] [--record FILE]
 *
 * Runs them with seeds N to N+M-1. Eight cases share three boots, so one seed takes some minutes.
 * The images of what failed stay in a temporary folder, whose name is printed. `--record` leaves
 * what was done in a file. The exit status is 1 when something failed.
 */
// deno-lint-ignore-file no-console
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeRecord } from "../assurance/record.ts";
import { allCases, type Case, QUICK_CASES, roundTripsOf } from "./support/cases.ts";
import { runCases } from "./support/chain.ts";

const PER_BATCH = 8;
const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    count: { type: "string", default: "1" },
    case: { type: "string" },
    record: { type: "string" },
  },
});

const wanted = [...QUICK_CASES, ...allCases()]
  .filter(({ id }) => values.case === undefined || values.case === id);
if (wanted.length === 0) {
  console.error(`no case ${values.case}; there are q1 to q8 and a0 to a${allCases().length - 1}`);
  process.exit(2);
}
const begun = performance.now();
const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-kernel-"));
const failures: string[] = [];
const judged: Case[] = [];
let boots = 0;

async function runBatch(batch: readonly Case[], seed: number): Promise<void> {
  const names = `${batch[0]!.id} to ${batch.at(-1)!.id}, seed ${seed}`;
  const started = performance.now();
  const folder = join(scratch, `${batch[0]!.id}-${seed}`);
  try {
    boots += await runCases(batch, { folder, seed });
    judged.push(...batch);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(`ok   ${names}: ${batch.length} cases (${seconds} s)`);
  } catch (error) {
    const id = batch.find(({ id }) => String(error).includes(`id ${id},`))?.id;
    const which = id === undefined ? "" : ` --case ${id}`;
    failures.push(`bun tests/kernel/run.ts --seed ${seed}${which}`);
    console.error(`FAIL ${names}, images in ${folder}: ${String(error)}`);
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
      "kernel's own tools formatted counts from when this engine first wrote it.",
    command: `bun tests/kernel/run.ts ${process.argv.slice(2).join(" ")}`,
    counts: {
      "kernel round trips": judged.reduce((sum, one) => sum + roundTripsOf(one), 0),
      "chains": judged.length,
      "boots of the kernel": boots,
    },
    tables: [{
      title: "By property",
      columns: ["sets with", "chains", "round trips"],
      rows: rowsOf(),
    }],
    failures,
    wallSeconds: (performance.now() - begun) / 1000,
  });
}

const first = Number(values.seed);
for (let seed = first; seed < first + Number(values.count); seed++) {
  for (let at = 0; at < wanted.length; at += PER_BATCH) {
    await runBatch(wanted.slice(at, at + PER_BATCH), seed);
  }
}
if (values.record !== undefined) record(values.record);
if (failures.length > 0) process.exitCode = 1;
else rmSync(scratch, { recursive: true });
