/**
 * The Linux kernel as judge: cache sets go from here to Debian's kernel and back, twice, and every
 * byte is compared at every station; and the power is cut at some moments of a run of the kernel.
 * Eight cases share three boots; `npm run test:kernel` runs every combination.
 */
import { test } from "bun:test";
import { assertGreater } from "@std/assert";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { QUICK_CASES } from "./support/cases.ts";
import { runCases } from "./support/chain.ts";
import { cutTheKernel } from "./support/kernel_cuts.ts";

async function inScratch(body: (folder: string) => Promise<void>): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-kernel-"));
  try {
    await body(scratch);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

test("devices go between this engine and the Linux kernel, and every byte is right", async () => {
  await inScratch(async (scratch) => {
    await runCases(QUICK_CASES, { folder: join(scratch, "images"), seed: 1 });
  });
}, 400_000);

test("whenever the power is cut under the kernel, what it made durable is read here", async () => {
  await inScratch(async (folder) => {
    const { operations } = await cutTheKernel({ folder, seed: 4, cuts: 12 });
    assertGreater(operations, 100);
  });
}, 200_000);
