/** Commands that are interrupted leave no folder, mount, loop device or process behind. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { scriptUnder, THIS_RUNTIME } from "../processes/support/runtimes.ts";
import { inWorkshop, isMounted, run, signalTo, TOP, type Workshop } from "./support/workshop.ts";

const LIMIT_MS = 120_000;
const STEP_LIMIT_MS = 50_000;
const SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"] as const;
// The commands are Bun's; under Deno a few show that they end there too.
const runsUnderBun = THIS_RUNTIME === "bun";
const testUnderBun = runsUnderBun ? test : () => {};

interface Running {
  readonly child: ChildProcess;
  output(): string;
  /** The exit status, or the signal that ended it. */
  readonly end: Promise<number | string>;
}

/** Starts one of the project's commands. Its end is that of the test as well. */
function start(place: Workshop, script: string, ...args: string[]): Running {
  const [program, ...before] = scriptUnder(THIS_RUNTIME, join(TOP, script));
  const path = `${join(TOP, "node_modules/.bin")}:${process.env["PATH"] ?? ""}`;
  const child = spawn(program!, [...before, ...args], {
    cwd: TOP,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, PATH: path, TMPDIR: place.makeFolder("tmp") },
  });
  let output = "";
  child.stdout.on("data", (chunk) => output += String(chunk));
  child.stderr.on("data", (chunk) => output += String(chunk));
  const end = new Promise<number | string>((resolve) => {
    child.once("exit", (code, signal) => resolve(signal ?? code ?? -1));
  });
  place.onClose(async () => {
    signalTo(child, "SIGKILL");
    await end;
  });
  return { child, output: () => output, end };
}

async function until<T>(
  what: string,
  look: () => T | undefined,
  running: Running,
): Promise<T> {
  const deadlineMs = Date.now() + STEP_LIMIT_MS;
  for (;;) {
    const found = look();
    if (found !== undefined) return found;
    assert(Date.now() < deadlineMs, `${what}:\n${running.output()}`);
    await sleep(20);
  }
}

/** The processes that a process started, with their command lines. */
function childrenOf({ pid }: ChildProcess): Array<{ pid: number; command: string }> {
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => {
    try {
      const [, parent] = / \((?:.|\n)*\) \S (\d+) /.exec(
        readFileSync(`/proc/${name}/stat`, "utf8"),
      )!;
      if (Number(parent) !== pid) return [];
      const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ");
      return [{ pid: Number(name), command }];
    } catch {
      return []; // Gone meanwhile.
    }
  });
}

/** The process that serves the mount of a running command. */
function mountOf(running: Running): Promise<{ pid: number; command: string }> {
  const look = () => childrenOf(running.child).find(({ command }) => command.includes(" mount "));
  return until("it mounts", look, running);
}

function mountsBelow(folder: string): string[] {
  return readFileSync("/proc/self/mounts", "utf8").split("\n")
    .filter((line) => line.includes(` ${folder}/`));
}

function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

async function loopsOn(folder: string): Promise<string[]> {
  const all = await run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE");
  return all.split("\n").filter((line) => line.includes(`${folder}/`));
}

