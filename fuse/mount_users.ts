/** Who keeps a mount busy: processes with files open under it, and loop devices over them. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

const USERS_MOST = 3;

/** A few of them, in words; for an error message. */
export function describeUsers(mountPoint: string): string {
  const users = [...loopDevices(mountPoint), ...processes(mountPoint)];
  if (users.length === 0) return "somebody (a mount inside it, or a process of another user)";
  const more = users.length > USERS_MOST ? ` and ${users.length - USERS_MOST} more` : "";
  return users.slice(0, USERS_MOST).join(", ") + more;
}

function inside(path: string, mountPoint: string): boolean {
  return path === mountPoint || path.startsWith(`${mountPoint}/`);
}

function loopDevices(mountPoint: string): string[] {
  return list("/sys/block").filter((name) => name.startsWith("loop")).filter((name) =>
    inside(text(`/sys/block/${name}/loop/backing_file`), mountPoint)
  ).map((name) => `/dev/${name} ("losetup -d /dev/${name}")`);
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
