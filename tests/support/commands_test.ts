/**
 * Every command of package.json that takes options: --help is the usage, and what it cannot run is
 * one line and status 2, at once, never a run of something else or of nothing.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

const TOP = join(import.meta.dirname!, "../..");
const RUN = process.versions["bun"] === undefined ? ["run", "-A", "--no-check"] : [];
const LIMIT_MS = 60_000;

const SCRIPTS: Record<string, string> =
  JSON.parse(readFileSync(join(TOP, "package.json"), "utf8")).scripts;

/** Runs a command of package.json with a folder of its own for temporary files. */
function command(name: string, ...args: string[]) {
  const [, script] = /(tests\/\S+\.ts)/.exec(SCRIPTS[name]!)!;
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-commands-"));
  try {
    const { status, stdout, stderr } = spawnSync(process.execPath, [...RUN, script!, ...args], {
      cwd: TOP,
      encoding: "utf8",
      timeout: LIMIT_MS,
      env: { ...process.env, TMPDIR: folder },
    });
    return { status, stdout, stderr, left: readdirSync(folder) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Their own options, each with a value that it cannot have. */
const REFUSED: ReadonlyArray<readonly [string, ...string[]]> = [
  ["simulate", "--seed", "abc"],
  ["simulate", "--count", "x"],
  ["simulate", "--count", "0"],
  ["simulate", "--count", "-5"],
  ["simulate", "--only", "frob"],
  ["simulate", "--only", "7-3"],
  ["simulate", "--only", "0-99999"],
  ["simulate", "--only", "0", "--count", "2"],
  ["simulate", "--cut", "3"],
  ["simulate", "--scenario", "frob"],
  ["simulate", "--scenario", "writeback", "--fault", "cache:frob"],
  ["simulate", "--scenario", "writeback", "--fault", "cache:write", "--errno", "EBADF"],
  ["simulate", "--scenario", "writeback", "--kind", "lie"],
  ["simulate", "--scenario", "writeback", "--cut", "3", "--fault", "cache:write"],
  ["faults", "--kind", "frob"],
  ["faults", "--scenario", "frob"],
  ["soak", "--mode", "frob"],
  ["soak", "--policy", "frob"],
  ["soak", "--minutes", "abc"],
  ["soak", "--seed", "x"],
  ["fuzz", "--decoder", "frob"],
  ["mutations", "nosuchmutation"],
  ["mutations", "--slice", "9999/9999"],
  ["processes", "--case", "frob"],
  ["test:kernel", "--case", "frob"],
  ["test:kernel", "--case", "q1", "--slice", "2/3"],
  ["assurance", "--scale", "0"],
  ["assurance", "--only", "frob"],
  // A scale that nobody runs: there is no record of it.
  ["assurance", "--report-only", "--scale", "0.000271"],
  ["bench", "--micro", "--alone"],
  ["test", "nosuchtest"],
  ["test", "--runtime", "node"],
  ["start", "--folder"],
];

describe("a command", () => {
  const names = [...new Set(REFUSED.map(([name]) => name))];
  test("that takes options is among those that are tried here", () => {
    const all = Object.entries(SCRIPTS).filter(([, line]) => /^exec bun \S+$/.test(line));
    assertEquals(all.map(([name]) => name).sort(), [...names].sort());
  });

  for (const name of names) {
    test(`${name} tells its options, and knows no others`, () => {
      const help = command(name, "--help");
      assertEquals([help.status, help.stderr, help.left], [0, "", []]);
      const word = name === "start" || name === "test" ? "npm" : "npm run";
      assertStringIncludes(help.stdout, `usage: ${word} ${name} -- [OPTIONS]`);
      const unknown = command(name, "--frob");
      assertEquals([unknown.status, unknown.stdout, unknown.left], [2, "", []]);
      assertMatch(unknown.stderr, /^\S+: there is no option --frob; .* -- --help tells .*\n$/);
    }, LIMIT_MS);
  }

  for (const [name, ...args] of REFUSED) {
    test(`${name} refuses ${args.join(" ")}`, () => {
      const { status, stdout, stderr, left } = command(name, ...args);
      assertEquals([status, stdout, left], [2, "", []], stderr);
      assertMatch(stderr, /^[^\n]+ -- --help tells [^\n]+\n$/);
    }, LIMIT_MS);
  }
});

test("a command that npm runs installs what it needs once its options are right", () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-commands-"));
  try {
    // In place of the shell that would install: says what it was asked for, and fails.
    writeFileSync(join(folder, "sh"), '#!/bin/sh\nshift; echo "asked for $*"; exit 7\n', {
      mode: 0o755,
    });
    const run = (event: string, ...args: string[]) => {
      const env = { ...process.env, PATH: folder, TMPDIR: folder, npm_lifecycle_event: event };
      const words = [...RUN, "tests/run.ts", ...args];
      const { status, stdout } = spawnSync(process.execPath, words, {
        cwd: TOP,
        encoding: "utf8",
        env,
      });
      return [status, stdout, readdirSync(folder)];
    };
    assertEquals(run("test", "arguments_test"), [7, "asked for test kernel\n", ["sh"]]);
    assertEquals(run("test", "nosuchtest"), [2, "", ["sh"]]);
    assertEquals(run("test", "--frob"), [2, "", ["sh"]]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, LIMIT_MS);

test("a cut or a fault that there is not is no success", () => {
  for (const args of [["--cut", "9999999"], ["--fault", "cache:write:9999999"]]) {
    const { status, stderr } = command("simulate", "--scenario", "writeback", ...args);
    assertEquals(status, 1);
    assertStringIncludes(stderr, "there is none of this number");
  }
}, LIMIT_MS);

test("the swarm says which seeds it ran", () => {
  const one = command("simulate", "--seed", "5");
  assertMatch(one.stdout, /^1 seed \(5\) in \d+ s, /m);
  const three = command("simulate", "--seed", "5", "--count", "3", "--jobs", "2");
  assertMatch(three.stdout, /^3 seeds \(5 to 7\) in \d+ s, /m);
  assert(three.stdout.includes("swarm seeds: 3\n"));
}, LIMIT_MS);
