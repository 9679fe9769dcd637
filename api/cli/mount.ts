/**
 * `mount`: joins the engine, FUSE, the control socket and HTTP, and keeps them until the end.
 *
 * Order: first everything that can be refused without a trace (mount point, control socket, HTTP
 * port), then the mount. The control socket is also the lock of the mount point. What was begun is
 * taken back when a later step fails.
 */
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import process from "node:process";
import { hostname } from "node:os";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import type { Log } from "../../lib/base/runtime.ts";
import { checkSetting } from "../../lib/cache/attributes/tables.ts";
import type { CacheMode, SetRemains, SetStatus } from "../../lib/cache/ports.ts";
import { isDeadMount, mountAt, realMountPoint } from "../control/mount_table.ts";
import { controlSocketPath, ensureRunDirectory, logPath } from "../control/run_directory.ts";
import { createApp } from "../http/app.ts";
import type { MountInfo } from "../http/schema.ts";
import { type HostPort, type Listening, listenTcp, listenUnix } from "../http/serve.ts";
import { applySettings } from "./attributes.ts";
import { formatBytes, logStamp, oneLine, printable } from "./format.ts";
import type { MountHandle } from "../../fuse/mount_handle.ts";
import type { Program } from "./program.ts";
import { StopRequests, unmountPatiently } from "./stopping.ts";

export interface MountCommand {
  cachePath: string;
  backingPaths: string[];
  mountPoint: string;
  cacheMode: CacheMode | undefined;
  http: HostPort | undefined;
  readOnly: boolean;
  /** What to do with an image that was changed behind its sidecar; undefined: refuse it. */
  changedImage: "trust" | "drop" | undefined;
  allowOther: boolean;
  settings: Array<{ name: string; value: string }>;
}

/** A mount whose files can be used. */
export interface ReadyMount {
  /** About it, for people. */
  readonly line: string;
  /** The real path. */
  readonly mountPoint: string;
  /** What was logged on the way here, and somebody should know. */
  readonly warnings: readonly string[];
}

/**
 * Mounts and stays until it is unmounted or told to stop. `ready` is called once, when the files
 * can be used.
 */
export async function runMount(
  program: Program,
  command: MountCommand,
  ready: (about: ReadyMount) => void,
): Promise<void> {
  // Whatever can be refused is, before a device is touched: attaching one writes to it.
  for (const { name, value } of command.settings) {
    checkSetting(name.slice(name.lastIndexOf("/") + 1), value);
  }
  const mountPoint = checkedMountPoint(command.mountPoint);
  const served = new Served(program, command, mountPoint);
  const stops = new StopRequests();
  try {
    await served.listen();
    const warnings: string[] = [];
    const log: Log = (level, message) => {
      program.err(`${logStamp(program)}bcache-fuse: ${level}: ${oneLine(message)}\n`);
      if (level === "warning" && served.handle === undefined) warnings.push(oneLine(message));
    };
    const config = {
      cachePath: command.cachePath,
      backingPaths: command.backingPaths,
      mountPoint,
      ...(command.cacheMode === undefined ? {} : { cacheMode: command.cacheMode }),
      ...(command.changedImage === undefined ? {} : { changedImage: command.changedImage }),
      readOnly: command.readOnly,
      allowOther: command.allowOther,
      settings: [], // Set below, where names of devices are understood too.
    };
    const handle = await program.parts.mount(config, { log });
    await serveUntilEnded(program, { command, mountPoint, served, stops, handle, ready, warnings });
    // It ended well: nobody will ask why. The log of one that failed stays.
    if (program.isDaemon) {
      rmSync(logPath(ensureRunDirectory(program.environment), mountPoint), { force: true });
    }
  } finally {
    stops.close();
    await served.close();
  }
}

async function serveUntilEnded(
  program: Program,
  parts: {
    command: MountCommand;
    mountPoint: string;
    served: Served;
    stops: StopRequests;
    handle: MountHandle;
    ready: (about: ReadyMount) => void;
    warnings: readonly string[];
  },
): Promise<void> {
  const { command, mountPoint, served, stops, handle } = parts;
  try {
    await applySettings(handle.control, command.settings);
    const status = await handle.control.status();
    served.handle = handle;
    const line = readyLine(mountPoint, status, served.httpAddress);
    parts.ready({ line, mountPoint, warnings: parts.warnings });
  } catch (error) {
    await handle.unmount({ force: true });
    throw error;
  }
  await Promise.race([handle.ended, stops.first]);
  if (stops.count > 0) await unmountPatiently({ program, handle, mountPoint, stops });
  const end = await handle.ended;
  if (end.reason !== "unmounted") {
    throw end.error ??
      new BcacheError("SetFailed", "the cache set has failed; see the lines above");
  }
}

