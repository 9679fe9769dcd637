/**
 * Runs a workload again and again, each time with another operation of one disk failing, once or
 * from then on. Requests may fail; no answer may be wrong; what a flush acknowledged must be there
 * after the power is cut and the disk is well again.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { checkAllRecovered, checkBackingAlone, SimulationFailure } from "./explorer.ts";
import type { Scenario } from "./explorer.ts";
import { Oracle } from "./oracle.ts";
import { fillSector } from "./pattern.ts";
import type { CutPolicy } from "./power_cut.ts";
import type { DiskCounts } from "./sim_disk.ts";
import type { Fault } from "./sim_faults.ts";
import { hashOf, SimRandom } from "./sim_random.ts";
import { runWorkload } from "./workload.ts";
import { World, worldAfterCut } from "./world.ts";
import type { Engine } from "./world.ts";

export interface FaultPlan {
  readonly disk: "cache" | "backing";
  readonly operation: "read" | "write" | "flush";
  /** 1: the disk recovers; Infinity: it does not. */
  readonly times: number;
  readonly errno?: "EIO" | "ENOSPC";
  /** Fails one operation in so many. */
  readonly oneIn: number;
  /** Fails only the operation with this number. */
  readonly onlyOperation?: number;
}

export interface FaultReport {
  /** Runs, each with one fault. */
  runs: number;
  /** Operations failed in all. */
  injected: number;
}

const COUNTED = { read: "reads", write: "writes", flush: "flushes" } as const satisfies Record<
  FaultPlan["operation"],
  keyof DiskCounts
>;

/** @throws SimulationFailure */
export async function exploreFaults(scenario: Scenario, plan: FaultPlan): Promise<FaultReport> {
  const report = { runs: 0, injected: 0 };
  const healthy = new FaultRun(scenario, plan, undefined);
  await healthy.run();
  const operations = healthy.operations;
  for (let number = 0; number < operations; number++) {
    if (plan.onlyOperation !== undefined && number !== plan.onlyOperation) continue;
    if (hashOf(scenario.seed, number) % plan.oneIn !== 0) continue;
    const run = new FaultRun(scenario, plan, number);
    await run.run();
    report.runs++;
    report.injected += run.injected;
  }
  return report;
}

class FaultRun {
  #scenario: Scenario;
  #plan: FaultPlan;
  #number: number | undefined;
  #world: World;
  #oracle: Oracle;

  constructor(scenario: Scenario, plan: FaultPlan, number: number | undefined) {
    this.#scenario = scenario;
    this.#plan = plan;
    this.#number = number;
    this.#oracle = new Oracle(scenario.seed);
    this.#world = new World(this.#options(scenario.seed));
  }

  get injected(): number {
    return this.#world[this.#plan.disk].faults.injected;
  }

  /** Operations of the planned kind so far. */
  get operations(): number {
    return this.#world[this.#plan.disk].counts[COUNTED[this.#plan.operation]];
  }

  async run(): Promise<void> {
    try {
      await this.#runWithFault();
      this.#world.cache.faults.clear();
      this.#world.backing.faults.clear();
      for (const policy of ["none", "all"] as const) await this.#recover(policy);
    } catch (error) {
      this.#fail(error);
    }
  }

  #options(seed: number) {
    const { kind, sync, seed: content } = this.#scenario;
    const initial = (sector: number, into: Uint8Array) => fillSector(into, content, sector, 0);
    return { kind, sync, seed, initial };
  }

  async #runWithFault(): Promise<void> {
    const { kind, seed, workload } = this.#scenario;
    const world = this.#world;
    await world.run(kind.format(world.cache, world.backing));
    await world.run(Promise.all([world.cache.flush(), world.backing.flush()]));
    if (this.#number !== undefined) world[this.#plan.disk].faults.add(this.#fault(this.#number));
    const engine = await this.#allowed(world.run(kind.open(world.parts)));
    if (engine === undefined) return;
    const target = {
      volume: engine.volume,
      oracle: this.#oracle,
      clock: world.clock,
      random: new SimRandom(hashOf(seed, 21)),
      mayFail: true,
    };
    await world.run(runWorkload(target, workload));
    if (await this.#allowed(this.#end(engine)) === true) checkBackingAlone(world, this.#oracle);
    const { violations } = this.#world.cache;
    if (violations.length > 0) throw new Error(violations.join("; "));
  }

  async #end(engine: Engine): Promise<boolean> {
    await this.#world.run(engine.drain());
    await this.#world.run(engine.close());
    return true;
  }

  /** The same, or undefined when it was refused as it may be. */
  async #allowed<T>(work: Promise<T | undefined>): Promise<T | undefined> {
    try {
      return await work;
    } catch (error) {
      if (this.#number !== undefined && error instanceof BcacheError) return undefined;
      throw error;
    }
  }

  #fault(number: number): Fault {
    const { operation, times, errno = "EIO" } = this.#plan;
    const done = this.operations;
    return { operation, after: Math.max(0, number - done), times, errno };
  }

  async #recover(policy: CutPolicy): Promise<void> {
    const { kind, seed } = this.#scenario;
    const worldSeed = hashOf(seed, this.#number ?? -1, 41);
    const world = worldAfterCut(this.#world.snapshot(), policy, this.#options(worldSeed));
    const engine = await world.run(kind.open(world.parts)) as Engine;
    const { time: cutAt } = this.#oracle;
    const reading = checkAllRecovered(engine.volume, this.#oracle, { cutAt, steadfast: false });
    const after = await world.run(reading) as Oracle;
    await world.run(engine.drain());
    checkBackingAlone(world, after);
    await world.run(engine.close());
    const violations = world.violations();
    if (violations.length > 0) throw new Error(violations.join("; "));
  }

  #fail(error: unknown): never {
    const { kind, seed, replay } = this.#scenario;
    const { disk, operation, times } = this.#plan;
    const which = this.#number === undefined
      ? "without a fault"
      : `${operation} ${this.#number} on ${disk} failing ${times === 1 ? "once" : "for good"}`;
    const lines = [
      `${kind.name}, seed ${seed}, ${which}:`,
      error instanceof Error ? `${error.name}: ${error.message}` : String(error),
    ];
    for (const line of this.#world.logLines.slice(-8)) lines.push(`  ${line}`);
    if (replay !== undefined && this.#number !== undefined) {
      const sticky = times === 1 ? "" : " --sticky";
      lines.push(
        `replay: bun tests/simulation/run.ts ${replay} --seed ${seed} ` +
          `--fault ${disk}:${operation}:${this.#number}${sticky}`,
      );
    }
    throw new SimulationFailure(lines.join("\n  "), { cause: error });
  }
}
