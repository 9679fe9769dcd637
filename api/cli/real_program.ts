/** The program as it really runs: standard streams, environment, the engine's own parts. */
import { Buffer } from "node:buffer";
import { fstatSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import { runEnvironment } from "../control/run_directory.ts";
import { DAEMON_VARIABLE } from "./daemon.ts";
import { main } from "./main.ts";
import type { Parts, Program } from "./program.ts";

/** Loaded when they are used: `status` needs no FUSE, `mount` no formatter. */
const REAL_PARTS: Parts = {
  mount: async (config, listeners) => {
    const { mountCacheSet } = await import("../../fuse/mount_handle.ts");
    return await mountCacheSet(config, listeners);
  },
  make: async (request) => {
    const { makeDevices } = await import("./make_devices.ts");
    return await makeDevices(request);
  },
};

/** Runs the command line of this process to its end, and the process with it. */
export async function runProgram(programUrl: string, parts: Parts = REAL_PARTS): Promise<never> {
  // A reader that went away (`| head`) ends nothing that matters: the command does its work.
  process.stdout.on("error", () => {});
  process.stderr.on("error", () => {});
  const status = await main(process.argv.slice(2), realProgram(programUrl, parts));
  await Promise.all([drained(process.stdout), drained(process.stderr)]);
  process.exit(status);
}

function realProgram(programUrl: string, parts: Parts): Program {
  return {
    version: versionOfPackage(),
    path: fileURLToPath(programUrl),
    parts,
    environment: runEnvironment(),
    isTerminal: process.stderr.isTTY === true,
    isDaemon: process.env[DAEMON_VARIABLE] === "1",
    out: isStream(1) ? (text) => void process.stdout.write(text) : writeToFile,
    err: (text) => void process.stderr.write(text),
    flushed: () => drained(process.stdout),
  };
}

/** Whether a file descriptor is a pipe or a socket, whose reader may be slow or go away. */
function isStream(descriptor: number): boolean {
  try {
    const stat = fstatSync(descriptor);
    return stat.isFIFO() || stat.isSocket();
  } catch {
    return true; // It is closed: the stream takes what nobody will see.
  }
}

/** Writes to standard output, a file: what does not fit on its disk fails the command. */
function writeToFile(text: string): void {
  const bytes = Buffer.from(text);
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(1, bytes, at);
  } catch (error) {
    throw new BcacheError(
      "DeviceIo",
      `standard output cannot be written, what it has is cut short: ${messageOf(error)}`,
      { cause: error },
    );
  }
}

function versionOfPackage(): string {
  const path = join(import.meta.dirname!, "..", "..", "package.json");
  return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
}

/** Resolves when all that was written is out; exiting earlier would cut off a pipe. */
function drained(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    if (stream.destroyed) resolve();
    else stream.write("", () => resolve());
  });
}
