/**
 * What the kernel says is mounted where (/proc/self/mountinfo), and who uses a mount. Paths are
 * resolved without touching the mount itself: a dead or hung FUSE mount must not hang us too.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import process from "node:process";
import { lockHolder } from "../../lib/device/file_lock.ts";
import { isSameFile, type LoopDevice, loopDevices } from "../../lib/device/loop.ts";

/** A server that has not answered a look at its root by then is stopped, or hangs. */
const LOOK_PATIENCE_MS = 3000;

export interface MountEntry {
  mountPoint: string;
  /** `fuse.bcache`, `ext4`, ... */
  type: string;
  source: string;
  /** As `98:0`. A FUSE mount's second number is that of its connection. */
  device: string;
  /** Whose a FUSE mount is. */
  userId?: number;
}

/** Reads lines of mountinfo; lines of another form are left out. */
export function parseMountInfo(text: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split("\n")) {
    const [left, right] = line.split(" - ");
    const [, , device, , mountPoint] = left?.split(" ") ?? [];
    const [type, source, options] = right?.split(" ") ?? [];
    if (device === undefined || mountPoint === undefined || type === undefined) continue;
    const userId = /(?:^|,)user_id=(\d+)(?:,|$)/.exec(options ?? "")?.[1];
    entries.push({
      mountPoint: unescapePath(mountPoint),
      type,
      source: unescapePath(source ?? ""),
      device,
      ...(userId === undefined ? {} : { userId: Number(userId) }),
    });
  }
  return entries;
}

