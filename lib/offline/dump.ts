/**
 * `dump`: what lies in a structure of a cache device, item by item, as far as it can be read.
 * Items are handed over one at a time, so memory does not grow with the device; what cannot be
 * read becomes an item that says so, and of what comes between two items a bounded number is kept.
 * Extents look as in the kernel's debugfs.
 */
import { formatBytes, isoTime } from "../base/units.ts";
import type { KeySet } from "../bset/key_set.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import { BucketReader, type ParsedEntry } from "../journal/parse.ts";
import { headOf } from "../journal/reader.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  pointerDevice,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { decodeLabel } from "../ondisk/label.ts";
import { genAt, prioAt } from "../ondisk/prio_set.ts";
import { showSuperblock, superblockToJson } from "../ondisk/show.ts";
import { SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR } from "../ondisk/superblock.ts";
import { formatUuid } from "../ondisk/uuid.ts";
import { slotKind } from "../ondisk/uuid_table.ts";
import { bucketOf, type CacheImage, openCacheImage, tryRead, wasStarted } from "./cache_image.ts";
import { Findings, findingText, type Report } from "./findings.ts";
import { effectiveLeaves, type IndexView, openIndex, pointerState } from "./index_view.ts";
import { blocksOf, intactEntryAt, rescueJournal } from "./journal_rescue.ts";
import { journalPlace, scanJournal, type ScannedEntry } from "./journal_scan.ts";
import { positionText } from "./node_scan.ts";
import { scanPrioSets } from "./prio_scan.ts";
import { decodeEntryKeys } from "./replay.ts";
import type { VisitedNode } from "./tree_walk.ts";
import { scanUuids } from "./uuid_scan.ts";

export const DUMP_PARTS = [
  "superblock",
  "journal",
  "uuids",
  "priorities",
  "btree",
  "extents",
] as const;
export type DumpPart = (typeof DUMP_PARTS)[number];

export interface DumpItem {
  /** Whole lines, without the last newline. */
  readonly text: string;
  readonly json: unknown;
  /** The item only tells that something cannot be read. */
  readonly unreadable?: boolean;
  /** How many such things it tells of; default 1. */
  readonly places?: number;
}

/** Takes an item; the next one comes when the promise has settled. */
export type Emit = (item: DumpItem) => void | Promise<void>;

/** Dumps one structure. Never rejects for what is on the device. */
export async function dump(device: Device, part: DumpPart, emit: Emit): Promise<void> {
  if (part === "superblock") return await dumpSuperblock(device, emit);
  const problems = new Findings();
  const { report } = problems;
  const tellProblems = async (): Promise<void> => {
    const { kept, omitted } = problems.take();
    for (const finding of kept) {
      const text = findingText(finding);
      await emit({ text: `unreadable: ${text}`, json: { unreadable: finding }, unreadable: true });
    }
    if (omitted === 0) return;
    const text = `unreadable: ... and ${omitted} more`;
    await emit({ text, json: { unreadable: { omitted } }, unreadable: true, places: omitted });
  };
  const tell: Emit = async (item) => {
    await tellProblems();
    await emit(item);
  };
  const image = await openCacheImage(device, report);
  if (image !== undefined && wasStarted(image)) await dumpPart(image, part, { report, emit: tell });
  await tellProblems();
}

interface Sink {
  readonly report: Report;
  readonly emit: Emit;
}

async function dumpPart(
  image: CacheImage,
  part: Exclude<DumpPart, "superblock">,
  sink: Sink,
): Promise<void> {
  switch (part) {
    case "journal":
      return await dumpJournal(image, sink.emit);
    case "uuids":
      return await dumpUuids(image, sink);
    case "priorities":
      return await dumpPriorities(image, sink);
    case "btree":
      return void await openIndex(image, {
        report: sink.report,
        visit: async (node) => await sink.emit(nodeItem(image, node)),
      });
    case "extents":
      return await dumpExtents(image, sink);
  }
}

async function dumpSuperblock(device: Device, emit: Emit): Promise<void> {
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  const failure = await tryRead(device, SUPERBLOCK_SECTOR, page);
  if (failure !== undefined) {
    const text = `unreadable: ${device.name}: superblock: ${failure}`;
    return await emit({ text, json: { unreadable: failure }, unreadable: true });
  }
  const shown = showSuperblock(page, true);
  const isBad = showSuperblock(page).exitCode !== 0;
  const error = shown.error === undefined ? "" : `unreadable: ${shown.error}`;
  const text = `${shown.text}${error}`.trimEnd();
  await emit({ text, json: superblockToJson(page), ...(isBad ? { unreadable: true } : {}) });
}

