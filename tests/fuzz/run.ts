/**
 * Fuzzing for as long as one likes:
 *
 *   npm run fuzz -- [--decoder NAME] [--seed N] [--count N] [--record FILE]
 *
 * Gives N inputs to the decoders, by their shares or all to one, with seeds from `--seed` on. A
 * failure prints the line that shows it again; the exit status is 1 then. An input that comes to
 * no end within a minute is a failure as well, and ends the run.
 */
// deno-lint-ignore-file no-console
import process from "node:process";
import { Worker } from "node:worker_threads";
import { writeRecord } from "../assurance/record.ts";
import { argumentsOf, oneOf, recordOption, seedOption, wholeNumber } from "../support/arguments.ts";
import { counted } from "../support/lines.ts";
import { replayLine } from "./fuzzer.ts";
import { type PortionResult, portions } from "./plan.ts";
import { TARGETS } from "./targets.ts";

const PATIENCE_MS = 60_000;
const LOOK_MS = 5000;

const { values } = argumentsOf({
  command: "npm run fuzz",
  about: "Gives damaged and hostile input to every decoder. A failure prints the line that shows " +
    "it again; the exit status is 1 then.",
  options: {
    decoder: oneOf("all inputs to this decoder", TARGETS.map(({ name }) => name), {
      takes: "NAME",
    }),
    seed: seedOption("the seed of the first input"),
    count: wholeNumber("how many inputs", { from: 1, fallback: 100_000 }),
    record: recordOption,
  },
});
const { seed, count } = values;
const plan = portions(count, values.decoder);

/** Resolves with what failed beyond the decoders' own failures. */
function run(onResult: (result: PortionResult) => void): Promise<string[]> {
  const shared = new SharedArrayBuffer(16);
  const now = new Float64Array(shared);
  const workerData = { count, seed, decoder: values.decoder, shared };
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { workerData });
  const where = () => replayLine(plan[now[0]!]!.target.name, now[1]!);
  return new Promise((resolve) => {
    let before = "";
    let sinceMs = performance.now();
    const watch = setInterval(() => {
      if (where() !== before) [before, sinceMs] = [where(), performance.now()];
      if (performance.now() - sinceMs < PATIENCE_MS) return;
      clearInterval(watch);
      void worker.terminate();
      resolve([`no end within ${PATIENCE_MS / 1000} s: ${where()}`]);
    }, LOOK_MS);
    const end = (failures: string[]): void => {
      clearInterval(watch);
      resolve(failures);
    };
    let results = 0;
    worker.on("message", (result: PortionResult) => {
      onResult(result);
      if (++results === plan.length) end([]);
    });
    worker.on("error", (error) => end([`${String(error)}: ${where()}`]));
    worker.on("exit", () => {
      if (results < plan.length) end([`the worker ended: ${where()}`]);
    });
  });
}

const startedMs = performance.now();
const results: PortionResult[] = [];
const failures = await run((result) => {
  results.push(result);
  const { name, inputs, seconds, residentMebibytes } = result;
  const rate = Math.round(inputs / seconds);
  console.log(`${name}: ${counted(inputs, "input")}, ${rate} per second, ${residentMebibytes} MiB`);
  for (const { message, target, seed } of result.failures) {
    console.error(`  ${message}\n  ${replayLine(target, seed)}`);
  }
});
failures.push(
  ...results.flatMap((result) =>
    result.failures.map(({ target, seed, message }) => `${replayLine(target, seed)}: ${message}`)
  ),
);
for (const failure of failures) console.error(failure);
if (values.record !== undefined) {
  writeRecord(values.record, {
    part: "fuzz",
    what: "Gives mutated input to every decoder: structures of the disk, whole devices, requests " +
      "of FUSE and HTTP, words of the command line.",
    command: `npx bun tests/fuzz/run.ts --seed ${seed} --count ${count}`,
    counts: {
      "fuzz inputs": results.reduce((sum, { inputs }) => sum + inputs, 0),
      "decoders": results.length,
      "MiB of memory at most": Math.max(0, ...results.map((each) => each.residentMebibytes)),
    },
    tables: [{
      title: "Inputs by decoder",
      columns: ["decoder", "what is decoded", "inputs", "per second"],
      rows: results.map(({ name, inputs, seconds }) => [
        name,
        TARGETS.find((target) => target.name === name)!.what,
        inputs,
        Math.round(inputs / seconds),
      ]),
    }],
    failures,
    wallSeconds: Math.round((performance.now() - startedMs) / 1000),
  });
}
process.exit(failures.length > 0 ? 1 : 0);
