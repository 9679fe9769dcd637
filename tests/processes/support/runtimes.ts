/** The program under either runtime, whichever of them runs the test. */
import { realpathSync } from "node:fs";
import { join } from "node:path";
import { TOP } from "../../e2e/support/workshop.ts";

export type Runtime = "bun" | "deno";
export const RUNTIMES: readonly Runtime[] = ["bun", "deno"];
export const THIS_RUNTIME: Runtime = process.versions["bun"] === undefined ? "deno" : "bun";

/** What runs `script` under `runtime`, as one process: a signal to it hits the server. */
export function scriptUnder(runtime: Runtime, script: string): readonly string[] {
  const binary = runtime === THIS_RUNTIME
    ? process.execPath
    : realpathSync(join(TOP, "node_modules/.bin", runtime));
  return runtime === "bun" ? [binary, script] : [binary, "run", "-A", "--no-check", script];
}

/** The program itself. */
export function programUnder(runtime: Runtime): readonly string[] {
  return scriptUnder(runtime, join(TOP, "mod.ts"));
}

/** A small generator of its own (xorshift), so that a failing seed can be named. */
export function generator(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
