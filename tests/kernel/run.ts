/**
 * Lets the Linux kernel judge every combination of maker, mode, block size and end:
 *
 *   bun tests/kernel/run.ts [--seed N] [--case ID] [--keep]
 *
 * Eight cases share three boots, so all of it takes some minutes. The images of what failed stay
 * in a temporary folder, whose name is printed. The exit status is 1 when something failed.
 */
// deno-lint-ignore-file no-console
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { allCases, QUICK_CASES } from "./support/cases.ts";
import { runCases } from "./support/chain.ts";

const PER_BATCH = 8;
const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    case: { type: "string" },
  },
});

const wanted = [...QUICK_CASES, ...allCases()]
  .filter(({ id }) => values.case === undefined || values.case === id);
if (wanted.length === 0) {
  console.error(`no case ${values.case}; there are q1 to q8 and a0 to a${allCases().length - 1}`);
  process.exit(2);
}
const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-kernel-"));
let failures = 0;
for (let at = 0; at < wanted.length; at += PER_BATCH) {
  const batch = wanted.slice(at, at + PER_BATCH);
  const names = `${batch[0]!.id} to ${batch.at(-1)!.id}`;
  const started = performance.now();
  const folder = join(scratch, batch[0]!.id);
  try {
    await runCases(batch, { folder, seed: Number(values.seed) });
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(`ok   ${names}: ${batch.length} cases (${seconds} s)`);
  } catch (error) {
    failures++;
    console.error(`FAIL ${names}, images in ${folder}: ${String(error)}`);
  }
}
if (failures > 0) process.exitCode = 1;
