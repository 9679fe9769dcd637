/**
 * A cache whose superblock is lost, for a rescue: its geometry, found by its journal. Journal
 * entries carry the first half of the set's UUID in their magic and begin on the second bucket (the
 * first bucket behind 12 KiB), so every bucket size is tried; the right one is that by which the
 * newest entry's priorities, or its root, lie where it says and are whole. Answers to nothing in
 * the kernel, which needs the superblock.
 */
import { formatSize } from "../base/units.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import { keySizeSectors, pointerSector } from "../ondisk/bkey.ts";
import { type Geometry, geometryOf, newJournalBucketCount } from "../ondisk/geometry.ts";
import { JSET, JSET_BYTES_MAX, verifyJset } from "../ondisk/jset.ts";
import { viewOf } from "../ondisk/layout.ts";
import { magicsOf } from "../ondisk/magic.ts";
import { verifyPrioSet } from "../ondisk/prio_set.ts";
import {
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
  VERSION,
} from "../ondisk/superblock.ts";
import { verifySuperblock } from "../ondisk/superblock_verify.ts";
import { formatUuid, isZeroUuid, UUID_BYTES } from "../ondisk/uuid.ts";
import { type CacheImage, isBucket, tryRead } from "./cache_image.ts";
import type { Report } from "./findings.ts";
import { openIndex } from "./index_view.ts";
import { type JournalScan, scanJournal } from "./journal_scan.ts";
import { scanNode } from "./node_scan.ts";

/** From 4 KiB to 1 GiB, as `make` takes them. */
const BUCKET_SECTORS = Array.from({ length: 19 }, (_, power) => 8 * 2 ** power);
const BUCKETS_MIN = 513;
const BUCKETS_MAX = 2 ** 26;
const BLOCK_SECTORS = [8, 4, 2, 1] as const;

/**
 * The cache on `device`, if it has no superblock that could be decoded and its journal tells where
 * everything is. `setUuid` is what a backing device says; without it the journal's magic does.
 * The device must be as long as it was made.
 */
export async function findByJournal(
  device: Device,
  setUuid: Uint8Array | undefined,
  report: Report,
): Promise<CacheImage | undefined> {
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await tryRead(device, SUPERBLOCK_SECTOR, page);
  const { name, logicalBlockSectors } = device;
  const anyLength = { name, logicalBlockSectors, sizeSectors: Infinity };
  if (verifySuperblock(page, anyLength) === undefined) return undefined;
  const known = setUuid === undefined || isZeroUuid(setUuid) ? undefined : setUuid;
  const candidates: Candidate[] = [];
  for (const bucketSectors of BUCKET_SECTORS) {
    for (const uuid of await setsAt(device, bucketSectors, known)) {
      candidates.push(...await candidatesOf(device, bucketSectors, uuid));
    }
  }
  const best = await bestOf(candidates, report);
  if (best === undefined) return undefined;
  const { geometry, superblock } = best.image;
  const sizes = [geometry.bucketBytes, geometry.blockBytes].map((bytes) => formatSize(bytes));
  report({
    severity: "warning",
    subject: "superblock",
    device: name,
    what: `taken from the journal instead: buckets of ${sizes[0]}, blocks of ${sizes[1]}, set ` +
      `${formatUuid(superblock.setUuid).slice(0, 18)}-...`,
    advice: "look closely at what is rescued",
  });
  return best.image;
}

interface Candidate {
  readonly image: CacheImage;
  readonly journal: JournalScan;
}

/** The sets of which an intact entry begins one of the buckets where the journal would be. */
async function setsAt(
  device: Device,
  bucketSectors: number,
  known: Uint8Array | undefined,
): Promise<Uint8Array[]> {
  const bucketCount = Math.floor(device.sizeSectors / bucketSectors);
  if (bucketCount < BUCKETS_MIN || bucketCount > BUCKETS_MAX) return [];
  const sets = new Map<string, Uint8Array>();
  const first = firstBucketOf(bucketSectors);
  const bytes = new Uint8Array(Math.min(JSET_BYTES_MAX, bucketSectors * SECTOR_BYTES));
  for (let index = 0; index < newJournalBucketCount(bucketCount); index++) {
    const sector = (first + index) * bucketSectors;
    const head = bytes.subarray(0, SECTOR_BYTES);
    if (await tryRead(device, sector, head) !== undefined) continue;
    const uuid = known ?? setOfEntry(head);
    const { jset } = magicsOf(uuid);
    const why = verifyJset(head, bytes.length, jset);
    if (why !== undefined && why.reason !== "incomplete") continue;
    if (why !== undefined && await tryRead(device, sector, bytes) !== undefined) continue;
    if (verifyJset(why === undefined ? head : bytes, bytes.length, jset) !== undefined) continue;
    sets.set(formatUuid(uuid), uuid.slice());
  }
  return [...sets.values()];
}

