/** Real mounts of volumes in memory, the programs that use them, and cleaning up after a test. */
import { execFile, execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mountCacheSet, type MountConfig, type MountHandle } from "../../../fuse/mount_handle.ts";

export const ENGINE = new URL("./memory_engine.ts", import.meta.url).href;

export interface Ran {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

/** Runs a program without blocking this thread, which the mounted file may need. */
export function run(program: string, ...args: readonly string[]): Promise<Ran> {
  const options = { encoding: "utf8", maxBuffer: 16 * 1024 * 1024 } as const;
  return new Promise((resolve) => {
    execFile(program, [...args], options, (error, out, err) => {
      const code = error === null ? 0 : (error as { code?: unknown }).code;
      resolve({ status: typeof code === "number" ? code : 127, out, err });
    });
  });
}

/** The same, for programs that must succeed. */
export async function ok(program: string, ...args: readonly string[]): Promise<string> {
  const { status, out, err } = await run(program, ...args);
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${status}: ${err || out}`);
  return out.trim();
}

export class Mounts {
  readonly logged: string[] = [];
  #folders: string[] = [];
  #handles: MountHandle[] = [];
  #undo: Array<() => Promise<unknown>> = [];

  /** A folder for mounting on. */
  folder(): string {
    const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-test-"));
    chmodSync(folder, 0o755);
    this.#folders.push(folder);
    return folder;
  }

  config(settings: Record<string, string> = {}, more: Partial<MountConfig> = {}): MountConfig {
    return {
      cachePath: "none",
      backingPaths: [],
      mountPoint: more.mountPoint ?? this.folder(),
      readOnly: false,
      allowOther: false,
      settings: Object.entries(settings),
      engineModule: ENGINE,
      ...more,
    };
  }

  async mount(
    settings: Record<string, string> = {},
    more: Partial<MountConfig> = {},
  ): Promise<{ handle: MountHandle; file: string; mountPoint: string }> {
    const config = this.config(settings, more);
    const log = (_level: string, message: string): number => this.logged.push(message);
    const handle = await mountCacheSet(config, { log });
    this.#handles.push(handle);
    return { handle, file: join(config.mountPoint, "bcache0"), mountPoint: config.mountPoint };
  }

  /** Something to be done before unmounting, whatever happens. */
  later(undo: () => Promise<unknown>): void {
    this.#undo.push(undo);
  }

  async cleanUp(): Promise<void> {
    for (const undo of this.#undo.splice(0).reverse()) await undo();
    const handles = this.#handles.splice(0);
    await Promise.allSettled(handles.map((handle) => handle.unmount({ force: true })));
    for (const folder of this.#folders.splice(0)) {
      if (isMounted(folder)) await run("umount", "-l", folder);
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

export function isMounted(folder: string): boolean {
  return execFileSync("cat", ["/proc/mounts"], { encoding: "utf8" }).includes(` ${folder} `);
}
