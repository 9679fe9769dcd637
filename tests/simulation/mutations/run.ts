/**
 * Breaks the engine on purpose, in one way after the other, and says after how many seeds and cuts
 * the simulator noticed:
 *
 *   bun tests/simulation/mutations/run.ts [PART_OF_A_NAME] [--verbose]
 *
 * Two run at a time. The exit status is 1 when one was not caught.
 */
// deno-lint-ignore-file no-console
import { parseArgs } from "node:util";
import { huntFor } from "./mutant.ts";
import { MUTATIONS } from "./mutations.ts";

const { values, positionals } = parseArgs({
  options: { verbose: { type: "boolean", default: false } },
  allowPositionals: true,
});
const queue = MUTATIONS.filter(({ name }) => name.includes(positionals[0] ?? ""));
let missed = 0;
console.log("caught by        seeds   cuts  seconds  mutation");
async function work(): Promise<void> {
  for (let mutation = queue.shift(); mutation; mutation = queue.shift()) {
    const started = performance.now();
    const { scenario, seeds, cuts, message } = await huntFor(mutation);
    if (scenario === undefined) missed++;
    const columns = [
      (scenario ?? "NOT CAUGHT").padEnd(16),
      `${seeds}`.padStart(5),
      `${cuts}`.padStart(6),
      ((performance.now() - started) / 1000).toFixed(1).padStart(8),
      ` ${mutation.name}`,
    ];
    console.log(columns.join(" "));
    if (values.verbose) console.log(message);
  }
}
await Promise.all([work(), work()]);
if (missed > 0) {
  console.error(`${missed} mutations were not caught`);
  process.exitCode = 1;
}
