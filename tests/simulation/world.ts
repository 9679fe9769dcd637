/**
 * One simulated machine: a clock, a cache disk, a backing disk, and an engine that runs on them.
 * A power cut is a snapshot of both disks at one moment; a new world boots from it, with a clock
 * of its own, while the old one may run on. So one run of a workload serves all its crash points.
 */
import type { Clock, Log, Random } from "../../lib/base/runtime.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import type { DiskImage, Unwritten } from "./disk_image.ts";
import { imageAfterCut, pendingSectors, SUBSET_WRITES_MAX } from "./power_cut.ts";
import type { CutPolicy, DiskSnapshot } from "./power_cut.ts";
import { SimClock } from "./sim_clock.ts";
import type { RunOptions } from "./sim_clock.ts";
import { HARD_DISK, SimDisk, SSD } from "./sim_disk.ts";
import type { DiskMoment } from "./sim_disk.ts";
import { hashOf, SimRandom } from "./sim_random.ts";

/** All that an engine gets from outside. */
export interface EngineParts {
  readonly cache: Device;
  readonly backing: Device;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** An engine that runs: one volume over one cache and one backing device. */
export interface Engine {
  readonly volume: BlockVolume;
  /** Afterwards the backing device alone holds everything, durably. */
  drain(): Promise<void>;
  close(): Promise<void>;
  /** Changes something while the workload runs (a mode, a setting). */
  disturb?(random: SimRandom): Promise<void>;
}

/** A kind of engine the simulator can run: the real one, or a toy that tests the simulator. */
export interface EngineKind {
  readonly name: string;
  readonly cacheSectors: number;
  readonly backingSectors: number;
  /** False: nothing is written back, so the drained backing disk is not looked at. */
  readonly backingHolds?: boolean;
  /** The volume's sector 0 is this sector of the backing disk. */
  readonly dataOffsetSectors: number;
  readonly logicalBlockSectors?: number;
  /** Makes fresh disks ready for `open`. */
  format(cache: SimDisk, backing: SimDisk): Promise<void>;
  open(parts: EngineParts): Promise<Engine>;
}

export interface WorldSnapshot {
  readonly cache: DiskSnapshot;
  readonly backing: DiskSnapshot;
}

/** With nothing pending anywhere, every cut policy has the same outcome. */
export function hasOneOutcome(snapshot: WorldSnapshot): boolean {
  return pendingSectors(snapshot.cache) + pendingSectors(snapshot.backing) === 0;
}

export interface WorldOptions {
  readonly kind: EngineKind;
  readonly seed: number;
  /** Offers the synchronous device calls to the engine. */
  readonly sync: boolean;
  /** What the backing device's data holds before anything is written. */
  readonly initial: Unwritten;
  readonly onMoment?: (moment: DiskMoment) => void;
  /** Boots from these instead of fresh disks. */
  readonly images?: { readonly cache: DiskImage; readonly backing: DiskImage };
}

export class World {
  readonly clock: SimClock;
  readonly cache: SimDisk;
  readonly backing: SimDisk;
  /** What the engine logged. */
  readonly logLines: string[] = [];
  readonly kind: EngineKind;
  readonly parts: EngineParts;

  constructor(options: WorldOptions) {
    const { kind, images, onMoment, sync } = options;
    const random = new SimRandom(options.seed);
    this.kind = kind;
    this.clock = new SimClock({ permute: random.fork(1) });
    const common = {
      clock: this.clock,
      sync,
      logicalBlockSectors: kind.logicalBlockSectors ?? 1,
      ...(onMoment === undefined ? {} : { onMoment }),
    };
    this.cache = new SimDisk({
      ...common,
      name: "cache",
      sizeSectors: kind.cacheSectors,
      random: random.fork(2),
      latency: SSD,
      ...(images === undefined ? {} : { image: images.cache }),
    });
    this.backing = new SimDisk({
      ...common,
      name: "backing",
      sizeSectors: kind.backingSectors,
      random: random.fork(3),
      latency: HARD_DISK,
      unwritten: (sector, into) => {
        if (sector < kind.dataOffsetSectors) into.fill(0);
        else options.initial(sector - kind.dataOffsetSectors, into);
      },
      ...(images === undefined ? {} : { image: images.backing }),
    });
    this.parts = {
      cache: this.cache,
      backing: this.backing,
      clock: this.clock,
      random: random.fork(4),
      log: (level, message) => this.logLines.push(`${this.clock.nowMs()} ${level}: ${message}`),
    };
  }

  run<T>(work: Promise<T>, options: RunOptions = {}): Promise<T | undefined> {
    return this.clock.run(work, options);
  }

  snapshot(): WorldSnapshot {
    return { cache: this.cache.snapshot(), backing: this.backing.snapshot() };
  }

  /** What the engine did to the disks that it must not; call when it should be quiet. */
  violations(): string[] {
    const all = [...this.cache.violations, ...this.backing.violations];
    for (const disk of [this.cache, this.backing]) {
      if (disk.inFlight > 0) all.push(`${disk.name}: ${disk.inFlight} operations still under way`);
    }
    return all;
  }
}

/** Every subset of the writes pending on both disks; undefined when they are too many. */
export function allSubsets(snapshot: WorldSnapshot): CutPolicy[] | undefined {
  const writes = snapshot.cache.pending.length + snapshot.backing.pending.length;
  if (writes > SUBSET_WRITES_MAX) return undefined;
  return Array.from({ length: 1 << writes }, (_, subset) => ({ subset }));
}

/**
 * The world as it boots after a power cut; both disks lost power at the same moment. The bits of a
 * subset are the cache's writes first, then the backing device's.
 */
export function worldAfterCut(
  snapshot: WorldSnapshot,
  policy: CutPolicy,
  options: Omit<WorldOptions, "images">,
): World {
  const backingPolicy = typeof policy === "object"
    ? { subset: policy.subset >>> snapshot.cache.pending.length }
    : policy;
  const images = {
    cache: imageAfterCut(snapshot.cache, policy, new SimRandom(hashOf(options.seed, 11))),
    backing: imageAfterCut(
      snapshot.backing,
      backingPolicy,
      new SimRandom(hashOf(options.seed, 12)),
    ),
  };
  return new World({ ...options, images });
}
