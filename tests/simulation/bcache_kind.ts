/**
 * The real engine as the simulator runs it: fresh superblocks for both disks, and CacheSet over
 * them. Small on purpose: 8 to 32 KiB buckets and a few more than the least number of them, so
 * that the journal wraps, nodes split, buckets are collected and reused within seconds.
 */
import { Mutex } from "../../lib/base/sync.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { BlockVolume, CacheMode } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { formatBacking, formatCache } from "../../lib/ondisk/format.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { MovingVolume } from "./moving_volume.ts";
import { OracleMismatch } from "./oracle.ts";
import { auditedSet } from "./recovery_audit.ts";
import { SMALL_SLICES } from "./sim_clock.ts";
import type { SimRandom } from "./sim_random.ts";
import type { Engine, EngineKind, EngineParts } from "./world.ts";

export interface BcacheOptions {
  readonly mode: CacheMode;
  readonly bucketSectors: number;
  readonly bucketCount: number;
  readonly blockSectors: number;
  readonly volumeSectors: number;
  readonly replacement?: ReplacementPolicy;
  /** The mode of each further cached device; as large as the first. */
  readonly besideModes?: readonly CacheMode[];
  /** After a recovery, dirty keys behind a superblock that says clean are a failure. */
  readonly checkState?: boolean;
  /**
   * What `disturb` does: drains, collects, anything a person may do while a device is attached,
   * or devices come and go, or volumes on the cache alone beside devices that are turned about.
   */
  readonly disturbance?: "drain" | "collect" | "any" | "come and go" | "neighbours";
  /** Attributes of the device, set at every start. */
  readonly settings?: ReadonlyArray<readonly [string, string]>;
  /** The same of the set. */
  readonly setSettings?: ReadonlyArray<readonly [string, string]>;
}

const DATA_OFFSET = 16;

function uuid(first: number): Uint8Array {
  return Uint8Array.from({ length: 16 }, (_, index) => first + index);
}

export function bcacheKind(options: BcacheOptions): EngineKind {
  const cacheSectors = options.bucketCount * options.bucketSectors;
  const backingSectors = DATA_OFFSET + options.volumeSectors;
  return {
    name: `bcache ${options.mode}`,
    cacheSectors,
    backingSectors,
    besideSectors: (options.besideModes ?? []).map(() => backingSectors),
    dataOffsetSectors: DATA_OFFSET,
    format: (cache, ...backings) => {
      const { blockSectors, bucketSectors, replacement } = options;
      const common = { logicalBlockSectors: 1, setUuid: uuid(0x40), blockSectors, bucketSectors };
      cache.patch(
        8,
        formatCache({
          ...common,
          name: cache.name,
          sizeSectors: cacheSectors,
          uuid: uuid(0x10),
          ...(replacement === undefined ? {} : { replacement }),
        }),
      );
      const modes = [options.mode, ...(options.besideModes ?? [])];
      for (const [number, backing] of backings.entries()) {
        backing.patch(
          8,
          formatBacking({
            ...common,
            name: backing.name,
            sizeSectors: backingSectors,
            uuid: uuid(0x70 + number),
            cacheMode: modes[number]!,
          }),
        );
      }
      return Promise.resolve();
    },
    open: (parts) => openBcache(parts, options),
  };
}

/** The engine with all that steers it. */
export interface BcacheEngine extends Engine {
  readonly set: CacheSet;
}