describe("a command that is interrupted takes down what it has set up", () => {
  for (const signal of runsUnderBun ? SIGNALS : SIGNALS.slice(0, 1)) {
    test(`processes, by ${signal}`, () =>
      inWorkshop(async (place) => {
        const args = ["--case", "ext4/writeback", "--cycles", "50"];
        const running = start(place, "tests/processes/run.ts", ...args);
        const { pid, command } = await mountOf(running);
        const folder = /\S*\/bcache-fuse-e2e-[^/ ]+/.exec(command)![0];
        await until("mounted", () => mountsBelow(folder)[0], running);
        signalTo(running.child, signal);
        assertMatch(String(await running.end), /^1(29|30|43)$/, running.output());
        assertEquals([existsSync(folder), mountsBelow(folder), isAlive(pid)], [false, [], false]);
        assertEquals(await loopsOn(folder), []);
      }), LIMIT_MS);
  }

  testUnderBun("bench", () =>
    inWorkshop(async (place) => {
      const running = start(place, "tests/bench/run.ts", "--quick", "--alone");
      const { command } = await mountOf(running);
      const folder = /\S*\/bcache-fuse-e2e-[^/ ]+/.exec(command)![0];
      await until("a figure", () => /IOPS/.exec(running.output()) ?? undefined, running);
      const isFio = ({ command }: { command: string }) => /^fio /.test(command);
      const look = () => childrenOf(running.child).find(isFio);
      const { pid } = await until("the next one begins", look, running);
      signalTo(running.child, "SIGTERM");
      assertEquals(await running.end, 143, running.output());
      assertEquals(isAlive(pid), false, "fio, which makes folders that it misses");
      assertEquals([existsSync(folder), mountsBelow(folder)], [false, []]);
    }), LIMIT_MS);

  test("the test suite", () =>
    inWorkshop(async (place) => {
      const running = start(place, "tests/run.ts", "--runtime", "bun", "tests/simulation/crash");
      // Not whatever starts the runtime before it.
      const isTest = ({ command }: { command: string }) => command.includes("crash_test.ts");
      const look = () => childrenOf(running.child).find(isTest);
      const test = await until("a test", look, running);
      signalTo(running.child, "SIGINT");
      assertEquals(await running.end, 130, running.output());
      assertEquals([readdirSync(place.path("tmp")), isAlive(test.pid)], [[], false]);
      assertEquals(running.output(), "", "a file that was cut short has not failed");
    }), LIMIT_MS);
});

describe("the demo", () => {
  const demo = (place: Workshop, ...more: string[]) =>
    start(place, "tests/demo.ts", "--folder", place.path("demo"), ...more);
  const mounted = (running: Running) =>
    until("mounted", () => /^mounted +until/m.exec(running.output()) ?? undefined, running);
  const nothingLeft = async (place: Workshop) => {
    assertEquals(mountsBelow(place.folder), []);
    assertEquals(await loopsOn(place.folder), []);
  };

  test(
    "takes down mount, file system and loop device when its terminal goes away",
    () =>
      inWorkshop(async (place) => {
        const running = demo(place);
        await mounted(running);
        const { pid } = await mountOf(running);
        signalTo(running.child, "SIGHUP");
        assertEquals(await running.end, 0, running.output());
        assertEquals(isAlive(pid), false);
        await nothingLeft(place);
      }),
    LIMIT_MS,
  );

  testUnderBun(
    "whose mount is killed clears it away and does not call that done",
    () =>
      inWorkshop(async (place) => {
        const running = demo(place);
        await mounted(running);
        process.kill((await mountOf(running)).pid, "SIGKILL");
        assertEquals(await running.end, 1, running.output());
        assertStringIncludes(running.output(), "the mount ended before it was asked to");
        assert(!running.output().includes("\ndone "));
        await nothingLeft(place);
        assertEquals(await demo(place, "--once").end, 0);
      }),
    LIMIT_MS,
  );

  testUnderBun(
    "clears away what an earlier one left that was killed with its mount",
    () =>
      inWorkshop(async (place) => {
        const killed = demo(place);
        await mounted(killed);
        const { pid } = await mountOf(killed);
        signalTo(killed.child, "SIGKILL");
        process.kill(pid, "SIGKILL");
        await killed.end;
        assert(isMounted(place.path("demo/mnt")));
        assertEquals((await loopsOn(place.folder)).length, 1);
        const again = demo(place, "--once");
        assertEquals(await again.end, 0, again.output());
        assertMatch(again.output(), /^cleared .*mnt/m);
        assertMatch(again.output(), /^read again .*hit ratio/m);
        await nothingLeft(place);
      }),
    LIMIT_MS,
  );
});
