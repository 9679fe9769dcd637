/** The report says what the records say, and how far that is from the goals. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { PARTS, slices } from "./parts.ts";
import { type AssuranceRecord } from "./record.ts";
import {
  assuranceReport,
  GOALS,
  goalsNotReached,
  type JobResult,
  joinedTables,
  sumOfCounts,
} from "./report.ts";

const TOP = join(import.meta.dirname!, "../..");
const FACTS = {
  version: "1.2.3",
  commit: "abcdef",
  runtimes: ["Bun 1", "Deno 2"],
  cores: 2,
  memoryGib: 8,
  scale: 1,
  wallSeconds: 7500,
};
const TITLES = new Map([["cuts", "Power cuts"], ["kernel", "The kernel"], ["fuzz", "Fuzzing"]]);

function result(part: string, seed: number, more: Partial<AssuranceRecord>): JobResult {
  const args = [`tests/${part}/run.ts`, "--fast", "--seed", `${seed}`, "--count", "10"];
  const record = { part, what: "Does it.", command: "", counts: {}, failures: [], wallSeconds: 60 };
  return { part, runtime: "bun", args, commit: "abcdef", record: { ...record, ...more } };
}

const table = (...rows: ReadonlyArray<readonly [string, number, number]>) => ({
  title: "By kind",
  columns: ["kind", "seeds", "cuts"],
  rows,
});

describe("the report of an assurance run", () => {
  test("adds up the figures of the jobs of a part, table by table and row by row", () => {
    const records = [
      result("cuts", 1, { counts: { "cut points": 1500 }, tables: [table(["a", 1, 2])] }),
      result("cuts", 11, {
        counts: { "cut points": 2500, recoveries: 3 },
        tables: [table(["b", 5, 6], ["a", 3, 4])],
      }),
    ].map(({ record }) => record);
    assertEquals([...sumOfCounts(records)], [["cut points", 4000], ["recoveries", 3]]);
    assertEquals(joinedTables(records), [table(["a", 4, 6], ["b", 5, 6])]);
  });

  test("takes the greatest of figures that cannot be added up", () => {
    const rates = (perSecond: number) => [{
      title: "Rates",
      columns: ["what", "per second"],
      rows: [["x", perSecond]],
    }];
    const records = [700, 500].map((each, at) =>
      result("fuzz", at, { counts: { "MiB at most": each }, tables: rates(each) }).record
    );
    assertEquals([...sumOfCounts(records)], [["MiB at most", 700]]);
    assertEquals(joinedTables(records), rates(700));
  });

  test("names version, machine, goals, parts, and the commands with their seeds", () => {
    const text = assuranceReport(FACTS, TITLES, [
      result("kernel", 1, { counts: { "kernel round trips": 100 } }),
      result("cuts", 1, { counts: { "cut points": 1500 } }),
      result("cuts", 11, { counts: { "cut points": 2000 }, tables: [table(["x|y", 1, 1234567])] }),
    ]);
    const lines = text.split("\n");
    assert(lines.includes("| version | 1.2.3, commit abcdef |"));
    assert(lines.includes("| wall time | 2 h 5 min; the parts by themselves 3 min |"));
    assert(lines.includes("| cut points | 200,000 | 3,500 | not reached |"));
    assert(lines.includes("| kernel round trips | 100 | 100 | reached |"));
    assert(lines.includes("| fuzz inputs | 1,000,000 | 0 | not run |"));
    assert(lines.includes("| x\\|y | 1 | 1,234,567 |"));
    assert(lines.includes("| `npx bun tests/cuts/run.ts --fast` | 1 to 20 | 120 |"));
    assert(text.indexOf("## Power cuts") < text.indexOf("## The kernel"), "in the parts' order");
    assert(!text.includes("## Fuzzing"), "a part that was not run has no section");
    assert(lines.includes("None."));
    assert(!text.includes("try-out"));
    assert(!text.includes("| tests |"));
  });

  test("says whose tests they were when they are not those of its commit alone", () => {
    const results = [1, 2, 3].map((seed) => result("cuts", seed, {}));
    const text = assuranceReport(FACTS, TITLES, [...results, { ...results[0]!, commit: "012345" }]);
    const said = "| tests | 3 jobs of abcdef, 1 job of 012345; api, fuse and lib are the same |";
    assert(text.split("\n").includes(said));
  });

  test("says which goals are not reached, and by how much", () => {
    assertEquals(goalsNotReached([]).length, GOALS.length);
    const reached = Object.fromEntries(GOALS);
    assertEquals(goalsNotReached([result("all", 1, { counts: reached }).record]), []);
    const short = result("all", 1, { counts: { ...reached, "swarm seeds": 1999 } }).record;
    assertEquals(goalsNotReached([short]), ["swarm seeds: 1,999 of 20,000"]);
  });

  test("shows every failure that is open, and that a try-out is one", () => {
    const failures = ["npx bun run simulate --seed 3", "npx bun run simulate --seed 4"];
    const text = assuranceReport({ ...FACTS, scale: 0.01 }, TITLES, [
      result("cuts", 1, { failures }),
    ]);
    for (const line of failures) assertStringIncludes(text, `\n- \`${line}\`\n`);
    assertStringIncludes(text, "| failures open | 2 |");
    assertStringIncludes(text, "try-out");
    assert(!text.includes("None."));
  });
});

describe("the parts of an assurance run", () => {
  test("divide their seeds among jobs without gap or overlap, down to a single one", () => {
    const what = { script: "x.ts", args: ["-v"], count: 25, perJob: 10 };
    assertEquals(slices("x", 1, what).map(({ name, args }) => [name, args.slice(1).join(" ")]), [
      ["x-1", "-v --seed 1 --count 10"],
      ["x-11", "-v --seed 11 --count 10"],
      ["x-21", "-v --seed 21 --count 5"],
    ]);
    assertEquals(slices("x", 0.0001, what).length, 1);
  });

  test("have jobs at every scale, each with a record of its own", () => {
    for (const scale of [0.001, 1]) {
      const names = PARTS.flatMap((part) => part.jobs(scale).map(({ name }) => name));
      assertEquals(names.length, new Set(names).size);
      for (const part of PARTS) {
        const jobs = part.jobs(scale);
        assert(jobs.length > 0, part.name);
        for (const { args } of jobs) assert(existsSync(join(TOP, args[0]!)), args[0]);
      }
    }
    assertEquals(GOALS.length, new Set(GOALS.map(([name]) => name)).size);
  });
});
