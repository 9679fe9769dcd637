/**
 * Every fault on every operation of a scenario, as a routine: the plans one after the other, what
 * came of them summed up by kind of fault.
 */
import { SimulationFailure } from "./explorer.ts";
import { FaultExplorer, newFaultReport } from "./fault_explorer.ts";
import type { FaultReport } from "./fault_explorer.ts";
import { allPlans } from "./fault_plan.ts";
import type { FaultPlan } from "./fault_plan.ts";
import { RECIPES, scenarioOf } from "./scenarios.ts";
import type { RecipeName } from "./scenarios.ts";
import { FAULT_KINDS } from "./sim_faults.ts";
import type { FaultKind } from "./sim_faults.ts";

export interface FaultSweep {
  readonly byKind: ReadonlyMap<FaultKind, FaultReport>;
  /** What was found, each with its replay line. */
  readonly failures: string[];
}

export interface FaultSweepOptions {
  /** Meets one operation in so many. */
  readonly oneIn: number;
  /** At most so many of each plan. */
  readonly runsMax?: number;
  /** The same of scenarios that are longer than a few dozen requests. */
  readonly longRunsMax: number;
  readonly plans?: (plan: FaultPlan) => boolean;
  readonly onPlan?: (name: RecipeName, plan: FaultPlan) => void;
}

/** Adds what a scenario's faults bring about to `into`. */
export async function sweepFaults(
  name: RecipeName,
  seed: number,
  options: FaultSweepOptions,
  into: FaultSweep = newFaultSweep(),
): Promise<FaultSweep> {
  const { oneIn, longRunsMax, runsMax: shortRunsMax, plans = () => true, onPlan } = options;
  const explorer = new FaultExplorer(scenarioOf(name, seed));
  const isLong = "cutOneIn" in RECIPES[name];
  const runsMax = isLong ? longRunsMax : shortRunsMax;
  for (const plan of allPlans({ oneIn, ...(runsMax === undefined ? {} : { runsMax }) })) {
    if (!plans(plan)) continue;
    onPlan?.(name, plan);
    const sum = into.byKind.get(plan.kind ?? "error")!;
    try {
      const report = await explorer.explore(plan);
      for (const key of Object.keys(report) as Array<keyof FaultReport>) sum[key] += report[key];
    } catch (error) {
      if (!(error instanceof SimulationFailure)) throw error;
      into.failures.push(error.message);
    }
  }
  return into;
}

export function newFaultSweep(): FaultSweep {
  return {
    byKind: new Map(FAULT_KINDS.map((kind) => [kind, newFaultReport()])),
    failures: [],
  };
}

export const SWEEP_COLUMNS = [
  "fault",
  "runs",
  "operations met",
  "power cuts and recoveries",
  "starts refused",
  "damaged data blocks served",
  "losses told of",
  "losses without a trace",
] as const;

/** A row for each kind. */
export function sweepRows(sweep: FaultSweep): Array<Array<string | number>> {
  return [...sweep.byKind].map(([kind, report]) => [
    kind,
    report.runs,
    report.injected,
    report.recoveries,
    report.refused,
    report.damagedData,
    report.told,
    report.untold,
  ]);
}
