/**
 * Mounting and unmounting: by mount(2) as root, else through the setuid program fusermount3,
 * which hands the descriptor of the connection over a socket.
 *
 * Everything that can be known to fail is checked by `checkMountPoint` before a device is opened.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { BcacheError, ERRNO, messageOf } from "../lib/base/errors.ts";
import { type Libc, MNT_DETACH, MS, O } from "../lib/runtime/libc.ts";
import { receiveDescriptor, runWithSocket } from "./fusermount.ts";
import { describeUsers } from "./mount_users.ts";
import { FILE_TYPE, MAX_TRANSFER_BYTES } from "./protocol.ts";

const DEVICE = "/dev/fuse";
const SOURCE = "bcache-fuse";
const SUBTYPE = "bcache";

export interface MountOptions {
  readonly mountPoint: string;
  readonly readOnly: boolean;
  readonly allowOther: boolean;
}

/** Throws the reason why nothing can be mounted on `mountPoint`. Changes nothing. */
export function checkMountPoint(libc: Libc, mountPoint: string): void {
  checkDirectory(mountPoint);
  const fd = libc.open(DEVICE, O.RDWR | O.CLOEXEC);
  if (fd === -ERRNO.ENOENT || fd === -ERRNO.ENODEV || fd === -ERRNO.ENXIO) {
    throw new BcacheError(
      "NotFound",
      `${DEVICE}: this system has no FUSE: load it with "modprobe fuse", or give the container ` +
        `the device`,
    );
  }
  if (fd < 0) {
    throw new BcacheError(
      "Permission",
      `${DEVICE}: cannot be opened (errno ${-fd}): run as root, or ask for access to it`,
    );
  }
  libc.close(fd);
  if (libc.effectiveUserId() !== 0 && findFusermount() === undefined) {
    throw new BcacheError(
      "NotFound",
      "fusermount3 was not found: install the package fuse3, or mount as root",
    );
  }
}

function checkDirectory(mountPoint: string): void {
  let entries: string[];
  try {
    if (!statSync(mountPoint).isDirectory()) {
      throw new BcacheError("InvalidArgument", `${mountPoint}: not a directory`, {
        errno: ERRNO.ENOTDIR,
      });
    }
    entries = readdirSync(mountPoint);
  } catch (error) {
    if (error instanceof BcacheError) throw error;
    throw mountPointError(mountPoint, error);
  }
  if (entries.length > 0) {
    throw new BcacheError(
      "Exists",
      `${mountPoint}: not empty (it has ${JSON.stringify(entries[0])}): mount on an empty ` +
        `directory`,
      { errno: ERRNO.ENOTEMPTY },
    );
  }
}

function mountPointError(mountPoint: string, cause: unknown): BcacheError {
  const code = (cause as { code?: string }).code;
  const options = { cause };
  if (code === "ENOENT") {
    const advice = `create it with "mkdir ${mountPoint}"`;
    return new BcacheError("NotFound", `${mountPoint}: no such directory: ${advice}`, options);
  }
  if (code === "ENOTCONN" || code === "ECONNABORTED" || isNotConnected(cause)) {
    return new BcacheError(
      "Busy",
      `${mountPoint}: still mounted by a program that has ended: run "umount ${mountPoint}" first`,
      { cause, errno: ERRNO.ENOTCONN },
    );
  }
  return new BcacheError("Permission", `${mountPoint}: ${messageOf(cause)}`, options);
}

/** Deno has no code for ENOTCONN; its message ends in the number. */
function isNotConnected(error: unknown): boolean {
  return /os error 107\b|not connected/i.test(messageOf(error));
}

/** Mounts, and returns the descriptor of the connection, non-blocking. */
export function mountFuse(libc: Libc, options: MountOptions): number {
  const fd = libc.effectiveUserId() === 0
    ? mountAsRoot(libc, options)
    : mountByFusermount(libc, options);
  libc.setNonBlocking(fd);
  return fd;
}

