/**
 * One run with one fault: a workload from fresh disks, or from a start after a power cut; then a
 * recovery from every power cut that was noted on the way. See fault_explorer.ts for what may
 * come of which fault.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { checkCache } from "../../lib/offline/check.ts";
import type { CheckReport } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { checkAllRecovered, checkBackingAlone, contentSeed, volumesOf } from "./recovery_checks.ts";
import type { Scenario } from "./explorer.ts";
import { isSilent } from "./fault_plan.ts";
import type { FaultPlan } from "./fault_plan.ts";
import { Oracle, OracleMismatch } from "./oracle.ts";
import { fillSector, patternOf, sameBytes } from "./pattern.ts";
import { CUT_POLICIES } from "./power_cut.ts";
import type { NamedCutPolicy } from "./power_cut.ts";
import type { DiskCounts, DiskMoment, SimDisk } from "./sim_disk.ts";
import type { Damage, Fault } from "./sim_faults.ts";
import { hashOf, SimRandom } from "./sim_random.ts";
import { runWorkload } from "./workload.ts";
import { World, worldAfterCut } from "./world.ts";
import type { Engine, EngineKind, WorldSnapshot } from "./world.ts";

/** What came of the faults. */
export interface Outcomes {
  /** Operations met. */
  injected: number;
  /** Starts after a power cut that were looked into. */
  recoveries: number;
  /** Starts that were refused with a typed error. */
  refused: number;
  /** Answers that were damaged blocks of data, as they lay on the disk. */
  damagedData: number;
  /** Recoveries that lost something and said so: a line in the log, or a finding of the check. */
  told: number;
  /** Recoveries that lost what no checksum shows: writes that never reached their place. */
  untold: number;
}

export function newOutcomes(): Outcomes {
  return { injected: 0, recoveries: 0, refused: 0, damagedData: 0, told: 0, untold: 0 };
}

/** What a run begins with instead of fresh disks. */
export interface Start {
  readonly kind: EngineKind;
  readonly snapshot: WorldSnapshot;
  /** One for each volume, and its time when the power was cut. */
  readonly oracles: readonly Oracle[];
  readonly at: readonly number[];
}

interface Cut {
  readonly kind: EngineKind;
  readonly snapshot: WorldSnapshot;
  readonly at: readonly number[];
  readonly label: string;
  readonly policies: readonly NamedCutPolicy[];
}

const COUNTED = {
  read: "reads",
  write: "writes",
  flush: "flushes",
  zero: "zeroes",
  discard: "discards",
} as const satisfies Record<FaultPlan["operation"], keyof DiskCounts>;

/** Of the recoveries from errors, one in so many has its disks checked before. */
const CHECK_ONE_IN = 4;

/** The second cut after a fault is so many moments later at most. */
const LATER_MAX = 60;

export interface FaultRunOptions {
  readonly scenario: Scenario;
  readonly plan: FaultPlan;
  /** The operation that meets the fault; undefined: none does. */
  readonly number: number | undefined;
  readonly start: Start | undefined;
  readonly outcomes: Outcomes;
}

export class FaultRun {
  readonly number: number | undefined;
  /** How far it came, for messages. */
  where = "";
  #scenario: Scenario;
  #plan: FaultPlan;
  #outcomes: Outcomes;
  #world: World;
  #fresh: boolean;
  /** The world whose log tells most of what went wrong. */
  #now: World;
  #kindOfEngine: EngineKind;
  #oracles: readonly Oracle[];
  #cuts: Cut[] = [];
  #laterAfter = -1;
  #ready = false;
  /** Places at which the engine wrote what is no data. */
  #metadata: number[] = [];
  #random: SimRandom;

