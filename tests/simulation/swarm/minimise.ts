/**
 * Makes a failing plan small: delta debugging over its steps (Zeller and Hildebrandt's ddmin). Runs
 * of steps are left out, long ones first, as long as what remains still fails; in the end no step
 * is left that could be left out alone.
 */
import type { SwarmPlan } from "./plan.ts";

/** The numbers of the steps that remain, in order. */
export type Kept = readonly number[];

/** The plan with these of its steps only. */
export function planWithOnly(plan: SwarmPlan, kept: Kept): SwarmPlan {
  const steps = kept.map((number) => plan.steps[number]).filter((step) => step !== undefined);
  return { ...plan, steps };
}

/**
 * @param fails whether a plan still fails; `plan` itself does
 * @param triesMax ends the search: what is found by then is good enough
 */
export async function minimise(
  plan: SwarmPlan,
  fails: (plan: SwarmPlan) => Promise<boolean>,
  triesMax = 400,
): Promise<Kept> {
  let kept: Kept = plan.steps.map((_, number) => number);
  let tries = 0;
  for (let size = kept.length >> 1; size >= 1;) {
    let removed = false;
    for (let at = 0; at < kept.length && tries < triesMax;) {
      const rest = [...kept.slice(0, at), ...kept.slice(at + size)];
      tries++;
      if (rest.length > 0 && await fails(planWithOnly(plan, rest))) {
        kept = rest;
        removed = true;
      } else at += size;
    }
    if (tries >= triesMax) break;
    if (size === 1 && !removed) break;
    size = size === 1 ? 1 : size >> 1;
  }
  return kept;
}

/** Numbers as a command's argument: "0-3,7". */
export function keptText(kept: Kept): string {
  const runs: Array<{ from: number; to: number }> = [];
  for (const number of kept) {
    const last = runs.at(-1);
    if (last?.to === number - 1) last.to = number;
    else runs.push({ from: number, to: number });
  }
  return runs.map(({ from, to }) => from === to ? `${from}` : `${from}-${to}`).join(",");
}

/** More than any plan has. */
const STEPS_MAX = 1_000_000;

/** @throws when the text is none that `keptText` makes */
export function parseKept(text: string): Kept {
  return text.split(",").flatMap((run) => {
    const [, from, to = from] = /^(\d+)(?:-(\d+))?$/.exec(run) ?? [];
    if (from === undefined) throw new Error(`--only: found "${run}", expected 3 or 3-7`);
    const first = Number(from);
    const length = Number(to) - first + 1;
    if (!(length >= 1 && length <= STEPS_MAX)) {
      throw new Error(`--only: found "${run}", expected the lower number first`);
    }
    return Array.from({ length }, (_, at) => first + at);
  });
}
