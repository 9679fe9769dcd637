/** The index and the journal: nodes of the b-tree, keys, journals of several buckets. */
import { BcacheError } from "../../lib/base/errors.ts";
import { decodeNode, keyFault, newNode } from "../../lib/btree/node_read.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { readJournal } from "../../lib/journal/reader.ts";
import { journalPlace, scanJournal } from "../../lib/offline/journal_scan.ts";
import { scanNode } from "../../lib/offline/node_scan.ts";
import { decodeEntryKeys } from "../../lib/offline/replay.ts";
import {
  cutBack,
  cutFront,
  keyDiskWords,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  setKey,
  setMaxKey,
  setPointer,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { encodeBset } from "../../lib/ondisk/bset.ts";
import { formatCache } from "../../lib/ondisk/format.ts";
import { geometryOf } from "../../lib/ondisk/geometry.ts";
import { JSET, jsetBytes } from "../../lib/ondisk/jset.ts";
import { magicsOf } from "../../lib/ondisk/magic.ts";
import { encodeSuperblock, setDiscardsBuckets } from "../../lib/ondisk/superblock.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import type { CacheImage } from "../../lib/offline/cache_image.ts";
import { resealNode } from "../offline/world.ts";
import type { SimRandom } from "../simulation/sim_random.ts";
import { mutate } from "./mutate.ts";
import { sampleJset, sealFrom8 } from "./ondisk_targets.ts";
import { attempt, attemptLater, BoundedDevice, expect, type FuzzTarget } from "./target.ts";

const BUCKET_SECTORS = 16;
const BUCKETS = 600;
const BLOCK_BYTES = 512;
const SET_UUID = new Uint8Array(16).fill(7);

/** A cache device with a superblock and a journal of `journalBuckets`, and nothing else. */
function emptyImage(journalBuckets: number): CacheImage & { readonly device: MemoryDevice } {
  const device = new MemoryDevice(BUCKETS * BUCKET_SECTORS, { name: "cache" });
  const page = formatCache({
    name: device.name,
    sizeSectors: device.sizeSectors,
    logicalBlockSectors: 1,
    uuid: new Uint8Array(16).fill(1),
    setUuid: SET_UUID,
    blockSectors: 1,
    bucketSectors: BUCKET_SECTORS,
  });
  const superblock = decodeSuperblock(page, device);
  superblock.journalBucketCount = journalBuckets;
  encodeSuperblock(superblock);
  const geometry = geometryOf(superblock, device.name);
  const presentSectors = device.sizeSectors;
  return { device, presentSectors, superblock, geometry, magics: magicsOf(SET_UUID) };
}

/** A key of a leaf or, above, of a node; in order when `place` grows. */
function someKey(random: SimRandom, words: Uint32Array, level: number, place: number): void {
  const sizeSectors = level === 0 ? 1 + random.below(8) : BUCKET_SECTORS;
  setKey(words, 0, {
    inode: 0,
    offset: place * 8 + (level === 0 ? sizeSectors : 8),
    sizeSectors,
    dirty: level === 0 && random.chance(0.5),
    ...(level === 0 && random.chance(0.2) ? {} : {
      pointer: { sector: (1 + random.below(BUCKETS - 1)) * BUCKET_SECTORS, gen: random.below(256) },
    }),
  });
}

/** The bytes of a node with one to four sets, and the key that points to it. */
function sampleNode(random: SimRandom, level: number): { bytes: Uint8Array; key: Uint32Array } {
  const { bset } = magicsOf(SET_UUID);
  const key = new Uint32Array(SLOT_WORDS);
  setMaxKey(key, 0, BUCKET_SECTORS);
  setPointer(key, 0, 40 * BUCKET_SECTORS, 3);
  const identity = {
    magicLow: bset.low,
    magicHigh: bset.high,
    pointerLow: key[4]!,
    pointerHigh: key[5]!,
  };
  const bytes = new Uint8Array(BUCKET_SECTORS * 512);
  let at = 0;
  for (let set = 1 + random.below(4); set > 0; set--) {
    const count = 1 + random.below(12);
    const slots = new Uint32Array(count * SLOT_WORDS);
    for (let index = 0, place = random.below(50); index < count; index++) {
      someKey(random, slots.subarray(index * SLOT_WORDS), level, place += 1 + random.below(3));
    }
    const common = { identity, seqLow: 77, seqHigh: 1, slots, slotWords: SLOT_WORDS, count };
    const room = new Uint8Array(2048);
    const used = encodeBset(room, common);
    bytes.set(room.subarray(0, used), at);
    at += Math.ceil(used / BLOCK_BYTES) * BLOCK_BYTES;
  }
  return { bytes, key };
}

const BSET = { csum: 0, magic: 8, seq: 16, version: 24, keys: 28, key: 32, offset: 40, ptr: 48 };

const node: FuzzTarget = {
  name: "node",
  what: "nodes of the b-tree, by the engine and by `check`, which must agree",
  share: 200,
  prepare: () => {
    const image = emptyImage(4);
    const { geometry, magics } = image;
    return (random) => {
      const level = random.pick([0, 0, 1]);
      const { bytes, key } = sampleNode(random, level);
      const set = random.below(8) * BLOCK_BYTES;
      mutate(random, bytes.subarray(set, set + random.pick([64, 512, 1024])), BSET);
      if (random.chance(0.6)) resealNode(bytes, key, BLOCK_BYTES);
      const scanned = scanNode(image, key, level, bytes);
      const read = newNode({ key, at: 0, level }, geometry);
      const failure = attempt(() => decodeNode(read, bytes, { geometry, magic: magics.bset }));
      if (scanned.fault !== undefined || scanned.dirtFault !== undefined) {
        return expect(failure instanceof BcacheError, "what `check` reports the engine refuses");
      }
      if (failure instanceof BcacheError) {
        return expect(failure.message.includes("short btree key"), "the engine refuses no more");
      }
      expect(read.base.count === scanned.keys.count, "both find the same keys");
      checkSorted(read.base.words, read.base.count, level);
    };
  },
};

/** Merged keys do not overlap, and lie in order. */
function checkSorted(words: Uint32Array, count: number, level: number): void {
  for (let at = SLOT_WORDS; at < count * SLOT_WORDS; at += SLOT_WORDS) {
    if ((words[at]! & 0xf_ffff) !== (words[at - SLOT_WORDS]! & 0xf_ffff)) continue;
    const from = level === 0 ? keyStart(words, at) : keyOffset(words, at);
    expect(from >= keyOffset(words, at - SLOT_WORDS), "merged keys lie in order");
  }
}

const keys: FuzzTarget = {
  name: "keys",
  what: "keys, and the arithmetic on them",
  share: 150,
  prepare: () => {
    const image = emptyImage(4);
    const words = new Uint32Array(4 * SLOT_WORDS);
    const bytes = new Uint8Array(words.buffer);
    return (random) => {
      words.fill(0);
      for (let index = 0; index < 3; index++) {
        someKey(random, words.subarray(index * SLOT_WORDS), random.below(2), random.below(1000));
      }
      mutate(random, bytes, BSET);
      const entry = new Uint8Array(jsetBytes(0) + bytes.length);
      entry.set(bytes, jsetBytes(0));
      decodeEntryKeys(image, entry);
      for (let at = 0; at + SLOT_WORDS <= words.length; at += SLOT_WORDS) {
        keyText(words, at);
        expect(keyDiskWords(words, at) <= 18, "a key has an end");
        keyFault(words, at, 1, image.geometry);
        const fault = keyFault(words, at, 0, image.geometry);
        if (fault !== undefined || keyPointers(words, at) > 1) continue;
        checkCuts(random, words, at);
      }
    };
  },
};

/** Cutting a key that may stand in a leaf leaves a part of it. */
function checkCuts(random: SimRandom, words: Uint32Array, at: number): void {
  const slot = words.slice(at, at + SLOT_WORDS);
  const [start, end] = [keyStart(slot, 0), keyOffset(slot, 0)];
  if (!Number.isSafeInteger(end) || keySizeSectors(slot, 0) === 0) return;
  const front = start + random.below(keySizeSectors(slot, 0));
  cutFront(slot, 0, front);
  expect(keyStart(slot, 0) === front && keyOffset(slot, 0) === end, "the front is cut");
  cutBack(slot, 0, front + 1);
  expect(keyStart(slot, 0) === front && keySizeSectors(slot, 0) === 1, "the back is cut");
}

const JOURNAL_BUCKETS = 4;
/** The superblock's own sectors take two buckets of 16. */
const FIRST_BUCKET = 2;
/** Twice every sector of the journal and of one window a bucket is more than a reader needs. */
const JOURNAL_LIMITS = { operations: 2000, bytes: 4 << 20 };

/** Entries one after the other over all buckets, the newest somewhere in the middle of one. */
async function fillJournal(random: SimRandom, device: MemoryDevice): Promise<number[]> {
  const sectors: number[] = [];
  const first = random.below(JOURNAL_BUCKETS);
  let seq = 100;
  const lastSeq = seq + random.below(8);
  for (let round = 0; round < JOURNAL_BUCKETS; round++) {
    const bucket = FIRST_BUCKET + (first + round) % JOURNAL_BUCKETS;
    const isLast = round === JOURNAL_BUCKETS - 1;
    for (let at = 0; at < BUCKET_SECTORS - 2;) {
      if (isLast && random.chance(0.2)) return sectors;
      const bytes = sampleJset(random, seq, Math.min(seq, lastSeq));
      await device.write(bucket * BUCKET_SECTORS + at, bytes);
      sectors.push(bucket * BUCKET_SECTORS + at);
      at += bytes.length / 512;
      seq++;
    }
  }
  return sectors;
}

const journal: FuzzTarget = {
  name: "journal",
  what: "journals of several buckets, by the engine and by `check`",
  share: 45,
  prepare: () => {
    const image = emptyImage(JOURNAL_BUCKETS);
    // The magic that sampleJset writes.
    const magic = { low: 0x2f6b36bd, high: 0x631d0163 };
    const seen = { ...image, magics: { ...image.magics, jset: magic } };
    const place = journalPlace(seen);
    return async (random) => {
      await image.device.zero(FIRST_BUCKET * BUCKET_SECTORS, JOURNAL_BUCKETS * BUCKET_SECTORS);
      const sectors = await fillJournal(random, image.device);
      for (let left = 1 + random.below(2); left > 0; left--) {
        await damageEntry(random, image.device, random.pick(sectors));
      }
      const device = new BoundedDevice(image.device, JOURNAL_LIMITS);
      const discard = random.chance(0.2);
      setDiscardsBuckets(seen.superblock, discard);
      let isLost = false;
      await scanJournal({ ...seen, device }, ({ severity, what }) => {
        // Only a forger writes one that needs what was given up; it is all there.
        if (severity === "error" && !what.includes("needs older")) isLost = true;
      });
      const failure = await attemptLater(() => replayAll({ ...place, device }, discard));
      expect(!isLost || failure instanceof BcacheError, "what is lost is not replayed over");
    };
  },
};

async function damageEntry(random: SimRandom, device: MemoryDevice, sector: number) {
  const bytes = new Uint8Array(2 * 512);
  await device.read(sector, bytes);
  mutate(random, bytes, random.chance(0.7) ? JSET : undefined);
  const length = jsetBytes(new DataView(bytes.buffer).getUint32(JSET.keys, true));
  if (random.chance(0.6) && length <= bytes.length) sealFrom8(bytes, length);
  await device.write(sector, bytes.subarray(0, random.chance(0.7) ? 512 : 1024));
}

async function replayAll(
  place: Parameters<typeof readJournal>[0],
  discard: boolean,
): Promise<void> {
  const replay = await readJournal(place, { discard });
  let expected = replay.entryCount;
  for await (const { words, start, end } of replay.entries()) {
    for (let at = start; at < end; at += keyDiskWords(words, at)) {
      expect(keyPointers(words, at) <= 1, "keys that fit a slot");
    }
    expected--;
  }
  expect(expected === 0, "as many entries as were promised");
}

export const INDEX_TARGETS: readonly FuzzTarget[] = [node, keys, journal];
