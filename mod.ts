#!/usr/bin/env bun
/** bcache-fuse: Linux bcache as a userspace program. Imported, this is the library. */
export * from "./lib/base/errors.ts";
export type { Device, WriteOptions } from "./lib/device/device.ts";
export * from "./lib/cache/ports.ts";

if (import.meta.main) {
  // Only now: who imports the library needs neither the argument parser nor FUSE.
  const { runProgram } = await import("./api/cli/real_program.ts");
  await runProgram(import.meta.url);
}