/** What a mount says when its files can be used. */
export function readyLine(mountPoint: string, status: SetStatus, http: string | undefined): string {
  const devices = [
    ...status.devices.map((device) =>
      `${device.name} ${formatBytes(device.sizeBytes)} ${device.cacheMode} ${device.state}`
    ),
    ...status.volumes.map((volume) => `${volume.name} ${formatBytes(volume.sizeBytes)} volume`),
  ].join(", ") ||
    `no device yet, add one with bcache-fuse attach ${printable(mountPoint)} BACKING`;
  return `mounted at ${printable(mountPoint)}: ${devices}; ${http ?? "HTTP off"}`;
}

/** The two servers of a mount, over one app that answers "starting" until `handle` is set. */
class Served {
  handle: MountHandle | undefined;
  httpAddress: string | undefined;
  #program: Program;
  #command: MountCommand;
  #mountPoint: string;
  #listening: Listening[] = [];

  constructor(program: Program, command: MountCommand, mountPoint: string) {
    this.#program = program;
    this.#command = command;
    this.#mountPoint = mountPoint;
  }

  async listen(): Promise<void> {
    const common = {
      control: () => this.handle?.control,
      version: this.#program.version,
      log: (_level: string, message: string) =>
        this.#program.err(`${logStamp(this.#program)}bcache-fuse: ${oneLine(message)}\n`),
    };
    const directory = ensureRunDirectory(this.#program.environment);
    const socket = controlSocketPath(directory, this.#mountPoint);
    const mount = {
      info: () => this.#info(),
      unmount: (options: { force: boolean }) => this.#unmount(options),
    };
    try {
      this.#listening.push(await listenUnix(createApp({ ...common, mount }), socket));
    } catch (error) {
      if (!(error instanceof BcacheError) || error.code !== "AddressInUse") throw error;
      throw new BcacheError(
        "Busy",
        `${this.#command.mountPoint} is already served by bcache-fuse; ` +
          `run bcache-fuse unmount ${this.#command.mountPoint} first, or choose another directory`,
        { cause: error },
      );
    }
    const { http } = this.#command;
    if (http === undefined) return;
    const binding = { host: http.host, machineName: hostname() };
    const listening = await listenTcp(createApp({ ...common, binding }), http).catch(
      async (error: unknown) => {
        // A mount that has the devices has the port as well: that it is there is the news.
        const { refuseInUse } = await import("./in_use.ts");
        await refuseInUse([this.#command.cachePath, ...this.#command.backingPaths]);
        throw error;
      },
    );
    this.#listening.push(listening);
    this.httpAddress = listening.address;
  }

  async close(): Promise<void> {
    await Promise.all(this.#listening.map((each) => each.close()));
  }

  #info(): MountInfo {
    return {
      pid: process.pid,
      mountPoint: this.#mountPoint,
      cachePath: this.#command.cachePath,
      backingPaths: this.#command.backingPaths,
      readOnly: this.#command.readOnly,
      httpAddress: this.httpAddress ?? null,
      version: this.#program.version,
    };
  }

  async #unmount(options: { force: boolean }): Promise<SetRemains | undefined> {
    if (this.handle === undefined) {
      throw new BcacheError("Shutdown", "the mount is still starting; try again in a moment");
    }
    await this.handle.unmount(options);
    return (await this.handle.ended).remains;
  }
}

/**
 * The real path of a directory that can be mounted on: it exists, is empty, and nothing is mounted
 * there. Also checks that there is FUSE at all. Throws a BcacheError.
 */
export function checkedMountPoint(path: string): string {
  if (!existsSync("/dev/fuse")) {
    throw new BcacheError(
      "NotSupported",
      "there is no /dev/fuse; load the module with modprobe fuse " +
        "(in a container: --device /dev/fuse)",
    );
  }
  const real = realMountPoint(path);
  if (isDeadMount(real)) {
    throw new BcacheError(
      "Busy",
      `${path} holds a mount whose process has ended; run bcache-fuse unmount ${path} first`,
    );
  }
  const found = mountAt(real);
  if (found?.type.startsWith("fuse")) {
    throw new BcacheError(
      "Busy",
      `${path} is already a mount point (${printable(found.type)}); ` +
        `run bcache-fuse unmount ${path} first, or choose another directory`,
    );
  }
  try {
    if (!statSync(real).isDirectory()) {
      throw new BcacheError(
        "InvalidArgument",
        `the mount point ${path} is not a directory; choose an empty directory`,
      );
    }
    if (readdirSync(real).length > 0) {
      throw new BcacheError(
        "InvalidArgument",
        `the mount point ${path} is not empty; choose an empty directory`,
      );
    }
  } catch (error) {
    if (error instanceof BcacheError) throw error;
    const isMissing = !existsSync(real);
    throw new BcacheError(
      isMissing ? "NotFound" : "Permission",
      isMissing
        ? `the mount point ${path} does not exist; make it with mkdir -p ${path}`
        : `the mount point ${path} cannot be read (${messageOf(error)}); ` +
          "choose an empty directory of yours",
      { cause: error },
    );
  }
  return real;
}
