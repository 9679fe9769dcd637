/**
 * kill -9 of real servers in a loop, as often as wanted:
 *
 *   npm run processes -- [--cycles N] [--case NAME] [--seed N] [--record FILE]
 *
 * Every target (blocks, fio, ext4, xfs, btrfs) in every cache mode gets its share of the cycles,
 * the server under Bun and under Deno in turn. NAME is a target, a mode, or both, as in
 * `ext4/writeback`. The exit status is 1 when something was lost. Needs root.
 */
// deno-lint-ignore-file no-console
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { writeRecord } from "../assurance/record.ts";
import { inWorkshop } from "../e2e/support/workshop.ts";
import { argumentsOf, oneOf, recordOption, seedOption, wholeNumber } from "../support/arguments.ts";
import { installFor } from "../support/install.ts";
import { counted } from "../support/lines.ts";
import { KILL_TARGETS, type KillChain, runKillChain } from "./support/kill_loop.ts";

const everyPair = CACHE_MODES.flatMap((mode) =>
  Object.keys(KILL_TARGETS).map((target) => ({ target, mode }))
);
/** What `--case` may call a pair. */
const namesOf = ({ target, mode }: (typeof everyPair)[number]): string[] => [
  target,
  mode,
  `${target}/${mode}`,
];
const { values } = argumentsOf({
  command: "npm run processes",
  about: "kill -9 of real servers in a loop, under Bun and under Deno in turn, with file systems " +
    "and fio on the mounted file. Needs root. The exit status is 1 when something was lost.",
  options: {
    cycles: wholeNumber("how many kills, shared by all cases", { from: 1, fallback: 60 }),
    case: oneOf("one target, one mode or one of both", everyPair.flatMap(namesOf), {
      takes: "NAME",
      shown: `${Object.keys(KILL_TARGETS).join(", ")}, ${CACHE_MODES.join(", ")}, ` +
        `or both as ext4/${CACHE_MODES[0]}`,
    }),
    seed: seedOption("the seed"),
    record: recordOption,
  },
});
const { cycles, seed } = values;
// The seed of a pair is the same whichever others run.
const pairs = everyPair.map((pair, at) => ({ ...pair, seed: seed * 1000 + at }))
  .filter((pair) => values.case === undefined || namesOf(pair).includes(values.case));
if (process.getuid?.() !== 0) {
  console.error("processes: it mounts and kills servers: run it as root");
  process.exit(2);
}
installFor(["processes"], "test");
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
      console.log(`ok   ${target}/${mode}: ${counted(done, "kill")} (${secondsSince(sinceMs)} s)`);
    });
  } catch (error) {
    const options = `--case ${target}/${mode} --cycles ${chain.cycles} --seed ${seed}`;
    failures.push(`npx bun tests/processes/run.ts ${options}: ${String(error).slice(0, 2000)}`);
    console.error(`FAIL ${failures.at(-1)}`);
  }
  kills += done;
  rows.push([target, mode, done, secondsSince(sinceMs)]);
}

const wallSeconds = secondsSince(startedMs);
console.log(
  `${counted(kills, "kill")} with seed ${seed} in ${wallSeconds} s, ` +
    `${counted(acknowledged, "acknowledgement")} looked for`,
);
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "processes",
    what: "Real servers, under Bun and Deno in turn, were killed with SIGKILL while blocks, fio, " +
      "ext4, xfs and btrfs wrote through FUSE; after each kill `check` judged the images, after " +
      "each remount the file system's own checker and every acknowledged write.",
    command: `npx bun tests/processes/run.ts --cycles ${cycles} --seed ${seed}`,
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
