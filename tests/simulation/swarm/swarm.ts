/**
 * One seed of the swarm: makes its plan, runs it, and, when it fails, makes it small and says how
 * to see it again in one line.
 */
import { SimulationFailure } from "../explorer.ts";
import { makePlan } from "./make_plan.ts";
import { type Kept, keptText, minimise, planWithOnly } from "./minimise.ts";
import { describeStep } from "./plan.ts";
import type { SwarmPlan } from "./plan.ts";
import { runPlan } from "./run_plan.ts";
import type { RunPlanOptions, SwarmReport } from "./run_plan.ts";

export interface SwarmOptions extends RunPlanOptions {
  /** Runs these steps of the plan only, and does not make it smaller. */
  readonly only?: Kept;
}

/** @throws SimulationFailure whose message ends with the line that shows it again */
export async function swarm(seed: number, options: SwarmOptions = {}): Promise<SwarmReport> {
  const plan = makePlan(seed);
  const { only } = options;
  try {
    return await runPlan(only === undefined ? plan : planWithOnly(plan, only), options);
  } catch (error) {
    const kept = only ?? await smallest(plan, error, options);
    throw failureOf(plan, kept, await failureIn(planWithOnly(plan, kept), options) ?? error);
  }
}

async function failureIn(plan: SwarmPlan, options: RunPlanOptions): Promise<unknown> {
  try {
    await runPlan(plan, options);
    return undefined;
  } catch (error) {
    return error;
  }
}

/** The same failure in few steps: a plan that fails in another way is not taken for it. */
async function smallest(plan: SwarmPlan, error: unknown, options: RunPlanOptions): Promise<Kept> {
  const { wrap } = options;
  const quiet = wrap === undefined ? {} : { wrap };
  const wanted = kindOf(error);
  return await minimise(plan, async (smaller) => {
    const found = await failureIn(smaller, quiet);
    return found !== undefined && kindOf(found) === wanted;
  });
}

/** What a failure is, without the numbers that change from plan to plan. */
function kindOf(error: unknown): string {
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  const [line] = text.split("\n");
  return line!.replace(/; allowed .*/, "").replace(/found .*/, "found").replace(/[0-9]+/g, "N");
}

function failureOf(plan: SwarmPlan, kept: Kept, error: unknown): SimulationFailure {
  const { seed, machine, steps } = plan;
  const small = planWithOnly(plan, kept);
  const only = kept.length === steps.length ? "" : ` --only ${keptText(kept)}`;
  const lines = [
    `swarm seed ${seed}, ${kept.length} of ${steps.length} steps:`,
    error instanceof Error ? `${error.name}: ${error.message}` : String(error),
    `machine: ${JSON.stringify(machine)}`,
    ...small.steps.slice(0, 60).map((step) => `  ${describeStep(step)}`),
    `replay: npx bun run simulate --seed ${seed}${only}`,
  ];
  return new SimulationFailure(lines.join("\n  "), { cause: error });
}
