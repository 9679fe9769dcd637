/**
 * What a command needs of the world, as one object: where to write, where the run directory is,
 * and the parts below the command line. Tests pass their own; `main.ts` passes the real ones.
 */
import type { MountConfig, MountHandle, MountListeners } from "../../fuse/mount_handle.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import type { RunEnvironment } from "../control/run_directory.ts";

/** What `make` was asked for. Sizes are bytes; undefined leaves the choice to the formatter. */
export interface MakeRequest {
  cachePath: string | undefined;
  backingPaths: string[];
  bucketSizeBytes: number | undefined;
  blockSizeBytes: number | undefined;
  dataOffsetSectors: number | undefined;
  setUuid: string | undefined;
  writeback: boolean;
  discard: boolean;
  replacementPolicy: "lru" | "fifo" | "random" | undefined;
  label: string | undefined;
  sidecar: boolean;
  sizeBytes: number | undefined;
  force: boolean;
}

/** The rooms below, as the commands use them. */
export interface Parts {
  mount(config: MountConfig, listeners: MountListeners): Promise<MountHandle>;
  /** Formats all that was asked for, or nothing. Returns what to tell: lines of text. */
  make(request: MakeRequest): Promise<string>;
}

export interface Program {
  readonly version: string;
  /** The file that runs this program, for starting it again as a daemon. */
  readonly path: string;
  readonly parts: Parts;
  readonly environment: RunEnvironment;
  /** Whether standard error is a terminal: progress bars go there. */
  readonly isTerminal: boolean;
  /** Set in the process that `mount --daemon` starts. */
  readonly isDaemon: boolean;
  out(text: string): void;
  err(text: string): void;
  /** Resolves when all that was printed is out: whoever prints much waits now and then. */
  flushed(): Promise<void>;
}

/** The command line itself is wrong: exit status 2, and a pointer to the help. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** Reads a part of the command line: what it refuses is a mistake in that, exit status 2. */
export function asUsage<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof BcacheError ? new UsageError(error.message) : error;
  }
}

/** What was looked at is damaged, and the report says how: exit status 4. */
export class DamageError extends Error {
  override name = "DamageError";
}
