/**
 * Whole devices: a sound set with damage in its metadata, forged so that checksums hold or not,
 * given to the engine and to the offline tools. And images with a sidecar.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { openBacking } from "../../lib/cache/members/open_backing.ts";
import type { Device } from "../../lib/device/device.ts";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { OverlayDevice } from "../../lib/device/overlay.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { dump, DUMP_PARTS } from "../../lib/offline/dump.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import { pointerSector, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { formatBacking } from "../../lib/ondisk/format.ts";
import { JSET, jsetBytes } from "../../lib/ondisk/jset.ts";
import { PRIO_SET } from "../../lib/ondisk/prio_set.ts";
import { JOURNAL_BUCKETS_MAX, sealSuperblock, SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { UUID_ENTRY } from "../../lib/ondisk/uuid_entry.ts";
import { BUCKET_SECTORS, indexOf, patch, resealNode, smallSet } from "../offline/world.ts";
import type { SimRandom } from "../simulation/sim_random.ts";
import { drainMicrotasks, ManualClock } from "../support/manual_clock.ts";
import { type Fields, mutate } from "./mutate.ts";
import { sealFrom8 } from "./ondisk_targets.ts";
import { attemptLater, BoundedDevice, expect, type FuzzTarget } from "./target.ts";

/** A structure on the cache device that can be damaged, and made to look whole again. */
interface Place {
  readonly kind: string;
  readonly sector: number;
  readonly sectors: number;
  readonly fields: Fields;
  reseal(bytes: Uint8Array): void;
}

interface Sample {
  readonly cache: MemoryDevice;
  readonly backing: MemoryDevice;
  readonly places: ReadonlyArray<readonly Place[]>;
}

const BSET: Fields = { csum: 0, magic: 8, seq: 16, version: 24, keys: 28, key: 32, offset: 40 };

function resealSuperblock(page: Uint8Array): void {
  const keys = page[SUPERBLOCK.keys]! + 256 * page[SUPERBLOCK.keys + 1]!;
  if (keys <= JOURNAL_BUCKETS_MAX) sealSuperblock(page);
}

export const SUPERBLOCK_PLACE: Place = {
  kind: "superblock",
  sector: 8,
  sectors: 8,
  fields: SUPERBLOCK,
  reseal: resealSuperblock,
};

function resealJset(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const length = jsetBytes(view.getUint32(JSET.keys, true));
  if (length <= bytes.length) sealFrom8(bytes, length);
}

/** All structures of a sound cache, by kind, as the offline tools find them. */
export async function placesOf(cache: Device): Promise<Place[][]> {
  const { image, journal, tree, uuids } = await indexOf(cache);
  const { bucketSectors, blockBytes } = image.geometry;
  const entries = journal.needed.map(({ index, block }): Place => ({
    kind: "journal",
    sector: journal.place.buckets[index]! * bucketSectors + block,
    sectors: Math.min(4, bucketSectors - block),
    fields: JSET,
    reseal: resealJset,
  }));
  const roots = [journal.head.rootKey.slice(0, SLOT_WORDS)];
  const leaves = tree.leaves.flatMap(({ key }) => key === undefined ? [] : [key]);
  const nodeAt = (key: Uint32Array): Place => ({
    kind: "node",
    sector: pointerSector(key, 0),
    sectors: BUCKET_SECTORS,
    fields: BSET,
    reseal: (bytes) => resealNode(bytes, key, blockBytes),
  });
  const prios: Place = {
    kind: "priorities",
    sector: journal.head.prioBucket * bucketSectors,
    sectors: BUCKET_SECTORS,
    fields: PRIO_SET,
    reseal: (bytes) => sealFrom8(bytes, bytes.length),
  };
  const table: Place = {
    kind: "uuids",
    sector: uuids!.bucket * bucketSectors,
    sectors: 1,
    fields: UUID_ENTRY,
    reseal: () => {},
  };
  return [[SUPERBLOCK_PLACE], entries, roots.map(nodeAt), leaves.map(nodeAt), [prios], [table]];
}

async function sampleOf(end: "close" | "cut", seed: number): Promise<Sample> {
  const { cache, backing } = await smallSet({ writes: 240, reads: 20, seed, end });
  return { cache, backing, places: await placesOf(cache) };
}

async function damage(random: SimRandom, device: Device, place: Place): Promise<void> {
  await patch(device, place.sector, place.sectors, (bytes) => {
    const set = place.kind === "node" ? random.below(3) * 512 : 0;
    const length = random.chance(0.8) ? 256 : bytes.length - set;
    mutate(random, bytes.subarray(set, set + length), place.fields);
    if (random.chance(0.6)) place.reseal(bytes);
  });
}

const LIMITS = { operations: 20_000, bytes: 1 << 28 };

interface Damaged {
  readonly cache: Device;
  readonly backing: Device;
}

/** Turns of the event loop before time moves on, and how often it does, a second each. */
const TURNS = 200;
const SECONDS_MAX = 600;

