/** `unmount` and `flush`: they ask the process that serves the mount, and wait for it. */
import { readFileSync } from "node:fs";
import { spawnSync } from "node:child_process";
import process from "node:process";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import type { SetRemains } from "../../lib/cache/ports.ts";
import type { ControlClient } from "../control/client.ts";
import { deletedDevicesOf, isDeadMount, mountAt, realMountPoint } from "../control/mount_table.ts";
import { findMount, unreachableAt, type UnreachableMount } from "./find_mount.ts";
import { formatBytes, oneLine } from "./format.ts";
import { flushWithProgress } from "./progress.ts";
import type { Program } from "./program.ts";
import { busyError } from "./stopping.ts";

/** How long `unmount` waits for the process to write out what it must and end. */
const END_PATIENCE_MS = 60_000;
const POLL_MS = 50;

/** `unmount MOUNTPOINT [--flush] [--force]`. */
export async function runUnmount(
  program: Program,
  options: { mountPoint: string; flush: boolean; force: boolean },
): Promise<void> {
  const real = realMountPoint(options.mountPoint);
  if (isDeadMount(real)) {
    detachByHand(real, "now");
    program.out(`unmounted ${options.mountPoint}, whose process had ended\n`);
    return;
  }
  const lost = unreachableAt(program, real);
  if (lost !== undefined) return await unmountUnreachable(program, lost, options);
  const client = await findMount(program, options.mountPoint);
  const { pid } = await client.mountInfo();
  if (options.flush) await flushWithProgress(program, client);
  if (!options.force) await refuseLoss(client);
  const left = leftText(await unmountBy(client, real, options.force));
  program.out(`unmounted ${options.mountPoint}${left}${await lateText(pid)}\n`);
}

/** What the mount has left, in words; "" when that is nothing, or not known. */
function leftText(remains: SetRemains | undefined): string {
  if (remains === undefined) return "";
  const { dirtyBytes, detachesBrokenOff } = remains;
  const dirty = dirtyBytes === 0 ? "" : `; ${formatBytes(dirtyBytes)} stay dirty in the cache`;
  if (detachesBrokenOff.length === 0) return dirty;
  const names = detachesBrokenOff.join(", ");
  return `${dirty}; the detach of ${names} was broken off: mount it again with this cache, then ` +
    "detach it once more";
}

/** What would end with the mount must be saved first, or given up by force. */
async function refuseLoss(client: ControlClient): Promise<void> {
  let warnings: readonly string[] = [];
  try {
    warnings = (await client.status()).warnings ?? [];
  } catch {
    return; // It starts or ends, or has no status: unmounting says what there is to say.
  }
  if (warnings.length === 0) return;
  throw new BcacheError("Busy", `${warnings.join("; ")}; or give it up with --force`);
}

async function unmountBy(
  client: ControlClient,
  real: string,
  force: boolean,
): Promise<SetRemains | undefined> {
  try {
    return await client.unmount({ force });
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    if (error.code === "Busy") throw busyError(real, error);
    // The process may be gone before its answer was out. What counts is whether the mount is.
    const isMounted = mountAt(real)?.type.startsWith("fuse") ?? false;
    if (error.code === "Shutdown" && !isMounted) return undefined;
    const now = isMounted ? `${real} is still mounted` : `${real} is unmounted all the same`;
    throw new BcacheError(error.code, `${error.message}; ${now}`, { cause: error });
  }
}

/** Waits for the process; in words what is known of its end, "" when it has ended. */
export async function lateText(pid: number | undefined): Promise<string> {
  if (pid === undefined) return "; its process cannot be seen and may still be writing";
  return await hasEnded(pid) ? "" : `; the process ${pid} has not ended yet`;
}

async function hasEnded(pid: number): Promise<boolean> {
  for (let waitedMs = 0; waitedMs < END_PATIENCE_MS; waitedMs += POLL_MS) {
    if (!isAlive(pid)) return true;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  return false;
}

/** One that has ended counts so even if whoever started it did not look after it yet. */
function isAlive(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return !"ZX".includes(stat.charAt(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}

/** The same of a server that cannot be asked what its files hold. */
export function refuseDeleted(pid: number, mountPoint: string): void {
  const [first, ...more] = deletedDevicesOf(pid);
  if (first === undefined) return;
  const others = more.length === 0 ? "" : ` (and ${more.join(", ")})`;
  throw new BcacheError(
    "Busy",
    `${first}${others} was deleted while in use, and ends with this mount: copy the files of ` +
      `${mountPoint} to another place first; or give it up with --force`,
  );
}

/** The kernel tells the server that its mount is over; it ends as after any unmounting. */
async function unmountUnreachable(
  program: Program,
  { mountPoint, socket, pid }: UnreachableMount,
  options: { mountPoint: string; flush: boolean; force: boolean },
): Promise<void> {
  const path = options.mountPoint;
  if (options.flush) {
    throw new BcacheError(
      "NotFound",
      `${path} cannot be flushed: its control socket ${socket} is missing; run bcache-fuse ` +
        `unmount ${path} without --flush, then bcache-fuse writeback`,
    );
  }
  if (!options.force && pid !== undefined) refuseDeleted(pid, path);
  detachByHand(mountPoint, options.force ? "now" : "unless busy", { pid });
  program.out(`unmounted ${path}, whose control socket was missing${await lateText(pid)}\n`);
}

/**
 * Has the kernel let go of a mount whose server was killed, or cannot be asked.
 * @param server what is known of the server, for a message
 */
export function detachByHand(
  real: string,
  when: "now" | "unless busy",
  server: { pid?: number | undefined; patienceMs?: number } = {},
): void {
  const { pid, patienceMs = END_PATIENCE_MS } = server;
  const isRoot = process.getuid?.() === 0;
  const command = isRoot ? "umount" : "fusermount3";
  const lazily = when === "now" ? [isRoot ? "-l" : "-z"] : [];
  const done = spawnSync(command, [...(isRoot ? [] : ["-u"]), ...lazily, "--", real], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C" }, // What it says is read below.
    timeout: patienceMs,
    killSignal: "SIGKILL",
  });
  if (done.status === 0) return;
  if (done.error !== undefined && "code" in done.error && done.error.code === "ETIMEDOUT") {
    const who = pid === undefined ? "the process that serves it" : `process ${pid}`;
    throw new BcacheError(
      "Shutdown",
      `cannot unmount ${real}: ${who} does not answer; if it is stopped, kill -CONT ` +
        `${pid ?? "and its PID"} goes on with it; then unmount again`,
    );
  }
  const reason = oneLine(done.error ? messageOf(done.error) : done.stderr);
  if (/busy/i.test(reason)) throw busyError(real, new BcacheError("Busy", reason));
  throw new BcacheError("Permission", `cannot unmount ${real}: ${reason}; try it as root`);
}

/** `flush MOUNTPOINT`. */
export async function runFlush(program: Program, options: { mountPoint: string }): Promise<void> {
  const client = await findMount(program, options.mountPoint);
  const { readOnly } = await client.mountInfo();
  // What is dirty makes a read-only set refuse: there is no progress to be shown then.
  if (readOnly) await client.flushDirty(undefined);
  const bytes = readOnly ? 0 : await flushWithProgress(program, client);
  program.out(bytes === 0 ? "nothing was dirty\n" : `clean; ${formatBytes(bytes)} were dirty\n`);
}
