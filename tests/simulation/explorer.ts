/**
 * Runs a workload once and cuts the power at its every write and flush: before the disk has it
 * (submitted: any part of it may have reached the platter) and when it completed. From each cut a
 * new world boots, recovers, and must answer as the oracle allows; then it must work on; then its
 * backing disk alone, drained, must hold everything. Recoveries are themselves cut, two deep.
 *
 * Everything follows from the scenario's seed; a failure names the one cut that shows it.
 */
import { counted } from "../support/lines.ts";
import { Oracle } from "./oracle.ts";
import { fillSector } from "./pattern.ts";
import { CUT_POLICIES } from "./power_cut.ts";
import type { CutPolicy } from "./power_cut.ts";
import { auditRecovery } from "./recovery_audit.ts";
import { checkAllRecovered, checkBackingAlone, contentSeed, volumesOf } from "./recovery_checks.ts";
import type { DiskMoment } from "./sim_disk.ts";
import { hashOf, SimRandom } from "./sim_random.ts";
import { runWorkload } from "./workload.ts";
import type { WorkloadOptions } from "./workload.ts";
import { allSubsets, hasOneOutcome, World, worldAfterCut } from "./world.ts";
import type { Engine, EngineKind, WorldSnapshot } from "./world.ts";

export interface Scenario {
  readonly kind: EngineKind;
  readonly seed: number;
  readonly workload: WorkloadOptions;
  readonly sync: boolean;
  /** Cuts at one moment in so many; 1 is every one. */
  readonly cutOneIn: number;
  /** Of the moments within a recovery, one in so many; Infinity for none. */
  readonly nestedOneIn: number;
  /** Outcomes tried at each cut. */
  readonly policies: readonly CutPolicy[];
  /** Instead of `policies`: every subset of the pending writes, where these are few enough. */
  readonly subsets?: boolean;
  /** Of the recoveries, one in so many is looked at more closely (recovery_audit.ts). */
  readonly auditOneIn: number;
  /** Works on after a recovery for so many operations. */
  readonly workOnSteps: number;
  /**
   * What a recovery answered, later recoveries and the drained backing disk must answer too: what
   * a disk once returned after a power cut does not change by itself.
   */
  readonly steadfast: boolean;
  /** Checks only the cut with this number. */
  readonly onlyCut?: number;
  /** Told of every cut before it is looked into: where a run that never ends came to. */
  readonly onCut?: (where: string) => void;
  /** What makes tests/simulation/run.ts run this scenario; without it no replay line is given. */
  readonly replay?: string;
}

export const USUAL_CUTS = {
  cutOneIn: 1,
  nestedOneIn: 40,
  auditOneIn: 20,
  policies: CUT_POLICIES,
  workOnSteps: 6,
  steadfast: true,
} as const;

export interface Report {
  /** Moments at which the power could have been cut. */
  moments: number;
  /** Recoveries checked, by depth: after the workload, after a recovery that was cut. */
  cuts: number;
  nestedCuts: number;
  /** After a recovery from a recovery that was cut, which was cut too. */
  twiceNestedCuts: number;
  /** Recoveries that were looked at more closely. */
  audits: number;
  simulatedMs: number;
  /** Equal for equal seeds, on every runtime. */
  traceHash: string;
}

/** A scenario failed; the message says where and how to see it again. */
export class SimulationFailure extends Error {
  override name = "SimulationFailure";
}

interface Cut {
  readonly number: number;
  readonly label: string;
  readonly snapshot: WorldSnapshot;
  /** The time of each volume's oracle. */
  readonly at: readonly number[];
}

/** What a world boots from. */
interface Booted {
  readonly snapshot: WorldSnapshot;
  readonly policy: CutPolicy;
  readonly worldSeed: number;
  readonly where: string;
  /** The cut of the workload that it goes back to. */
  readonly cut: Cut;
  /** How many recoveries were cut before. */
  readonly depth: number;
}

/** So many recoveries in a row are cut. */
const NESTED_DEPTH = 2;

/** Runs the scenario. @throws SimulationFailure */
export async function explore(scenario: Scenario): Promise<Report> {
  return await new Explorer(scenario).run();
}

