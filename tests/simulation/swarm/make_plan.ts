/**
 * The plan of a seed. Each seed leaves out some kinds of steps altogether and favours others, so
 * that what one kind hides another does not: a swarm, not one average workload many times.
 */
import { CACHE_MODES } from "../../../lib/cache/ports.ts";
import { CUT_POLICIES } from "../power_cut.ts";
import type { Fault } from "../sim_faults.ts";
import { hashOf, SimRandom } from "../sim_random.ts";
import type { PowerCut, Step, SwarmMachine, SwarmPlan } from "./plan.ts";
import { collectionSetting, randomSetting } from "./settings.ts";

/**
 * Sizes of buckets in sectors, 4 KiB to 16 MiB; large ones are rare, as they take long. With small
 * ones nodes split and the journal, of four buckets, goes round within a few hundred requests.
 */
const BUCKET_SECTORS: ReadonlyArray<readonly [sectors: number, weight: number]> = [
  [8, 8],
  [16, 30],
  [32, 25],
  [64, 15],
  [128, 12],
  [512, 7],
  [1024, 4],
  [4096, 1],
  [32768, 1],
];
const KIB = 1024;
/** More operations than any run has. */
const FOR_GOOD = 1_000_000;

/** What a seed likes to do. */
interface Habits {
  readonly weights: ReadonlyArray<readonly [Kind, number]>;
  readonly spanBytes: number;
  readonly longestBytes: number;
  readonly unaligned: number;
  readonly sequential: number;
  readonly sleepMsMax: number;
  readonly stepsPerLife: readonly [number, number];
  readonly cuts: number;
  readonly faults: boolean;
}

type Kind =
  | "write"
  | "read"
  | "zero"
  | "flush"
  | "sleep"
  | "set device"
  | "set set"
  | "collect"
  | "drain"
  | "member"
  | "volume"
  | "fault";

const USUAL: ReadonlyArray<readonly [Kind, number]> = [
  ["write", 40],
  ["read", 20],
  ["zero", 4],
  ["flush", 10],
  ["sleep", 8],
  ["set device", 6],
  ["set set", 4],
  ["collect", 4],
  ["drain", 2],
  ["member", 4],
  ["volume", 4],
];
/** Without these nothing is tested. */
const ALWAYS: ReadonlySet<Kind> = new Set(["write", "flush"]);

function weighted<T>(random: SimRandom, choices: ReadonlyArray<readonly [T, number]>): T {
  let draw = random.below(choices.reduce((sum, [, weight]) => sum + weight, 0));
  return choices.find(([, weight]) => (draw -= weight) < 0)![0];
}

export function makePlan(seed: number): SwarmPlan {
  const random = new SimRandom(hashOf(seed, 91));
  const machine = makeMachine(random);
  const habits = makeHabits(random, machine);
  return { seed, machine, steps: new PlanMaker(random, machine, habits).make() };
}

function makeMachine(random: SimRandom): SwarmMachine {
  const bucketSectors = weighted(random, BUCKET_SECTORS);
  const blockSectors = Math.min(bucketSectors / 2, random.pick([1, 1, 8, 8, 8, 2, 4]));
  const devices = Array.from({ length: weighted(random, [[1, 5], [2, 4], [3, 3]]) }, () => ({
    mode: random.chance(0.5) ? "writeback" as const : random.pick(CACHE_MODES),
    sectors: random.pick([512, 2048, 2048, 8192, 16_384]),
  }));
  return {
    blockSectors,
    bucketSectors,
    bucketCount: 513 + random.below(16),
    logicalBlockSectors: blockSectors === 8 && random.chance(0.2) ? 8 : 1,
    replacement: random.pick(["lru", "fifo", "random"] as const),
    discard: random.chance(0.2),
    sync: random.chance(0.5),
    lanes: random.pick([1, 2, 3, 4, 6]),
    devices,
    volumeSlots: random.pick([0, 1, 1, 2]),
  };
}

function makeHabits(random: SimRandom, machine: SwarmMachine): Habits {
  const faults = random.chance(0.25);
  const kinds: Array<readonly [Kind, number]> = USUAL
    .filter(([kind]) => ALWAYS.has(kind) || random.chance(0.7))
    .map(([kind, weight]) => [kind, weight * random.pick([1, 1, 1, 3])] as const);
  if (faults) kinds.push(["fault", 3]);
  // A few seeds move so much that the cache is reused several times.
  const heavy = machine.bucketSectors <= 32 && random.chance(0.15);
  // In others the index grows, by many small requests.
  const fine = !heavy && machine.blockSectors <= 2 && random.chance(0.1);
  return {
    weights: kinds,
    spanBytes: heavy || fine ? 8192 * KIB : random.pick([16, 64, 128, 256, 1024, 8192]) * KIB,
    longestBytes: heavy ? 256 * KIB : fine ? 2 * KIB : random.pick([4, 8, 16, 16, 64]) * KIB,
    unaligned: random.pick([0, 0, 0.1, 0.3]),
    sequential: random.pick([0, 0.2, 0.6]),
    sleepMsMax: random.pick([20, 200, 2000, 40_000]),
    stepsPerLife: fine ? [150, 400] : random.pick([[2, 12], [5, 40], [20, 60]] as const),
    cuts: random.between(1, 4),
    faults,
  };
}

