/** Devices for the commands that work without a mount: opened to be read, alone, and closed. */
import { BcacheError } from "../../lib/base/errors.ts";
import { readSuperblock } from "../../lib/cache/members/attach.ts";
import { openBacking, sidecarPath } from "../../lib/cache/members/open_backing.ts";
import type { WhenChanged } from "../../lib/cache/members/sidecar.ts";
import { nameExists } from "../../lib/device/create.ts";
import { followLink } from "../../lib/device/host.ts";
import type { Device } from "../../lib/device/device.ts";
import { type FileDevice, openFileDevice } from "../../lib/device/file.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { UsageError } from "./program.ts";

export class OfflineDevices {
  #open: Device[] = [];

  /** Opens a file or block device to be read; `alone` refuses one that a mount uses. */
  async file(path: string, options: { alone: boolean }): Promise<FileDevice> {
    const host = await openLibc();
    const device = await openFileDevice(path, {
      readOnly: true,
      exclusive: options.alone,
      host,
    });
    this.#open.push(device);
    return device;
  }

  /**
   * A backing device to be read, joined with its sidecar if it has one. One without superblock is
   * opened as it is: that it has none is for the caller to find.
   */
  async backing(path: string): Promise<Device> {
    if (!await hasSidecar(path)) return await this.file(path, { alone: true });
    return await this.#joined(path, "refuse");
  }

  /** The UUID of an image that is refused for no other reason than that it was changed. */
  async uuidOfChanged(path: string): Promise<Uint8Array | undefined> {
    if (!await hasSidecar(path)) return undefined;
    try {
      const { uuid } = await readSuperblock(await this.#joined(path, "trust"));
      return uuid;
    } catch (error) {
      if (isDamage(error)) return undefined;
      throw error;
    }
  }

  async #joined(path: string, whenChanged: WhenChanged): Promise<Device> {
    const host = await openLibc();
    const device = await openBacking(
      path,
      (part) => openFileDevice(part, { readOnly: true, exclusive: true, host }),
      whenChanged,
    );
    this.#open.push(device);
    return device;
  }

  async close(): Promise<void> {
    await Promise.all(this.#open.splice(0).map((device) => device.close()));
  }
}

/** Also when it lies beside a link to the image, where it should not: opening tells of that. */
async function hasSidecar(path: string): Promise<boolean> {
  return nameExists(sidecarPath(await followLink(path))) || nameExists(sidecarPath(path));
}

/** Refuses a backing device where a cache device is wanted; damage is not looked for here. */
export async function refuseBackingDevice(device: Device, advice: string): Promise<void> {
  const isBacking = await readSuperblock(device).then(
    (found) => found.kind === "backing",
    () => false,
  );
  if (!isBacking) return;
  const what = `${device.name}: this is a backing device, not a cache device`;
  throw new BcacheError("InvalidArgument", `${what}; ${advice}`);
}

/** What is wrong with the bytes of a device, not with reaching it. */
export function isDamage(error: unknown): error is BcacheError {
  return error instanceof BcacheError &&
    (error.code === "BadFormat" || error.code === "BadChecksum");
}

/** The one cache device of a command line. */
export function oneCache(paths: readonly string[] | undefined): string {
  const [path] = paths ?? [];
  if (path === undefined) throw new UsageError("no cache device was given; add --cache CACHE");
  if (paths!.length === 1) return path;
  throw new UsageError(
    `a cache set has one cache device, ${paths!.length} were given; give --cache once`,
  );
}

/** Refuses a device that is named twice. */
export function refuseTwice(paths: readonly string[]): void {
  const twice = paths.find((path, at) => paths.indexOf(path) !== at);
  if (twice !== undefined) throw new UsageError(`${twice} is named twice; name each device once`);
}
