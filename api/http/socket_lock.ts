/**
 * Whose a socket's name is. Only who holds the lock beside it may remove or take the name: looking
 * whether somebody answers there and removing it otherwise would, with two at once, remove the
 * socket that the other has just made.
 */
import { closeSync, constants, fstatSync, openSync, rmSync, statSync } from "node:fs";
import { existsSync, readFileSync } from "node:fs";
import { BcacheError, ERRNO, messageOf } from "../../lib/base/errors.ts";
import { lockHolder } from "../../lib/device/file_lock.ts";
import { openLibc } from "../../lib/runtime/libc.ts";

const LOCK_EXCLUSIVE_NOW = 2 | 4;
/** The file may be removed by its last holder between our opening and locking it. */
const TRIES_MOST = 100;

/**
 * Locks the name `path`. Returns what lets go of it; the kernel does that too when the process
 * ends. Undefined while another process holds it.
 */
export async function tryLockName(path: string): Promise<(() => void) | undefined> {
  const libc = await openLibc();
  const lock = `${path}.lock`;
  for (let tries = 0; tries < TRIES_MOST; tries++) {
    const file = openLock(lock);
    const locked = libc.flock(file, LOCK_EXCLUSIVE_NOW);
    if (locked < 0 && locked !== -ERRNO.EAGAIN) {
      closeSync(file);
      throw new BcacheError("NotSupported", `${lock} cannot be locked (errno ${-locked})`);
    }
    if (locked >= 0 && isStillNamed(file, lock)) {
      return () => {
        rmSync(lock, { force: true });
        closeSync(file);
      };
    }
    closeSync(file);
    if (locked < 0) return undefined;
  }
  return undefined;
}

/** The process that holds the lock of the name `path`; undefined: none, or it cannot be seen. */
export function holderOfName(path: string, locks?: string): number | undefined {
  try {
    const pid = lockHolder(statSync(`${path}.lock`), locks);
    return existsSync(`/proc/${pid}`) ? pid : undefined;
  } catch {
    return undefined; // Without the lock there is nobody to name.
  }
}

/** The flag of a socket that takes connections, SO_ACCEPTCON, in /proc/net/unix. */
const TAKES_CONNECTIONS = "00010000";

/**
 * Whether some process has a listening socket of the absolute name `path`. The error of connecting
 * does not tell: Bun says ECONNREFUSED also when the queue of connections is full.
 */
export function isListening(path: string, sockets = "/proc/net/unix"): boolean {
  try {
    // 0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/bcache-fuse/mnt.sock
    return readFileSync(sockets, "utf8").split("\n").some((line) =>
      line.endsWith(` ${path}`) && line.split(" ")[3] === TAKES_CONNECTIONS
    );
  } catch {
    return false; // Not everybody may see it (ProcSubset=pid of systemd): nobody is seen to listen.
  }
}

function openLock(path: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  } catch (error) {
    throw new BcacheError("Permission", `${path} cannot be made: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

function isStillNamed(file: number, path: string): boolean {
  try {
    return fstatSync(file).ino === statSync(path).ino;
  } catch {
    return false; // Its last holder has removed it.
  }
}
