/**
 * The private directory where every mount of this user keeps its control socket and its log, and
 * the names in it. A mount's files are named from the real path of its mount point, so that any
 * command finds them from the path alone, whatever was said about HTTP.
 */
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";

/** sockaddr_un holds 108 bytes with the closing zero. */
const SOCKET_PATH_BYTES_MAX = 107;

/** The part of the environment that decides where the directory is. */
export interface RunEnvironment {
  uid: number;
  xdgRuntimeDirectory: string | undefined;
}

/** The environment of this process. */
export function runEnvironment(): RunEnvironment {
  return {
    uid: process.getuid?.() ?? 0,
    xdgRuntimeDirectory: process.env["XDG_RUNTIME_DIR"] || undefined,
  };
}

/** The directory's path; it need not exist. */
export function runDirectoryPath(environment: RunEnvironment): string {
  const { uid, xdgRuntimeDirectory } = environment;
  if (xdgRuntimeDirectory !== undefined) return join(xdgRuntimeDirectory, "bcache-fuse");
  return uid === 0 ? "/run/bcache-fuse" : `/tmp/bcache-fuse-${uid}`;
}

/**
 * Makes the directory if it is missing, and makes sure that it is ours alone: in /tmp anybody may
 * have put something of that name there first. Throws Permission.
 */
export function ensureRunDirectory(environment: RunEnvironment): string {
  const path = runDirectoryPath(environment);
  try {
    mkdirSync(path, { mode: 0o700, recursive: true });
  } catch (error) {
    throw new BcacheError(
      "Permission",
      `cannot make the run directory ${path}: ${messageOf(error)}; ` +
        "set XDG_RUNTIME_DIR to a directory of yours",
      { cause: error },
    );
  }
  const found = lstatSync(path);
  if (!found.isDirectory() || found.uid !== environment.uid || (found.mode & 0o077) !== 0) {
    throw new BcacheError(
      "Permission",
      `the run directory ${path} must be a directory of this user with mode 0700; ` +
        "remove it, or set XDG_RUNTIME_DIR to a directory of yours",
    );
  }
  return path;
}

/** The stem of the files of the mount at `realMountPoint`: readable, and unique by a hash. */
export function mountFileStem(realMountPoint: string): string {
  const hash = createHash("sha256").update(realMountPoint).digest("hex").slice(0, 12);
  const readable = realMountPoint.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(-24);
  return `${readable || "root"}.${hash}`;
}

/** The control socket of the mount at `realMountPoint`. Throws InvalidArgument if too long. */
export function controlSocketPath(directory: string, realMountPoint: string): string {
  const path = join(directory, `${mountFileStem(realMountPoint)}.sock`);
  if (new TextEncoder().encode(path).length > SOCKET_PATH_BYTES_MAX) {
    throw new BcacheError(
      "InvalidArgument",
      `the control socket's path ${path} is longer than ${SOCKET_PATH_BYTES_MAX} bytes; ` +
        "set XDG_RUNTIME_DIR to a shorter directory",
    );
  }
  return path;
}

/** The log of the mount at `realMountPoint` when it runs as a daemon. */
export function logPath(directory: string, realMountPoint: string): string {
  return join(directory, `${mountFileStem(realMountPoint)}.log`);
}

/** Its log while it starts, and may be refused: of whoever starts it, by its PID. */
export function startingLogPath(directory: string, realMountPoint: string, pid: number): string {
  return join(directory, `${mountFileStem(realMountPoint)}.${pid}.log`);
}

/** All control sockets in the directory, also those nobody answers any more. */
export function controlSockets(directory: string): string[] {
  try {
    return readdirSync(directory).filter((name) => name.endsWith(".sock")).sort()
      .map((name) => join(directory, name));
  } catch {
    return []; // No directory: nothing was ever mounted.
  }
}
