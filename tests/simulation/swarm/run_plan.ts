/**
 * Runs a plan: life after life of one cache set on simulated disks, each ended by a power cut or a
 * clean stop. After every end the offline check must find no error; the engine that then starts
 * must count the dirty bytes that the check counted, and answer for every sector as the slots'
 * oracles allow. At the last everything is written back, and the backing disks alone must hold it.
 */
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import type { Device } from "../../../lib/device/device.ts";
import { formatBacking, formatCache } from "../../../lib/ondisk/format.ts";
import { expectNothingLeft, leftBytesOf } from "../recovery_audit.ts";
import { checkBackingAlone, rangesOf } from "../recovery_checks.ts";
import { fillSector } from "../pattern.ts";
import type { NamedCutPolicy } from "../power_cut.ts";
import { SMALL_SLICES } from "../sim_clock.ts";
import { hashOf, Trace } from "../sim_random.ts";
import { World, worldAfterCut } from "../world.ts";
import type { DiskKind, WorldOptions } from "../world.ts";
import { contentSeed, pathOfSlot, slotOfPath, SwarmMembers } from "./members.ts";
import { checkOffline } from "./offline.ts";
import type { DirtyBytes } from "./offline.ts";
import type { RunningStep, Step, SwarmPlan } from "./plan.ts";
import type { Slot } from "./slot.ts";

export interface SwarmReport {
  steps: number;
  powerCuts: number;
  /** Of these, within a recovery. */
  nestedCuts: number;
  /** Starts that were checked, after a power cut or a clean stop. */
  recoveries: number;
  cleanStops: number;
  /** Operations of disks that failed, or took longer than they should. */
  faults: number;
  simulatedMs: number;
  /** Equal for equal plans, on every runtime. */
  traceHash: string;
}

export interface RunPlanOptions {
  /** Puts something between the engine and a disk; for tests that plant a bug. */
  readonly wrap?: (device: Device) => Device;
  /** Told of every step that begins, and of every end. */
  readonly onStep?: (step: Step) => void;
}

const DATA_OFFSET = 16;
const LIMITS = { eventsMax: 2_000_000, limitMs: 48 * 3_600_000 } as const;
/** For how long a set goes on without requests, when the power does not fail before. */
const IDLE_MS = 60_000;
/** What a setting may be refused with: another one stands against it, or its device is gone. */
const REFUSALS = new Set(["OutOfRange", "InvalidArgument", "NotFound"]);

/** @throws when anything is not as it must be */
export async function runPlan(plan: SwarmPlan, options: RunPlanOptions = {}): Promise<SwarmReport> {
  return await new SwarmRun(plan, options).run();
}

function uuid(first: number): Uint8Array {
  return Uint8Array.from({ length: 16 }, (_, index) => first + index);
}

function disksOf({ machine }: SwarmPlan): DiskKind {
  const { blockSectors, bucketSectors, bucketCount, logicalBlockSectors, devices } = machine;
  const common = { logicalBlockSectors, setUuid: uuid(0x40), blockSectors, bucketSectors };
  const sizes = devices.map(({ sectors }) => DATA_OFFSET + sectors);
  const cacheSectors = bucketCount * bucketSectors;
  return {
    name: "swarm",
    cacheSectors,
    backingSectors: sizes[0]!,
    besideSectors: sizes.slice(1),
    dataOffsetSectors: DATA_OFFSET,
    logicalBlockSectors,
    format: (cache, ...backings) => {
      const { replacement, discard } = machine;
      const { name } = cache;
      const own = { name, sizeSectors: cacheSectors, uuid: uuid(0x10), replacement, discard };
      cache.patch(8, formatCache({ ...common, ...own }));
      for (const [slot, disk] of backings.entries()) {
        const { name, sizeSectors } = disk;
        const cacheMode = devices[slot]!.mode;
        const own = { name, sizeSectors, uuid: uuid(0x70 + slot), cacheMode };
        disk.patch(8, formatBacking({ ...common, ...own }));
      }
      return Promise.resolve();
    },
  };
}

