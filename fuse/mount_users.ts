/** Who keeps a mount busy: processes with files open under it, and loop devices over them. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { loopDevices } from "../lib/device/loop.ts";

const USERS_MOST = 3;

/** Where the kernel tells of loop devices and mounts. */
const SYSTEM = { block: "/sys/block", mounts: "/proc/self/mountinfo" };

/** A few of them, in words, with what ends their use; for an error message. */
export function describeUsers(mountPoint: string, system: typeof SYSTEM = SYSTEM): string {
  const users = [...loopUsers(mountPoint, system), ...processes(mountPoint)];
  if (users.length === 0) return "somebody (a mount inside it, or a process of another user)";
  const more = users.length > USERS_MOST ? ` and ${users.length - USERS_MOST} more` : "";
  return users.slice(0, USERS_MOST).join(", ") + more;
}

function inside(path: string, mountPoint: string): boolean {
  return path === mountPoint || path.startsWith(`${mountPoint}/`);
}

function loopUsers(mountPoint: string, { block, mounts }: typeof SYSTEM): string[] {
  const mountInfo = text(mounts);
  const ofFile = loopDevices(block).filter(({ file }) => inside(file, mountPoint));
  return ofFile.map(({ name, autoclear }) => {
    const device = `/dev/${name}`;
    const points = mountPointsOf(device, mountInfo);
    if (points.length === 0) return `${device} ("losetup -d ${device}")`;
    // One that is detached with its last mount may be somebody else's right after.
    const then = autoclear ? "" : `, then "losetup -d ${device}"`;
    return `${device}, mounted at ${points.join(" and ")} ("umount ${points.join(" ")}"${then})`;
  });
}

/** Where file systems of a loop device, or of its partitions, are mounted. */
function mountPointsOf(device: string, mountInfo: string): string[] {
  const points: string[] = [];
  for (const line of mountInfo.split("\n")) {
    const [left, right] = line.split(" - ");
    const point = left?.split(" ")[4];
    const source = right?.split(" ")[1] ?? "";
    const partition = source.startsWith(device) ? source.slice(device.length) : undefined;
    if (point === undefined || partition === undefined || !/^(p\d+)?$/.test(partition)) continue;
    // Blanks and line ends are octal digits there; a line of advice keeps those.
    points.push(point.replaceAll("\\040", " "));
  }
  return points;
}

function processes(mountPoint: string): string[] {
  const users: string[] = [];
  for (const pid of list("/proc").filter((name) => /^\d+$/.test(name))) {
    const open = list(`/proc/${pid}/fd`).map((fd) => link(`/proc/${pid}/fd/${fd}`));
    if ([...open, link(`/proc/${pid}/cwd`)].some((path) => inside(path, mountPoint))) {
      users.push(`${text(`/proc/${pid}/comm`)} (process ${pid})`);
    }
  }
  return users;
}

/** Processes and devices come and go, and some are not ours to see: those are left out. */
function orElse<T>(value: () => T, otherwise: T): T {
  try {
    return value();
  } catch {
    return otherwise;
  }
}

const list = (path: string): string[] => orElse(() => readdirSync(path), []);
const link = (path: string): string => orElse(() => readlinkSync(path), "");
const text = (path: string): string => orElse(() => readFileSync(path, "utf8").trim(), "");