// The journal

async function dumpJournal(image: CacheImage, emit: Emit): Promise<void> {
  const place = journalPlace(image);
  const reader = new BucketReader(place);
  const seen = placesOf(reader, await scanJournal(image, () => {}));
  const needed = placesOf(reader, await rescueJournal(image, () => {}));
  for (let index = 0; index < place.buckets.length; index++) {
    let newest = 0;
    let sawDamage = false;
    for (let block = 0; block < reader.blocksPerBucket;) {
      const sector = reader.sector(index, block);
      const where = { bucket: place.buckets[index]!, sector };
      if (sector >= image.presentSectors) {
        const unreadable = `the device ends at sector ${image.presentSectors}`;
        const text = `unreadable: bucket ${where.bucket}, sector ${sector}: ${unreadable}`;
        await emit({ text, json: { ...where, unreadable }, unreadable: true });
        break;
      }
      const entry = await intactEntryAt(reader, place, index, block);
      if (typeof entry === "object" && entry.header.sequence > newest) {
        newest = entry.header.sequence;
        const isNeeded = needed.has(sector);
        const hidden = isNeeded && !seen.has(sector);
        block += blocksOf(entry, place);
        await emit(entryItem(image, entry, { ...where, needed: isNeeded, hidden }));
        continue;
      }
      // What follows was written in a former round, or never; unless damage hides entries.
      if (typeof entry !== "string" && !sawDamage) break;
      if (typeof entry === "string") {
        sawDamage = true;
        const text = `unreadable: bucket ${where.bucket}, sector ${sector}: ${entry}`;
        await emit({ text, json: { ...where, unreadable: entry }, unreadable: true });
      }
      block++;
    }
  }
}

/** Where the needed entries of a scan lie, by their sector. */
function placesOf(
  reader: BucketReader,
  scan: { readonly needed: readonly ScannedEntry[] } | undefined,
): Set<number> {
  return new Set(scan?.needed.map(({ index, block }) => reader.sector(index, block)));
}

function entryItem(
  image: CacheImage,
  entry: ParsedEntry,
  more: { bucket: number; sector: number; needed: boolean; hidden: boolean },
): DumpItem {
  const head = headOf(entry);
  const { keys, fault } = decodeEntryKeys(image, entry.bytes);
  const texts = keysOf(keys, keyText);
  const line = `entry ${head.seq}: bucket ${more.bucket}, sector ${more.sector}, ` +
    `${more.needed ? "needed" : "not needed"}${more.hidden ? " but hidden by damage" : ""}, ` +
    `last_seq ${head.lastSeq}, ` +
    `root ${keyText(head.rootKey, 0)} level ${head.rootLevel}, ` +
    `uuids sector ${pointerSector(head.uuidBucketKey, 0)}, priorities bucket ${head.prioBucket}, ` +
    `${keys.count} keys`;
  const problem = fault === undefined ? [] : [`unreadable: ${fault}`];
  const { seq, lastSeq, version, rootLevel, prioBucket } = head;
  return {
    text: [line, ...[...texts, ...problem].map((text) => `  ${text}`)].join("\n"),
    json: {
      seq,
      lastSeq,
      version,
      ...more,
      root: keyJson(head.rootKey, 0),
      rootLevel,
      uuids: keyJson(head.uuidBucketKey, 0),
      prioBucket,
      keys: keysOf(keys, keyJson),
      ...(fault === undefined ? {} : { unreadable: fault }),
    },
    ...(fault === undefined ? {} : { unreadable: true }),
  };
}

function keysOf<T>(keys: KeySet, body: (words: Uint32Array, at: number) => T): T[] {
  return Array.from({ length: keys.count }, (_, index) => body(keys.words, index * SLOT_WORDS));
}

// The UUID table and the priorities

