/**
 * A cache set with one backing device on memory, under simulated time, whose devices can be made
 * to fail and to wait: for tests of requests. Stopped and started again on the same bytes.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { CacheSet, type CacheSetOptions } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { BlockVolume, CacheMode } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { TracedDevice, type TracedOperation } from "../../lib/device/traced.ts";
import { backingState } from "../../lib/ondisk/superblock.ts";
import { readSuperblock } from "../../lib/cache/members/attach.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

export const BUCKET_SECTORS = 32;
export const DATA_OFFSET = 16;

export interface SetWorldOptions {
  readonly mode?: CacheMode;
  readonly volumeSectors?: number;
  readonly bucketCount?: number;
  readonly blockSectors?: number;
  readonly seed?: number;
  /** Hides the synchronous calls of the cache device. */
  readonly asyncOnly?: boolean;
  readonly settings?: CacheSetOptions["settings"];
}

/** A device over memory that fails what `failing` says, with EIO or what it returns. */
export class UnreliableDevice {
  readonly memory: MemoryDevice;
  readonly device: Device;
  failing: ((operation: TracedOperation) => boolean | BcacheError) | undefined;
  /** Delays what is asked asynchronously. */
  gate: ((kind: "read" | "write", atSector: number) => Promise<void> | undefined) | undefined;
  readonly trace: TracedOperation[] = [];

  constructor(name: string, sectors: number, asyncOnly: boolean) {
    this.memory = new MemoryDevice(sectors, { name });
    const traced = new TracedDevice(this.memory, {
      begin: (operation) => {
        this.trace.push(operation);
        const fails = this.failing?.(operation) ?? false;
        if (fails === false) return;
        throw fails === true
          ? new BcacheError("DeviceIo", `${name}: planted ${operation.kind} error`)
          : fails;
      },
    });
    this.device = new GatedDevice(traced, this, asyncOnly);
  }
}

class GatedDevice extends ForwardingDevice {
  readonly #of: UnreliableDevice;

  constructor(inner: Device, of: UnreliableDevice, asyncOnly: boolean) {
    super(asyncOnly ? withoutSync(inner) : inner);
    this.#of = of;
  }

  /** Waits after the bytes were read: they are as old as the read. */
  override async read(atSector: number, into: Uint8Array): Promise<void> {
    await super.read(atSector, into);
    await this.#of.gate?.("read", atSector);
  }

  override async write(atSector: number, from: Uint8Array): Promise<void> {
    await this.#of.gate?.("write", atSector);
    await super.write(atSector, from);
  }
}

function withoutSync(device: Device): Device {
  return new Proxy<Device>(device, {
    get(target, name) {
      if (name === "sync") return undefined;
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

export class SetWorld {
  readonly clock: SimClock = new SimClock();
  readonly log: string[] = [];
  readonly cache: UnreliableDevice;
  readonly backing: UnreliableDevice;
  readonly #options: SetWorldOptions;
  #set: CacheSet | undefined;

  constructor(options: SetWorldOptions) {
    this.#options = options;
    const { bucketCount = 600, volumeSectors = 8192, asyncOnly = false } = options;
    this.cache = new UnreliableDevice("cache", bucketCount * BUCKET_SECTORS, asyncOnly);
    this.backing = new UnreliableDevice("backing", DATA_OFFSET + volumeSectors, false);
  }

  get set(): CacheSet {
    if (this.#set === undefined) throw new Error("the set is not started");
    return this.#set;
  }

  get volume(): BlockVolume {
    return this.set.volumes[0]!;
  }

  async run<T>(work: Promise<T>): Promise<T> {
    return (await this.clock.run(work, { limitMs: 3_600_000 })) as T;
  }

  async format(): Promise<void> {
    const { mode = "writethrough", blockSectors = 1 } = this.#options;
    const setUuid = new Uint8Array(16).fill(9);
    const common = { setUuid, blockSectors, bucketSectors: BUCKET_SECTORS };
    await makeCache(this.cache.memory, { ...common, uuid: new Uint8Array(16).fill(1) });
    const uuid = new Uint8Array(16).fill(2);
    await makeBacking(this.backing.memory, { ...common, uuid, cacheMode: mode });
  }

  async start(options: Partial<CacheSetOptions> = {}): Promise<CacheSet> {
    const opening = CacheSet.open({
      cache: this.cache.device,
      backings: [{ device: this.backing.device, path: "backing" }],
      clock: this.clock,
      random: new SimRandom(this.#options.seed ?? 1),
      log: (level, message) => void this.log.push(`${level}: ${message}`),
      ...(this.#options.settings === undefined ? {} : { settings: this.#options.settings }),
      ...options,
    });
    this.#set = await this.run(opening);
    return this.#set;
  }

  async close(): Promise<void> {
    await this.run(this.set.close());
  }

  /** The bytes of the volume as the set serves them. */
  async read(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    const into = new Uint8Array(lengthBytes);
    if (!this.volume.tryRead(offsetBytes, into)) {
      await this.run(this.volume.read(offsetBytes, into));
    }
    return into;
  }

  /** Fills a range of the volume with one byte. */
  async write(offsetBytes: number, lengthBytes: number, fill: number): Promise<void> {
    const from = new Uint8Array(lengthBytes).fill(fill);
    if (!this.volume.tryWrite(offsetBytes, from)) {
      await this.run(this.volume.write(offsetBytes, from));
    }
  }

  /** The bytes of the volume as the backing device alone has them. */
  async onBacking(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    const into = new Uint8Array(lengthBytes);
    await this.backing.memory.read(DATA_OFFSET + offsetBytes / 512, into);
    return into;
  }

  /** The state in the backing superblock on disk. */
  async stateOnDisk(): Promise<string> {
    return backingState(await readSuperblock(this.backing.memory));
  }

  /** The value of an attribute of the device, or of the set. */
  async attribute(name: string, of: "bcache0" | "set" = "bcache0"): Promise<string> {
    return (await this.set.attributes(of === "set" ? undefined : of, name))[0]!.value;
  }

  /** Makes the set fail now: the next journal entry cannot be written for lack of room. */
  async failForLackOfRoom(): Promise<void> {
    this.cache.failing = (operation) =>
      operation.kind === "write" && new BcacheError("NoSpace", "cache: no space left");
    await this.write(this.volume.sizeBytes - 4096, 4096, 0xee);
    await this.run(this.volume.flush().catch(() => {}));
  }

  /** A fresh set, running. */
  static async make(options: SetWorldOptions = {}): Promise<SetWorld> {
    const world = new SetWorld(options);
    await world.format();
    await world.start();
    return world;
  }
}

/** `count` bytes of `fill`, to compare with. */
export function filled(count: number, fill: number): Uint8Array {
  return new Uint8Array(count).fill(fill);
}
