/** The structures of lib/ondisk, each alone: superblock, journal entry, UUID table, prio_set. */
import { BcacheError } from "../../lib/base/errors.ts";
import { formatBacking, formatCache } from "../../lib/ondisk/format.ts";
import { geometryOf } from "../../lib/ondisk/geometry.ts";
import {
  JSET,
  JSET_BYTES_MAX,
  jsetBytes,
  readJsetHeader,
  verifyJset,
} from "../../lib/ondisk/jset.ts";
import { showSuperblock, superblockToJson } from "../../lib/ondisk/show.ts";
import {
  encodeSuperblock,
  incompatibleFeatures,
  JOURNAL_BUCKETS_MAX,
  sealSuperblock,
  SUPERBLOCK,
  type Superblock,
} from "../../lib/ondisk/superblock.ts";
import { decodeSuperblock, verifySuperblock } from "../../lib/ondisk/superblock_verify.ts";
import {
  convertOldUuidTable,
  readUuidEntry,
  UUID_ENTRY,
  UUID_ENTRY_BYTES,
  UUID_FLASH_ONLY,
  uuidEntryLabel,
  writeUuidEntry,
} from "../../lib/ondisk/uuid_entry.ts";
import { crc64 } from "../../lib/base/crc64.ts";
import { BucketTable } from "../../lib/buckets/table.ts";
import { PrioWriter } from "../../lib/buckets/prios.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import {
  PRIO_SET,
  prioAt,
  priosPerSet,
  putPrio,
  readPrioSetHeader,
  sealPrioSet,
  verifyPrioSet,
} from "../../lib/ondisk/prio_set.ts";
import { formatUuid } from "../../lib/ondisk/uuid.ts";
import { mutate } from "./mutate.ts";
import type { SimRandom } from "../simulation/sim_random.ts";
import { attempt, attemptLater, BoundedDevice, expect, type FuzzTarget } from "./target.ts";

/** Writes the checksum over `bytes[8, end)` into the first eight, as most structures have it. */
export function sealFrom8(bytes: Uint8Array, end: number): void {
  const sum = new Uint32Array(2);
  crc64(bytes, 8, end, sum);
  bytes.set(new Uint8Array(sum.buffer), 0);
}

const SIZE_SECTORS = 1 << 20;

function superblockSamples(): Uint8Array[] {
  const common = {
    name: "device",
    sizeSectors: SIZE_SECTORS,
    logicalBlockSectors: 1,
    uuid: new Uint8Array(16).fill(1),
    setUuid: new Uint8Array(16).fill(7),
    label: "label",
  };
  const fresh = formatCache({ ...common, bucketSectors: 128 });
  const started = decodeSuperblock(fresh, common);
  started.journalBucketCount = 64;
  return [
    fresh,
    encodeSuperblock(started),
    formatCache({ ...common, sizeSectors: 2 ** 40, bucketSectors: 65536 }),
    formatBacking(common),
    formatBacking({ ...common, dataOffsetSectors: 64, cacheMode: "writeback" }),
  ];
}

/** What a superblock that was let pass promises to all who compute with it. */
function checkSuperblock(superblock: Superblock, sizeSectors: number): void {
  const { kind, bucketCount, bucketSectors, firstBucket, journalBucketCount } = superblock;
  expect([1, 2, 4, 8].includes(superblock.blockSectors) || kind === "backing", "a block size");
  expect(superblock.dataOffsetSectors < sizeSectors, "data begins on the device");
  if (kind === "backing") return;
  expect(bucketCount * bucketSectors <= sizeSectors, "the buckets lie on the device");
  expect(firstBucket + journalBucketCount <= bucketCount, "the journal lies in the buckets");
  expect(superblock.cacheIndex < superblock.cachesInSet, "a number in the set");
  const geometry = attempt(() => geometryOf(superblock, "device"));
  if (geometry instanceof BcacheError) return;
  expect(geometry.nodeBytes <= 1 << 20 && geometry.metaBytes <= 4 << 20, "bounded structures");
}

