/** From a path that a person gave to the running mount behind it. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { BcacheError } from "../../lib/base/errors.ts";
import { ControlClient } from "../control/client.ts";
import {
  isDeadMount,
  mountAt,
  mountEntries,
  realMountPoint,
  serverOf,
} from "../control/mount_table.ts";
import { controlSocketPath, controlSockets, runDirectoryPath } from "../control/run_directory.ts";
import { isAnswered, removeDeadSocket } from "../http/serve.ts";
import { holderOfName } from "../http/socket_lock.ts";
import type { Program } from "./program.ts";

/** As /proc/self/mountinfo has it. */
const MOUNT_TYPE = "fuse.bcache";
/** Of a control socket that is not where it should be. */
export const WHY_MISSING = "(it was removed, or belongs to another user or XDG_RUNTIME_DIR)";

/** The control of the mount at `path`. Throws NotFound when no process of this user serves it. */
export async function findMount(program: Program, path: string): Promise<ControlClient> {
  const real = realMountPoint(path);
  const socket = controlSocketPath(runDirectoryPath(program.environment), real);
  if (existsSync(socket)) {
    if (await isAnswered(socket)) return new ControlClient(socket);
    await removeDeadSocket(socket);
  }
  if (isDeadMount(real)) {
    throw new BcacheError(
      "NotFound",
      `the process that served ${path} has ended; ` +
        `run bcache-fuse unmount ${path}, then mount again`,
    );
  }
  const lost = unreachableAt(program, real);
  if (lost !== undefined) {
    const server = lost.pid === undefined ? "" : `; process ${lost.pid} serves it`;
    throw new BcacheError(
      "NotFound",
      `${path} is a mount of bcache-fuse without its control socket ${lost.socket} ` +
        `${WHY_MISSING}${server}; run bcache-fuse unmount ${path}, then mount again`,
    );
  }
  const folder = dirname(real);
  if (mountAt(folder)?.type === MOUNT_TYPE) {
    throw new BcacheError(
      "NotFound",
      `${path} is a file of the mount at ${folder}; name the mount point, ${folder}`,
    );
  }
  throw new BcacheError(
    "NotFound",
    `nothing of this user is mounted at ${path}; bcache-fuse status lists what is`,
  );
}

/** All mounts of this user that answer. Sockets that processes left behind are removed. */
export async function findAllMounts(program: Program): Promise<ControlClient[]> {
  const clients: ControlClient[] = [];
  for (const socket of controlSockets(runDirectoryPath(program.environment))) {
    if (await isAnswered(socket)) clients.push(new ControlClient(socket));
    else await removeDeadSocket(socket);
  }
  return clients;
}

/**
 * Where mounts of this program are whose process has ended, so that nobody answers. Others are
 * looked at by another process, for a bounded time: one that hangs does not hold us.
 */
export function deadMounts(alive: readonly string[]): string[] {
  const points = mountEntries()
    .filter(({ type, mountPoint }) => type === MOUNT_TYPE && !alive.includes(mountPoint))
    .map(({ mountPoint }) => mountPoint);
  return [...new Set(points)].filter(isDeadMount);
}

/** A mount that is served and cannot be asked: its control socket is not where it should be. */
export interface UnreachableMount {
  readonly mountPoint: string;
  readonly socket: string;
  /** Who serves it, if that can be seen. */
  readonly pid: number | undefined;
}

/** The mount at exactly `real`, if it has no control socket for this user. */
export function unreachableAt(program: Program, real: string): UnreachableMount | undefined {
  const mount = mountAt(real);
  if (mount?.type !== MOUNT_TYPE) return undefined;
  const socket = controlSocketPath(runDirectoryPath(program.environment), real);
  if (existsSync(socket)) return undefined;
  return { mountPoint: real, socket, pid: holderOfName(socket) ?? serverOf(mount) };
}

/** All of this user, for root all; whose process has ended is not among them. */
export function unreachableMounts(
  program: Program,
  dead: readonly string[],
): UnreachableMount[] {
  const { uid } = program.environment;
  const points = mountEntries()
    .filter(({ type, userId }) => type === MOUNT_TYPE && (uid === 0 || userId === uid))
    .map(({ mountPoint }) => mountPoint)
    .filter((point) => !dead.includes(point));
  return [...new Set(points)].map((point) => unreachableAt(program, point))
    .filter((lost) => lost !== undefined);
}
