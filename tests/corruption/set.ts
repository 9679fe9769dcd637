/**
 * The cache set that is damaged: small, in memory, with a history. Two devices, the second of which
 * came later, and, where that is asked for, a volume of the cache itself, counted behind them;
 * several lives, so that every structure has earlier versions; the last one ended by a power cut
 * behind a flush, so that entries of the journal are needed. Every sector says which version of it
 * was written; of each the newest is known.
 */
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { copyOf } from "../offline/world.ts";
import { fillSector, sameBytes } from "../simulation/pattern.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { drainMicrotasks, ManualClock } from "../support/manual_clock.ts";

export const BUCKET_SECTORS = 16;
export const DATA_OFFSET = 16;
const BUCKETS = 700;
const VOLUME_SECTORS = 4096;
const PATTERN_SEED = 5;

/** "dirty": what was written is only in the cache. "clean": the cache may be thrown away. */
export type SetState = "clean" | "dirty";
export const SET_STATES: readonly SetState[] = ["clean", "dirty"];

export interface Devices<D extends Device = Device> {
  readonly cache: D;
  readonly backings: readonly D[];
}

export interface Sample extends Devices<MemoryDevice> {
  readonly state: SetState;
  /** As they were before, oldest first. */
  readonly earlier: ReadonlyArray<Devices<MemoryDevice>>;
  /** By device, then of the volume, the newest version of each sector of its data. */
  readonly newest: readonly Uint32Array[];
}

export async function openSample(devices: Devices, seed: number, log: string[] = []) {
  const clock = new ManualClock();
  const set = await CacheSet.open({
    cache: devices.cache,
    backings: devices.backings.map((device) => ({ device, path: device.name })),
    clock,
    random: new SimRandom(seed),
    log: (level, message) => void log.push(`${level}: ${message}`),
    settings: [["writeback_running", "0"], ["sequential_cutoff", "0"]],
  });
  return { set, clock };
}

/** What a sector holds: one of its versions, or something that nobody wrote there. */
export function versionOf(bytes: Uint8Array, sector: number): number | undefined {
  const version = new DataView(bytes.buffer, bytes.byteOffset).getUint32(12, true);
  const expected = new Uint8Array(512);
  fillSector(expected, PATTERN_SEED, sector, version);
  return sameBytes(bytes, expected) ? version : undefined;
}

/** One writer with a memory of what it wrote. */
class History {
  readonly earlier: Array<Devices<MemoryDevice>> = [];
  readonly newest: Uint32Array[];
  readonly #devices: Devices<MemoryDevice>;
  readonly #random: SimRandom;
  #version = 0;

  constructor(devices: Devices<MemoryDevice>, seed: number, hasVolume: boolean) {
    this.#devices = devices;
    this.#random = new SimRandom(seed);
    const length = devices.backings.length + (hasVolume ? 1 : 0);
    this.newest = Array.from({ length }, () => new Uint32Array(VOLUME_SECTORS));
  }

  /** The first version of every sector lies on the backing devices. */
  async begin(): Promise<void> {
    for (const [number, device] of this.#devices.backings.entries()) {
      await device.write(DATA_OFFSET, this.#content(number, 0, VOLUME_SECTORS));
    }
    await this.remember();
  }

  /** Sectors of different devices differ as well: their numbers do. */
  #content(device: number, start: number, sectors: number): Uint8Array {
    const bytes = new Uint8Array(sectors * 512);
    for (let at = 0; at < sectors; at++) {
      const version = this.newest[device]![start + at]!;
      const into = bytes.subarray(at * 512, (at + 1) * 512);
      fillSector(into, PATTERN_SEED, device * VOLUME_SECTORS + start + at, version);
    }
    return bytes;
  }

  async remember(): Promise<void> {
    const { cache, backings } = this.#devices;
    this.earlier.push({
      cache: await copyOf(cache),
      backings: await Promise.all(backings.map((backing) => copyOf(backing))),
    });
  }

  async write(volumes: readonly BlockVolume[], count: number): Promise<void> {
    for (let step = 0; step < count; step++) {
      const device = this.#random.below(volumes.length);
      const sectors = 1 + this.#random.below(8);
      const start = this.#random.below(VOLUME_SECTORS - sectors);
      this.newest[device]!.fill(++this.#version, start, start + sectors);
      await volumes[device]!.write(start * 512, this.#content(device, start, sectors));
      // The allocator gets its turns: a write that finds no bucket would go past the cache.
      await drainMicrotasks();
      if (step % 10 === 9) await flushAll(volumes);
    }
    await flushAll(volumes);
  }
}

async function flushAll(volumes: readonly BlockVolume[]): Promise<void> {
  for (const volume of volumes) await volume.flush();
}

/** Leaves are written when they have been dirty long enough; then the journal lets go of them. */
async function settle(clock: ManualClock, history: History, set: CacheSet): Promise<void> {
  for (let round = 0; round < 3; round++) {
    await clock.advance(60_000);
    await history.write(set.volumes, 1);
  }
}

async function format(state: SetState): Promise<Devices<MemoryDevice>> {
  const cache = new MemoryDevice(BUCKETS * BUCKET_SECTORS, { name: "cache" });
  const common = {
    setUuid: new Uint8Array(16).fill(7),
    blockSectors: 1,
    bucketSectors: BUCKET_SECTORS,
  };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  const backings: MemoryDevice[] = [];
  for (const name of ["first", "second"]) {
    const device = new MemoryDevice(DATA_OFFSET + VOLUME_SECTORS, { name });
    const uuid = new Uint8Array(16).fill(2 + backings.length);
    const cacheMode = state === "dirty" ? "writeback" : "writethrough";
    await makeBacking(device, { ...common, uuid, cacheMode });
    backings.push(device);
  }
  return { cache, backings };
}

/** The set, in the state in which it is damaged. */
export async function makeSample(state: SetState, hasVolume = false): Promise<Sample> {
  const devices = await format(state);
  const { cache, backings } = devices;
  const history = new History(devices, 3, hasVolume);
  await history.begin();
  const first = await openSample({ cache, backings: [backings[0]!] }, 11);
  await history.write(first.set.volumes, 60);
  await settle(first.clock, history, first.set);
  await history.remember();
  await first.set.close();
  await history.remember();
  for (const [seed, writes] of [[12, 250], [13, 150]] as const) {
    const life = await openSample(devices, seed);
    const isFirst = life.set.volumes.length === backings.length;
    if (hasVolume && isFirst) await life.set.createVolume({ sizeBytes: VOLUME_SECTORS * 512 });
    await history.write(life.set.volumes, writes);
    await history.remember();
    await settle(life.clock, history, life.set);
    await history.remember();
    await life.set.close();
    await history.remember();
  }
  const last = await openSample(devices, 14);
  await history.write(last.set.volumes, 60);
  await history.remember();
  await history.write(last.set.volumes, 40);
  await last.set.abandon();
  return { ...devices, state, earlier: history.earlier, newest: history.newest };
}