  constructor({ scenario, plan, number, start, outcomes }: FaultRunOptions) {
    this.#scenario = scenario;
    this.#plan = plan;
    this.number = number;
    this.#outcomes = outcomes;
    this.#random = new SimRandom(hashOf(scenario.seed, number ?? -1, 43));
    this.#fresh = start === undefined;
    const { kind } = scenario;
    this.#kindOfEngine = start === undefined
      ? kind.copy?.("nothing") ?? kind
      : start.kind.copy?.("the same") ?? start.kind;
    this.#oracles = start === undefined
      ? [kind.backingSectors, ...(kind.besideSectors ?? [])].map((_, volume) =>
        new Oracle(contentSeed(scenario.seed, volume))
      )
      : start.oracles.map((oracle, volume) => oracle.afterCut(start.at[volume]!));
    const options = {
      ...this.#options(hashOf(scenario.seed, this.#fresh ? 0 : 1)),
      onMoment: (moment: DiskMoment) => this.#note(moment),
    };
    this.#world = start === undefined
      ? new World(options)
      : worldAfterCut(start.snapshot, "sectors", options);
    this.#now = this.#world;
    if (!this.#isSilent) return;
    for (const oracle of this.#oracles) oracle.excuse = (actual) => this.#isDamagedData(actual);
  }

  get logLines(): readonly string[] {
    return this.#now.logLines;
  }

  /** Operations of the kind that a plan names, so far. */
  operationsOf(plan: FaultPlan): number {
    return this.#world[plan.disk].counts[COUNTED[plan.operation]];
  }

  /** What a run that begins with a restart starts from: a cut after the last operation. */
  get start(): Start {
    const [{ kind, snapshot, at }] = this.#cuts as [Cut];
    return { kind, snapshot, oracles: this.#oracles, at };
  }

  get #disk(): SimDisk {
    return this.#world[this.#plan.disk];
  }

  get #kind(): NonNullable<FaultPlan["kind"]> {
    return this.#plan.kind ?? "error";
  }

  get #isSilent(): boolean {
    return isSilent(this.#plan);
  }

  /** Requests and starts may fail. */
  get #mayFail(): boolean {
    return this.number !== undefined && this.#kind !== "slow" && this.#kind !== "short";
  }

  /** A flush that fails loses what it was to make stable, in every other run. */
  get #loses(): boolean {
    const isError = this.#plan.operation === "flush" && this.#kind === "error";
    return isError && hashOf(this.#scenario.seed, this.number ?? -1, 47) % 2 === 0;
  }

  async run(): Promise<void> {
    await this.#runWithFault();
    const { faults } = this.#disk;
    this.#outcomes.injected += faults.injected;
    faults.clear();
    for (const cut of this.#cuts) {
      for (const policy of cut.policies) await this.#recover(cut, policy);
    }
  }

