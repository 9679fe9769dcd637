/**
 * A device that a process has: when that process is a mount of this user, the refusal says where
 * it is and what ends it. Only control sockets and locks are asked, never the mount itself.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { holderOfRefusal, withAdvice } from "../../lib/device/file_lock.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { ControlClient } from "../control/client.ts";
import { controlSockets, runDirectoryPath } from "../control/run_directory.ts";
import type { Program } from "./program.ts";
import { printable } from "./format.ts";

/** A process that does not say by now where it serves is not waited for: only advice is lost. */
const PATIENCE_MS = 2000;

/** The error, with the mount point of the process that has the device, if that is one of ours. */
export async function namingMount(program: Program, error: unknown): Promise<unknown> {
  const pid = holderOfRefusal(error);
  if (pid === undefined) return error;
  const sockets = controlSockets(runDirectoryPath(program.environment));
  const asked = await Promise.allSettled(
    sockets.map((socket) => new ControlClient(socket, { patienceMs: PATIENCE_MS }).mountInfo()),
  );
  for (const result of asked) {
    if (result.status === "rejected" || result.value.pid !== pid) continue;
    const path = printable(result.value.mountPoint);
    const advice = `it serves ${path}: run bcache-fuse unmount ${path} first`;
    return withAdvice(error as BcacheError, advice);
  }
  return error;
}

/**
 * Throws Busy when another process has one of the devices. For a refusal that is better than
 * another: that the port is taken too, say, since the same mount has that.
 */
export async function refuseInUse(paths: readonly string[]): Promise<void> {
  const host = await openLibc();
  for (const path of paths) {
    try {
      const device = await openFileDevice(path, { readOnly: true, exclusive: true, host });
      await device.close();
    } catch (error) {
      if (error instanceof BcacheError && error.code === "Busy") throw error;
      // Whatever else is wrong with it is not why the mount is refused.
    }
  }
}
