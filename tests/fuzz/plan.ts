/** Which targets get how many of so many inputs, and what a run of them came to. */
import process from "node:process";
import { fuzz, type FuzzFailure } from "./fuzzer.ts";
import type { FuzzTarget } from "./target.ts";
import { TARGETS } from "./targets.ts";

export interface Portion {
  readonly target: FuzzTarget;
  readonly count: number;
}

/** `count` inputs among all targets by their shares, or all to the one of that name. */
export function portions(count: number, name?: string): Portion[] {
  if (name !== undefined) {
    const target = TARGETS.find((each) => each.name === name);
    return target === undefined ? [] : [{ target, count }];
  }
  const total = TARGETS.reduce((sum, target) => sum + target.share, 0);
  return TARGETS.map((target) => ({
    target,
    count: Math.ceil(count * target.share / total),
  }));
}

export interface PortionResult {
  readonly name: string;
  readonly inputs: number;
  readonly seconds: number;
  /** Of the process, at its highest while this ran. */
  readonly residentMebibytes: number;
  readonly failures: readonly FuzzFailure[];
}

/** More than this is no input's worth: somebody believed a number. */
const RESIDENT_MEBIBYTES_MAX = 3072;
const SAMPLE_INPUTS = 256;

/** Runs one portion. `onInput` is told of each seed before its input is made. */
export async function runPortion(
  { target, count }: Portion,
  firstSeed: number,
  onInput: (seed: number) => void,
): Promise<PortionResult> {
  const startedMs = performance.now();
  let resident = 0;
  let inputs = 0;
  const failures = await fuzz(target, {
    firstSeed,
    count,
    onInput: (seed) => {
      onInput(seed);
      if (inputs++ % SAMPLE_INPUTS === 0) resident = Math.max(resident, residentNow());
    },
  });
  resident = Math.max(resident, residentNow());
  const seconds = (performance.now() - startedMs) / 1000;
  if (resident > RESIDENT_MEBIBYTES_MAX) {
    const message = `memory without bound: ${resident} MiB`;
    failures.push({ target: target.name, seed: firstSeed, message });
  }
  return { name: target.name, inputs, seconds, residentMebibytes: resident, failures };
}

function residentNow(): number {
  return Math.round(process.memoryUsage().rss / 2 ** 20);
}