class Explorer {
  #scenario: Scenario;
  /** One for each volume. */
  #oracles: readonly Oracle[];
  #world: World;
  #waiting: Cut[] = [];
  #workloadRuns = false;
  #lastTime = -1;
  #report: Report = {
    moments: 0,
    cuts: 0,
    nestedCuts: 0,
    twiceNestedCuts: 0,
    audits: 0,
    simulatedMs: 0,
    traceHash: "",
  };

  constructor(scenario: Scenario) {
    this.#scenario = scenario;
    const volumes = 1 + (scenario.kind.besideSectors?.length ?? 0);
    this.#oracles = Array.from(
      { length: volumes },
      (_, number) => new Oracle(contentSeed(scenario.seed, number)),
    );
    this.#world = new World({
      ...this.#worldOptions(scenario.seed),
      onMoment: (moment) => this.#note(moment),
    });
  }

  async run(): Promise<Report> {
    const { kind, workload } = this.#scenario;
    const world = this.#world;
    try {
      await world.format();
      this.#workloadRuns = true;
      const engine = await this.#runMain(kind.open(world.parts));
      await this.#runMain(this.#work(world, engine, this.#oracles, workload));
      this.#cutNow("after the last operation");
      await this.#verifyWaiting();
      await this.#finish(world, engine, this.#oracles);
    } catch (error) {
      if (error instanceof SimulationFailure) throw error;
      this.#fail({ where: "the run without a cut", cut: undefined, error, world });
    }
    this.#report.simulatedMs = world.clock.nowMs();
    this.#report.traceHash = world.clock.trace.hash;
    return this.#report;
  }

  /** The workload on every volume at once; the disturbances come from the first. */
  async #work(
    world: World,
    engine: Engine,
    oracles: readonly Oracle[],
    workload: WorkloadOptions,
  ): Promise<void> {
    const main = world === this.#world;
    const seed = main
      ? hashOf(this.#scenario.seed, 21)
      : hashOf(this.#scenario.seed, oracles[0]!.time, 31);
    await Promise.all(
      volumesOf(engine).map((volume, number) => {
        const random = new SimRandom(contentSeed(seed, number));
        const disturb = main && number === 0 ? engine.disturb?.bind(engine) : undefined;
        const oracle = oracles[number]!;
        return runWorkload({ volume, oracle, clock: world.clock, random, disturb }, workload);
      }),
    );
  }

  #worldOptions(seed: number) {
    const { kind, sync } = this.#scenario;
    const initial = (sector: number, into: Uint8Array, backing: number) =>
      fillSector(into, contentSeed(this.#scenario.seed, backing), sector, 0);
    return { kind, seed, sync, initial };
  }

  /** Runs the main world; between its events the cuts of the last one are looked into. */
  async #runMain<T>(work: Promise<T>): Promise<T> {
    return await this.#world.run(work, { afterEvent: () => this.#verifyWaiting() }) as T;
  }

  #note(moment: DiskMoment): void {
    if (!this.#workloadRuns) return;
    const { disk, operation, phase, atSector, sectors } = moment;
    this.#cutNow(`${operation} ${atSector}+${sectors} ${phase} on ${disk.name}`);
  }

  #cutNow(label: string): void {
    const { seed, cutOneIn, onlyCut } = this.#scenario;
    const number = this.#report.moments++;
    if (onlyCut !== undefined ? number !== onlyCut : hashOf(seed, number) % cutOneIn !== 0) return;
    const at = this.#oracles.map(({ time }) => time);
    this.#waiting.push({ number, label, snapshot: this.#world.snapshot(), at });
  }

  async #verifyWaiting(): Promise<void> {
    const cuts = this.#waiting;
    this.#waiting = [];
    for (const cut of cuts) {
      const oneOutcome = hasOneOutcome(cut.snapshot);
      const subsets = this.#scenario.subsets ? allSubsets(cut.snapshot) : undefined;
      const policies = oneOutcome ? (["none"] as const) : subsets ?? this.#scenario.policies;
      for (const policy of policies) await this.#verify(cut, policy);
    }
    const [{ time }] = this.#oracles as [Oracle];
    if (time > this.#lastTime + 500) {
      this.#lastTime = time;
      for (const oracle of this.#oracles) oracle.prune();
    }
  }

  async #verify(cut: Cut, policy: CutPolicy): Promise<void> {
    const { seed, auditOneIn } = this.#scenario;
    const where = `cut ${cut.number} (${cut.label}), unflushed kept: ${nameOf(policy)}`;
    const outcome = typeof policy === "object" ? 16 + policy.subset : CUT_POLICIES.indexOf(policy);
    const worldSeed = hashOf(seed, cut.number, outcome);
    this.#report.cuts++;
    await this.#verifyWorld({ snapshot: cut.snapshot, policy, worldSeed, where, cut, depth: 0 }, {
      oracles: this.#oracles,
      at: cut.at,
    });
    if (hashOf(worldSeed, 61) % auditOneIn === 0) await this.#audit(cut, policy, worldSeed, where);
  }

  /** A recovery that was cut itself must come to the same state in the end, however often. */
  async #verifyNested(second: Cut, first: Booted, oracles: readonly Oracle[]): Promise<void> {
    const policy = CUT_POLICIES[second.number % CUT_POLICIES.length]!;
    const where = `${first.where}; then cut again in the recovery, at its operation ` +
      `${second.number} (${second.label}), unflushed kept: ${policy}`;
    const depth = first.depth + 1;
    const worldSeed = hashOf(this.#scenario.seed, second.number, 76 + depth);
    if (depth === 1) this.#report.nestedCuts++;
    else this.#report.twiceNestedCuts++;
    await this.#verifyWorld(
      { snapshot: second.snapshot, policy, worldSeed, where, cut: first.cut, depth },
      { oracles, at: oracles.map(({ time }) => time) },
    );
  }

  /** Boots, reads back everything, works on, drains; and cuts the recovery in its turn. */
  async #verifyWorld(
    booted: Booted,
    { oracles, at }: { oracles: readonly Oracle[]; at: readonly number[] },
  ): Promise<void> {
    const { snapshot, policy, worldSeed, where, cut, depth } = booted;
    const { nestedOneIn } = this.#scenario;
    const nested: Cut[] = [];
    let moments = 0;
    let recovering = depth < NESTED_DEPTH;
    const world: World = worldAfterCut(snapshot, policy, {
      ...this.#worldOptions(worldSeed),
      onMoment: ({ operation, phase, disk }) => {
        if (!recovering || hashOf(worldSeed, moments++) % nestedOneIn !== 0) return;
        const label = `${operation} ${phase} on ${disk.name}`;
        nested.push({ number: moments, label, snapshot: world.snapshot(), at: [] });
      },
    });
    this.#scenario.onCut?.(where);
    try {
      const { engine, after } = await this.#recover(world, oracles, at);
      recovering = false;
      for (const second of nested) await this.#verifyNested(second, booted, after);
      if (depth === 0) await this.#workOn(world, engine, after);
      else await this.#finish(world, engine, after);
    } catch (error) {
      if (error instanceof SimulationFailure) throw error;
      this.#fail({ where, cut, error, world });
    }
  }

  async #audit(cut: Cut, policy: CutPolicy, worldSeed: number, where: string): Promise<void> {
    const { kind, steadfast } = this.#scenario;
    const world = worldAfterCut(cut.snapshot, policy, this.#worldOptions(worldSeed));
    const options = this.#worldOptions(hashOf(worldSeed, 62));
    this.#report.audits++;
    try {
      const oracles = this.#oracles;
      await auditRecovery({ kind, world, options, oracles, cutAt: cut.at, steadfast });
    } catch (error) {
      this.#fail({ where: `${where}, looked at more closely`, cut, error, world });
    }
  }

  /** Opens the world's engine and reads back all that was ever written. */
  async #recover(
    world: World,
    oracles: readonly Oracle[],
    cutAt: readonly number[],
  ): Promise<{ engine: Engine; after: readonly Oracle[] }> {
    const engine = await world.run(this.#scenario.kind.open(world.parts)) as Engine;
    const { steadfast } = this.#scenario;
    const after: Oracle[] = [];
    for (const [number, volume] of volumesOf(engine).entries()) {
      const options = { cutAt: cutAt[number]!, steadfast };
      const reading = checkAllRecovered(volume, oracles[number]!, options);
      after.push(await world.run(reading) as Oracle);
    }
    return { engine, after };
  }

  async #workOn(world: World, engine: Engine, after: readonly Oracle[]): Promise<void> {
    const { workload, workOnSteps: steps } = this.#scenario;
    await world.run(this.#work(world, engine, after, { ...workload, steps }));
    await this.#finish(world, engine, after);
  }

  /** Drains, looks at the backing disks alone, closes, and looks for what was done wrong. */
  async #finish(world: World, engine: Engine, oracles: readonly Oracle[]): Promise<void> {
    const run = <T>(work: Promise<T>) =>
      world === this.#world ? this.#runMain(work) : world.run(work);
    await run(engine.drain());
    for (const [number, oracle] of oracles.entries()) checkBackingAlone(world, oracle, number);
    await run(engine.close());
    const violations = world.violations();
    if (violations.length > 0) throw new Error(violations.join("; "));
  }

  #fail(failure: {
    where: string;
    cut: Cut | undefined;
    error: unknown;
    world: World;
  }): never {
    const { where, cut, error, world } = failure;
    const { kind, seed, replay } = this.#scenario;
    const recoveries = this.#report.cuts + this.#report.nestedCuts;
    const lines = [
      `${kind.name}, seed ${seed}, ${where}, after ${
        counted(recoveries, "recovery", "recoveries")
      }:`,
      error instanceof Error ? `${error.name}: ${error.message}` : String(error),
    ];
    if (world.logLines.length > 0) lines.push("log:");
    for (const line of world.logLines.slice(-8)) lines.push(`  ${line}`);
    if (replay !== undefined) {
      const only = cut === undefined
        ? ""
        : ` --cut ${cut.number}${this.#scenario.subsets ? " --subsets" : ""}`;
      lines.push(`replay: npx bun tests/simulation/run.ts ${replay} --seed ${seed}${only}`);
    }
    throw new SimulationFailure(lines.join("\n  "), { cause: error });
  }
}

function nameOf(policy: CutPolicy): string {
  return typeof policy === "object" ? `subset ${policy.subset.toString(2)}` : policy;
}
