/** The benchmark runs, with tiny sizes and alone, so that it never rots. */
import { test } from "bun:test";
import { assertMatch } from "@std/assert";
import { join } from "node:path";
import { PROGRAM, run, TOP } from "../e2e/support/workshop.ts";

test("the benchmark measures every workload and the memory", async () => {
  const script = join(TOP, "tests/bench/run.ts");
  const output = await run(...PROGRAM.slice(0, -1), script, "--quick", "--alone");
  assertMatch(output, /random read, depth 16 \| [\d,]+ IOPS/);
  assertMatch(output, /random read, depth 1 \| [\d,]+ IOPS/);
  assertMatch(output, /sequential read \| [\d,]+ MiB\/s/);
  assertMatch(output, /random write, depth 16 \| [\d,]+ IOPS/);
  assertMatch(output, /Resident set with 48 MiB .* [1-9]\d* MiB at its peak/);
}, 120_000);