/** Time stands still unless somebody waits for it; what never ends is a finding. */
async function inTime(clock: ManualClock, work: Promise<void>): Promise<void> {
  let isSettled = false;
  const watched = work.finally(() => {
    isSettled = true;
  });
  watched.catch(() => {}); // Awaited below, if it ends.
  for (let seconds = 0; !isSettled; seconds++) {
    for (let turn = 0; turn < TURNS && !isSettled; turn++) await drainMicrotasks();
    expect(seconds < SECONDS_MAX, "whatever is on the devices, every request comes to an end");
    if (!isSettled) await clock.advance(1000);
  }
  await watched;
}

async function useEngine(
  random: SimRandom,
  clock: ManualClock,
  { cache, backing }: Damaged,
  log: string[],
): Promise<void> {
  const set = await CacheSet.open({
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock,
    random,
    log: (_level, message) => void log.push(message),
    readOnly: random.chance(0.3),
  });
  try {
    for (const volume of set.volumes.slice(0, 3)) {
      const blocks = Math.min(volume.sizeBytes, 16 << 20) / 4096;
      for (let left = 4; left > 0; left--) {
        const at = random.below(blocks) * 4096;
        const bytes = new Uint8Array(Math.min(4096, volume.sizeBytes - at));
        await attemptLater(() => volume.read(at, bytes));
        if (!volume.readOnly) await attemptLater(() => volume.write(at, bytes));
      }
      await attemptLater(() => volume.flush());
    }
    await set.status();
    await set.uuids();
  } finally {
    await set.close();
  }
}

const image: FuzzTarget = {
  name: "image",
  what: "whole cache sets, by engine, `check`, `dump` and `extract`",
  share: 20,
  prepare: async () => {
    const samples = [await sampleOf("close", 1), await sampleOf("cut", 2)];
    return async (random) => {
      const sample = random.pick(samples);
      const changed = new OverlayDevice(sample.cache);
      for (let left = 1 + random.below(2); left > 0; left--) {
        await damage(random, changed, random.pick(random.pick(sample.places)));
      }
      const backing = new OverlayDevice(sample.backing);
      if (random.chance(0.15)) await damage(random, backing, SUPERBLOCK_PLACE);
      const looked = {
        cache: new BoundedDevice(changed, LIMITS),
        backing: new BoundedDevice(backing, LIMITS),
      };
      const report = await checkCache({ cache: looked.cache, backings: [looked.backing] });
      if (random.chance(0.3)) await dump(looked.cache, random.pick(DUMP_PARTS), () => {});
      if (random.chance(0.2)) await extracted(looked, random.chance(0.7));
      const log: string[] = [];
      const failure = await attemptLater(() => {
        const clock = new ManualClock();
        return inTime(clock, useEngine(random, clock, looked, log));
      });
      const bug = log.find((line) => /assert|undefined|null|RangeError|memory/i.test(line));
      expect(bug === undefined, `no bug in the background: ${bug}`);
      const isTold = report.errors > 0 ||
        report.findings.some((each) => each.subject === "backing");
      const isRefused = failure instanceof BcacheError && !isTold;
      expect(!isRefused, `what \`check\` calls clean is served: ${String(failure)}`);
    };
  },
};

async function extracted({ cache, backing }: Damaged, rescue: boolean): Promise<void> {
  await attemptLater(async () => {
    const plan = await planExtract({ cache, of: { backing }, rescue });
    const output = new BoundedDevice(new MemoryDevice(plan.sizeSectors), LIMITS);
    await plan.copyTo(output);
  });
}

/** Counts itself as open until it is closed; what is under it stays open. */
class CountedDevice extends ForwardingDevice {
  readonly filePath = undefined;
  readonly #open: Set<Device>;

  constructor(inner: Device, open: Set<Device>) {
    super(inner);
    this.#open = open;
    open.add(this);
  }

  override close(): Promise<void> {
    expect(this.#open.delete(this), "a device is closed once");
    return Promise.resolve();
  }
}

const sidecar: FuzzTarget = {
  name: "sidecar",
  what: "plain images with a superblock in a file beside them",
  share: 60,
  prepare: async () => {
    const image = new MemoryDevice(256, { name: "plain" });
    const beside = new MemoryDevice(16, { name: "plain.bcache" });
    const page = formatBacking({
      name: "plain",
      sizeSectors: 16 + 256,
      logicalBlockSectors: 1,
      uuid: new Uint8Array(16).fill(2),
      setUuid: new Uint8Array(16).fill(7),
      cacheMode: "writeback",
    });
    await beside.write(8, page);
    return async (random) => {
      const isShort = random.chance(0.1);
      const changed = isShort ? new MemoryDevice(random.below(17)) : new OverlayDevice(beside);
      if (!isShort) await damage(random, changed, SUPERBLOCK_PLACE);
      const opened = new Set<Device>();
      const open = (path: string): Promise<CountedDevice> =>
        Promise.resolve(new CountedDevice(path === "plain" ? image : changed, opened));
      const device = await attemptLater(() => openBacking("plain", open));
      if (device instanceof BcacheError) {
        return expect(opened.size === 0, "nothing stays open behind a refusal");
      }
      expect(device.sizeSectors > 256, "the sidecar is before the image");
      await device.read(device.sizeSectors - 8, new Uint8Array(4096));
      await device.close();
      expect(opened.size === 0, "closed as a whole");
    };
  },
};

export const IMAGE_TARGETS: readonly FuzzTarget[] = [image, sidecar];
