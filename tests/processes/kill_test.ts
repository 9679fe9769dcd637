/** kill -9 under our own journal, fio and real file systems: a few cycles; run.ts does many. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inWorkshop } from "../e2e/support/workshop.ts";
import { type KillChain, runKillChain } from "./support/kill_loop.ts";
import { verifyVersions, writeVersion } from "./support/files_in_versions.ts";
import { THIS_RUNTIME } from "./support/runtimes.ts";

const LIMIT_MS = 120_000;
/** Different cycles in the two runs of the suite. */
const SEED = THIS_RUNTIME === "bun" ? 1 : 2;

const CHAINS: ReadonlyArray<Omit<KillChain, "seed">> = [
  { target: "blocks", mode: "writeback", cycles: 2 },
  { target: "fio", mode: "writeback", cycles: 1 },
  { target: "ext4", mode: "writeback", cycles: 1 },
  { target: "xfs", mode: "writethrough", cycles: 1 },
  { target: "btrfs", mode: "writeback", cycles: 1 },
];

for (const chain of CHAINS) {
  test(
    `what ${chain.target} was told is durable survives kill -9 in ${chain.mode} mode`,
    () =>
      inWorkshop(async (place) => {
        assertEquals((await runKillChain(place, { ...chain, seed: SEED })).kills, chain.cycles);
      }),
    LIMIT_MS,
  );
}

test("a file in versions is found lost, old, torn or right", () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-versions-"));
  try {
    writeVersion(folder, 0, 3);
    writeVersion(folder, 1, 1);
    assertEquals(verifyVersions(folder, [3, 0, 0]), []);
    const found = [2, 1, 0];
    assertEquals([verifyVersions(folder, found), found], [[], [3, 1, 0]]);
    assertEquals(verifyVersions(folder, [4]), ["file0: version 3 of file0, 4 was synced"]);
    assertEquals(verifyVersions(folder, [3, 1, 1]), ["file2: missing, version 1 was synced"]);
    const bytes = new Uint8Array(readFileSync(join(folder, "file1")));
    bytes[20]! ^= 1;
    writeFileSync(join(folder, "file1"), bytes);
    assertEquals(verifyVersions(folder, [3, 1]).length, 1);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
