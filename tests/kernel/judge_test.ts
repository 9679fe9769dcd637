/**
 * The Linux kernel as judge: cache sets go from here to Debian's kernel and back, twice, and every
 * byte is compared at every station. Eight cases share three boots; `npm run test:kernel` runs
 * every combination.
 */
import { test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { QUICK_CASES } from "./support/cases.ts";
import { runCases } from "./support/chain.ts";

test("devices go between this engine and the Linux kernel, and every byte is right", async () => {
  const scratch = mkdtempSync(join(tmpdir(), "bcache-fuse-kernel-"));
  try {
    await runCases(QUICK_CASES, { folder: join(scratch, "images"), seed: 1 });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}, 400_000);
