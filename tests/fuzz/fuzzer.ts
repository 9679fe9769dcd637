/**
 * Gives inputs to a target, one after the other. An input follows from the target's name and a
 * seed alone, so that one line shows a failure again, on Bun and on Deno.
 */
import { messageOf } from "../../lib/base/errors.ts";
import { hashOf, SimRandom } from "../simulation/sim_random.ts";
import type { Attack, FuzzTarget } from "./target.ts";

export interface FuzzFailure {
  readonly target: string;
  readonly seed: number;
  readonly message: string;
}

/** The line that shows a failure again. */
export function replayLine(target: string, seed: number): string {
  return `npx bun tests/fuzz/run.ts --decoder ${target} --seed ${seed} --count 1`;
}

function labelOf(name: string): number {
  return hashOf(...new TextEncoder().encode(name));
}

export interface FuzzOptions {
  readonly firstSeed: number;
  readonly count: number;
  /** Told of each input before it is made. */
  readonly onInput?: (seed: number) => void;
  readonly failuresMax?: number;
}

/** Seeds from `firstSeed` on, `count` of them; ends early after `failuresMax` failures. */
export async function fuzz(target: FuzzTarget, options: FuzzOptions): Promise<FuzzFailure[]> {
  const attack = await target.prepare();
  const label = labelOf(target.name);
  const failures: FuzzFailure[] = [];
  for (let seed = options.firstSeed; seed < options.firstSeed + options.count; seed++) {
    options.onInput?.(seed);
    const failure = await failureOf(attack, new SimRandom(hashOf(label, seed)));
    if (failure === undefined) continue;
    failures.push({ target: target.name, seed, message: failure });
    if (failures.length >= (options.failuresMax ?? 5)) break;
  }
  return failures;
}

async function failureOf(attack: Attack, random: SimRandom): Promise<string | undefined> {
  try {
    const later = attack(random);
    if (later !== undefined) await later;
    return undefined;
  } catch (error) {
    const stack = error instanceof Error ? error.stack?.split("\n").slice(1, 4) ?? [] : [];
    const where = stack.map((line) => line.trim()).join(" < ");
    return `${error instanceof Error ? error.name : "thrown"}: ${messageOf(error)} ${where}`;
  }
}
