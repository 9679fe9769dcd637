/** What the main thread and the data plane's worker tell each other. Plain data only. */
import { BcacheError, errnoOf, type ErrorCode, messageOf } from "../lib/base/errors.ts";
import type { LogLevel } from "../lib/base/runtime.ts";
import type { CacheControl, SetRemains } from "../lib/cache/ports.ts";
import type { MountConfig } from "./engine.ts";
import type { FilesystemChange } from "./filesystem.ts";

/** The worker's `workerData`. */
export interface WorkerStart {
  readonly config: MountConfig;
  /** An eventfd; the main thread adds one to it after each message it sends. */
  readonly wakeFd: number;
}

export const CONTROL_METHODS = [
  "status",
  "attributes",
  "setAttribute",
  "flushDirty",
  "attach",
  "detach",
  "stop",
  "createVolume",
  "resizeVolume",
  "destroyVolume",
  "uuids",
  "forget",
] as const;
export type ControlMethod = (typeof CONTROL_METHODS)[number] & keyof CacheControl;

/** An error that arrives as it left. */
export interface PlainError {
  readonly code: ErrorCode | undefined;
  readonly errno: number;
  readonly message: string;
}

/** How serving came to its end. */
export interface ServedEnd {
  readonly error: PlainError | undefined;
  /** Undefined: nobody knows. */
  readonly remains: SetRemains | undefined;
}

export interface VolumeInfo {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface ControlCall {
  readonly type: "call";
  readonly id: number;
  readonly method: ControlMethod;
  readonly args: readonly unknown[];
}

/** Serve no more, and close the set: whoever still has a file open gets errors. */
export interface StopCall {
  readonly type: "stop";
}

/** The kernel was told of so many messages `volumes`. */
export interface ToldCall {
  readonly type: "told";
}

export type ToWorker = ControlCall | StopCall | ToldCall;

export type FromWorker =
  /** The descriptor of the connection; whoever survives the other closes it. */
  | { readonly type: "connected"; readonly fuseFd: number }
  | { readonly type: "ready"; readonly volumes: readonly VolumeInfo[] }
  /**
   * The volumes are others. The kernel must be told from the other thread: it may make the teller
   * wait for answers that this one has to give.
   */
  | {
    readonly type: "volumes";
    readonly volumes: readonly VolumeInfo[];
    readonly change: FilesystemChange;
  }
  | { readonly type: "result"; readonly id: number; readonly value: unknown }
  | { readonly type: "failure"; readonly id: number; readonly error: PlainError }
  | { readonly type: "log"; readonly level: LogLevel; readonly message: string }
  /** An error that nothing foresaw: the worker serves no more, and holds whatever it held. */
  | { readonly type: "crashed"; readonly error: PlainError }
  /** The last message: the worker holds nothing any more. */
  | ({ readonly type: "ended" } & ServedEnd);

export function toPlain(error: unknown): PlainError {
  return {
    code: error instanceof BcacheError ? error.code : undefined,
    errno: errnoOf(error),
    message: messageOf(error),
  };
}

export function fromPlain(error: PlainError): Error {
  if (error.code === undefined) return new Error(error.message);
  return new BcacheError(error.code, error.message, { errno: error.errno });
}
