/**
 * A place to run the real program in: a temporary folder, processes, mounts and loop devices,
 * all of them taken down again in reverse order however the test ends.
 */
import { assert } from "@std/assert";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { notWhileEnding, whenInterrupted } from "../../support/interrupted.ts";

export const TOP = join(import.meta.dirname!, "../../..");
const SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/** Below every test's own limit, so that a command that hangs is taken down and named. */
const STEP_LIMIT_MS = 50_000;
/** What the commands that run get to end when a signal ends the process. */
const COMMAND_END_LIMIT_MS = 5000;
const MIB = 1 << 20;

/** The program under the runtime that runs this test. */
export const PROGRAM: readonly string[] = process.versions["bun"] === undefined
  ? [process.execPath, "run", "-A", "--no-check", join(TOP, "mod.ts")]
  : [process.execPath, join(TOP, "mod.ts")];

export interface Outcome {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A mounted cache: the process that serves it, and where. */
export interface Served {
  readonly mountpoint: string;
  /** The file of the first device. */
  readonly file: string;
  readonly process: ChildProcess;
  /** What the process has printed so far. */
  output(): string;
}

export interface MountOptions {
  readonly cache: string;
  readonly backing: string;
  readonly flags?: readonly string[];
  /** Another command line than PROGRAM that runs the program. */
  readonly program?: readonly string[];
}

/** Commands that run now. */
const commands = new Set<ChildProcess>();

/** Before their files go: fio makes a folder again that it misses. */
async function endCommands(): Promise<void> {
  for (const child of commands) signalTo(child, "SIGTERM");
  const deadlineMs = Date.now() + COMMAND_END_LIMIT_MS;
  while (commands.size > 0 && Date.now() < deadlineMs) await sleep(10);
  for (const child of commands) signalTo(child, "SIGKILL");
}

/** Runs a command to its end. Never rejects for a command that fails: look at `status`. */
export function attempt(
  command: readonly string[],
  how: { cwd?: string; limitMs?: number } = {},
): Promise<Outcome> {
  const [program, ...args] = command;
  return new Promise((resolve) => {
    const options = {
      timeout: how.limitMs ?? STEP_LIMIT_MS,
      killSignal: "SIGKILL" as const,
      maxBuffer: 64 * MIB,
      ...(how.cwd === undefined ? {} : { cwd: how.cwd }),
      env: { ...process.env, PATH: `${process.env["PATH"] ?? ""}:${SYSTEM_PATH}`, LC_ALL: "C" },
    };
    const child = execFile(program!, args, options, (error, stdout, stderr) => {
      commands.delete(child);
      const reason = error === null ? "" : `\n${error.message}`;
      const status = error === null ? 0 : (child.exitCode ?? 128);
      resolve({ status, stdout, stderr: `${stderr}${status === 0 ? "" : reason}` });
    });
    commands.add(child);
  });
}

/** Runs a command that must succeed, and returns what it printed; not while a signal ends us. */
export async function run(...command: string[]): Promise<string> {
  await notWhileEnding();
  const outcome = await attempt(command);
  assert(
    outcome.status === 0,
    `${command.join(" ")} ended with ${outcome.status}:\n${outcome.stdout}${outcome.stderr}`,
  );
  return outcome.stdout;
}

/** Runs our program; it must succeed. */
export function bcacheFuse(...args: string[]): Promise<string> {
  return run(...PROGRAM, ...args);
}

export class Workshop {
  readonly folder: string;
  #undo: Array<() => Promise<void>> = [];
  /** Loop devices that are ours now. */
  #loops = new Set<string>();
  #closing: Promise<void> | undefined;

  constructor() {
    // On a real disk where there is one: tmpfs takes no direct I/O.
    const root = existsSync("/var/tmp") ? "/var/tmp" : tmpdir();
    this.folder = mkdtempSync(join(root, "bcache-fuse-e2e-"));
  }

  /** A path inside the workshop's folder. */
  path(name: string): string {
    return join(this.folder, name);
  }

  /** A fresh empty folder inside it. */
  makeFolder(name: string): string {
    const path = this.path(name);
    mkdirSync(path, { recursive: true });
    return path;
  }

  /** Makes a cache and a backing file with the command line under test. */
  async format(options: {
    cacheMib: number;
    backingMib: number;
    /** Small by default, so that small devices have enough buckets. */
    bucket?: string;
    flags?: readonly string[];
  }): Promise<{ cache: string; backing: string }> {
    const cache = this.path("cache.img");
    const backing = this.path("backing.img");
    await run("truncate", "-s", `${options.cacheMib}M`, cache);
    await run("truncate", "-s", `${options.backingMib}M`, backing);
    const geometry = ["-b", options.bucket ?? "64k", "-w", "4k", ...(options.flags ?? [])];
    await bcacheFuse("make", "-C", cache, "-B", backing, ...geometry);
    return { cache, backing };
  }

