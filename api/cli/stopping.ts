/** How a mount ends: signals, and unmounting something that is still in use. */
import process from "node:process";
import { BcacheError } from "../../lib/base/errors.ts";
import { type Holder, holdersOf, mountAt } from "../control/mount_table.ts";
import { printable } from "./format.ts";
import type { MountHandle } from "../../fuse/mount_handle.ts";
import type { Program } from "./program.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const RETRY_MS = 500;

/** Signals that ask the process to stop, counted. A signal does nothing else while this is open. */
export class StopRequests {
  count = 0;
  /** Resolves with the first request. */
  readonly first: Promise<void>;
  /** Resolves with the second. */
  readonly second: Promise<void>;
  #listener: () => void;

  constructor() {
    let resolveFirst = (): void => {};
    let resolveSecond = (): void => {};
    this.first = new Promise((resolve) => resolveFirst = resolve);
    this.second = new Promise((resolve) => resolveSecond = resolve);
    this.#listener = () => {
      this.count++;
      if (this.count === 1) resolveFirst();
      else resolveSecond();
    };
    for (const signal of SIGNALS) process.on(signal, this.#listener);
  }

  close(): void {
    for (const signal of SIGNALS) process.off(signal, this.#listener);
  }
}

/** Who keeps a mount busy, as half a sentence, and what to do about it. At most five are named. */
export function describeHolders(holders: readonly Holder[]): string {
  if (holders.length === 0) {
    return "something that this user cannot see (try as root: fuser -vm on the mount point)";
  }
  const named = holders.slice(0, 5).map((holder) => printable(holder.description)).join(", ");
  return holders.length > 5 ? `${named} and ${holders.length - 5} more` : named;
}

/** The error for a mount that is in use, naming who uses it. */
export function busyError(mountPoint: string, cause: unknown): BcacheError {
  const holders = holdersOf(mountPoint);
  const remedy = holders[0] === undefined ? "" : ` (${printable(holders[0].remedy)})`;
  return new BcacheError(
    "Busy",
    `${mountPoint} is in use by ${describeHolders(holders)}; end that${remedy} and try again`,
    { cause },
  );
}

/**
 * Unmounts; while the mount is in use, says by whom and tries again until they leave. A second
 * stop request takes the files away from them. Resolves when the mount has ended.
 */
export async function unmountPatiently(
  parts: { program: Program; handle: MountHandle; mountPoint: string; stops: StopRequests },
): Promise<void> {
  const { program, handle, mountPoint, stops } = parts;
  let isOver = false;
  const over = handle.ended.then(() => {
    isOver = true;
  });
  let told = "";
  while (!isOver) {
    const isForced = stops.count > 1;
    let isBusy = false;
    try {
      await handle.unmount({ force: isForced });
      return;
    } catch (error) {
      isBusy = error instanceof BcacheError && error.code === "Busy";
      // Gone from the table of mounts, though open files keep the connection: `umount -l`.
      const isDetached = !isBusy && mountAt(mountPoint) === undefined;
      if (isForced || (!isBusy && !isDetached)) throw error;
    }
    const reason = isBusy
      ? `is in use by ${describeHolders(holdersOf(mountPoint))}`
      : "was detached by hand while files were open";
    if (reason !== told) {
      program.err(
        `bcache-fuse: ${mountPoint} ${reason}; waiting until it is free ` +
          "(once more Ctrl-C: take the files away)\n",
      );
      told = reason;
    }
    await Promise.race([over, stops.second, sleep(RETRY_MS)]);
  }
}

function sleep(delayMs: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, delayMs));
}