class SwarmRun {
  #plan: SwarmPlan;
  #options: RunPlanOptions;
  #kind: DiskKind;
  #members: SwarmMembers;
  #world: World;
  #worlds = 0;
  #set: CacheSet | undefined;
  /** The disks of this life were told to fail. */
  #faulty = false;
  #trace = new Trace();
  #report: SwarmReport = {
    steps: 0,
    powerCuts: 0,
    nestedCuts: 0,
    recoveries: 0,
    cleanStops: 0,
    faults: 0,
    simulatedMs: 0,
    traceHash: "",
  };

  constructor(plan: SwarmPlan, options: RunPlanOptions) {
    this.#plan = plan;
    this.#options = options;
    this.#kind = disksOf(plan);
    this.#members = new SwarmMembers(plan);
    this.#world = new World(this.#worldOptions());
  }

  async run(): Promise<SwarmReport> {
    try {
      await this.#world.format();
      let life: RunningStep[] = [];
      for (const step of this.#plan.steps) {
        if (step.op === "device") this.#members.included.add(step.slot);
        else if (step.op === "cut" || step.op === "restart") {
          await this.#live(life, step);
          life = [];
        } else life.push(step);
      }
      await this.#live(life, undefined);
      await this.#finish();
    } catch (error) {
      const lines = this.#world.logLines.slice(-8).map((line) => `\n  log: ${line}`).join("");
      if (error instanceof Error) error.message += lines;
      throw error;
    }
    this.#account();
    this.#report.traceHash = this.#trace.hash;
    return this.#report;
  }

  get #running(): CacheSet {
    if (this.#set === undefined) throw new Error("no set is running");
    return this.#set;
  }

  #worldOptions(): Omit<WorldOptions, "images"> {
    const { seed, machine } = this.#plan;
    return {
      kind: this.#kind,
      seed: hashOf(seed, this.#worlds++, 3),
      sync: machine.sync,
      initial: (sector, into, slot) => fillSector(into, contentSeed(seed, slot), sector, 0),
    };
  }

  async #run<T>(work: Promise<T>): Promise<T> {
    return await this.#world.run(work, LIMITS) as T;
  }

  // Beginnings

  #open(without: readonly number[]): Promise<CacheSet> {
    const { clock, random, log, cache, backings } = this.#world.parts;
    const wrap = this.#options.wrap ?? ((device) => device);
    const sources = backings.map((device, slot) => ({
      device: wrap(device),
      path: pathOfSlot(slot),
    }));
    return CacheSet.open({
      cache: wrap(cache),
      backings: this.#members.cachedSlots
        .filter(({ number }) => !without.includes(number))
        .map(({ number }) => sources[number]!),
      clock,
      random,
      log,
      sliceBudget: SMALL_SLICES,
      openBacking: (path) => Promise.resolve(sources[slotOfPath(path)]!),
    });
  }

  /** Starts the set on disks that nobody uses, and holds it against the offline check. */
  async #start(without: readonly number[] = []): Promise<void> {
    const dirty = await this.#check("before the start");
    const set = await this.#run(this.#open(without));
    this.#set = set;
    await this.#members.meet(set);
    await this.#sameDirty(dirty);
  }

  async #check(when: string): Promise<DirtyBytes> {
    const slots = this.#members.cachedSlots.map(({ number }) => number);
    return await checkOffline(this.#world, slots, when);
  }

  async #sameDirty(expected: DirtyBytes): Promise<void> {
    const { devices, volumes } = await this.#running.status();
    const counted = [
      ...devices.map(({ name, uuid, dirtyBytes }) => ({ name, uuid, bytes: dirtyBytes })),
      ...volumes.map(({ name, uuid, usedBytes }) => ({ name, uuid, bytes: usedBytes })),
    ];
    for (const { name, uuid, bytes } of counted) {
      const found = expected.get(uuid) ?? 0;
      if (found === bytes) continue;
      throw new Error(`${name}: the engine counts ${bytes} dirty bytes, the check ${found}`);
    }
  }

  // Lives

  /** Runs steps beside each other until all are done, or the power fails. */
  async #live(steps: readonly RunningStep[], end: Step | undefined): Promise<void> {
    if (this.#set === undefined) await this.#start();
    let next = 0;
    const lane = async () => {
      for (let step = steps[next++]; step !== undefined; step = steps[next++]) {
        this.#options.onStep?.(step);
        this.#report.steps++;
        await this.#step(step);
      }
    };
    const lanes = Promise.all(Array.from({ length: this.#plan.machine.lanes }, lane));
    if (end !== undefined) this.#options.onStep?.(end);
    if (end?.op !== "cut") {
      await this.#run(lanes);
      if (end?.op === "restart") await this.#restart(end.without);
      return;
    }
    let { events } = end;
    const work = lanes.then(() => this.#world.clock.sleep(IDLE_MS));
    const stopped = () => next >= steps.length && events-- <= 0;
    await this.#world.run(work, { ...LIMITS, stopped });
    await this.#cutPower(end.policy, end.recoveries);
  }

  async #step(step: RunningStep): Promise<void> {
    const members = this.#members;
    if (step.op === "sleep") return await this.#world.clock.sleep(step.ms);
    if (step.op === "fault") return this.#fault(step);
    if (step.op === "set") return await this.#setAttribute(step);
    const slot = members.slots[step.slot]!;
    switch (step.op) {
      case "write":
      case "read":
      case "zero":
        return await slot[step.op](step.fromBytes, step.lengthBytes);
      case "flush":
        return await slot.flush();
      case "create":
      case "resize":
        return await members[step.op](slot, step.sizeBytes);
      default:
        return await members[step.op](slot);
    }
  }

  #fault({ disk, fault }: RunningStep & { op: "fault" }): void {
    this.#world.disks[disk]!.faults.add(fault);
    if (fault.kind !== undefined && fault.kind !== "error") return;
    this.#faulty = true;
    for (const slot of this.#members.slots) slot.mayFail = true;
  }

  async #setAttribute({ slot, name, value }: RunningStep & { op: "set" }): Promise<void> {
    const device = slot === undefined ? undefined : this.#members.slots[slot]!.volume?.name;
    if (slot !== undefined && device === undefined) return;
    // What nobody flushed may be on the backing device and not in the cache when the power failed,
    // there as with Linux: from then on the two may differ, which fails a set that compares them.
    if (name === "verify" && this.#report.powerCuts > 0) return;
    try {
      await this.#running.setAttribute(device, name, value);
    } catch (error) {
      if (!(error instanceof BcacheError)) throw error;
      if (!this.#faulty && !REFUSALS.has(error.code)) throw error;
    }
  }

  // Ends

  /** Cuts the power, again in the recoveries from that, and checks the last one. */
  async #cutPower(
    policy: NamedCutPolicy,
    recoveries: ReadonlyArray<{ events: number; policy: NamedCutPolicy }>,
  ): Promise<void> {
    this.#noViolations();
    const cutAt = this.#members.slots.map(({ oracle }) => oracle.time);
    this.#report.powerCuts++;
    this.#nextWorld(policy);
    for (const second of recoveries) {
      await this.#check("before a recovery that is cut");
      let { events } = second;
      await this.#world.run(this.#open([]), { ...LIMITS, stopped: () => events-- <= 0 });
      this.#noViolations();
      this.#report.powerCuts++;
      this.#report.nestedCuts++;
      this.#nextWorld(second.policy);
    }
    await this.#start();
    for (const slot of this.#members.slots) {
      if (slot.volume !== undefined) await this.#recovered(slot, cutAt[slot.number]!);
    }
    await expectNothingLeft(this.#world, () => leftBytesOf(this.#running));
    this.#report.recoveries++;
  }

  /** Every sector that was ever written is one of those it may be after a power cut. */
  async #recovered(slot: Slot, cutAt: number): Promise<void> {
    const after = slot.oracle.successor();
    await this.#eachRange(
      slot,
      (sector, bytes) =>
        slot.oracle.checkRecovered({ cutAt, sector, bytes, after, steadfast: false }),
    );
    slot.oracle = after;
  }

  /** Every sector that was ever written is the one that was acknowledged last. */
  async #unchanged(slot: Slot): Promise<void> {
    await this.#eachRange(
      slot,
      (sector, bytes) => slot.oracle.checkRead(slot.oracle.beginRead(), sector * 512, bytes),
    );
  }

  /** Reads all that the oracle knows of, up to the end of the volume. */
  async #eachRange(slot: Slot, look: (sector: number, bytes: Uint8Array) => void): Promise<void> {
    const volume = slot.volume!;
    const inside = slot.oracle.touchedSectors().filter((at) => at * 512 < volume.sizeBytes);
    for (const { sector, sectors } of rangesOf(inside)) {
      const bytes = new Uint8Array(sectors * 512);
      if (!volume.tryRead(sector * 512, bytes)) await this.#run(volume.read(sector * 512, bytes));
      try {
        look(sector, bytes);
      } catch (error) {
        if (error instanceof Error) error.message = `${slot.name}: ${error.message}`;
        throw error;
      }
    }
  }

  async #restart(without: readonly number[]): Promise<void> {
    if (this.#faulty) return await this.#cutPower("all", []);
    await this.#run(this.#running.close());
    this.#quiet();
    this.#report.cleanStops++;
    this.#nextWorld("all");
    await this.#start(without);
    for (const slot of this.#members.slots) {
      if (slot.volume !== undefined) await this.#unchanged(slot);
    }
    this.#report.recoveries++;
  }

  /** Everything to the backing disks, which alone must hold it. */
  async #finish(): Promise<void> {
    if (this.#faulty) await this.#cutPower("all", []);
    const members = this.#members;
    for (const slot of members.cachedSlots) {
      if (slot.volume === undefined) await this.#run(members.attach(slot));
      const { name } = slot.volume!;
      await this.#run(this.#running.setAttribute(name, "writeback_rate_maximum", "0"));
    }
    for (const slot of members.slots) {
      if (slot.volume === undefined) continue;
      await this.#run(slot.flush());
      await this.#unchanged(slot);
    }
    await this.#run(this.#running.flushDirty(undefined));
    await expectNothingLeft(this.#world, () => leftBytesOf(this.#running));
    for (const { number, oracle } of members.cachedSlots) {
      checkBackingAlone(this.#world, oracle, number);
    }
    const dirty = new Map<string, number>();
    for (const { uuid, usedBytes } of (await this.#running.status()).volumes) {
      dirty.set(uuid, usedBytes);
    }
    await this.#sameDirty(dirty);
    await this.#run(this.#running.close());
    this.#quiet();
    const left = await this.#check("at the end");
    for (const [uuid, bytes] of left) {
      if (bytes !== (dirty.get(uuid) ?? 0)) {
        throw new Error(`after everything was written back, ${uuid} has ${bytes} dirty bytes`);
      }
    }
  }

  #nextWorld(policy: NamedCutPolicy): void {
    this.#account();
    const snapshot = this.#world.snapshot();
    this.#members.leave();
    this.#set = undefined;
    this.#faulty = false;
    for (const slot of this.#members.slots) slot.mayFail = false;
    this.#world = worldAfterCut(snapshot, policy, this.#worldOptions());
  }

  #account(): void {
    const { clock, disks } = this.#world;
    this.#report.simulatedMs += clock.nowMs();
    for (const { faults } of disks) this.#report.faults += faults.injected;
    this.#trace.note(Number.parseInt(clock.trace.hash, 16), clock.trace.length);
  }

  /** What the engine did to the disks that it must not. */
  #noViolations(): void {
    const violations = this.#world.disks.flatMap((disk) => disk.violations);
    if (violations.length > 0) throw new Error(violations.join("; "));
  }

  /** The same, where nothing may be under way any more. */
  #quiet(): void {
    const violations = this.#world.violations();
    if (violations.length > 0) throw new Error(violations.join("; "));
  }
}