/** Opens what is on the disks; with `checkState` it throws when their state cannot be. */
export async function openBcache(
  parts: EngineParts,
  options: BcacheOptions,
): Promise<BcacheEngine> {
  const { cache, backing, backings, clock, random, log } = parts;
  const { [8 * 512 + FLAGS_HIGH]: found } = await firstSectors(backing);
  const sources = backings.map((device) => ({ device, path: device.name }));
  const set = await CacheSet.open({
    cache,
    backings: sources,
    clock,
    random,
    log,
    sliceBudget: SMALL_SLICES,
    openBacking: () => Promise.resolve(sources[0]!),
  });
  const audited = await auditedSet(set);
  // Whoever looks at the backing device alone must be warned: what is dirty is not on it.
  const dirtyBytes = (await set.status()).devices[0]?.dirtyBytes ?? 0;
  const state = (found! >> 5) & 3;
  if (options.checkState && dirtyBytes > 0 && state !== STATE_DIRTY) {
    throw new OracleMismatch(
      `the superblock said state ${state}, but ${dirtyBytes} bytes are dirty`,
    );
  }
  const [volume, ...beside] = set.volumes.slice(0, backings.length);
  if (volume === undefined) throw new Error("the set came up without a volume");
  for (const device of [volume, ...beside]) {
    for (const [name, value] of options.settings ?? []) {
      await set.setAttribute(device.name, name, value);
    }
  }
  for (const [name, value] of options.setSettings ?? []) {
    await set.setAttribute(undefined, name, value);
  }
  if (options.disturbance === "come and go") {
    return { ...movingEngine(set, volume, options), audited };
  }
  return {
    set,
    volume,
    beside,
    audited,
    drain: async () => {
      // What went past the cache is not dirty, but may not be stable yet.
      for (const device of [volume, ...beside]) await device.flush();
      await set.flushDirty(undefined);
    },
    close: () => set.close(),
    disturb: async (random: SimRandom) => {
      if (options.disturbance === "drain") await set.flushDirty(volume.name);
      else if (options.disturbance === "collect") {
        await set.setAttribute(undefined, "trigger_gc", "1");
      } else if (options.disturbance === "neighbours") {
        const [disabled] = await set.attributes(volume.name, "io_disable");
        if (disabled?.value === "1" && random.chance(0.5)) {
          await set.setAttribute(volume.name, "io_disable", "0");
        } else if (random.chance(0.4)) await comeAndGo(set, backings.length, random);
        else await disturb(set, random.pick([volume, ...beside]).name, random);
      } else await disturb(set, volume.name, random);
    },
  };
}

/** A device that is detached, stopped and attached again under the feet of the workload. */
function movingEngine(set: CacheSet, volume: BlockVolume, options: BcacheOptions): BcacheEngine {
  const moving = new MovingVolume(volume);
  const turns = new Mutex();
  const again = async (): Promise<void> => {
    const before = set.volumes[0];
    moving.move(undefined);
    try {
      await set.stop(volume.name);
    } catch (error) {
      moving.move(before); // It is still served.
      throw error;
    }
    try {
      await set.attach("backing");
      for (const [name, value] of options.settings ?? []) {
        await set.setAttribute(volume.name, name, value);
      }
      moving.move(set.volumes[0]);
    } catch (error) {
      moving.lose(error);
      throw error;
    }
  };
  return {
    set,
    volume: moving,
    drain: () =>
      turns.run(async () => {
        await moving.flush();
        await set.flushDirty(volume.name);
      }),
    close: () => set.close(),
    disturb: (random: SimRandom) =>
      turns.run(async () => {
        const [device] = (await set.status()).devices;
        if (device === undefined) return; // It could not be opened again.
        if (!device.attached || random.chance(0.3)) return await again();
        if (random.chance(0.6)) return void await set.detach(volume.name);
        await set.setAttribute(volume.name, "cache_mode", random.pick(CACHE_MODES));
      }),
  };
}

/** Where the two bits of the backing device's state are: the top of the flags. */
const FLAGS_HIGH = 0x68 + 7;
const STATE_DIRTY = 2;

async function firstSectors(device: Device): Promise<Uint8Array> {
  const bytes = new Uint8Array(16 * 512);
  await device.read(0, bytes);
  return bytes;
}

/** Volumes on the cache alone: nobody looks into them, the cached devices must not notice. */
async function comeAndGo(set: CacheSet, devices: number, random: SimRandom): Promise<void> {
  const others = set.volumes.slice(devices);
  const [other] = others;
  if (other !== undefined && random.chance(0.5)) {
    return await set.destroyVolume(other.name, { force: true });
  }
  const { name } = await set.createVolume({ sizeBytes: 65536 });
  const made = set.volumes.find((volume) => volume.name === name)!;
  await made.write(0, new Uint8Array(32768).fill(random.below(256)));
}

/** Turns what a person may turn while the device is in use. */
async function disturb(set: CacheSet, device: string, random: SimRandom): Promise<void> {
  switch (random.below(4)) {
    case 0:
      return void await set.setAttribute(device, "cache_mode", random.pick(CACHE_MODES));
    case 1:
      return void await set.setAttribute(device, "writeback_running", `${random.below(2)}`);
    case 2: {
      const cutoff = random.pick(["0", "64k", "4M"]);
      return void await set.setAttribute(device, "sequential_cutoff", cutoff);
    }
    default:
      return await set.flushDirty(device);
  }
}
