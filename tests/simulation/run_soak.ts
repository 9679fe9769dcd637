/**
 * The soak, for as long as one likes: an hour of simulated time in every mode and policy.
 *
 *   npm run soak -- [--minutes M] [--seed N] [--mode MODE] [--policy POLICY]
 *       [--record FILE]
 *
 * Prints one line for each; the exit status is 1 when one failed. `--record` leaves what was done
 * in a file.
 */
// deno-lint-ignore-file no-console
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { replayLine, writeRecord } from "../assurance/record.ts";
import { argumentsOf, oneOf, recordOption, seedOption, wholeNumber } from "../support/arguments.ts";
import { counted } from "../support/lines.ts";
import { soak } from "./soak.ts";

const POLICIES: readonly ReplacementPolicy[] = ["lru", "fifo", "random"];
const { values } = argumentsOf({
  command: "npm run soak",
  about: "Long lives of a cache on simulated disks, in every mode and policy; one line for each. " +
    "The exit status is 1 when one failed.",
  options: {
    minutes: wholeNumber("simulated minutes of each", { takes: "M", from: 1, fallback: 60 }),
    seed: seedOption("the seed"),
    mode: oneOf("one cache mode instead of all", CACHE_MODES, { takes: "MODE" }),
    policy: oneOf("one replacement policy instead of all", POLICIES, { takes: "POLICY" }),
    record: recordOption,
  },
});
const begun = performance.now();
const runtime = process.versions["bun"] === undefined ? "Deno" : "Bun";
const failures: string[] = [];
const rows: Array<readonly [string, string, string, ...number[]]> = [];
for (const mode of CACHE_MODES.filter((each) => (values.mode ?? each) === each)) {
  for (const replacement of POLICIES.filter((each) => (values.policy ?? each) === each)) {
    const started = performance.now();
    const options = { mode, replacement, seed: values.seed };
    try {
      const report = await soak({ ...options, minutes: values.minutes });
      const seconds = ((performance.now() - started) / 1000).toFixed(0);
      console.log(
        `ok   ${mode.padEnd(12)} ${replacement.padEnd(6)} ` +
          `${counted(report.simulatedMinutes, "minute")}, ${
            counted(report.requests, "request")
          }, ` +
          `${counted(report.restarts, "restart")}, ${counted(report.powerCuts, "power cut")}, ` +
          `${counted(report.collections, "collection")}, ` +
          `${report.writtenBackBytes >> 20} MiB to the backing device (${seconds} s)`,
      );
      const { simulatedMinutes, requests, restarts, powerCuts, collections } = report;
      const writtenBackMib = report.writtenBackBytes / 2 ** 20;
      rows.push([
        mode,
        replacement,
        runtime,
        simulatedMinutes,
        requests,
        restarts,
        powerCuts,
        collections,
        writtenBackMib,
      ]);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      failures.push(replayLine(message));
      console.error(`FAIL ${message}`);
    }
  }
}
if (values.record !== undefined) {
  const sum = (at: number) => rows.reduce((total, row) => total + Number(row[at]), 0);
  writeRecord(values.record, {
    part: "soak",
    what: "Long lives of one cache set a tenth as large as what goes through it, with settings " +
      "that change, collections, writeback, and every three minutes a clean stop or a power cut. " +
      "At each of these the offline check must find nothing, and the dirty bytes must be exact.",
    command: `npx bun tests/simulation/run_soak.ts ${process.argv.slice(2).join(" ")}`,
    counts: {
      "simulated minutes": sum(3),
      "requests": sum(4),
      "clean stops": sum(5),
      "power cuts": sum(6),
      "collections": sum(7),
    },
    tables: [{
      title: "By mode and policy",
      columns: [
        "mode",
        "policy",
        "runtime",
        "minutes",
        "requests",
        "clean stops",
        "power cuts",
        "collections",
        "MiB to the backing device",
      ],
      rows,
    }],
    failures,
    wallSeconds: (performance.now() - begun) / 1000,
  });
}
if (failures.length > 0) process.exitCode = 1;
