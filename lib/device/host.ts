/**
 * What a file device needs of the operating system: node:fs for transfers, and a few system calls
 * that node:fs does not have, given by the composition root (lib/runtime/libc.ts fits as it is).
 * All of it is replaceable, so that tests can plant short transfers and errors.
 */
import * as fs from "node:fs";
import { BcacheError, type ErrorCode } from "../base/errors.ts";

/** System calls. Each returns its result, or the negated errno. */
export interface HostCalls {
  open(path: string, flags: number): number;
  close(fd: number): number;
  fallocate(fd: number, mode: number, offsetBytes: number, lengthBytes: number): number;
  flock(fd: number, operation: number): number;
  blockDeviceBytes(fd: number): number;
  blockDeviceSectorBytes(fd: number): number;
  /** When the file was last modified, in nanoseconds since 1970; undefined: it cannot be told. */
  modifiedNs?(fd: number): bigint | undefined;
}

/** The state of a file. */
export interface FileState {
  readonly sizeBytes: number;
  /** Nanoseconds since 1970. */
  readonly modifiedNs: bigint;
}

/** Transfers at a position: bytes done, possibly fewer than asked. node:fs has this form. */
export interface FileCalls {
  read(
    fd: number,
    into: Uint8Array,
    offset: number,
    length: number,
    position: number,
    done: (error: Error | null, bytes: number) => void,
  ): void;
  write(
    fd: number,
    from: Uint8Array,
    offset: number,
    length: number,
    position: number,
    done: (error: Error | null, bytes: number) => void,
  ): void;
  readSync(fd: number, into: Uint8Array, offset: number, length: number, position: number): number;
  writeSync(fd: number, from: Uint8Array, offset: number, length: number, position: number): number;
  fdatasync(fd: number, done: (error: Error | null) => void): void;
}

/** The real transfers. */
export const nodeFileCalls: FileCalls = {
  read: fs.read,
  write: fs.write,
  readSync: fs.readSync,
  writeSync: fs.writeSync,
  fdatasync: fs.fdatasync,
};

/** The error codes of node:fs that mean something else than a failing device. */
const CODES: Readonly<Record<string, ErrorCode>> = {
  ENOSPC: "NoSpace",
  EDQUOT: "NoSpace",
  EFBIG: "NoSpace",
  ENOENT: "NotFound",
  ENOTDIR: "NotFound",
  ENXIO: "NotFound",
  ENODEV: "NotFound",
  EACCES: "Permission",
  EPERM: "Permission",
  EROFS: "ReadOnly",
  EBUSY: "Busy",
  EEXIST: "Exists",
  EISDIR: "InvalidArgument",
  ELOOP: "WrongState",
};

/** `ENOSPC`, ... of an error of node:fs; undefined for any other error. */
export function systemCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/** What to do about it, by system error. */
const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: "free space on the file system that holds it",
  EDQUOT: "the disk quota is used up",
  EFBIG: "the file system or a limit does not allow so large a file",
  EIO: "the storage reports an error; see the kernel log",
  ENOENT: "there is no such file; check the path, or create it",
  ENOTDIR: "a part of the path is not a directory",
  ELOOP: "its links lead in a circle; remove the link, or name the file itself",
  EACCES: "no permission; run as a user who may, or change the file's mode",
  EPERM: "no permission; run as a user who may",
  EROFS: "the file system is mounted read-only",
};

/** A BcacheError for a failed call of node:fs. `action` says what was tried, and where. */
export function systemError(action: string, error: unknown): BcacheError {
  if (error instanceof BcacheError) return error;
  const code = systemCode(error) ?? "";
  const reason = error instanceof Error ? error.message : String(error);
  const what = code !== "" && !reason.includes(code) ? `${code}: ${reason}` : reason;
  const advice = ADVICE[code];
  const message = `${action}: ${what}${advice === undefined ? "" : ` (${advice})`}`;
  return new BcacheError(CODES[code] ?? "DeviceIo", message, { cause: error });
}

/**
 * Throws WrongState for a link to nothing, or to itself: what it should lead to is not lost, only
 * elsewhere.
 */
export function refuseDanglingLink(path: string): void {
  if (!fs.lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink()) return;
  try {
    fs.statSync(path);
    return;
  } catch (error) {
    if (systemCode(error) === "ELOOP") throw systemError(path, error);
  }
  throw new BcacheError(
    "WrongState",
    `${path} is a link to ${fs.readlinkSync(path)}, which is not there; bring that back (is a ` +
      "disk not mounted?), or remove the link",
  );
}

/**
 * The file that `path` leads to: a link at its end is followed to a regular file, wherever that
 * lies. A link to a device is not: what is kept beside /dev/dm-0 is gone after a restart, and the
 * name may be another device's then. A path that ends in no link, or leads nowhere, is returned as
 * it is.
 */
export async function followLink(path: string): Promise<string> {
  try {
    // Not in this thread: a file system that hangs must not hang who serves others.
    if (!(await fs.promises.lstat(path)).isSymbolicLink()) return path;
    if (!(await fs.promises.stat(path)).isFile()) return path;
    return await fs.promises.realpath(path);
  } catch {
    return path;
  }
}

/** The few errnos told apart here. */
export const ERRNO_OF = {
  EINTR: 4,
  EAGAIN: 11,
  EBUSY: 16,
  ENOSPC: 28,
  EIO: 5,
  EDQUOT: 122,
} as const;