function mountAsRoot(libc: Libc, options: MountOptions): number {
  const fd = libc.open(DEVICE, O.RDWR | O.CLOEXEC | O.NONBLOCK);
  if (fd < 0) throw new BcacheError("Permission", `${DEVICE}: cannot be opened (errno ${-fd})`);
  const data = [
    `fd=${fd}`,
    `rootmode=${FILE_TYPE.DIRECTORY.toString(8)}`,
    `user_id=${libc.effectiveUserId()}`,
    `group_id=${libc.effectiveGroupId()}`,
    `max_read=${MAX_TRANSFER_BYTES}`,
    "default_permissions",
    ...(options.allowOther ? ["allow_other"] : []),
  ];
  const failed = libc.mount({
    source: SOURCE,
    target: options.mountPoint,
    type: `fuse.${SUBTYPE}`,
    flags: MS.NOSUID | MS.NODEV | MS.NOATIME | (options.readOnly ? MS.RDONLY : 0),
    data: data.join(","),
  });
  if (failed === 0) return fd;
  libc.close(fd);
  const code = failed === -ERRNO.EPERM ? "Permission" : "DeviceIo";
  const advice = failed === -ERRNO.EPERM ? ": root here may not mount (a container?)" : "";
  throw new BcacheError(
    code,
    `${options.mountPoint}: mount(2) failed (errno ${-failed})${advice}`,
    { errno: -failed },
  );
}

function findFusermount(): string | undefined {
  const places = (process.env["PATH"] ?? "").split(":").filter((place) => place.startsWith("/"));
  for (const place of [...places, "/usr/bin", "/bin"]) {
    if (existsSync(`${place}/fusermount3`)) return `${place}/fusermount3`;
  }
  return undefined;
}

function fusermountPath(): string {
  const path = findFusermount();
  if (path === undefined) {
    throw new BcacheError("NotFound", "fusermount3 was not found: install the package fuse3");
  }
  return path;
}

function mountByFusermount(libc: Libc, options: MountOptions): number {
  const flags = [
    `fsname=${SOURCE}`,
    `subtype=${SUBTYPE}`,
    `max_read=${MAX_TRANSFER_BYTES}`,
    "default_permissions",
    "nosuid",
    "nodev",
    "noatime",
    ...(options.readOnly ? ["ro"] : []),
    ...(options.allowOther ? ["allow_other"] : []),
  ];
  const run = runWithSocket(
    libc,
    [fusermountPath(), "-o", flags.join(","), "--", options.mountPoint],
    receiveDescriptor,
  );
  if (run.received >= 0) return run.received;
  throw new BcacheError(
    "Permission",
    `${options.mountPoint}: ${
      run.complaint.replace(/^\S*fusermount3: /, "") || "fusermount3 failed"
    }`,
  );
}

/**
 * Unmounts. Rejects with BcacheError Busy, naming who uses it, when it is in use. `lazily`: it
 * disappears at once, and ends when its last user closes it. Blocks this thread while the kernel
 * writes what is left in mapped pages; must not run in the thread that serves the requests.
 */
export function unmountFuse(libc: Libc, mountPoint: string, lazily: boolean): void {
  if (libc.effectiveUserId() === 0) {
    const failed = libc.umount2(mountPoint, lazily ? MNT_DETACH : 0);
    if (failed === 0) return;
    throw unmountError(mountPoint, -failed, `umount(2) failed (errno ${-failed})`);
  }
  const run = runWithSocket(
    libc,
    [fusermountPath(), "-u", ...(lazily ? ["-z"] : []), "--", mountPoint],
    () => -1,
  );
  if (run.status === 0) return;
  const errno = /busy/i.test(run.complaint)
    ? ERRNO.EBUSY
    : /not (mounted|found)|invalid argument/i.test(run.complaint)
    ? ERRNO.EINVAL
    : ERRNO.EPERM;
  throw unmountError(mountPoint, errno, run.complaint);
}

/** Whether unmounting failed because nothing is mounted there. */
export function isNotMounted(error: unknown): boolean {
  return error instanceof BcacheError && error.errno === ERRNO.EINVAL;
}

function unmountError(mountPoint: string, errno: number, complaint: string): BcacheError {
  if (errno === ERRNO.EBUSY) {
    const users = describeUsers(mountPoint);
    return new BcacheError("Busy", `${mountPoint}: in use by ${users}: close that first`);
  }
  const code = errno === ERRNO.EPERM ? "Permission" : "InvalidArgument";
  return new BcacheError(code, `${mountPoint}: ${complaint}`, { errno });
}
