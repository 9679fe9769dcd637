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
  const [out, err] = [new Output(process.stdout), new Output(process.stderr)];
  const status = await main(process.argv.slice(2), realProgram(programUrl, parts, out, err));
  await Promise.all([out.drained(), err.drained()]);
  process.exit(status);
}

function realProgram(programUrl: string, parts: Parts, out: Output, err: Output): Program {
  return {
    version: versionOfPackage(),
    path: fileURLToPath(programUrl),
    parts,
    environment: runEnvironment(),
    isTerminal: process.stderr.isTTY === true,
    isDaemon: process.env[DAEMON_VARIABLE] === "1",
    out: isStream(1) ? (text) => out.write(text) : writeToFile,
    err: (text) => err.write(text),
    flushed: () => out.drained(),
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

/**
 * A standard stream that can be waited for. Exiting earlier would cut off what a slow reader of a
 * pipe has not taken yet. Only the call-back of a write itself tells: Bun calls that of an empty
 * write after it at once.
 */
class Output {
  readonly #stream: NodeJS.WriteStream;
  #underWay = 0;
  #gone = false;
  #waiting: Array<() => void> = [];

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
    // A reader that went away (`| head`) ends nothing that matters: the command does its work.
    const end = (): void => {
      this.#gone = true;
      this.#tell();
    };
    stream.on("error", end);
    stream.on("close", end);
  }

  write(text: string): void {
    if (text === "" || this.#gone) return;
    this.#underWay++;
    this.#stream.write(text, () => {
      this.#underWay--;
      this.#tell();
    });
  }

  /** Resolves when all that was written is out, or nobody takes it any more. */
  drained(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#tell();
    });
  }

  #tell(): void {
    if (this.#underWay > 0 && !this.#gone) return;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
