/**
 * Breaks the engine on purpose, in one way after the other, and says after how many seeds and cuts
 * the simulator noticed:
 *
 *   bun tests/simulation/mutations/run.ts [PART_OF_A_NAME] [--verbose] [--jobs N] [--slice K/N]
 *       [--record FILE]
 *
 * Two run at a time, or as many as `--jobs` says. `--slice 1/4` tries the first of every four.
 * `--record` leaves what was done in a file. The exit status is 1 when one was not caught.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { writeRecord } from "../../assurance/record.ts";
import { huntFor } from "./mutant.ts";
import { MUTATIONS } from "./mutations.ts";

const { values, positionals } = parseArgs({
  options: {
    verbose: { type: "boolean", default: false },
    jobs: { type: "string", default: "2" },
    slice: { type: "string", default: "1/1" },
    record: { type: "string" },
  },
  allowPositionals: true,
});
const [slice, slices] = values.slice.split("/").map(Number);
if (!(slice! >= 1 && slice! <= slices!) || !(Number(values.jobs) >= 1)) {
  console.error("--slice takes K/N with K from 1 to N, --jobs a number from 1");
  process.exit(2);
}
const begun = performance.now();
const queue = MUTATIONS.filter(({ name }) => name.includes(positionals[0] ?? ""))
  .filter((_, at) => at % slices! === slice! - 1);
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
await Promise.all(Array.from({ length: Number(values.jobs) }, work));
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "mutations",
    what: "The engine is broken on purpose, in one way after the other; the simulator must " +
      "notice each. The figures say after how many seeds, and how many cuts in them, it did.",
    command: `bun tests/simulation/mutations/run.ts ${process.argv.slice(2).join(" ")}`,
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
  console.error(`${missed.length} mutations were not caught`);
  process.exitCode = 1;
}
