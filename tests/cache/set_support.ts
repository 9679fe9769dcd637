/** Small cache sets in memory, for tests of what happens to a set and its devices as a whole. */
import type { BackingSource } from "../../lib/cache/members/attach.ts";
import { CacheSet, type CacheSetOptions } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { BlockVolume, CacheMode } from "../../lib/cache/ports.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import type { Superblock } from "../../lib/ondisk/superblock.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const BUCKETS = 700;
export const BACKING_SECTORS = 16 + 4096;

export interface MadeBacking {
  readonly path: string;
  readonly device: MemoryDevice;
}

export interface MadeSet {
  readonly cache: MemoryDevice;
  readonly backings: readonly MadeBacking[];
  readonly log: string[];
  /** How often the list of volumes changed. */
  changes: number;
  /** Paths let go of, in order. */
  readonly released: string[];
  open(more?: Partial<CacheSetOptions>): Promise<CacheSet>;
  /** What `open` opens with, but for settings and devices that come later. */
  options(backings: readonly BackingSource[]): CacheSetOptions;
  source(index: number): BackingSource;
}

export function uuidOf(byte: number): Uint8Array {
  return new Uint8Array(16).fill(byte);
}

/** Formats a cache and `count` backing devices, `/disk0`, ... with UUIDs of 0x20, 0x21, ... */
export async function makeSet(
  count: number,
  options: { mode?: CacheMode; blockSectors?: number; setUuid?: Uint8Array } = {},
): Promise<MadeSet> {
  const { mode = "writeback", blockSectors = 1, setUuid = uuidOf(9) } = options;
  const bucketSectors = 16 * blockSectors;
  const cache = new MemoryDevice(BUCKETS * bucketSectors, { name: "/cache" });
  const common = { setUuid, blockSectors, bucketSectors };
  await makeCache(cache, { ...common, uuid: uuidOf(1) });
  const backings: MadeBacking[] = [];
  for (let index = 0; index < count; index++) {
    const path = `/disk${index}`;
    const device = new MemoryDevice(BACKING_SECTORS, { name: path });
    await makeBacking(device, { ...common, uuid: uuidOf(0x20 + index), cacheMode: mode });
    backings.push({ path, device });
  }
  const made: MadeSet = {
    cache,
    backings,
    log: [],
    changes: 0,
    released: [],
    open: (more = {}) => openMade(made, more),
    options: (backings) => optionsOf(made, backings),
    source: (index) => sourceOf(made, `/disk${index}`),
  };
  return made;
}

function sourceOf(made: MadeSet, path: string): BackingSource {
  const found = made.backings.find((backing) => backing.path === path);
  if (found === undefined) throw new Error(`${path} was made`);
  return {
    ...found,
    release: () => {
      made.released.push(path);
      return Promise.resolve();
    },
  };
}

function optionsOf(made: MadeSet, backings: readonly BackingSource[]): CacheSetOptions {
  return {
    cache: made.cache,
    backings,
    clock: new RealClock(),
    random: new SimRandom(3),
    log: (_level, message) => made.log.push(message),
    onVolumesChanged: () => {
      made.changes++;
    },
  };
}

function openMade(made: MadeSet, more: Partial<CacheSetOptions>): Promise<CacheSet> {
  return CacheSet.open({
    ...optionsOf(made, made.backings.map((_, index) => made.source(index))),
    openBacking: (path) => Promise.resolve(sourceOf(made, path)),
    ...more,
    settings: [["writeback_running", "0"], ["sequential_cutoff", "0"], ...more.settings ?? []],
  });
}

export async function write(volume: BlockVolume, at: number, bytes: number, value: number) {
  const from = new Uint8Array(bytes).fill(value);
  if (!volume.tryWrite(at, from)) await volume.write(at, from);
}

/** The values in a range: one when it is all alike. */
export async function valuesIn(volume: BlockVolume, at: number, bytes: number): Promise<number[]> {
  const into = new Uint8Array(bytes);
  if (!volume.tryRead(at, into)) await volume.read(at, into);
  return [...new Set(into)];
}

export async function superblockOf(device: MemoryDevice): Promise<Superblock> {
  const page = new Uint8Array(4096);
  await device.read(8, page);
  return decodeSuperblock(page, device);
}

export function volumeNamed(set: CacheSet, name: string): BlockVolume {
  const found = set.volumes.find((volume) => volume.name === name);
  if (found === undefined) throw new Error(`${name} is a volume`);
  return found;
}
