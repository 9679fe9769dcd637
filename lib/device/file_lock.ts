/**
 * One writer at a time: an exclusive flock on the file, and for block devices also the kernel's own
 * claim (O_EXCL), which mounted devices and members of arrays already have. The kernel lets go of
 * both when the process ends, however it ends. A conflict is an error that names who has it.
 *
 * Files behind a loop device are locked, too, but shared: loop devices that show different parts of
 * one file may be used side by side, the file itself may not meanwhile.
 */
import * as fs from "node:fs";
import { BcacheError } from "../base/errors.ts";
import { ERRNO_OF, type HostCalls } from "./host.ts";
import { type LoopDevice, loopsBelow, overlapping } from "./loop.ts";

/** What is said without knowing what the process is; who knows puts better advice in its place. */
const STOP_ADVICE = "; stop that first";

/** The end of a command line tells more than its beginning. */
const ARGUMENTS_SHOWN = 240;
const LOCK_SHARED_NOW = 1 | 4;
const LOCK_EXCLUSIVE_NOW = 2 | 4;
/** The kernel does not stack loop devices without end. */
const LOOP_LEVELS_MAX = 16;
const OPEN_CLAIM = fs.constants.O_RDONLY | fs.constants.O_EXCL | 0o2000000;

/**
 * Locks an open file for this process until it is closed. Returns a second file descriptor to
 * close (by `host.close`) when the device is closed, or undefined. Throws Busy.
 */
export function lockFile(
  path: string,
  fd: number,
  stat: fs.Stats,
  host: HostCalls,
): number | undefined {
  const locked = host.flock(fd, LOCK_EXCLUSIVE_NOW);
  if (locked === -ERRNO_OF.EAGAIN) throw inUse(path, stat);
  if (locked < 0) {
    const why = `errno ${-locked}; the file system may not support locks`;
    throw new BcacheError("NotSupported", `${path} cannot be locked (${why})`, { errno: -locked });
  }
  if (!stat.isBlockDevice()) return undefined;
  const claim = host.open(path, OPEN_CLAIM);
  if (claim === -ERRNO_OF.EBUSY) {
    const by = mountPoint(path) ?? "a mount, an array or another driver (see lsblk)";
    throw new BcacheError("Busy", `${path} is in use by ${by}; release it first`);
  }
  if (claim < 0) {
    throw new BcacheError("DeviceIo", `${path} cannot be claimed: errno ${-claim}`, {
      errno: -claim,
    });
  }
  return claim;
}

/**
 * Locks what is behind a block device that `lockFile` has locked: the files of loop devices, at
 * all levels. Adds to `held` the file descriptors to close (by node:fs) when the device is closed,
 * also when it rejects, with Busy.
 */
export async function lockBehind(
  path: string,
  stat: fs.Stats,
  host: HostCalls,
  held: number[],
): Promise<void> {
  let level = loopsOf(stat);
  for (let depth = 0; level.length > 0 && depth < LOOP_LEVELS_MAX; depth++) {
    const below: LoopDevice[] = [];
    for (const loop of level) {
      // Another way to the same bytes: served by another process, or mounted.
      for (const { name } of overlapping(loop)) {
        const what = `/dev/${name}, which has the same file (${loop.file}),`;
        refuseClaimed(path, what, `/dev/${name}`, host);
      }
      const file = await lockShared(path, loop.file, host, held);
      if (!file?.isBlockDevice()) continue;
      refuseClaimed(path, `${loop.file} behind it`, loop.file, host);
      below.push(...loopsOf(file));
    }
    level = below;
  }
}

function loopsOf(stat: fs.Stats): LoopDevice[] {
  if (!stat.isBlockDevice()) return [];
  const { major, minor } = linuxDevice(stat.rdev);
  return loopsBelow(major, minor);
}

/** Undefined: it is deleted, or not for us to open: then nobody can be asked. */
async function lockShared(
  path: string,
  file: string,
  host: HostCalls,
  held: number[],
): Promise<fs.Stats | undefined> {
  let fd: number;
  try {
    // Not in this thread: a file system that hangs must not hang who serves others.
    fd = await new Promise<number>((resolve, reject) => {
      fs.open(file, fs.constants.O_RDONLY, (error, fd) => error ? reject(error) : resolve(fd));
    });
  } catch {
    return undefined;
  }
  held.push(fd);
  const stat = await new Promise<fs.Stats>((resolve, reject) => {
    fs.fstat(fd, (error, stat) => error ? reject(error) : resolve(stat));
  });
  if (host.flock(fd, LOCK_SHARED_NOW) === -ERRNO_OF.EAGAIN) {
    throw inUse(`${path}: ${file} behind it`, stat);
  }
  return stat;
}

