/** `show` beside Debian's bcache-super-show, and the launcher that npm installs. */
import { afterAll, beforeAll, describe, test } from "bun:test";
import { assertEquals, assertGreater, assertMatch } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdtempSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { closeSync, copyFileSync, mkdirSync, openSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { runShow } from "../../../api/cli/show.ts";
import type { Program } from "../../../api/cli/program.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { unpackFixture } from "../../support/fixtures.ts";

/** Each starts several runtimes, which takes its time on a machine that does other things too. */
const LIMIT_MS = 60_000;

const HAS_TOOLS = spawnSync("bcache-super-show", ["--help"]).error === undefined;
const LAUNCHER = join(import.meta.dirname!, "../../../api/cli/launch.sh");

let directory = "";
let cache = "";
let backing = "";
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "bcache-fuse-show-"));
  cache = join(directory, "cache");
  backing = join(directory, "backing");
  if (!HAS_TOOLS) return;
  for (const path of [cache, backing]) {
    writeFileSync(path, "");
    truncateSync(path, 64 * 1024 * 1024);
  }
  spawnSync("make-bcache", ["-b", "64k", "-o", "32", "-C", cache, "-B", backing]);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function show(
  path: string,
  json = false,
): Promise<{ out: string; error: BcacheError | undefined }> {
  let out = "";
  const program = { out: (text: string) => void (out += text) } as unknown as Program;
  try {
    await runShow(program, { path, json });
    return { out, error: undefined };
  } catch (error) {
    if (error instanceof BcacheError) return { out, error };
    throw error;
  }
}

const debian = (path: string) =>
  spawnSync("bcache-super-show", [path], { encoding: "utf8" }).stdout;

describe("show", () => {
  if (!HAS_TOOLS) return;
  test("prints what bcache-super-show prints, for both kinds", async () => {
    for (const path of [cache, backing]) {
      const { out, error } = await show(path);
      assertEquals(error, undefined);
      assertEquals(out, debian(path));
      assertMatch(out, /sb\.magic\t\tok/);
    }
  });
  test("prints JSON", async () => {
    const json = JSON.parse((await show(backing, true)).out);
    assertEquals([json.kind, json.backing.dataOffsetSectors], ["backing", 32]);
  });
  test("finds the superblock beside an image that has none", async () => {
    const image = join(directory, "image");
    writeFileSync(image, new Uint8Array(65536));
    const refusal = (await show(image)).error?.message ?? "";
    assertMatch(refusal, /bad magic.*no bcache device, or .* restore bytes 4096-8191 from a copy/);
    assertMatch(refusal, /do not make it anew/);
    const expected = debian(backing);
    renameSync(backing, `${image}.bcache`);
    assertEquals((await show(image)).out, expected);
    renameSync(`${image}.bcache`, backing);
  });
  test("prints what can be told of a damaged one, and fails", async () => {
    const file = openSync(cache, "r+");
    writeSync(file, new Uint8Array([1, 2, 3]), 0, 3, 4096 + 200);
    const { out, error } = await show(cache);
    assertEquals(out, debian(cache));
    assertEquals(error?.code, "BadFormat");
    assertMatch(error?.message ?? "", /bad csum.*damaged/);
  });
});

test("show refuses what is too short to hold a superblock", async () => {
  const short = join(directory, "short");
  writeFileSync(short, new Uint8Array(8191));
  assertMatch((await show(short)).error?.message ?? "", /ends before byte 8192/);
});

describe("the installed command", () => {
  test("runs under the runtime that was chosen, through a link", () => {
    const link = join(directory, "bcache-fuse");
    symlinkSync(LAUNCHER, link);
    for (const runtime of ["bun", "deno"]) {
      const env = { ...process.env, BCACHE_FUSE_RUNTIME: runtime };
      const result = spawnSync(link, ["--version"], { encoding: "utf8", env, cwd: directory });
      assertEquals(result.stderr, "");
      assertMatch(result.stdout, /^\d+\.\d+\.\d+\n$/);
      const wrong = spawnSync(link, ["show"], { encoding: "utf8", env, cwd: directory });
      assertEquals(wrong.status, 2);
      assertMatch(wrong.stderr, /^bcache-fuse: missing required argument 'device'; see .*\n$/);
    }
  }, LIMIT_MS);
  test("fails when its output does not fit on the disk", () => {
    const full = openSync("/dev/full", "w");
    for (const runtime of ["bun", "deno"]) {
      const env = { ...process.env, BCACHE_FUSE_RUNTIME: runtime };
      const stdio = ["ignore", full, "pipe"] as const;
      const result = spawnSync(LAUNCHER, ["--help"], { encoding: "utf8", env, stdio: [...stdio] });
      assertEquals(result.status, 1);
      assertMatch(result.stderr, /^bcache-fuse: standard output cannot be written, .*\n$/);
    }
    closeSync(full);
  }, LIMIT_MS);
  test("gives a slow reader all of it, and one that goes away no trouble", () => {
    const { pathOf, remove } = unpackFixture("three-level");
    const dump = `'${LAUNCHER}' dump '${pathOf("cache.img")}' extents`;
    const size = (script: string, env: NodeJS.ProcessEnv) => {
      const result = spawnSync("sh", ["-c", script], { encoding: "utf8", env });
      assertEquals([result.status, result.stderr], [0, ""]);
      return Number(result.stdout);
    };
    try {
      for (const runtime of ["bun", "deno"]) {
        const env = { ...process.env, BCACHE_FUSE_RUNTIME: runtime };
        const whole = size(`${dump} > '${directory}/all' && wc -c < '${directory}/all'`, env);
        assertGreater(whole, 256 << 10, "more than a pipe holds");
        assertEquals(size(`${dump} | (sleep 0.5; wc -c)`, env), whole);
        assertEquals(size(`${dump} | head -c 10 | wc -c`, env), 10);
      }
    } finally {
      remove();
    }
  }, LIMIT_MS);
  test("refuses a runtime that is none", () => {
    const env = { ...process.env, BCACHE_FUSE_RUNTIME: "foo" };
    const result = spawnSync(LAUNCHER, ["--version"], { encoding: "utf8", env });
    assertEquals([result.status, result.stderr], [
      2,
      "bcache-fuse: BCACHE_FUSE_RUNTIME=foo: expected bun or deno\n",
    ]);
  }, LIMIT_MS);
  test("says what to do when there is no runtime", () => {
    // A copy far from the project's own packages, with a path that has the shell's tools alone.
    const bin = join(directory, "bin");
    mkdirSync(bin);
    for (const tool of ["realpath", "dirname", "readlink", "sh"]) {
      symlinkSync(spawnSync("which", [tool], { encoding: "utf8" }).stdout.trim(), join(bin, tool));
    }
    const copy = join(bin, "bcache-fuse");
    copyFileSync(LAUNCHER, copy);
    const start = (more: Record<string, string>) =>
      spawnSync(copy, ["--version"], { encoding: "utf8", env: { PATH: bin, ...more } });
    const none = start({});
    assertEquals(none.status, 1);
    assertMatch(none.stderr, /^bcache-fuse: neither bun nor deno was found; .*\n$/);
    const missing = start({ BCACHE_FUSE_RUNTIME: "deno" });
    assertEquals(missing.status, 1);
    assertMatch(missing.stderr, /^bcache-fuse: deno was not found; install it, or unset .*\n$/);
  }, LIMIT_MS);
});
