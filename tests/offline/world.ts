/**
 * Small cache sets in memory for the tests of the offline tools: made and filled by the engine,
 * then left as a shutdown or a power cut leaves them. And ways to plant damage in them.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { crc64, crc64Seeded } from "../../lib/base/crc64.ts";
import type { KeySet } from "../../lib/bset/key_set.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { CacheMode } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { type CacheImage, openCacheImage } from "../../lib/offline/cache_image.ts";
import { type Finding, findingText } from "../../lib/offline/findings.ts";
import type { JournalPlace } from "../../lib/journal/parse.ts";
import { type IndexView, openIndex } from "../../lib/offline/index_view.ts";
import { scanNode } from "../../lib/offline/node_scan.ts";
import { keySizeSectors, pointerSector, setOffset, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import {
  BSET_HEADER_BYTES,
  bsetBlocks,
  encodeBset,
  readBsetHeader,
} from "../../lib/ondisk/bset.ts";
import {
  JSET,
  JSET_HEADER_BYTES,
  jsetBytes,
  readJsetHeader,
  sealJset,
} from "../../lib/ondisk/jset.ts";
import { viewOf } from "../../lib/ondisk/layout.ts";
import { magicsOf } from "../../lib/ondisk/magic.ts";
import { encodeSuperblock, sealSuperblock, type Superblock } from "../../lib/ondisk/superblock.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { drainMicrotasks, ManualClock } from "../support/manual_clock.ts";

export const VOLUME_BYTES = 16 << 20;
export const BUCKET_SECTORS = 16;
export const DATA_OFFSET = 16;
const SET_UUID = new Uint8Array(16).fill(7);

export interface SmallSet {
  readonly cache: MemoryDevice;
  readonly backing: MemoryDevice;
  /** What the volume holds. */
  readonly model: Uint8Array;
}

export interface SmallSetOptions {
  readonly writes?: number;
  readonly reads?: number;
  readonly mode?: CacheMode;
  readonly seed?: number;
  /** "cut": everything was flushed, then the power failed. */
  readonly end?: "close" | "cut";
  readonly blockSectors?: number;
}

/** What is dirty stays dirty, and nothing goes past the cache. */
const CACHE_ALL = [["writeback_running", "0"], ["sequential_cutoff", "0"]] as const;

/**
 * Opens a set. Every life of one needs a seed of its own: nodes are told from the remains of older
 * ones by a random number.
 */
export async function openSet(
  { cache, backing }: { cache: Device; backing: Device },
  life: { seed: number; clock?: ManualClock },
): Promise<CacheSet> {
  return await CacheSet.open({
    cache,
    backings: [{ device: backing, path: backing.name }],
    // Time stands still: nothing is slow, and every run makes the same bytes.
    clock: life.clock ?? new ManualClock(),
    random: new SimRandom(life.seed),
    log: () => {},
    settings: CACHE_ALL,
  });
}

/** A set with random small writes in it, so that the index has several levels if there are many. */
export async function smallSet(options: SmallSetOptions = {}): Promise<SmallSet> {
  const { writes = 400, reads = 40, mode = "writeback", seed = 1, end = "close" } = options;
  const cache = new MemoryDevice(1200 * BUCKET_SECTORS, { name: "cache" });
  const backing = new MemoryDevice(DATA_OFFSET + VOLUME_BYTES / 512, { name: "backing" });
  const blockSectors = options.blockSectors ?? 1;
  const common = { setUuid: SET_UUID, blockSectors, bucketSectors: BUCKET_SECTORS };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  await makeBacking(backing, { ...common, uuid: new Uint8Array(16).fill(2), cacheMode: mode });
  const model = new Uint8Array(VOLUME_BYTES);
  const random = new SimRandom(seed);
  const clock = new ManualClock();
  const set = await openSet({ cache, backing }, { seed: 4, clock });
  const volume = set.volumes[0]!;
  const blockBytes = blockSectors * 512;
  const place = () => random.below(VOLUME_BYTES / blockBytes - 16) * blockBytes;
  for (let step = 0; step < writes; step++) {
    const at = place();
    const bytes = new Uint8Array((1 + random.below(8)) * blockBytes).fill(1 + random.below(255));
    await volume.write(at, bytes);
    model.set(bytes, at);
    // The allocator gets its turns: a write that finds no bucket would go past the cache.
    await drainMicrotasks();
  }
  for (let step = 0; step < reads; step++) await volume.read(place(), new Uint8Array(4096));
  await volume.flush();
  if (end === "cut") {
    await set.abandon();
    return { cache, backing, model };
  }
  // Leaves are written when they have been dirty long enough; then the journal lets go of them.
  for (let round = 0; round < 2; round++) {
    await clock.advance(60_000);
    await volume.write(0, model.slice(0, blockBytes));
    await volume.flush();
  }
  await set.close();
  return { cache, backing, model };
}

/** Everything the offline tools find out about a sound set. */
export async function indexOf(cache: Device): Promise<IndexView> {
  const report = (finding: Finding) => {
    throw new Error(findingText(finding));
  };
  const image = await imageOf(cache);
  const index = await openIndex(image, { report });
  if (index === undefined) throw new Error("the set has no index");
  return index;
}

export async function imageOf(cache: Device): Promise<CacheImage> {
  const image = await openCacheImage(cache, () => {});
  if (image === undefined) throw new Error("no superblock");
  return image;
}

