/**
 * One simulated machine: a clock, a cache disk, backing disks, and an engine that runs on them.
 * A power cut is a snapshot of all disks at one moment; a new world boots from it, with a clock
 * of its own, while the old one may run on. So one run of a workload serves all its crash points.
 */
import type { Clock, Log, Random } from "../../lib/base/runtime.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import type { DiskImage } from "./disk_image.ts";
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
  /** The first backing device; most engines have no other. */
  readonly backing: Device;
  readonly backings: readonly Device[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** What a closer look at a recovery asks an engine for (recovery_audit.ts). */
export interface Audited {
  /** What only the cache has, as the engine counted it when it had started. */
  readonly dirtyBytesAtStart: number;
  /** The same now; or only what can be written back, which a volume on the cache cannot. */
  dirtyBytes(of: "everything" | "cached devices"): Promise<number>;
  /** How much more volumes on the cache hold than they can, for what a crash left behind. */
  leftBytes(): Promise<number>;
  /** Takes every device out of the set. */
  detachAll(): Promise<void>;
}

/** An engine that runs: one volume or more over one cache, each on a backing device of its own. */
export interface Engine {
  readonly volume: BlockVolume;
  /** Those beside it: the first of them is on the second backing disk, and so on. */
  readonly beside?: readonly BlockVolume[];
  /** Afterwards the backing devices alone hold everything, durably. */
  drain(): Promise<void>;
  close(): Promise<void>;
  /** Absent: it cannot be looked at more closely. */
  readonly audited?: Audited;
  /** Changes something while the workload runs (a mode, a setting). */
  disturb?(random: SimRandom): Promise<void>;
}

/** The disks that a kind of engine runs on. */
export interface DiskKind {
  readonly name: string;
  readonly cacheSectors: number;
  readonly backingSectors: number;
  /** Sizes of further backing disks, each with a volume of its own. */
  readonly besideSectors?: readonly number[];
  /** False: nothing is written back, so the drained backing disk is not looked at. */
  readonly backingHolds?: boolean;
  /** The volume's sector 0 is this sector of the backing disk. */
  readonly dataOffsetSectors: number;
  readonly logicalBlockSectors?: number;
  /** True: what is on the disks is not bcache's format, and nothing for the offline check. */
  readonly isForeign?: boolean;
  /** Makes fresh disks ready for `open`. */
  format(cache: SimDisk, ...backings: readonly SimDisk[]): Promise<void>;
}

/** A kind of engine the simulator can run: the real one, or a toy that tests the simulator. */
export interface EngineKind extends DiskKind {
  open(parts: EngineParts): Promise<Engine>;
  /**
   * For a kind that remembers what its engines promised: one that remembers the same for itself
   * (a power cut now, looked into later), or nothing (fresh disks).
   */
  copy?(remembers: "the same" | "nothing"): EngineKind;
}

export interface WorldSnapshot {
  readonly cache: DiskSnapshot;
  readonly backings: readonly DiskSnapshot[];
}

/** With nothing pending anywhere, every cut policy has the same outcome. */
export function hasOneOutcome(snapshot: WorldSnapshot): boolean {
  return [snapshot.cache, ...snapshot.backings].every((disk) => pendingSectors(disk) === 0);
}

export interface WorldOptions {
  readonly kind: DiskKind;
  readonly seed: number;
  /** Offers the synchronous device calls to the engine. */
  readonly sync: boolean;
  /** What a backing device's data holds before anything is written; the first has number 0. */
  readonly initial: (sector: number, into: Uint8Array, backing: number) => void;
  readonly onMoment?: (moment: DiskMoment) => void;
  /** Boots from these instead of fresh disks. */
  readonly images?: { readonly cache: DiskImage; readonly backings: readonly DiskImage[] };
}

export class World {
  readonly clock: SimClock;
  readonly cache: SimDisk;
  readonly backings: readonly SimDisk[];
  /** What the engine logged. */
  readonly logLines: string[] = [];
  readonly kind: DiskKind;
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
    const first = random.fork(3);
    const engineRandom = random.fork(4);
    const sizes = [kind.backingSectors, ...(kind.besideSectors ?? [])];
    this.backings = sizes.map((sizeSectors, number) =>
      new SimDisk({
        ...common,
        name: number === 0 ? "backing" : `backing${number}`,
        sizeSectors,
        random: number === 0 ? first : random.fork(4 + number),
        latency: HARD_DISK,
        unwritten: (sector, into) => {
          if (sector < kind.dataOffsetSectors) into.fill(0);
          else options.initial(sector - kind.dataOffsetSectors, into, number);
        },
        ...(images === undefined ? {} : { image: images.backings[number]! }),
      })
    );
    this.parts = {
      cache: this.cache,
      backing: this.backing,
      backings: this.backings,
      clock: this.clock,
      random: engineRandom,
      log: (level, message) => this.logLines.push(`${this.clock.nowMs()} ${level}: ${message}`),
    };
  }

  /** The first backing disk; most worlds have no other. */
  get backing(): SimDisk {
    return this.backings[0]!;
  }

  get disks(): SimDisk[] {
    return [this.cache, ...this.backings];
  }

  /** Fresh disks, formatted, stable. */
  async format(): Promise<void> {
    await this.run(this.kind.format(this.cache, ...this.backings));
    await this.run(Promise.all(this.disks.map((disk) => disk.flush())));
  }

  run<T>(work: Promise<T>, options: RunOptions = {}): Promise<T | undefined> {
    return this.clock.run(work, options);
  }

  snapshot(): WorldSnapshot {
    const backings = this.backings.map((disk) => disk.snapshot());
    return { cache: this.cache.snapshot(), backings };
  }

  /** What the engine did to the disks that it must not; call when it should be quiet. */
  violations(): string[] {
    const all = this.disks.flatMap((disk) => disk.violations);
    for (const disk of this.disks) {
      if (disk.inFlight > 0) all.push(`${disk.name}: ${disk.inFlight} operations still under way`);
    }
    return all;
  }
}

/** Every subset of the writes pending on all disks; undefined when they are too many. */
export function allSubsets(snapshot: WorldSnapshot): CutPolicy[] | undefined {
  const disks = [snapshot.cache, ...snapshot.backings];
  const writes = disks.reduce((sum, { pending }) => sum + pending.length, 0);
  if (writes > SUBSET_WRITES_MAX) return undefined;
  return Array.from({ length: 1 << writes }, (_, subset) => ({ subset }));
}

/**
 * The world as it boots after a power cut; all disks lost power at the same moment. The bits of a
 * subset are the cache's writes first, then the backing devices' in order.
 */
export function worldAfterCut(
  snapshot: WorldSnapshot,
  policy: CutPolicy,
  options: Omit<WorldOptions, "images">,
): World {
  let rest = policy;
  const [cache, ...backings] = [snapshot.cache, ...snapshot.backings].map((disk, number) => {
    const random = new SimRandom(hashOf(options.seed, 11 + number));
    const image = imageAfterCut(disk, rest, random);
    if (typeof rest === "object") rest = { subset: rest.subset >>> disk.pending.length };
    return image;
  });
  return new World({ ...options, images: { cache: cache!, backings } });
}
