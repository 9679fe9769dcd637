/**
 * A cache set with backing devices that tell what was asked of them, on a simulated clock: for
 * tests of writeback. Devices are in memory and take time only where a test says so.
 */
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../../lib/cache/make.ts";
import type { BlockVolume, CacheMode } from "../../../lib/cache/ports.ts";
import type { Device } from "../../../lib/device/device.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { SimRandom } from "../../simulation/sim_random.ts";

export const KIB = 1024;
/** Where the data of a backing device begins. */
export const DATA_OFFSET = 16;
const SUPERBLOCK_END = 16;

export interface Operation {
  readonly kind: "write" | "flush";
  readonly atSector: number;
  readonly sectors: number;
  readonly atMs: number;
}

/** Memory that is only asked by promises, takes its time, fails where told, and writes a log. */
export class WatchedDevice implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors = 1;
  readonly readOnly = false;
  optimalIoSectors = 0;
  partialStripesExpensive = false;
  /** Writes and flushes behind the superblock, in the order in which they were asked for. */
  readonly log: Operation[] = [];
  writeMs = 0;
  failRead: (atSector: number, sectors: number) => boolean = () => false;
  failWrite: (atSector: number, sectors: number) => boolean = () => false;
  failFlush = false;
  /** Called when a flush begins. */
  onFlush: () => void = () => {};
  writesUnderWay = 0;
  writesAtOnce = 0;
  /** Set: it can be asked without waiting, too. */
  sync?: NonNullable<Device["sync"]>;
  #memory: MemoryDevice;
  #clock: SimClock;

  constructor(name: string, sizeSectors: number, clock: SimClock) {
    this.name = name;
    this.sizeSectors = sizeSectors;
    this.#memory = new MemoryDevice(sizeSectors);
    this.#clock = clock;
  }

  offerSync(): void {
    this.sync = this.#memory.sync;
  }

  get writes(): Operation[] {
    return this.log.filter(({ kind }) => kind === "write");
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    if (this.failRead(atSector, into.length / 512)) {
      throw new BcacheError("DeviceIo", `${this.name}: cannot read`);
    }
    await this.#memory.read(atSector, into);
  }

  async write(atSector: number, from: Uint8Array): Promise<void> {
    const sectors = from.length / 512;
    const inData = atSector >= SUPERBLOCK_END;
    if (inData) this.log.push({ kind: "write", atSector, sectors, atMs: this.#clock.nowMs() });
    this.writesUnderWay++;
    this.writesAtOnce = Math.max(this.writesAtOnce, this.writesUnderWay);
    if (inData && this.writeMs > 0) await this.#clock.sleep(this.writeMs);
    this.writesUnderWay--;
    if (inData && this.failWrite(atSector, sectors)) {
      throw new BcacheError("DeviceIo", `${this.name}: cannot write`);
    }
    await this.#memory.write(atSector, from);
  }

  flush(): Promise<void> {
    this.log.push({ kind: "flush", atSector: 0, sectors: 0, atMs: this.#clock.nowMs() });
    this.onFlush();
    if (!this.failFlush) return Promise.resolve();
    return Promise.reject(new BcacheError("DeviceIo", `${this.name}: cannot flush`));
  }

  async discard(): Promise<void> {}

  async zero(atSector: number, sectors: number): Promise<void> {
    await this.#memory.zero(atSector, sectors);
  }

  async close(): Promise<void> {}
}

export interface WritebackWorldOptions {
  readonly bucketCount?: number;
  readonly bucketSectors?: number;
  /** One device for each. */
  readonly backingSectors?: readonly number[];
  readonly settings?: ReadonlyArray<readonly [string, string]>;
  readonly mode?: CacheMode;
  /** Requests may be answered without waiting. */
  readonly sync?: boolean;
}

/** Nothing is bypassed, nothing is written back by itself, scans follow each other at once. */
export const STILL: ReadonlyArray<readonly [string, string]> = [
  ["writeback_running", "0"],
  ["sequential_cutoff", "0"],
  ["writeback_percent", "0"],
  ["writeback_delay", "0"],
];

export class WritebackWorld {
  readonly clock: SimClock = new SimClock();
  readonly cache: WatchedDevice;
  readonly backings: WatchedDevice[];
  readonly log: string[] = [];
  readonly #options: WritebackWorldOptions;
  #set: CacheSet | undefined;
  #closed: CacheSet | undefined;

  constructor(options: WritebackWorldOptions = {}) {
    const { bucketCount = 600, bucketSectors = 64, backingSectors = [65536] } = options;
    this.#options = options;
    this.cache = new WatchedDevice("cache", bucketCount * bucketSectors, this.clock);
    if (options.sync) this.cache.offerSync();
    this.backings = backingSectors.map((sectors, index) =>
      new WatchedDevice(`backing${index}`, DATA_OFFSET + sectors, this.clock)
    );
  }

  get set(): CacheSet {
    if (this.#set === undefined) throw new Error("the set is not open");
    return this.#set;
  }

  get volume(): BlockVolume {
    return this.set.volumes[0]!;
  }

  /** The set that `close` ended. */
  get closed(): CacheSet {
    if (this.#closed === undefined) throw new Error("the set is still open");
    return this.#closed;
  }

  /** The first backing device. */
  get backing(): WatchedDevice {
    return this.backings[0]!;
  }

  /** Runs simulated time until `work` settles. */
  async run<T>(work: Promise<T>): Promise<T> {
    return (await this.clock.run(work, { limitMs: 24 * 3_600_000 })) as T;
  }

  /** Lets time pass. */
  async pass(seconds: number): Promise<void> {
    await this.run(this.clock.sleep(seconds * 1000));
  }

  async format(): Promise<void> {
    const { bucketSectors = 64, mode = "writeback" } = this.#options;
    const common = { setUuid: new Uint8Array(16).fill(7), blockSectors: 1, bucketSectors };
    await this.run(makeCache(this.cache, { ...common, uuid: new Uint8Array(16).fill(1) }));
    for (const [index, backing] of this.backings.entries()) {
      const uuid = new Uint8Array(16).fill(2 + index);
      await this.run(makeBacking(backing, { ...common, uuid, cacheMode: mode }));
    }
  }

  async open(settings: WritebackWorldOptions["settings"] = this.#options.settings): Promise<void> {
    this.#set = await this.run(CacheSet.open({
      cache: this.cache,
      backings: this.backings.map((device) => ({ device, path: device.name })),
      clock: this.clock,
      random: new SimRandom(1),
      log: (level, message) => void this.log.push(`${level}: ${message}`),
      settings: settings ?? STILL,
    }));
  }

  async close(): Promise<void> {
    await this.run(this.set.close());
    this.#closed = this.#set;
    this.#set = undefined;
  }

  async write(atByte: number, lengthBytes: number, fill: number = 1, device = 0): Promise<void> {
    const volume = this.set.volumes[device]!;
    await this.run(volume.write(atByte, new Uint8Array(lengthBytes).fill(fill)));
  }

  /** Blocks of 4 KiB, written in an order that makes a key of each. */
  async writeBlocks(first: number, count: number, fill: number = 1): Promise<void> {
    for (let parity = 0; parity < 2; parity++) {
      for (let block = parity; block < count; block += 2) {
        await this.write((first + block) * 4096, 4096, fill);
      }
    }
  }

  /** What the backing device has. */
  async backingByte(atByte: number, device = 0): Promise<number> {
    const into = new Uint8Array(512);
    const sector = DATA_OFFSET + Math.floor(atByte / 512);
    await this.run(this.backings[device]!.read(sector, into));
    return into[0]!;
  }

  async dirtyBytes(device = 0): Promise<number> {
    return (await this.run(this.set.status())).devices[device]!.dirtyBytes;
  }

  async state(device = 0): Promise<string> {
    return (await this.run(this.set.status())).devices[device]!.state;
  }

  async get(name: string, device: string = "bcache0"): Promise<string> {
    return (await this.run(this.set.attributes(device, name)))[0]!.value;
  }

  async change(name: string, value: string, device: string = "bcache0"): Promise<void> {
    await this.run(this.set.setAttribute(device, name, value));
  }

  async changeSet(name: string, value: string): Promise<void> {
    await this.run(this.set.setAttribute(undefined, name, value));
  }

  async ofSet(name: string): Promise<string> {
    return (await this.run(this.set.attributes(undefined, name)))[0]!.value;
  }

  drain(): Promise<void> {
    return this.run(this.set.flushDirty(undefined));
  }
}

/** A fresh set, open. */
export async function writebackWorld(
  options: WritebackWorldOptions = {},
): Promise<WritebackWorld> {
  const world = new WritebackWorld(options);
  await world.format();
  await world.open();
  for (const backing of world.backings) backing.log.length = 0;
  return world;
}
