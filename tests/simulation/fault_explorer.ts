/**
 * Runs a workload again and again, each time with another operation of one disk meeting a fault.
 * What may come of it follows from the kind of fault:
 * - error: requests may fail, starting may be refused; no answer may be wrong;
 * - slow, short: nothing at all may come of it;
 * - rot, misdirected: as with an error; besides, blocks of *data* that were damaged are served as
 *   they are, for bcache keeps no checksums of data. All else is right, or somebody says so;
 * - lie: what was lost is lost; it must be refused or served, not crash or hang.
 * The power is cut right after the fault, once more later, and at the end; the disk is well then,
 * and what a flush acknowledged must be there.
 */
import { SimulationFailure } from "./explorer.ts";
import type { Scenario } from "./explorer.ts";
import { FAULT_DISKS, FAULT_OPERATIONS, isSilent, planText } from "./fault_plan.ts";
import type { FaultPlan } from "./fault_plan.ts";
import { FaultRun, newOutcomes } from "./fault_run.ts";
import type { Outcomes, Start } from "./fault_run.ts";
import { FAULT_KINDS } from "./sim_faults.ts";
import { hashOf } from "./sim_random.ts";

export interface FaultReport extends Outcomes {
  /** Runs, each with one fault. */
  runs: number;
}

export function newFaultReport(): FaultReport {
  return { runs: 0, ...newOutcomes() };
}

/** Explores one plan. @throws SimulationFailure */
export async function exploreFaults(scenario: Scenario, plan: FaultPlan): Promise<FaultReport> {
  return await new FaultExplorer(scenario).explore(plan);
}

/** Runs without a fault serve all the plans of a scenario that begin alike. */
export class FaultExplorer {
  #scenario: Scenario;
  #healthy = new Map<string, Promise<FaultRun>>();

  constructor(scenario: Scenario) {
    this.#scenario = scenario;
  }

  /** @throws SimulationFailure */
  async explore(plan: FaultPlan): Promise<FaultReport> {
    const scenario = this.#scenario;
    const report = newFaultReport();
    const healthy = await this.#run(plan);
    const start = await this.#startOf(plan);
    const operations = healthy.operationsOf(plan);
    const oneIn = Math.max(plan.oneIn, Math.ceil(operations / (plan.runsMax ?? Infinity)));
    // The first one met differs from plan to plan, so that few runs see many operations.
    const first = hashOf(scenario.seed, ...planNumbers(plan)) % oneIn;
    for (let number = plan.onlyOperation ?? first; number < operations; number += oneIn) {
      await told(scenario, plan, new FaultRun({ scenario, plan, number, start, outcomes: report }));
      report.runs++;
      if (plan.onlyOperation !== undefined) break;
    }
    return report;
  }

  /** What a run of this plan starts from: undefined is fresh disks. */
  async #startOf(plan: FaultPlan): Promise<Start | undefined> {
    if (plan.stage !== "restart") return undefined;
    return (await this.#run({ ...plan, stage: "first" })).start;
  }

  async #run(plan: FaultPlan): Promise<FaultRun> {
    const key = `${plan.stage ?? "first"} ${isSilent(plan)}`;
    let running = this.#healthy.get(key);
    if (running === undefined) {
      running = this.#runHealthy(plan);
      this.#healthy.set(key, running);
    }
    return await running;
  }

  async #runHealthy(plan: FaultPlan): Promise<FaultRun> {
    const scenario = this.#scenario;
    const start = await this.#startOf(plan);
    const outcomes = newOutcomes();
    const run = new FaultRun({ scenario, plan, number: undefined, start, outcomes });
    await told(scenario, plan, run);
    return run;
  }
}

function planNumbers({ disk, operation, kind = "error", stage, times }: FaultPlan): number[] {
  return [
    FAULT_DISKS.indexOf(disk),
    FAULT_OPERATIONS.indexOf(operation),
    FAULT_KINDS.indexOf(kind),
    stage === "restart" ? 1 : 0,
    times === 1 ? 1 : 0,
  ];
}

async function told(scenario: Scenario, plan: FaultPlan, run: FaultRun): Promise<void> {
  try {
    await run.run();
  } catch (error) {
    const { kind, seed, replay } = scenario;
    const which = run.number === undefined ? "without a fault" : planText(plan, run.number);
    const lines = [
      `${kind.name}, seed ${seed}, ${which}${run.where}:`,
      error instanceof Error ? `${error.name}: ${error.message}` : String(error),
    ];
    for (const line of run.logLines.slice(-8)) lines.push(`  ${line}`);
    if (replay !== undefined && run.number !== undefined) {
      lines.push(`replay: npx bun tests/simulation/run.ts ${replay} --seed ${seed} ${which}`);
    }
    throw new SimulationFailure(lines.join("\n  "), { cause: error });
  }
}
