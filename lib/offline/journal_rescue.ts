/**
 * What a damaged journal still holds. Recovery ends a bucket at the first thing that is no entry;
 * the intact entries behind it were durable all the same, and hold newer keys than anything before
 * them. Here they are looked for block by block, so a damaged entry costs what it said itself and
 * nothing else. What it said stays unknown: a journal put together like this is never complete.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import { SECTOR_BYTES } from "../device/device.ts";
import { BucketReader, type JournalPlace, type ParsedEntry } from "../journal/parse.ts";
import { headOf, type JournalHead } from "../journal/reader.ts";
import {
  JSET,
  JSET_BYTES_MAX,
  JSET_HEADER_BYTES,
  jsetBytes,
  readJsetHeader,
  verifyJset,
} from "../ondisk/jset.ts";
import { viewOf } from "../ondisk/layout.ts";
import { type CacheImage, tryRead } from "./cache_image.ts";
import type { Report } from "./findings.ts";
import {
  ENTRIES_MAX,
  journalPlace,
  type JournalScan,
  scanJournal,
  type ScannedEntry,
} from "./journal_scan.ts";

/**
 * Scans and reports like `scanJournal`. When that finds the journal incomplete, what comes back has
 * all intact entries from the newest one's `last_seq` on, whatever damage lies between them.
 */
export async function rescueJournal(
  image: CacheImage,
  report: Report,
): Promise<JournalScan | undefined> {
  const seen = await scanJournal(image, report);
  if (seen?.complete === true) return seen;
  const place = journalPlace(image);
  const rescue = new Rescue(image, place, seen);
  const first = seen?.needed.at(-1)?.index ?? 0;
  for (let turn = 0; turn < place.buckets.length; turn++) {
    await rescue.readBucket((first + turn) % place.buckets.length, turn);
  }
  const { head } = rescue;
  if (head === undefined) return undefined;
  const needed = [...rescue.found.values()].filter((entry) => entry.seq >= head.lastSeq)
    .sort((a, b) => a.seq - b.seq);
  return { place, head, needed, complete: false };
}

class Rescue {
  head: JournalHead | undefined;
  readonly found: Map<number, ScannedEntry>;
  readonly #image: CacheImage;
  readonly #place: JournalPlace;
  readonly #reader: BucketReader;
  readonly #hadHead: boolean;
  /** Newer entries go on from the bucket before. */
  #goesOn = true;

  constructor(image: CacheImage, place: JournalPlace, seen: JournalScan | undefined) {
    this.#image = image;
    this.#place = place;
    this.#reader = new BucketReader(place);
    this.head = seen?.head;
    this.#hadHead = seen !== undefined;
    this.found = new Map(seen?.needed.map((entry) => [entry.seq, entry]));
  }

  /**
   * Takes a bucket's intact entries. Newer ones than the newest that recovery sees are believed
   * only in its bucket and in those that follow without a break: elsewhere they are from before
   * somebody went on behind damage, and what was written since then counts.
   */
  async readBucket(index: number, turn: number): Promise<void> {
    const newestBefore = this.head?.seq ?? 0;
    const takesNewer = this.#goesOn;
    let newest = 0;
    let isUnreadable = false;
    const blocks = blocksPresent(this.#image, index);
    for (let block = 0; block < blocks;) {
      // A bad sector is asked for again by every large read around it, which takes seconds each.
      const entry = isUnreadable
        ? await entryAlone(this.#place, index, block)
        : await intactEntryAt(this.#reader, this.#place, index, block, () => isUnreadable = true);
      if (typeof entry !== "object" || entry.header.sequence <= newest) {
        block++;
        continue;
      }
      newest = entry.header.sequence;
      block += blocksOf(entry, this.#place);
      if (newest <= newestBefore || takesNewer) this.#take(entry);
    }
    if (this.#hadHead && turn > 0 && newest <= newestBefore) this.#goesOn = false;
  }

  #take(entry: ParsedEntry): void {
    const { sequence: seq, lastSequence: lastSeq } = entry.header;
    const { index, block } = entry;
    if (this.found.has(seq) || this.found.size >= ENTRIES_MAX) return;
    this.found.set(seq, { seq, lastSeq, index, block });
    if (this.head === undefined || seq > this.head.seq) this.head = headOf(entry);
  }
}

/** The blocks of a journal bucket that begin before the device's end: fewer if it was cut short. */
export function blocksPresent(image: CacheImage, index: number): number {
  const { bucketSectors, blockSectors } = image.geometry;
  const left = image.presentSectors - (image.superblock.firstBucket + index) * bucketSectors;
  return Math.ceil(Math.max(0, Math.min(left, bucketSectors)) / blockSectors);
}

/** How many blocks an entry takes. */
export function blocksOf(entry: ParsedEntry, place: JournalPlace): number {
  return Math.ceil(jsetBytes(entry.header.keyWords) / (place.blockSectors * SECTOR_BYTES));
}

/**
 * The entry at a block, like `BucketReader.entryAt`, but sectors near it that cannot be read do not
 * matter: if the large read fails, only what the entry itself takes is read. A string says why
 * there is none; `onUnreadable` is called when the large read failed.
 */
export async function intactEntryAt(
  reader: BucketReader,
  place: JournalPlace,
  index: number,
  block: number,
  onUnreadable?: () => void,
): Promise<ParsedEntry | string | undefined> {
  try {
    return await reader.entryAt(index, block);
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    onUnreadable?.();
    return await entryAlone(place, index, block) ?? messageOf(error);
  }
}

async function entryAlone(
  place: JournalPlace,
  index: number,
  block: number,
): Promise<ParsedEntry | undefined> {
  const { device, bucketSectors, blockSectors } = place;
  const sector = place.buckets[index]! * bucketSectors + block * blockSectors;
  const first = new Uint8Array(SECTOR_BYTES);
  if (await tryRead(device, sector, first) !== undefined) return undefined;
  const view = viewOf(first);
  const isEntry = view.getUint32(JSET.magic, true) === place.magic.low &&
    view.getUint32(JSET.magic + 4, true) === place.magic.high;
  const length = jsetBytes(view.getUint32(JSET.keys, true));
  const leftBytes = (bucketSectors - block * blockSectors) * SECTOR_BYTES;
  if (!isEntry || length < JSET_HEADER_BYTES || length > Math.min(leftBytes, JSET_BYTES_MAX)) {
    return undefined;
  }
  const bytes = new Uint8Array(Math.ceil(length / SECTOR_BYTES) * SECTOR_BYTES);
  if (await tryRead(device, sector, bytes) !== undefined) return undefined;
  if (verifyJset(bytes, leftBytes, place.magic) !== undefined) return undefined;
  const header = readJsetHeader(bytes);
  return { header, bytes: bytes.subarray(0, length), index, block };
}
