/** `npm start` from a fresh clone, with nothing but Node and npm on the path. */
import { test } from "bun:test";
import { assertEquals, assertGreater, assertLess, assertMatch } from "@std/assert";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { attempt, inWorkshop, isMounted, PROGRAM, run, TOP } from "./support/workshop.ts";

const LIMIT_MS = 300_000;

/** A path without this project's own packages: no bun, no deno that npm did not bring itself. */
function plainPath(): string {
  const parts = (process.env["PATH"] ?? "").split(":");
  return parts.filter((part) => !part.includes("node_modules")).join(":");
}

/** The hit ratio that the demo printed for one of its readings, in percent. */
function hitRatio(output: string, reading: string): number {
  const line = output.split("\n").find((line) => line.startsWith(reading)) ?? "";
  return Number(/hit ratio (\d+) %/.exec(line)?.[1]);
}

function checkDemo(output: string): void {
  assertLess(hitRatio(output, "read cold"), 20);
  assertGreater(hitRatio(output, "read warm"), 80);
  assertMatch(output, /http +http:\/\/127\.0\.0\.1:\d+/);
}

// npm start is Bun's; under Deno the same demo shows the same mount.
const runsUnderBun = process.versions["bun"] !== undefined;

if (runsUnderBun) {
  test(
    "npm start works from a fresh clone on a machine with only Node and npm",
    () =>
      inWorkshop(async (place) => {
        const clone = place.path("clone");
        await run("git", "-c", "safe.directory=*", "clone", "--quiet", TOP, clone);
        const npm = ["npm", "start", "--", "--once"];
        const settings = ["npm_config_prefer_offline=true", "npm_config_update_notifier=false"];
        const environment = ["env", `PATH=${plainPath()}`, ...settings];
        const outcome = await attempt([...environment, ...npm], { cwd: clone, limitMs: 240_000 });
        assertEquals(outcome.status, 0, `${outcome.stdout}\n${outcome.stderr}`);
        checkDemo(outcome.stdout);
        const mountpoint = join(clone, "demo/mnt");
        assertEquals(isMounted(mountpoint), false);
        assertEquals(readdirSync(mountpoint), []);
      }),
    LIMIT_MS,
  );
}

test("the demo runs, and runs again on what it left", () =>
  inWorkshop(async (place) => {
    const folder = place.path("demo");
    const script = join(TOP, "tests/demo.ts");
    const command = [...PROGRAM.slice(0, -1), script, "--once", "--folder", folder];
    checkDemo(await run(...command));
    assertEquals(existsSync(join(folder, "mnt/bcache0")), false, "unmounted at the end");
    assertMatch(await run(...command), /found .* of an earlier run/);
  }), LIMIT_MS);