const superblock: FuzzTarget = {
  name: "superblock",
  what: "superblocks of caches and backing devices, all versions",
  share: 130,
  prepare: () => {
    const samples = superblockSamples();
    return (random) => {
      const page = random.pick(samples).slice();
      mutate(random, page.subarray(0, random.chance(0.9) ? 0x120 : page.length), SUPERBLOCK);
      const keys = new DataView(page.buffer).getUint16(SUPERBLOCK.keys, true);
      if (random.chance(0.7) && keys <= JOURNAL_BUCKETS_MAX) sealSuperblock(page);
      const sizeSectors = random.pick([SIZE_SECTORS, 2 ** 40, 16, 2 ** 44]);
      const place = { name: "device", sizeSectors, logicalBlockSectors: random.pick([1, 8]) };
      showSuperblock(page);
      showSuperblock(page, true);
      JSON.stringify(superblockToJson(page));
      const fault = verifySuperblock(page, place);
      const decoded = attempt(() => decodeSuperblock(page, place));
      expect((fault === undefined) !== decoded instanceof BcacheError, "one judgement");
      if (decoded instanceof BcacheError) return;
      checkSuperblock(decoded, sizeSectors);
      incompatibleFeatures(decoded);
      const again = decodeSuperblock(encodeSuperblock(decoded), place);
      expect(again.bucketCount === decoded.bucketCount, "what was written is read again");
      expect(formatUuid(again.uuid) === formatUuid(decoded.uuid), "with the same UUID");
      expect(again.flagsHigh === decoded.flagsHigh, "and the same flags");
    };
  },
};

const JSET_MAGIC = { low: 0x2f6b36bd, high: 0x631d0163 };

/** A whole journal entry with random keys, at the start of a buffer of whole sectors. */
export function sampleJset(random: SimRandom, sequence: number, lastSequence: number): Uint8Array {
  const keyWords = 3 * random.below(20);
  const bytes = new Uint8Array(Math.ceil(jsetBytes(keyWords) / 512) * 512);
  const view = new DataView(bytes.buffer);
  view.setUint32(JSET.magic, JSET_MAGIC.low, true);
  view.setUint32(JSET.magic + 4, JSET_MAGIC.high, true);
  view.setBigUint64(JSET.seq, BigInt(sequence), true);
  view.setBigUint64(JSET.last_seq, BigInt(lastSequence), true);
  view.setUint32(JSET.version, 1, true);
  view.setUint32(JSET.keys, keyWords, true);
  for (let at = JSET.prio_bucket + 64; at < jsetBytes(keyWords); at += 24) {
    view.setBigUint64(at, (1n << 63n) | (1n << 60n) | (8n << 20n), true);
    view.setBigUint64(at + 8, BigInt(8 + random.below(1 << 20)), true);
    view.setBigUint64(at + 16, BigInt(random.below(1 << 20)) << 8n, true);
  }
  sealFrom8(bytes, jsetBytes(keyWords));
  return bytes;
}

const jset: FuzzTarget = {
  name: "jset",
  what: "journal entries",
  share: 150,
  prepare: () => (random) => {
    const bytes = sampleJset(random, 7, 5);
    mutate(random, bytes, random.chance(0.8) ? JSET : undefined);
    const keyWords = new DataView(bytes.buffer).getUint32(JSET.keys, true);
    const isWhole = jsetBytes(keyWords) <= bytes.length;
    if (random.chance(0.5) && isWhole) sealFrom8(bytes, jsetBytes(keyWords));
    const leftBytes = random.pick([bytes.length, 8192, JSET_BYTES_MAX, 1 << 20]);
    const given = random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
    const fault = verifyJset(given, leftBytes, JSET_MAGIC);
    if (fault !== undefined) return;
    const header = readJsetHeader(given);
    expect(jsetBytes(header.keyWords) <= given.length, "the keys are there");
    expect(Number.isSafeInteger(header.sequence), "an exact sequence");
    expect(header.lastSequence <= header.sequence, "no need of the future");
  },
};