async function dumpUuids(image: CacheImage, { report, emit }: Sink): Promise<void> {
  const scan = await scanJournal(image, report);
  const uuids = scan === undefined ? undefined : await scanUuids(image, scan.head, report);
  for (const [inode, entry] of (uuids?.entries ?? []).entries()) {
    const kind = slotKind(entry);
    if (kind === "free") continue;
    const label = decodeLabel(entry.label);
    const uuid = formatUuid(entry.uuid);
    const { firstRegistered, lastRegistered, invalidated, flags, sectors } = entry;
    const size = kind === "flash-only volume" ? `, ${formatBytes(sectors * SECTOR_BYTES)}` : "";
    const gone = invalidated === 0 ? "" : `, invalidated ${isoTime(invalidated)}`;
    const times = `first registered ${isoTime(firstRegistered)}, last ${isoTime(lastRegistered)}`;
    await emit({
      text: `${inode}: ${uuid} ${kind}${label === "" ? "" : ` ${JSON.stringify(label)}`}, ` +
        `${times}${gone}${size}`,
      json: {
        ...{ inode, uuid, kind, label },
        ...{ firstRegistered, lastRegistered, invalidated, flags, sectors },
      },
    });
  }
}

async function dumpPriorities(image: CacheImage, { report, emit }: Sink): Promise<void> {
  const scan = await scanJournal(image, report);
  if (scan === undefined) return;
  for await (const set of scanPrioSets(image, scan.head.prioBucket, report)) {
    for (let index = 0; index < set.count; index++) {
      const prio = prioAt(set.bytes, index);
      const gen = genAt(set.bytes, index);
      if (prio === 0 && gen === 0) continue;
      const bucket = set.firstBucket + index;
      await emit({ text: `${bucket}: prio ${prio} gen ${gen}`, json: { bucket, prio, gen } });
    }
  }
}

// The b-tree

/** What is unreadable of it the walk has reported. */
function nodeItem(image: CacheImage, { key, level, lower, scanned }: VisitedNode): DumpItem {
  const sector = pointerSector(key, 0);
  const bucket = bucketOf(image, sector);
  const upper = { inode: keyInode(key, 0), offset: keyOffset(key, 0) };
  const blocks = (keySizeSectors(key, 0) * 512) / image.geometry.blockBytes;
  const { sets, usedBlocks, seq, fault } = scanned;
  const keys = scanned.keys.count;
  const gen = pointerGen(key, 0);
  const [from, to] = [positionText(lower), positionText(upper)];
  const problem = fault === undefined ? "" : `; block ${fault.block}: ${fault.what}`;
  return {
    text: `level ${level} bucket ${bucket} sector ${sector} gen ${gen}: behind ${from} up to ` +
      `${to}, ${keys} keys in ${sets} sets, ${usedBlocks} of ${blocks} blocks${problem}`,
    json: {
      ...{ level, bucket, sector, gen, from, to, keys, sets, usedBlocks, blocks, seq },
      ...(fault === undefined ? {} : { fault }),
    },
  };
}

async function dumpExtents(image: CacheImage, { report, emit }: Sink): Promise<void> {
  const index = await openIndex(image, { report });
  if (index === undefined) return;
  for await (const { range, keys } of effectiveLeaves(index)) {
    if (!range.sound) {
      const [from, to] = [positionText(range.lower), positionText(range.upper)];
      const text = `unreadable: extents behind ${from} up to ${to} may be missing or old`;
      await emit({ text, json: { unreadable: { from, to } }, unreadable: true });
    }
    await emitExtents(index, keys, emit);
  }
}

async function emitExtents(index: IndexView, keys: KeySet, emit: Emit): Promise<void> {
  for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
    if (pointerState(index, keys.words, at) !== "good") continue;
    await emit({ text: keyText(keys.words, at), json: keyJson(keys.words, at) });
  }
}

/** A key as plain data; a position beyond what a number holds exactly is `max`. */
function keyJson(words: Uint32Array, at: number): unknown {
  const offset = keyOffset(words, at);
  const exact = Number.isSafeInteger(offset);
  return {
    inode: keyInode(words, at),
    start: exact ? keyStart(words, at) : "max",
    sectors: keySizeSectors(words, at),
    ...(keyPointers(words, at) === 0 ? {} : {
      pointer: {
        device: pointerDevice(words, at),
        sector: pointerSector(words, at),
        gen: pointerGen(words, at),
      },
    }),
    dirty: keyDirty(words, at),
  };
}
