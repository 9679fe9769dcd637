/**
 * `mount --daemon`: starts this program again, detached, and returns when its mount is ready.
 *
 * The child says how it went in one line of JSON on its standard output:
 * `{"ready": line, "warnings": [line]}` or `{"error": line, "status": n}`. Afterwards it writes
 * only to its log. While it starts, that is a file of its own: another daemon may have the mount
 * point, and its log.
 */
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { resolve } from "node:path";
import process from "node:process";
import { ensureRunDirectory, logPath, startingLogPath } from "../control/run_directory.ts";
import { realMountPoint } from "../control/mount_table.ts";
import type { MountCommand, ReadyMount } from "./mount.ts";
import type { Program } from "./program.ts";

/** Set in the child's environment. */
export const DAEMON_VARIABLE = "BCACHE_FUSE_DAEMON";
/** Set there too: the log of its start, which standard error goes to. */
const STARTING_LOG_VARIABLE = "BCACHE_FUSE_STARTING_LOG";

/** The child could not mount; it has said why in `message`. */
export class DaemonError extends Error {
  override name = "DaemonError";
  readonly status: number;

  constructor(message: string, status: number) {
    super(message);
    this.status = status;
  }
}

/**
 * Starts the daemon and resolves with its line when the files can be used. What it has warned of
 * until then is said here too.
 */
export async function startDaemon(program: Program, command: MountCommand): Promise<string> {
  const directory = ensureRunDirectory(program.environment);
  const mountPoint = realMountPoint(command.mountPoint);
  const startingLog = startingLogPath(directory, mountPoint, process.pid);
  const logDescriptor = openSync(startingLog, "a", 0o600);
  const words = [...runtimeFlags(program.path), program.path, ...daemonArguments(command)];
  const child = spawn(process.execPath, words, {
    detached: true,
    cwd: "/", // A daemon must not keep the directory busy that it happened to be started in.
    env: { ...process.env, [DAEMON_VARIABLE]: "1", [STARTING_LOG_VARIABLE]: startingLog },
    stdio: ["ignore", "pipe", logDescriptor],
  });
  closeSync(logDescriptor);
  const report = await new Promise<string>((done, reject) => {
    let text = "";
    child.once("error", reject);
    child.stdout?.setEncoding("utf8");
    child.stdout?.on("data", (part: string) => {
      text += part;
      if (text.includes("\n")) done(text.slice(0, text.indexOf("\n")));
    });
    child.once("close", () => done(text));
  });
  child.stdout?.destroy();
  child.unref();
  return readReport(program, report, { log: logPath(directory, mountPoint), startingLog });
}

/**
 * In the child, when it has the mount point: the log of its start becomes the log of the mount,
 * behind what a mount that failed there has left. Then its `line` is reported.
 */
export function reportReady(program: Program, ready: ReadyMount): void {
  const { line, mountPoint, warnings } = ready;
  const startingLog = process.env[STARTING_LOG_VARIABLE];
  if (startingLog !== undefined && existsSync(startingLog)) {
    const log = logPath(ensureRunDirectory(program.environment), mountPoint);
    if (existsSync(log)) {
      // In place: standard error stays open, and appends to this file.
      writeFileSync(startingLog, Buffer.concat([readFileSync(log), readFileSync(startingLog)]));
    }
    renameSync(startingLog, log);
  }
  program.out(`${JSON.stringify({ ready: line, warnings })}\n`);
}

/** In the child: reports its end. The log of a start that was refused goes: the line has it all. */
export function reportError(program: Program, error: { line: string; status: number }): void {
  const startingLog = process.env[STARTING_LOG_VARIABLE];
  if (startingLog !== undefined) rmSync(startingLog, { force: true });
  program.out(`${JSON.stringify({ error: error.line, status: error.status })}\n`);
}

/** As the launcher has them: an installed copy finds its packages beside it. */
function runtimeFlags(path: string): string[] {
  if (!("Deno" in globalThis)) return [];
  const flags = ["run", "--quiet", "--no-check", "-A"];
  return path.endsWith(".js") ? [...flags, "--node-modules-dir=manual"] : flags;
}

function readReport(
  program: Program,
  report: string,
  logs: { log: string; startingLog: string },
): string {
  let parsed: { ready?: unknown; warnings?: unknown; error?: unknown; status?: unknown } = {};
  try {
    parsed = JSON.parse(report) as typeof parsed;
  } catch {
    // Not a report: the child died before it could say why. The log has what there is.
  }
  if (typeof parsed.ready === "string") {
    const warnings = Array.isArray(parsed.warnings) ? parsed.warnings : [];
    for (const warning of warnings) program.err(`bcache-fuse: warning: ${warning}\n`);
    return `${parsed.ready}; log: ${logs.log}`;
  }
  if (typeof parsed.error === "string") {
    throw new DaemonError(parsed.error, typeof parsed.status === "number" ? parsed.status : 1);
  }
  throw new DaemonError(`the daemon ended before it was ready; see ${logs.startingLog}`, 1);
}

/** The command as arguments, with paths that do not depend on the working directory. */
export function daemonArguments(command: MountCommand): string[] {
  const words = ["mount", "--cache", resolve(command.cachePath)];
  for (const path of command.backingPaths) words.push("--backing", resolve(path));
  if (command.cacheMode !== undefined) words.push("--cache-mode", command.cacheMode);
  const { http } = command;
  const isIPv6 = http?.host.includes(":") ?? false;
  words.push("--http", http ? `${isIPv6 ? `[${http.host}]` : http.host}:${http.port}` : "off");
  if (command.changedImage !== undefined) words.push("--changed-image", command.changedImage);
  if (command.readOnly) words.push("--read-only");
  if (command.allowOther) words.push("--allow-other");
  for (const { name, value } of command.settings) words.push("--set", `${name}=${value}`);
  words.push("--", resolve(command.mountPoint));
  return words;
}