const uuids: FuzzTarget = {
  name: "uuids",
  what: "the UUID table, old form and new",
  share: 90,
  prepare: () => {
    const sample = new Uint8Array(8 * UUID_ENTRY_BYTES);
    for (let index = 0; index < 5; index++) {
      writeUuidEntry(sample, index, {
        uuid: new Uint8Array(16).fill(index + 1),
        label: new TextEncoder().encode("the label of a device".padEnd(32, "\0")),
        firstRegistered: 1,
        lastRegistered: 2,
        invalidated: index === 2 ? 3 : 0,
        flags: index === 3 ? UUID_FLASH_ONLY : 0,
        sectors: index === 3 ? 4096 : 0,
      });
    }
    return (random) => {
      const table = sample.slice();
      const at = random.below(8) * UUID_ENTRY_BYTES;
      mutate(random, table.subarray(at, at + UUID_ENTRY_BYTES), UUID_ENTRY);
      if (random.chance(0.2)) convertOldUuidTable(table);
      const copy = new Uint8Array(UUID_ENTRY_BYTES);
      for (let index = 0; index < 8; index++) {
        const entry = readUuidEntry(table, index);
        expect(!/\p{Cc}/u.test(uuidEntryLabel(entry)), "a label that can be printed");
        writeUuidEntry(copy, 0, entry);
        const again = readUuidEntry(copy, 0);
        expect(again.sectors === entry.sectors && again.flags === entry.flags, "the same again");
      }
    };
  },
};

const PRIO_MAGIC = { low: 0x87337f91, high: 0x6750e15f };
const PRIO_BUCKETS = 1200;
const PRIO_SECTORS = 8;
const PRIO_META_BYTES = 1024;

/** Priorities of 1200 buckets, a chain of four prio_sets that begins in bucket 20. */
async function prioChain(device: MemoryDevice): Promise<void> {
  const perSet = priosPerSet(PRIO_META_BYTES);
  const count = Math.ceil(PRIO_BUCKETS / perSet);
  for (let set = 0; set < count; set++) {
    const bytes = new Uint8Array(PRIO_META_BYTES);
    for (let index = 0; index < perSet; index++) putPrio(bytes, index, 0x8000, index & 0xff);
    sealPrioSet(bytes, { sequence: 9, nextBucket: 21 + set }, PRIO_MAGIC);
    await device.write((20 + set) * PRIO_SECTORS, bytes);
  }
}

const prioSets: FuzzTarget = {
  name: "prio_set",
  what: "chains of priorities and generations",
  share: 60,
  prepare: async () => {
    const device = new MemoryDevice(PRIO_BUCKETS * PRIO_SECTORS);
    await prioChain(device);
    const table = () =>
      new BucketTable({ bucketCount: PRIO_BUCKETS, bucketSectors: PRIO_SECTORS, firstBucket: 1 });
    return async (random) => {
      const sector = (20 + random.below(4)) * PRIO_SECTORS;
      const sound = new Uint8Array(PRIO_META_BYTES);
      await device.read(sector, sound);
      const bytes = sound.slice();
      mutate(random, random.chance(0.7) ? bytes.subarray(0, 48) : bytes, PRIO_SET);
      if (random.chance(0.6)) sealFrom8(bytes, bytes.length);
      if (verifyPrioSet(bytes, PRIO_MAGIC) === undefined) {
        readPrioSetHeader(bytes);
        prioAt(bytes, 3);
      }
      await device.write(sector, bytes);
      const first = random.chance(0.8) ? 20 : random.below(PRIO_BUCKETS + 10);
      await attemptLater(() =>
        new PrioWriter({
          table: table(),
          device: new BoundedDevice(device, { operations: 10, bytes: 1 << 16 }),
          metaBytes: PRIO_META_BYTES,
          magic: PRIO_MAGIC,
          buckets: NO_BUCKETS,
          commitPrios: () => Promise.resolve(),
        }).read(first)
      );
      await device.write(sector, sound);
    };
  },
};

const NO_BUCKETS = {
  available: () => 0,
  tryTake: () => -1,
  giveBack: () => {},
  release: () => {},
};

export const ONDISK_TARGETS: readonly FuzzTarget[] = [superblock, jset, uuids, prioSets];