  #options(seed: number) {
    const { kind, sync, seed: content } = this.#scenario;
    const initial = (sector: number, into: Uint8Array, volume: number) =>
      fillSector(into, contentSeed(content, volume), sector, 0);
    return { kind, sync, seed, initial };
  }

  async #runWithFault(): Promise<void> {
    const world = this.#world;
    if (this.#fresh) await world.format();
    if (this.number !== undefined) this.#disk.faults.add(this.#fault(this.number));
    this.#ready = true;
    const engine = await this.#allowed(world.run(this.#kindOfEngine.open(world.parts)));
    if (engine === undefined) {
      this.#cutNow("after the start was refused", ["none", "all"]);
      return;
    }
    await world.run(this.#work(engine));
    if (this.number === undefined) this.#cutNow("after the last operation", ["none"]);
    const ended = await this.#allowed(this.#end(engine));
    if (ended === true && this.#mustHold) this.#checkBackings(world, this.#oracles);
    this.#cutNow("at the end", ["none", "all"]);
    this.#checkQuiet(world);
  }

  async #work(engine: Engine): Promise<void> {
    const { seed, workload } = this.#scenario;
    const { clock } = this.#world;
    // Whole sectors only: then a damaged one is told by its bytes.
    const exact = this.#isSilent ? { ...workload, unaligned: 0 } : workload;
    await Promise.all(
      volumesOf(engine).map((volume, number) => {
        const random = new SimRandom(contentSeed(hashOf(seed, this.#fresh ? 21 : 22), number));
        const disturb = number === 0 ? engine.disturb?.bind(engine) : undefined;
        const oracle = this.#oracles[number]!;
        // What befalls a backing device concerns no other.
        const mayFail = this.#mayFail && (number === 0 || this.#plan.disk === "cache");
        const failedFlushLoses = this.#loses && number === 0;
        const target = { volume, oracle, clock, random, disturb, mayFail, failedFlushLoses };
        return runWorkload(target, exact);
      }),
    );
  }

  #checkBackings(world: World, oracles: readonly Oracle[]): void {
    for (const [number, oracle] of oracles.entries()) checkBackingAlone(world, oracle, number);
  }

  /** What never became stable may be missing in the end, too. */
  get #mustHold(): boolean {
    return this.number === undefined || !this.#isSilent;
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
      if (!this.#mayFail || !(error instanceof BcacheError)) throw error;
      refuseUntyped(error);
      return undefined;
    }
  }

  #fault(number: number): Fault {
    const { operation, times, errno = "EIO" } = this.#plan;
    const after = Math.max(0, number - this.operationsOf(this.#plan));
    return {
      operation,
      kind: this.#kind,
      after,
      times,
      errno,
      loses: this.#loses,
      ...(this.#kind === "misdirected" ? { landsAt: (_, sectors) => this.#victim(sectors) } : {}),
    };
  }

  /** Where a write lands astray: mostly on metadata, as there it does most harm. */
  #victim(sectors: number): number {
    const disk = this.#disk;
    const last = disk.sizeSectors - sectors;
    const anywhere = this.#random.below(last + 1);
    if (this.#metadata.length === 0 || this.#random.chance(0.2)) return anywhere;
    return Math.min(last, this.#random.pick(this.#metadata));
  }

  #note(moment: DiskMoment): void {
    if (!this.#ready) return;
    const { disk, operation, phase, atSector } = moment;
    if (this.#kind === "misdirected" && phase === "completed" && disk === this.#disk) {
      if (operation === "write" && !isData(disk.peek(atSector, 1))) this.#metadata.push(atSector);
    }
    if (this.number === undefined || this.#disk.faults.injected === 0) return;
    if (this.#laterAfter < 0) {
      this.#laterAfter = this.#random.between(1, LATER_MAX);
      this.#cutNow("right after the fault", ["none", "all", this.#random.pick(CUT_POLICIES)]);
    } else if (this.#laterAfter > 0 && --this.#laterAfter === 0) {
      this.#cutNow("some time after the fault", [this.#random.pick(CUT_POLICIES)]);
    }
  }

  #cutNow(label: string, policies: readonly NamedCutPolicy[]): void {
    const snapshot = this.#world.snapshot();
    // Silent damage may concern what the kind watches over; then its own checks say nothing.
    const kind = this.#kindOfEngine.copy?.(this.#isSilent ? "nothing" : "the same") ??
      this.#kindOfEngine;
    const at = this.#oracles.map(({ time }) => time);
    this.#cuts.push({ kind, snapshot, at, label, policies });
  }

  async #recover(cut: Cut, policy: NamedCutPolicy): Promise<void> {
    const { seed } = this.#scenario;
    this.where = `, power cut ${cut.label}, unflushed kept: ${policy}`;
    const worldSeed = hashOf(seed, this.number ?? -1, 41);
    const world = worldAfterCut(cut.snapshot, policy, this.#options(worldSeed));
    this.#now = world;
    this.#outcomes.recoveries++;
    const found = await this.#findings(world, worldSeed);
    try {
      const engine = await this.#start(world, cut.kind);
      if (engine === undefined) {
        this.#outcomes.refused++;
        if (found === 0 && this.#kind === "rot") throw new Error("refused, but the check is clean");
        return;
      }
      const after: Oracle[] = [];
      for (const [number, volume] of volumesOf(engine).entries()) {
        const options = { cutAt: cut.at[number]!, steadfast: false };
        const reading = checkAllRecovered(volume, this.#oracles[number]!, options);
        after.push(await world.run(reading) as Oracle);
      }
      await world.run(engine.drain());
      this.#checkBackings(world, after);
      await world.run(engine.close());
    } catch (error) {
      this.#explain(error, found);
      return;
    }
    this.#checkQuiet(world);
  }

  /**
   * The check ends whatever is on the disks; how much it found. It finds no error after faults that
   * were told of: a sample shows it.
   */
  async #findings(world: World, worldSeed: number): Promise<number> {
    if (world.kind.isForeign) return 0;
    if (!this.#isSilent && hashOf(worldSeed, this.#outcomes.recoveries) % CHECK_ONE_IN !== 0) {
      return 0;
    }
    const backings = world.kind.backingHolds === false ? [] : world.backings;
    const report = await world.run(checkCache({ cache: world.cache, backings })) as CheckReport;
    const error = report.findings.find(({ severity }) => severity === "error");
    if (!this.#isSilent && report.btree?.staleDirtyExtents) {
      throw new Error("check: a dirty extent is stale");
    }
    if (error !== undefined && (!this.#isSilent || this.number === undefined)) {
      throw new Error(`check: ${findingText(error)}`);
    }
    return report.errors + report.warnings;
  }

  /** Undefined when it was refused, as only lasting damage may bring about. */
  async #start(world: World, kind: EngineKind): Promise<Engine | undefined> {
    try {
      return await world.run(kind.open(world.parts));
    } catch (error) {
      if (!this.#isSilent || this.number === undefined || !(error instanceof BcacheError)) {
        throw error;
      }
      refuseUntyped(error);
      return undefined;
    }
  }

  /** Passes on what nothing excuses. */
  #explain(error: unknown, findings: number): void {
    if (!this.#isSilent || this.number === undefined) throw error;
    if (this.#kind !== "lie" && !this.#hasDamagedMetadata) throw error;
    const typed = error instanceof BcacheError;
    if (!typed && !(error instanceof OracleMismatch)) throw error;
    if (typed) refuseUntyped(error);
    const warned = this.#now.logLines.some((line) => /warning|error/.test(line));
    if (typed || findings > 0 || warned) {
      this.#outcomes.told++;
      return;
    }
    if (!this.#hasLostMetadata) throw error;
    this.#outcomes.untold++;
  }

  /** Writes that were acknowledged and are not there: nothing on the disk tells of them. */
  get #hasLostMetadata(): boolean {
    if (this.#kind === "lie") return true;
    return this.#kind === "misdirected" &&
      this.#disk.faults.damage.some(({ wanted }) => !isData(wanted));
  }

  get #hasDamagedMetadata(): boolean {
    const { damage } = this.#disk.faults;
    return damage.some(({ wanted, found }) => !isData(wanted) || !isData(found));
  }

  #isDamagedData(actual: Uint8Array): boolean {
    const fits = ({ wanted, found }: Damage) => isData(wanted) && sameBytes(actual, found);
    const excused = this.#disk.faults.damage.some(fits);
    if (excused) this.#outcomes.damagedData++;
    return excused;
  }

  #checkQuiet(world: World): void {
    const { violations } = world.cache;
    if (violations.length > 0) throw new Error(violations.join("; "));
    const failed = world.logLines.find((line) => line.includes("the cache set has failed"));
    if (failed !== undefined && this.#plan.disk === "backing" && !this.#isSilent) {
      throw new Error(`an error of a backing device made the set fail: ${failed}`);
    }
    const bug = world.logLines.find((line) => BUG_WORDS.test(line));
    if (bug !== undefined) throw new Error(`a bug was logged: ${bug}`);
  }
}

/** What the messages of assertions, and of errors of the language, have in common. */
const BUG_WORDS =
  /assertion failed|unreachable:|undefined is not|is not (a function|an object|iterable|defined)/;

/** Every error in the chain of causes is a typed one. */
function refuseUntyped(error: Error): void {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    if (!(cause instanceof BcacheError)) throw new Error(`untyped: ${cause.message}`, { cause });
  }
}

/** A sector of data: of the workload's own writing, or zeroed. */
function isData(bytes: Uint8Array): boolean {
  return patternOf(bytes) !== undefined || bytes.every((byte) => byte === 0);
}
