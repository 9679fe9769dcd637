/**
 * What is lost, or would be, when a mount ends: its set has failed, a device was disabled, or files
 * were deleted or replaced under it. One line each, for the status and for the end.
 */
import { BcacheError, messageOf } from "../lib/base/errors.ts";
import { formatBytes } from "../lib/base/units.ts";
import { sidecarPath } from "../lib/cache/members/open_backing.ts";
import type { DeviceStatus, SetStatus } from "../lib/cache/ports.ts";
import type { FileFate } from "../lib/device/file.ts";

/** What is on the cache alone. */
function onlyInCache({ devices, volumes }: SetStatus) {
  return {
    dirty: devices.filter(({ attached, dirtyBytes }) => attached && dirtyBytes > 0),
    used: volumes.filter(({ usedBytes }) => usedBytes > 0),
  };
}

/** It in words, one for each: `bcache0: 4.0 KiB`. */
function inWords({ dirty, used }: ReturnType<typeof onlyInCache>): string[] {
  return [
    ...dirty.map(({ name, dirtyBytes }) => `${name}: ${formatBytes(dirtyBytes)}`),
    ...used.map(({ name, usedBytes }) => `${name}: ${formatBytes(usedBytes)}`),
  ];
}

/** How to save it while the mount goes on. */
function savingAdvice({ dirty, used }: ReturnType<typeof onlyInCache>): string {
  const copy = `copy ${used.map(({ name }) => name).join(", ")} to another place`;
  if (dirty.length === 0) return `${copy} first`;
  return used.length === 0 ? "flush first" : `flush first, and ${copy}`;
}

/** A file that is open, or was. */
interface WatchedFile {
  readonly path: string;
  /** Where the path leads, if it is a link. */
  readonly filePath?: string;
  readonly fate: FileFate;
}

/** The device whose image, or the sidecar of it, is at `path`. */
function deviceOf(
  path: string,
  { devices }: SetStatus,
  files: readonly WatchedFile[],
): DeviceStatus | undefined {
  return devices.find(({ backingPath }) => {
    const image = files.find((file) => file.path === backingPath)?.filePath ?? backingPath;
    return path === backingPath || path === sidecarPath(image);
  });
}

/** @param files all that are open */
export function warningsOf(status: SetStatus, files: readonly WatchedFile[]): string[] {
  const inCache = onlyInCache(status);
  return files.flatMap(({ path, fate }) => {
    if (fate === "there") return [];
    // Also of a cache with nothing dirty: a copy from earlier would be served stale.
    if (fate === "replaced") {
      return [
        `${path} was moved away while in use, and another file is in its place, which lacks what ` +
        "was written since: move the first one back there",
      ];
    }
    const what = `${path} was deleted while in use, and ends with this mount`;
    if (path !== status.cachePath) {
      const { name } = deviceOf(path, status, files) ?? {};
      return [`${what}: copy ${name ?? "what it holds"} to another place first`];
    }
    const words = inWords(inCache);
    if (words.length === 0) return []; // Nothing is lost with it.
    return [`${what}: only there are ${words.join(", ")}; ${savingAdvice(inCache)}`];
  });
}

/** Of a device that errors have disabled. */
function disabledWarning({ name, disabled, dirtyBytes, backingPath }: DeviceStatus): string[] {
  if (disabled === undefined) return [];
  const dirty = dirtyBytes > 0 ? `; safe in the cache are ${formatBytes(dirtyBytes)} of it` : "";
  const what = `what was written to ${backingPath} last may not be on it`;
  return [`${name} is disabled, ${disabled}: ${what}${dirty}`];
}

export interface Loss {
  /** False: the set has failed, but the backing devices have everything. */
  readonly isLost: boolean;
  readonly error: BcacheError;
}

/**
 * What to say at the end of a set, if anything.
 * @param failure what closing it rejected with
 */
export function describeLoss(status: SetStatus, failure: unknown): Loss | undefined {
  const reason = status.failed ?? (failure === undefined ? undefined : messageOf(failure));
  const warnings = [...status.warnings ?? [], ...status.devices.flatMap(disabledWarning)];
  if (reason === undefined) {
    if (warnings.length === 0) return undefined;
    return { isLost: true, error: new BcacheError("DeviceIo", warnings.join("; ")) };
  }
  const inCache = inWords(onlyInCache(status));
  const isLost = inCache.length > 0 || warnings.length > 0 || failure !== undefined;
  const what = inCache.length > 0
    ? `only in the cache are ${inCache.join(", ")}: when the reason is mended, the next mount ` +
      "finds what was flushed there"
    : failure === undefined
    ? "nothing is lost: the backing devices have everything"
    : "nothing was dirty, but not all that was written is known to be durable";
  const error = new BcacheError(
    "SetFailed",
    [`the cache set has failed, ${what} (${reason})`, ...warnings].join("; "),
    { cause: failure },
  );
  return { isLost, error };
}