/** A look only: who has claimed it keeps it; nobody is kept from it later. */
function refuseClaimed(path: string, what: string, devicePath: string, host: HostCalls): void {
  const claim = host.open(devicePath, OPEN_CLAIM);
  if (claim >= 0) host.close(claim);
  if (claim !== -ERRNO_OF.EBUSY) return;
  const by = mountPoint(devicePath) ?? "another process, a mount or an array (see lsblk)";
  throw new BcacheError("Busy", `${path}: ${what} is in use by ${by}; release it first`);
}

/**
 * The process that has a file, from the message of a refusal by `lockFile`, which may come from
 * another thread or process; undefined: it was refused for another reason, or the holder is unseen.
 */
export function holderOfRefusal(error: unknown): number | undefined {
  if (!(error instanceof BcacheError) || error.code !== "Busy") return undefined;
  if (!error.message.endsWith(STOP_ADVICE)) return undefined;
  const match = / is in use by process (\d+)[ ;]/.exec(error.message);
  return match === null ? undefined : Number(match[1]);
}

/** The refusal with other advice; `error` is one that `holderOfRefusal` knows. */
export function withAdvice(error: BcacheError, advice: string): BcacheError {
  const message = `${error.message.slice(0, -STOP_ADVICE.length)}; ${advice}`;
  return new BcacheError("Busy", message, { cause: error });
}

/** The refusal of a locked file. What this process has itself was named before, by another name. */
function inUse(what: string, stat: fs.Stats): BcacheError {
  const holder = lockHolder(stat);
  const known = holder === undefined ? "another process" : processName(holder);
  if (holder !== process.pid) {
    return new BcacheError("Busy", `${what} is in use by ${known}${STOP_ADVICE}`);
  }
  const found = `${what} is open in this process (${holder}) already, by this name or another`;
  return new BcacheError("Busy", `${found}; name each device once`);
}

/**
 * The process that has locked the file, as the list of locks tells it; undefined when it cannot be
 * seen from here.
 */
export function lockHolder(
  stat: { readonly dev: number; readonly ino: number },
  listPath = "/proc/locks",
): number | undefined {
  let locks: string;
  try {
    locks = fs.readFileSync(listPath, "latin1");
  } catch {
    return undefined; // Only the name is missing: that it is locked is known.
  }
  // 1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF
  const pattern = /^\d+: FLOCK\s+\S+\s+\S+\s+(\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s/;
  let byInode: number | undefined;
  for (const line of locks.split("\n")) {
    const match = pattern.exec(line);
    if (!match || match[4] !== String(stat.ino) || match[1] === "0") continue;
    const pid = Number(match[1]);
    byInode ??= pid;
    const device = linuxDevice(stat.dev);
    const [major, minor] = [match[2]!, match[3]!].map((part) => Number.parseInt(part, 16));
    if (major === device.major && minor === device.minor) return pid;
  }
  // Some file systems show another device number in stat than in /proc/locks.
  return byInode;
}

/** With its arguments: of a mount, they say where it is. */
function processName(pid: number): string {
  try {
    const name = fs.readFileSync(`/proc/${pid}/comm`, "utf8").trim();
    const words = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(1);
    const args = words.join(" ").trim();
    const shown = args.length > ARGUMENTS_SHOWN ? `… ${args.slice(-ARGUMENTS_SHOWN)}` : args;
    return `process ${pid} (${shown === "" ? name : `${name} ${shown}`})`;
  } catch {
    return `process ${pid}`; // It ended meanwhile, or hides.
  }
}

/** Where the block device is mounted, for a message. */
function mountPoint(path: string): string | undefined {
  try {
    const device = fs.realpathSync(path);
    for (const line of fs.readFileSync("/proc/self/mounts", "utf8").split("\n")) {
      const [source, target] = line.split(" ");
      if (source === device && target !== undefined) return `a mount on ${target}`;
    }
  } catch {
    return undefined; // The message is vaguer, no more.
  }
  return undefined;
}

/** Linux's 64-bit device number, taken apart without 64-bit arithmetic. */
export function linuxDevice(device: number): { major: number; minor: number } {
  const low = device % 0x1_0000_0000;
  const high = Math.floor(device / 0x1_0000_0000);
  // Major: bits 8-19 and 32-63; minor: bits 0-7 and 20-31.
  const major = ((low >>> 8) & 0xfff) + Math.floor(high / 0x1000) * 0x1000;
  const minor = (low & 0xff) + (low >>> 20) * 0x100;
  return { major, minor };
}
