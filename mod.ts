#!/usr/bin/env bun
/**
 * bcache-fuse: Linux bcache as a userspace program.
 *
 * Imported, this is the library: `CacheSet.open` runs a cache set over any Devices, with the clock
 * and the randomness it is given. Run, it is the command line.
 */
export * from "./lib/base/errors.ts";
export type { Clock, Log, LogLevel, Random } from "./lib/base/runtime.ts";
export type { BackingSource } from "./lib/cache/members/attach.ts";
export { CacheSet, type CacheSetOptions } from "./lib/cache/cache_set.ts";
export { makeBacking, makeCache } from "./lib/cache/make.ts";
export { openBacking } from "./lib/cache/members/open_backing.ts";
export * from "./lib/cache/ports.ts";
export type { Device, WriteOptions } from "./lib/device/device.ts";
export { openFileDevice } from "./lib/device/file.ts";
export { JoinedDevice } from "./lib/device/joined.ts";
export { MemoryDevice } from "./lib/device/memory.ts";
export { OverlayDevice } from "./lib/device/overlay.ts";
export { TracedDevice } from "./lib/device/traced.ts";
export { checkCache, type CheckOptions, type CheckReport } from "./lib/offline/check.ts";
export { type Finding, findingText } from "./lib/offline/findings.ts";
export { RealClock } from "./lib/runtime/clock.ts";
export { SystemRandom } from "./lib/runtime/random.ts";

if (import.meta.main) {
  // Only now: who imports the library needs neither the argument parser nor FUSE.
  const { runProgram } = await import("./api/cli/real_program.ts");
  await runProgram(import.meta.url);
}