  /** Mounts in the foreground and returns when the status line says that the file can be used. */
  async mount(options: MountOptions): Promise<Served> {
    await notWhileEnding();
    const mountpoint = this.makeFolder("mnt");
    const args = ["mount", "--cache", options.cache, "--backing", options.backing, mountpoint];
    const flags = options.flags ?? [];
    const http = flags.includes("--http") ? [] : ["--http", "off"];
    const [program, ...before] = options.program ?? PROGRAM;
    const child = spawn(program!, [...before, ...args, ...http, ...flags], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    child.stdout.on("data", (chunk) => output += String(chunk));
    child.stderr.on("data", (chunk) => output += String(chunk));
    const file = join(mountpoint, "bcache0");
    this.#undo.push(() => this.#takeDown(child, mountpoint));
    const deadlineMs = Date.now() + 30_000;
    while (!output.includes(`mounted at ${mountpoint}`)) {
      assert(!hasEnded(child), `mount ended with ${child.exitCode}:\n${output}`);
      assert(Date.now() < deadlineMs, `no status line after 30 s:\n${output}`);
      await sleep(20);
    }
    assert(existsSync(file), `${file} is there when the status line says so`);
    return { mountpoint, file, process: child, output: () => output };
  }

  /** Unmounts by the command line and waits until the process has ended, with success. */
  async unmount(served: Served, ...flags: string[]): Promise<void> {
    await bcacheFuse("unmount", served.mountpoint, ...flags);
    await ended(served.process);
    assert(
      served.process.exitCode === 0,
      `the mount ended with ${served.process.exitCode}:\n${served.output()}`,
    );
    assert(!isMounted(served.mountpoint), `${served.mountpoint} is not mounted any more`);
  }

  /** SIGKILL: nothing is flushed; then takes the dead mount away. */
  async kill(served: Served): Promise<void> {
    signalTo(served.process, "SIGKILL");
    await this.clearAway(served);
  }

  /** Takes away the mount of a process that is dead or about to be. */
  async clearAway(served: Served): Promise<void> {
    await ended(served.process);
    await attempt(["umount", "-l", served.mountpoint]);
  }

  /** A loop device over `file`, for as long as the test runs or until `detach`. */
  async attachLoop(file: string, options: { direct: boolean }): Promise<string> {
    const direct = `--direct-io=${options.direct ? "on" : "off"}`;
    const loop = (await run("losetup", "--find", "--show", direct, file)).trim();
    const shown = (await run("losetup", "--noheadings", "--output", "DIO", loop)).trim();
    this.#loops.add(loop);
    this.#undo.push(async () => {
      if (this.#loops.has(loop)) await attempt(["losetup", "--detach", loop]);
    });
    assert(shown === (options.direct ? "1" : "0"), `${loop} has direct I/O ${shown}`);
    return loop;
  }

  /** Once: by the next time the loop device may be somebody else's. */
  async detachLoop(loop: string): Promise<void> {
    const behind = () => attempt(["losetup", "--noheadings", "--output", "BACK-FILE", loop]);
    const { stdout: file } = await behind();
    await run("losetup", "--detach", loop);
    this.#loops.delete(loop);
    // The kernel lets go when the last user does: udev may still be looking at it.
    const deadlineMs = Date.now() + 10_000;
    while ((await behind()).stdout === file) {
      assert(Date.now() < deadlineMs, `${loop} is free 10 s after it was detached`);
      await sleep(20);
    }
  }

  /** Mounts a file system for as long as the test runs or until `umount` of the returned folder. */
  async mountFileSystem(device: string, name: string, ...flags: string[]): Promise<string> {
    const folder = this.makeFolder(name);
    await run("mount", ...flags, device, folder);
    this.#undo.push(async () => {
      if (isMounted(folder)) await attempt(["umount", "-l", folder]);
    });
    return folder;
  }

  async #takeDown(child: ChildProcess, mountpoint: string): Promise<void> {
    if (!hasEnded(child)) {
      signalTo(child, "SIGTERM");
      await Promise.race([ended(child), sleep(10_000, undefined, { ref: false })]);
    }
    if (!hasEnded(child)) signalTo(child, "SIGKILL");
    if (isMounted(mountpoint)) await attempt(["umount", "-l", mountpoint]);
    await ended(child);
  }

  /** Has `undo` run when the workshop closes, before what was set up earlier is undone. */
  onClose(undo: () => Promise<void>): void {
    this.#undo.push(undo);
  }

  /**
   * Takes everything down, all of it even when a part of it fails, and then says what failed. Once
   * only, however often it is called.
   */
  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    const failures: unknown[] = [];
    for (const undo of this.#undo.reverse()) {
      try {
        await undo();
      } catch (error) {
        failures.push(error);
      }
    }
    await this.#unmountEverything();
    rmSync(this.folder, { recursive: true, force: true });
    if (failures.length > 0) throw new AggregateError(failures, "the workshop did not close");
  }

  /** Whatever is still mounted here, however it came to be. */
  async #unmountEverything(): Promise<void> {
    const left = readFileSync("/proc/self/mounts", "utf8").split("\n")
      .map((line) => line.split(" ")[1] ?? "")
      .filter((path) => path.startsWith(`${this.folder}/`));
    for (const path of left.reverse()) await attempt(["umount", "-l", path]);
  }
}

/** Runs `body` in a workshop of its own. */
export async function inWorkshop(body: (workshop: Workshop) => Promise<void>): Promise<void> {
  assert(process.getuid?.() === 0, "the end-to-end tests mount: run them as root");
  const workshop = new Workshop();
  const handled = whenInterrupted(async () => {
    await endCommands();
    await workshop.close();
  });
  try {
    await body(workshop);
  } catch (error) {
    await notWhileEnding();
    // What went wrong first is what matters, not what taking down a failed test meets.
    await workshop.close().catch(() => {});
    handled();
    throw error;
  }
  await workshop.close().finally(handled);
}

export function isMounted(folder: string): boolean {
  return readFileSync("/proc/self/mounts", "utf8").includes(` ${folder} `);
}

/** Bytes that a file takes on its disk. */
export function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

/** Not the child's own `kill`: under Deno that alone makes it look as if it had ended. */
export function signalTo({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(pid, signal);
  } catch {
    // It has ended meanwhile.
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

async function ended(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  await new Promise((resolve) => child.once("exit", resolve));
}