class PlanMaker {
  #random: SimRandom;
  #machine: SwarmMachine;
  #habits: Habits;
  #lastEnd: number[] = [];

  constructor(random: SimRandom, machine: SwarmMachine, habits: Habits) {
    this.#random = random;
    this.#machine = machine;
    this.#habits = habits;
  }

  make(): Step[] {
    const random = this.#random;
    const { devices, volumeSlots } = this.#machine;
    const { stepsPerLife: [least, most], cuts } = this.#habits;
    const steps: Step[] = devices.map((_, slot) => ({ op: "device", slot }));
    for (let life = 0; life <= cuts; life++) {
      if (life === 0 && volumeSlots > 0) steps.push(this.#create(devices.length));
      for (let left = random.between(least, most); left > 0; left--) steps.push(this.#step());
      if (life < cuts) steps.push(this.#end());
    }
    return steps;
  }

  #end(): Step {
    const random = this.#random;
    if (random.chance(0.2)) {
      const without = this.#machine.devices.map((_, slot) => slot)
        .filter(() => random.chance(0.2));
      return { op: "restart", without };
    }
    const recoveries: PowerCut[] = [];
    while (recoveries.length < 2 && random.chance(0.25)) recoveries.push(this.#powerCut(60));
    return { op: "cut", ...this.#powerCut(random.pick([4, 40, 400])), recoveries };
  }

  #powerCut(eventsMax: number): PowerCut {
    return {
      events: this.#random.below(eventsMax),
      policy: this.#random.pick(CUT_POLICIES),
    };
  }

  #step(): Step {
    const random = this.#random;
    const kind = weighted(random, this.#habits.weights);
    switch (kind) {
      case "write":
      case "read":
      case "zero":
        return this.#request(kind);
      case "flush":
        return { op: "flush", slot: this.#anySlot() };
      case "sleep":
        return { op: "sleep", ms: random.between(1, this.#habits.sleepMsMax) };
      case "set device":
        return { op: "set", slot: this.#device(), ...randomSetting(random, "device") };
      case "set set":
        return { op: "set", slot: undefined, ...randomSetting(random, "set") };
      case "collect":
        return { op: "set", slot: undefined, ...collectionSetting(random) };
      case "drain":
        return { op: "drain", slot: this.#device() };
      case "member":
        return { op: random.pick(["detach", "stop", "attach", "attach"]), slot: this.#device() };
      case "volume":
        return this.#volume();
      case "fault":
        return this.#fault();
    }
  }

  #device(): number {
    return this.#random.below(this.#machine.devices.length);
  }

  #anySlot(): number {
    const { devices, volumeSlots } = this.#machine;
    return this.#random.below(devices.length + volumeSlots);
  }

  #sizeOf(slot: number): number {
    return (this.#machine.devices[slot]?.sectors ?? 256) * 512;
  }

  #request(op: "write" | "read" | "zero"): Step {
    const random = this.#random;
    const { spanBytes, longestBytes, unaligned, sequential } = this.#habits;
    const slot = this.#anySlot();
    const span = Math.min(spanBytes, this.#sizeOf(slot));
    const align = random.chance(unaligned) ? 1 : random.pick([512, 4096, 4096]);
    let longest = Math.min(longestBytes * (op === "read" ? 4 : 1), span);
    if (random.chance(0.4)) longest = Math.min(longest, 4096);
    const lengthBytes = align * random.between(1, Math.max(1, Math.floor(longest / align)));
    let fromBytes = align * random.below(Math.floor((span - lengthBytes) / align) + 1);
    const end = this.#lastEnd[slot] ?? 0;
    const follows = end % align === 0 && end + lengthBytes <= span;
    if (follows && random.chance(sequential)) fromBytes = end;
    this.#lastEnd[slot] = fromBytes + lengthBytes;
    return { op, slot, fromBytes, lengthBytes };
  }

  #volumeBytes(): number {
    return this.#random.pick([4, 16, 60, 64, 128]) * KIB;
  }

  #create(slot: number): Step {
    return { op: "create", slot, sizeBytes: this.#volumeBytes() };
  }

  #volume(): Step {
    const random = this.#random;
    const { devices, volumeSlots } = this.#machine;
    if (volumeSlots === 0) return { op: "flush", slot: this.#device() };
    const slot = devices.length + random.below(volumeSlots);
    if (random.chance(0.4)) return this.#create(slot);
    if (random.chance(0.4)) return { op: "destroy", slot };
    return { op: "resize", slot, sizeBytes: this.#volumeBytes() };
  }

  #fault(): Step {
    const random = this.#random;
    const fault: Fault = {
      operation: random.pick(["read", "write", "write", "flush", "any"] as const),
      kind: random.pick(["error", "error", "slow", "short"] as const),
      after: random.below(random.pick([1, 10])),
      times: random.pick([1, 1, 3, FOR_GOOD]),
      errno: random.pick(["EIO", "EIO", "ENOSPC"] as const),
    };
    return { op: "fault", disk: random.below(this.#machine.devices.length + 1), fault };
  }
}