/** Blanks and backslashes are written as three octal digits. */
function unescapePath(text: string): string {
  return text.replace(
    /\\([0-7]{3})/g,
    (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** All mounts this process sees. */
export function mountEntries(): MountEntry[] {
  return parseMountInfo(readFileSync("/proc/self/mountinfo", "utf8"));
}

/** The topmost mount at exactly `realPath`. */
export function mountAt(realPath: string): MountEntry | undefined {
  return mountEntries().findLast((entry) => entry.mountPoint === realPath);
}

/** The real path of a mount point, whether or not anything (dead or alive) is mounted there. */
export function realMountPoint(path: string): string {
  const absolute = resolve(path);
  const beside = join(realPathOr(dirname(absolute)), basename(absolute));
  if (mountAt(beside)) return beside;
  return realPathOr(absolute);
}

function realPathOr(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path; // It does not exist, or is dead; the command that needs it says so.
  }
}

/**
 * Whether a FUSE mount at `realPath` has lost its server. A server that is stopped (SIGSTOP) would
 * hold whoever looks for ever, so another process looks, for a bounded time: such a mount is not
 * dead.
 */
export function isDeadMount(realPath: string): boolean {
  if (!mountAt(realPath)?.type.startsWith("fuse")) return false;
  const looked = spawnSync("stat", ["--", realPath], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C" },
    timeout: LOOK_PATIENCE_MS,
    killSignal: "SIGKILL",
  });
  return looked.status === 1 && /endpoint is not connected/i.test(looked.stderr);
}

/** The process that serves a FUSE mount, if it can be seen: an older Linux does not tell. */
export function serverOf({ device }: MountEntry): number | undefined {
  const connection = `fuse_connection:\t${device.split(":")[1]}\n`;
  for (const pid of namesIn("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const serves = (descriptor: string): boolean =>
      linkOf(`/proc/${pid}/fd/${descriptor}`) === "/dev/fuse" &&
      textOf(`/proc/${pid}/fdinfo/${descriptor}`)?.includes(connection) === true;
    if (namesIn(`/proc/${pid}/fd`).some(serves)) return Number(pid);
  }
  return undefined;
}

/** Files that a process has locked, as it does its devices, and that no name leads to any more. */
export function deletedDevicesOf(pid: number): string[] {
  const folder = `/proc/${pid}/fd`;
  const deleted = namesIn(folder).filter((descriptor) => {
    try {
      const file = statSync(join(folder, descriptor));
      return file.isFile() && file.nlink === 0 && lockHolder(file) === pid;
    } catch {
      return false; // It was closed meanwhile.
    }
  });
  const paths = deleted.map((fd) => linkOf(join(folder, fd)).replace(/ \(deleted\)$/, ""));
  // The lock of its control socket is gone with that.
  return [...new Set(paths)].filter((path) => !path.endsWith(".sock.lock")).sort();
}

/** Something that keeps a mount busy, for a person: `fio (PID 12)`, `/dev/loop0`. */
export interface Holder {
  description: string;
  remedy: string;
}

/** What there is: the folder of block devices, and what is mounted. */
interface SystemView {
  readonly block: string;
  readonly entries: readonly MountEntry[];
}

function systemView(): SystemView {
  return { block: "/sys/block", entries: mountEntries() };
}

/** Who uses files below `realPath`, as far as this user may see. Bounded by the process table. */
export function holdersOf(realPath: string, system: SystemView = systemView()): Holder[] {
  const isInside = (path: string): boolean => path === realPath || path.startsWith(`${realPath}/`);
  const holders: Holder[] = [];
  const { block, entries } = system;
  for (const entry of entries) {
    if (entry.mountPoint !== realPath && isInside(entry.mountPoint)) {
      holders.push({
        description: `the mount at ${entry.mountPoint}`,
        remedy: `umount ${entry.mountPoint}`,
      });
    }
  }
  for (const loop of loopDevices(block)) {
    if (isInside(loop.file)) holders.push(loopHolder(loop, entries));
  }
  for (const pid of namesIn("/proc")) {
    if (!/^\d+$/.test(pid) || !usesPath(pid, isInside)) continue;
    const name = textOf(`/proc/${pid}/comm`)?.trim() ?? "a process";
    holders.push({ description: `${name} (PID ${pid})`, remedy: `end PID ${pid}` });
  }
  return holders;
}

/**
 * The loop device that has the file at `realPath`, under whatever name, in words, with what to do
 * about it; undefined: none has. The kernel lets loop devices share a file with whoever else writes
 * to it.
 */
export function loopDeviceOf(
  realPath: string,
  system: SystemView = systemView(),
): Holder | undefined {
  for (const loop of loopDevices(system.block)) {
    if (isSameFile(realPath, loop.file)) return loopHolder(loop, system.entries);
  }
  return undefined;
}

/** A loop device with where it, or a partition of it, is mounted. */
function loopHolder({ name, autoclear }: LoopDevice, entries: readonly MountEntry[]): Holder {
  const device = `/dev/${name}`;
  const isOfIt = ({ source }: MountEntry) =>
    source === device ||
    (source.startsWith(`${device}p`) && /^\d+$/.test(source.slice(device.length + 1)));
  const points = entries.filter(isOfIt).map((entry) => entry.mountPoint);
  const detach = `losetup -d ${device}`;
  if (points.length === 0) return { description: `the loop device ${device}`, remedy: detach };
  return {
    description: `the loop device ${device}, mounted at ${points.join(" and ")}`,
    // One that is detached with its last mount may be somebody else's right after.
    remedy: `umount ${points.join(" ")}${autoclear ? "" : `, then ${detach}`}`,
  };
}

function usesPath(pid: string, isInside: (path: string) => boolean): boolean {
  const links = [`/proc/${pid}/cwd`, `/proc/${pid}/root`];
  for (const descriptor of namesIn(`/proc/${pid}/fd`)) links.push(`/proc/${pid}/fd/${descriptor}`);
  if (links.some((link) => isInside(linkOf(link)))) return true;
  const maps = textOf(`/proc/${pid}/maps`) ?? "";
  return maps.split("\n").some((line) => {
    const at = line.indexOf("/");
    return at >= 0 && isInside(line.slice(at));
  });
}

// Processes come and go while they are looked at, and others' are closed to us: what cannot be
// read holds nothing that we could name.
function namesIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