/** make-bcache leaves 12 KiB before it. */
function firstBucketOf(bucketSectors: number): number {
  return Math.floor(23 / bucketSectors) + 1;
}

/** A UUID that gives the magic of what may be a journal entry: its second half is not known. */
function setOfEntry(bytes: Uint8Array): Uint8Array {
  const uuid = new Uint8Array(UUID_BYTES);
  const view = viewOf(bytes);
  const { low, high } = magicsOf(uuid).jset;
  viewOf(uuid).setUint32(0, (view.getUint32(JSET.magic, true) ^ low) >>> 0, true);
  viewOf(uuid).setUint32(4, (view.getUint32(JSET.magic + 4, true) ^ high) >>> 0, true);
  return uuid;
}

/** The cache with these buckets, once for each block size that its newest entry bears out. */
async function candidatesOf(
  device: Device,
  bucketSectors: number,
  setUuid: Uint8Array,
): Promise<Candidate[]> {
  const found: Candidate[] = [];
  for (const blockSectors of BLOCK_SECTORS) {
    if (blockSectors < device.logicalBlockSectors) continue;
    const superblock = superblockOf(device, { bucketSectors, blockSectors, setUuid });
    const geometry = geometryOf(superblock, device.name);
    const magics = magicsOf(setUuid);
    const presentSectors = device.sizeSectors;
    const image = { device, presentSectors, superblock, geometry, magics };
    const journal = await scanJournal(image, () => {});
    if (journal !== undefined && await isBornOut(image, journal)) found.push({ image, journal });
  }
  return found;
}

function superblockOf(
  device: Device,
  of: { bucketSectors: number; blockSectors: number; setUuid: Uint8Array },
): Superblock {
  const bucketCount = Math.floor(device.sizeSectors / of.bucketSectors);
  return {
    ...of,
    kind: "cache",
    version: VERSION.cacheWithUuids,
    uuid: new Uint8Array(UUID_BYTES),
    label: new Uint8Array(32),
    flagsLow: 1, // It ran: there is a journal.
    flagsHigh: 0,
    sequence: 0,
    lastMountSeconds: 0,
    bucketCount,
    dataOffsetSectors: 0,
    cachesInSet: 1,
    cacheIndex: 0,
    firstBucket: firstBucketOf(of.bucketSectors),
    journalBucketCount: newJournalBucketCount(bucketCount),
    mustBeReadOnly: false,
    page: new Uint8Array(SUPERBLOCK_BYTES),
  };
}

/** Whether the priorities, or the root, are where the newest entry says, and have this size. */
async function isBornOut(image: CacheImage, { head }: JournalScan): Promise<boolean> {
  const { device, geometry, magics } = image;
  if (isBucket(image, head.prioBucket)) {
    const bytes = new Uint8Array(geometry.metaBytes);
    const failure = await tryRead(device, head.prioBucket * geometry.bucketSectors, bytes);
    if (failure === undefined && verifyPrioSet(bytes, magics.prioSet) === undefined) return true;
  }
  return await isRootAt(image, geometry, head.rootKey, head.rootLevel);
}

async function isRootAt(
  { device, ...image }: CacheImage,
  { nodeBytes, nodeSectors, bucketSectors }: Geometry,
  key: Uint32Array,
  level: number,
): Promise<boolean> {
  const sector = pointerSector(key, 0);
  if (keySizeSectors(key, 0) !== nodeSectors || sector % bucketSectors !== 0) return false;
  const bytes = new Uint8Array(nodeBytes);
  if (await tryRead(device, sector, bytes) !== undefined) return false;
  return scanNode({ device, ...image }, key, level, bytes).sets > 0;
}

/**
 * Of several that are borne out the one that knows the newest entry, then the most keys: by a wrong
 * block size only the first sets of nodes are found, and nothing says that others are missing.
 */
async function bestOf(
  candidates: readonly Candidate[],
  report: Report,
): Promise<Candidate | undefined> {
  const sets = new Set(candidates.map(({ image }) => formatUuid(image.superblock.setUuid)));
  if (sets.size > 1) {
    report({
      severity: "error",
      subject: "superblock",
      device: candidates[0]!.image.device.name,
      what: "there are journals of several sets, of which all but one are older",
      advice: "name a backing device of the set with --backing: it says which one",
    });
    return undefined;
  }
  const newest = Math.max(...candidates.map(({ journal }) => journal.head.seq));
  let best: { candidate: Candidate; keys: number; errors: number } | undefined;
  for (const candidate of candidates) {
    if (candidate.journal.head.seq < newest) continue;
    let errors = 0;
    const index = await openIndex(candidate.image, { report: () => void errors++ });
    const keys = index?.tree.keysOnDisk ?? 0;
    const isBetter = best === undefined || keys > best.keys ||
      (keys === best.keys && errors < best.errors);
    if (isBetter) best = { candidate, keys, errors };
  }
  return best?.candidate;
}