/** A copy in memory, to be damaged. */
export async function copyOf(device: MemoryDevice): Promise<MemoryDevice> {
  const copy = new MemoryDevice(device.sizeSectors, { name: device.name });
  const piece = new Uint8Array(65536);
  const blank = new Uint8Array(65536);
  for (let at = 0; at < device.sizeSectors; at += 128) {
    const bytes = piece.subarray(0, Math.min(128, device.sizeSectors - at) * 512);
    await device.read(at, bytes);
    if (Buffer.compare(bytes, blank.subarray(0, bytes.length)) !== 0) await copy.write(at, bytes);
  }
  return copy;
}

/** Changes bytes of a device in place. */
export async function patch(
  device: Device,
  atSector: number,
  sectors: number,
  change: (bytes: Uint8Array) => void,
): Promise<void> {
  const bytes = new Uint8Array(sectors * 512);
  await device.read(atSector, bytes);
  change(bytes);
  await device.write(atSector, bytes);
}

/** Changes what a superblock says. */
export async function changeSuperblock(
  device: Device,
  change: (superblock: Superblock) => void,
): Promise<void> {
  await patch(device, 8, 8, (page) => {
    const superblock = decodeSuperblock(page, device);
    change(superblock);
    page.set(encodeSuperblock(superblock));
  });
}

/** Changes a superblock and gives it a right checksum again. */
export async function patchSuperblock(
  device: Device,
  change: (page: Uint8Array) => void,
): Promise<void> {
  await patch(device, 8, 8, (page) => {
    change(page);
    sealSuperblock(page);
  });
}

export const MAGICS = magicsOf(SET_UUID);

/** Gives every set of a node a right checksum again, as far as its headers lead. */
export function resealNode(bytes: Uint8Array, key: Uint32Array, blockBytes: number): void {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const sum = new Uint32Array(2);
  for (let block = 0; block < bytes.length / blockBytes;) {
    const at = block * blockBytes;
    const header = readBsetHeader(words, at / 4);
    if (header.seqLow !== words[4] || header.seqHigh !== words[5]) return;
    const end = at + BSET_HEADER_BYTES + header.keyWords64 * 8;
    if (end > bytes.length) return;
    crc64Seeded(bytes, at + 8, end, key[4]!, key[5]!, sum);
    words.set(sum, at / 4);
    block += bsetBlocks(header.keyWords64, blockBytes);
  }
}

/** Gives the journal entry at the start of `bytes` a right checksum again. */
export function resealJset(bytes: Uint8Array): void {
  const view = viewOf(bytes);
  const sum = new Uint32Array(2);
  crc64(bytes, 8, jsetBytes(view.getUint32(JSET.keys, true)), sum);
  view.setUint32(JSET.csum, sum[0]!, true);
  view.setUint32(JSET.csum + 4, sum[1]!, true);
}

/** Changes the keys of a node and writes it anew, as one set with a right checksum. */
export async function rewriteNode(
  cache: Device,
  key: Uint32Array,
  level: number,
  change: (keys: KeySet) => void,
): Promise<void> {
  const image = await imageOf(cache);
  await patch(cache, pointerSector(key, 0), keySizeSectors(key, 0), (bytes) => {
    const { keys } = scanNode(image, key, level, bytes);
    const words = new Uint32Array(bytes.buffer);
    const [seqLow, seqHigh] = [words[4]!, words[5]!];
    change(keys);
    bytes.fill(0);
    encodeBset(bytes, {
      identity: {
        magicLow: image.magics.bset.low,
        magicHigh: image.magics.bset.high,
        pointerLow: key[4]!,
        pointerHigh: key[5]!,
      },
      seqLow,
      seqHigh,
      slots: keys.words,
      slotWords: SLOT_WORDS,
      count: keys.count,
    });
  });
}

/** Makes the root a node of `count` children, all of them the first of its leaves. */
export async function plantChildren(cache: Device, count: number): Promise<void> {
  const { journal: { head }, tree } = await indexOf(cache);
  const child = tree.leaves[0]!.key!.slice();
  await rewriteNode(cache, head.rootKey, head.rootLevel, (keys) => {
    keys.clear();
    for (let number = 1; number <= count; number++) {
      setOffset(child, 0, number);
      keys.push(child, 0);
    }
  });
}

/** Where a journal entry begins. */
export function entrySector(
  { buckets, bucketSectors, blockSectors }: JournalPlace,
  { index, block }: { index: number; block: number },
): number {
  return buckets[index]! * bucketSectors + block * blockSectors;
}

/** Changes the newest journal entry and gives it a right checksum. */
export function inNewestEntry(
  cache: Device,
  { journal }: IndexView,
  change: (bytes: Uint8Array) => void,
): Promise<void> {
  const { place, needed } = journal;
  const newest = needed.at(-1)!;
  const left = place.bucketSectors - newest.block * place.blockSectors;
  return patch(cache, entrySector(place, newest), left, (bytes) => {
    const length = JSET_HEADER_BYTES + readJsetHeader(bytes).keyWords * 8;
    const entry = bytes.subarray(0, Math.ceil(length / 512) * 512);
    change(entry);
    sealJset(entry, readJsetHeader(entry), MAGICS.jset);
  });
}

/** The device, but for one sector that cannot be read. */
export function failingAt(device: MemoryDevice, sector: number): Device {
  return new Proxy<Device>(device, {
    get(target, name) {
      if (name === "read") {
        return (at: number, into: Uint8Array) =>
          at <= sector && sector < at + into.length / 512
            ? Promise.reject(new BcacheError("DeviceIo", "planted"))
            : target.read(at, into);
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
