/**
 * A cache set with one backing device, both simulated disks with a volatile cache, on a simulated
 * clock: for tests of what requests do to the two devices. Every operation on them is noted.
 */
import { CacheSet, type CacheSetOptions } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { BlockVolume, CacheMode, DeviceStatus } from "../../lib/cache/ports.ts";
import { TracedDevice, type TracedOperation } from "../../lib/device/traced.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimDisk } from "../simulation/sim_disk.ts";
import { SimRandom } from "../simulation/sim_random.ts";

export const DATA_OFFSET = 16;

export interface OneDeviceOptions {
  readonly mode?: CacheMode;
  readonly bucketCount?: number;
  readonly bucketSectors?: number;
  readonly blockSectors?: number;
  readonly volumeSectors?: number;
  readonly replacement?: ReplacementPolicy;
  /** Whether the devices offer synchronous calls. */
  readonly sync?: boolean;
  readonly settings?: ReadonlyArray<readonly [string, string]>;
}

export class OneDevice {
  readonly clock: SimClock = new SimClock();
  readonly cacheDisk: SimDisk;
  readonly backingDisk: SimDisk;
  /** What was begun on the devices, in order, since `trace` was cleared. */
  readonly trace: Array<{ on: "cache" | "backing" } & TracedOperation> = [];
  readonly log: string[] = [];
  readonly #options: OneDeviceOptions;
  #set: CacheSet | undefined;

  constructor(options: OneDeviceOptions = {}) {
    this.#options = options;
    const { bucketCount = 600, bucketSectors = 16, volumeSectors = 8192 } = options;
    const disk = (name: string, sizeSectors: number, seed: number): SimDisk =>
      new SimDisk({
        name,
        sizeSectors,
        clock: this.clock,
        random: new SimRandom(seed),
        sync: options.sync ?? true,
      });
    this.cacheDisk = disk("cache", bucketCount * bucketSectors, 1);
    this.backingDisk = disk("backing", DATA_OFFSET + volumeSectors, 2);
  }

  get set(): CacheSet {
    if (this.#set === undefined) throw new Error("the set is open");
    return this.#set;
  }

  get volume(): BlockVolume {
    const volume = this.set.volumes[0];
    if (volume === undefined) throw new Error("the set has a volume");
    return volume;
  }

  /** Runs simulated time until `work` settles. */
  async run<T>(work: Promise<T>): Promise<T> {
    return (await this.clock.run(work, { limitMs: 3_600_000 })) as T;
  }

  async format(): Promise<void> {
    const { mode = "writeback", bucketSectors = 16, blockSectors = 1, replacement } = this.#options;
    const common = { setUuid: new Uint8Array(16).fill(7), blockSectors, bucketSectors };
    await this.run(makeCache(this.cacheDisk, {
      ...common,
      uuid: new Uint8Array(16).fill(1),
      ...(replacement === undefined ? {} : { replacement }),
    }));
    await this.run(makeBacking(this.backingDisk, {
      ...common,
      uuid: new Uint8Array(16).fill(2),
      cacheMode: mode,
    }));
  }

  async open(more: Partial<CacheSetOptions> = {}): Promise<CacheSet> {
    const traced = (on: "cache" | "backing", disk: SimDisk) =>
      new TracedDevice(disk, { begin: (operation) => void this.trace.push({ on, ...operation }) });
    this.#set = await this.run(CacheSet.open({
      cache: traced("cache", this.cacheDisk),
      backings: [{ device: traced("backing", this.backingDisk), path: "backing" }],
      clock: this.clock,
      random: new SimRandom(3),
      log: (level, message) => void this.log.push(`${level}: ${message}`),
      settings: [
        ["writeback_running", "0"],
        ["sequential_cutoff", "0"],
        ...this.#options.settings ?? [],
      ],
      ...more,
    }));
    return this.#set;
  }

  async close(): Promise<void> {
    await this.run(this.set.close());
    this.#set = undefined;
  }

  async write(atSector: number, sectors: number, value: number): Promise<void> {
    await this.run(this.volume.write(atSector * 512, new Uint8Array(sectors * 512).fill(value)));
  }

  async read(atSector: number, sectors: number): Promise<Uint8Array> {
    const into = new Uint8Array(sectors * 512);
    await this.run(this.volume.read(atSector * 512, into));
    return into;
  }

  async device(): Promise<DeviceStatus> {
    return (await this.run(this.set.status())).devices[0]!;
  }

  /** Lets everything in the background, fills above all, come to rest. */
  async settle(ms: number = 50): Promise<void> {
    await this.run(this.clock.sleep(ms));
  }

  /** Sectors read from the backing device's data, as [sector of the volume, sectors]. */
  backingReads(): Array<[number, number]> {
    return this.trace.filter(({ on, kind }) => on === "backing" && kind === "read")
      .map(({ atSector, sectors }) => [atSector - DATA_OFFSET, sectors]);
  }

  count(on: "cache" | "backing", kind: TracedOperation["kind"]): number {
    return this.trace.filter((each) => each.on === on && each.kind === kind).length;
  }
}

/** Formatted and open. */
export async function oneDevice(options: OneDeviceOptions = {}): Promise<OneDevice> {
  const one = new OneDevice(options);
  await one.format();
  await one.open();
  return one;
}
