/**
 * Runs portions in a thread of its own, so that whoever started it sees when one never ends: what
 * it works on is in shared memory, `[portion, seed]`.
 */
import { parentPort, workerData } from "node:worker_threads";
import { portions, runPortion } from "./plan.ts";

const { count, seed, decoder, shared } = workerData as {
  count: number;
  seed: number;
  decoder: string | undefined;
  shared: SharedArrayBuffer;
};
const now = new Float64Array(shared);

for (const [at, portion] of portions(count, decoder).entries()) {
  now[0] = at;
  const result = await runPortion(portion, seed, (input) => {
    now[1] = input;
  });
  parentPort!.postMessage(result);
}
