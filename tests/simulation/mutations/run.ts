/**
 * Breaks the engine on purpose, in one way after the other, and says after how many seeds and cuts
 * the simulator noticed:
 *
 *   npm run mutations -- [PART_OF_A_NAME] [--verbose] [--jobs N] [--slice K/N]
 *       [--record FILE]
 *
 * Two run at a time, or as many as `--jobs` says. `--slice 1/4` tries the first of every four.
 * `--record` leaves what was done in a file. The exit status is 1 when one was not caught.
 */
// deno-lint-ignore-file no-console
import { writeRecord } from "../../assurance/record.ts";
import {
  argumentsOf,
  flag,
  recordOption,
  refuse,
  sliceOption,
  wholeNumber,
} from "../../support/arguments.ts";
import { counted } from "../../support/lines.ts";
import { huntFor } from "./mutant.ts";
import { MUTATIONS } from "./mutations.ts";

const DECLARED = {
  command: "npm run mutations",
  about:
    "Breaks the engine on purpose, in one way after the other, and says after how many seeds " +
    "and cuts the simulator noticed. The exit status is 1 when one was not caught.",
  options: {
    verbose: flag("prints what the simulator said"),
    jobs: wholeNumber("how many run at a time", { from: 1, fallback: 2 }),
    slice: sliceOption("mutations"),
    record: recordOption,
  },
  words: {
    takes: "PART_OF_A_NAME",
    help: "only the mutations whose name has this in it",
    most: 1,
  },
};
const { values, words: [part = ""] } = argumentsOf(DECLARED);
const { number, of } = values.slice ?? { number: 1, of: 1 };
const begun = performance.now();
const named = MUTATIONS.filter(({ name }) => name.includes(part));
const queue = named.filter((_, at) => at % of === number - 1);
if (named.length === 0) refuse(DECLARED, `no mutation has "${part}" in its name`);
if (queue.length === 0) {
  refuse(DECLARED, `--slice: ${counted(named.length, "mutation")} make no slice ${number}/${of}`);
}
const missed: string[] = [];
const rows: Array<readonly [string, string, number, number]> = [];
console.log("caught by        seeds   cuts  seconds  mutation");

async function work(): Promise<void> {
  for (let mutation = queue.shift(); mutation; mutation = queue.shift()) {
    const started = performance.now();
    const { name, file } = mutation;
    const { scenario, seeds, cuts, message } = await huntFor(mutation);
    if (scenario === undefined) missed.push(`npm run mutations -- "${name}"`);
    rows.push([`${name} (${file})`, scenario ?? "NOT CAUGHT", seeds, cuts]);
    const columns = [
      (scenario ?? "NOT CAUGHT").padEnd(16),
      `${seeds}`.padStart(5),
      `${cuts}`.padStart(6),
      ((performance.now() - started) / 1000).toFixed(1).padStart(8),
      ` ${name}`,
    ];
    console.log(columns.join(" "));
    if (values.verbose) console.log(message);
  }
}
await Promise.all(Array.from({ length: values.jobs }, work));
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "mutations",
    what: "The engine is broken on purpose, in one way after the other; the simulator must " +
      "notice each. The figures say after how many seeds, and how many cuts in them, it did.",
    command: `npx bun tests/simulation/mutations/run.ts ${process.argv.slice(2).join(" ")}`,
    counts: { "mutations": rows.length, "mutations caught": rows.length - missed.length },
    tables: [{
      title: "Until it was noticed",
      columns: ["what is broken", "noticed by", "seeds", "recoveries"],
      rows,
    }],
    failures: missed,
    wallSeconds: (performance.now() - begun) / 1000,
  });
}
if (missed.length > 0) {
  console.error(`not caught: ${counted(missed.length, "mutation")}`);
  process.exitCode = 1;
}
