/** Records of the parts come back as they were written. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AssuranceRecord, readRecord, replayLine, writeRecord } from "./record.ts";

test("a record comes back as it was written", () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-record-"));
  const record: AssuranceRecord = {
    part: "cuts",
    what: "Cuts the power.",
    command: "npm run simulate",
    counts: { "cut points": 3 },
    failures: ["replay: --seed 1"],
    wallSeconds: 1.5,
  };
  try {
    writeRecord(join(folder, "cuts.json"), record);
    assertEquals(readRecord(join(folder, "cuts.json")), record);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a failure's line is the one that shows it again", () => {
  const message = "writeback, seed 3, cut 7:\n  wrong\n  replay: npx bun run simulate --seed 3\n";
  assertEquals(replayLine(message), "npx bun run simulate --seed 3");
  assertEquals(replayLine("out of memory\n  at once"), "out of memory at once");
});
