/**
 * kill -9 of real servers in a loop, as often as wanted:
 *
 *   bun tests/processes/run.ts [--cycles N] [--case NAME] [--seed N] [--record FILE]
 *
 * Every target (blocks, fio, ext4, xfs, btrfs) in every cache mode gets its share of the cycles,
 * the server under Bun and under Deno in turn. NAME is a target, a mode, or both, as in
 * `ext4/writeback`. The exit status is 1 when something was lost. Needs root.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { writeRecord } from "../assurance/record.ts";
import { inWorkshop } from "../e2e/support/workshop.ts";
import { KILL_TARGETS, type KillChain, runKillChain } from "./support/kill_loop.ts";

const { values } = parseArgs({
  options: {
    cycles: { type: "string", default: "60" },
    case: { type: "string" },
    seed: { type: "string", default: "1" },
    record: { type: "string" },
  },
});

const cycles = Number(values.cycles);
const seed = Number(values.seed);
const everyPair = CACHE_MODES.flatMap((mode) =>
  Object.keys(KILL_TARGETS).map((target) => ({ target, mode }))
);
// The seed of a pair is the same whichever others run.
const pairs = everyPair.map((pair, at) => ({ ...pair, seed: seed * 1000 + at }))
  .filter(({ target, mode }) =>
    values.case === undefined || [target, mode, `${target}/${mode}`].includes(values.case)
  );
if (pairs.length === 0 || !Number.isSafeInteger(cycles) || cycles < 1 || !Number.isInteger(seed)) {
  const targets = Object.keys(KILL_TARGETS).join(", ");
  console.error(
    `--cycles and --seed are whole numbers; --case is one of ${targets}, a mode, or both`,
  );
  process.exit(2);
}
// Every pair gets as many as the others, the first ones one more.
const chains = pairs.map((pair, at): KillChain => ({
  ...pair,
  cycles: Math.floor(cycles / pairs.length) + (at < cycles % pairs.length ? 1 : 0),
})).filter((chain) => chain.cycles > 0);

const startedMs = performance.now();
const secondsSince = (sinceMs: number): number =>
  Math.round((performance.now() - sinceMs) / 100) / 10;
const rows: Array<Array<string | number>> = [];
const failures: string[] = [];
let kills = 0;
let acknowledged = 0;
for (const chain of chains) {
  const { target, mode } = chain;
  const sinceMs = performance.now();
  let done = 0;
  try {
    await inWorkshop(async (place) => {
      const result = await runKillChain(place, chain, () => void done++);
      acknowledged += result.acknowledged;
      console.log(`ok   ${target}/${mode}: ${done} kills (${secondsSince(sinceMs)} s)`);
    });
  } catch (error) {
    const options = `--case ${target}/${mode} --cycles ${chain.cycles} --seed ${seed}`;
    failures.push(`bun tests/processes/run.ts ${options}: ${String(error).slice(0, 2000)}`);
    console.error(`FAIL ${failures.at(-1)}`);
  }
  kills += done;
  rows.push([target, mode, done, secondsSince(sinceMs)]);
}

const wallSeconds = secondsSince(startedMs);
console.log(`${kills} kills in ${wallSeconds} s, ${acknowledged} acknowledgements looked for`);
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "processes",
    what: "Real servers, under Bun and Deno in turn, were killed with SIGKILL while blocks, fio, " +
      "ext4, xfs and btrfs wrote through FUSE; after each kill `check` judged the images, after " +
      "each remount the file system's own checker and every acknowledged write.",
    command: `bun tests/processes/run.ts --cycles ${cycles} --seed ${seed}`,
    counts: {
      "kill -9 cycles": kills,
      "acknowledged writes that were looked for": acknowledged,
    },
    tables: [{
      title: "Kills by target and cache mode",
      columns: ["target", "cache mode", "kills", "seconds"],
      rows,
    }],
    failures,
    wallSeconds,
  });
}
if (failures.length > 0) process.exitCode = 1;
