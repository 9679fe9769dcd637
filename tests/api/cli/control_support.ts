/** Commands in this process, against a fake cache set behind a real control socket. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { main } from "../../../api/cli/main.ts";
import type { Program } from "../../../api/cli/program.ts";
import { controlSocketPath, ensureRunDirectory } from "../../../api/control/run_directory.ts";
import { createApp } from "../../../api/http/app.ts";
import type { MountInfo } from "../../../api/http/schema.ts";
import { type Listening, listenUnix } from "../../../api/http/serve.ts";
import type { SetRemains } from "../../../lib/cache/ports.ts";
import { FakeControl } from "../fake_control.ts";

export class CommandBench {
  readonly control: FakeControl;
  readonly mountPoint: string;
  /** Where control sockets are looked for. */
  readonly runDirectory: string;
  unmount: () => Promise<SetRemains | undefined> = () => Promise.resolve(undefined);
  readOnly = false;
  readonly #folder: string;
  readonly #program: Program;
  readonly #listening: Promise<Listening>;
  #out = "";
  #err = "";

  constructor(devices = 1) {
    this.control = new FakeControl(devices);
    this.#folder = mkdtempSync(join(tmpdir(), "bcache-fuse-commands-"));
    this.mountPoint = join(this.#folder, "mnt");
    mkdirSync(this.mountPoint);
    const environment = { uid: process.getuid?.() ?? 0, xdgRuntimeDirectory: this.#folder };
    this.#program = {
      version: "1.2.3",
      path: "program",
      parts: {
        mount: () => Promise.reject(new Error("not here")),
        make: () => Promise.reject(new Error("not here")),
      },
      environment,
      isTerminal: false,
      isDaemon: false,
      flushed: () => Promise.resolve(),
      out: (text) => void (this.#out += text),
      err: (text) => void (this.#err += text),
    };
    const mount = { info: () => this.#info(), unmount: () => this.unmount() };
    const app = createApp({ control: () => this.control, version: "1.2.3", mount });
    this.runDirectory = ensureRunDirectory(environment);
    const socket = controlSocketPath(this.runDirectory, this.mountPoint);
    this.#listening = listenUnix(app, socket);
  }

  #info(): MountInfo {
    return {
      pid: process.pid,
      mountPoint: this.mountPoint,
      cachePath: "/ssd",
      backingPaths: [],
      readOnly: this.readOnly,
      httpAddress: null,
      version: "1.2.3",
    };
  }

  /** Runs a command; its exit status and what it wrote. */
  async run(...words: string[]): Promise<{ status: number; out: string; err: string }> {
    await this.#listening;
    this.#out = this.#err = "";
    const status = await main(words, this.#program);
    return { status, out: this.#out, err: this.#err };
  }

  async close(): Promise<void> {
    await (await this.#listening).close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
