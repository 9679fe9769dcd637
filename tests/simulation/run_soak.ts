/**
 * The soak, for as long as one likes: an hour of simulated time in every mode and policy.
 *
 *   bun tests/simulation/run_soak.ts [--minutes M] [--seed N] [--mode MODE] [--policy POLICY]
 *
 * Prints one line for each; the exit status is 1 when one failed.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { soak } from "./soak.ts";

const POLICIES: readonly ReplacementPolicy[] = ["lru", "fifo", "random"];
const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    seed: { type: "string", default: "1" },
    mode: { type: "string" },
    policy: { type: "string" },
  },
});
let failures = 0;
for (const mode of CACHE_MODES.filter((each) => (values.mode ?? each) === each)) {
  for (const replacement of POLICIES.filter((each) => (values.policy ?? each) === each)) {
    const started = performance.now();
    const options = { mode, replacement, seed: Number(values.seed) };
    try {
      const report = await soak({ ...options, minutes: Number(values.minutes) });
      const seconds = ((performance.now() - started) / 1000).toFixed(0);
      console.log(
        `ok   ${mode.padEnd(12)} ${replacement.padEnd(6)} ${report.simulatedMinutes} minutes, ` +
          `${report.requests} requests, ${report.restarts} restarts, ${report.powerCuts} power ` +
          `cuts, ${report.collections} collections, ` +
          `${report.writtenBackBytes >> 20} MiB to the backing device (${seconds} s)`,
      );
    } catch (error) {
      failures++;
      console.error(`FAIL ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}
if (failures > 0) process.exitCode = 1;
