/**
 * What the journal would bring: the keys of all entries that recovery needs, as one set of
 * extents in which later keys win, to be laid over the leaves. Nothing is inserted anywhere.
 * Answers to `bch_journal_replay` of journal.c.
 */
import { keyFault } from "../btree/node_read.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeExtents } from "../bset/merge.ts";
import { BucketReader } from "../journal/parse.ts";
import {
  cutBack,
  cutFront,
  keyDiskWords,
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
import { JSET_HEADER_BYTES } from "../ondisk/jset.ts";
import type { BucketView } from "./bucket_view.ts";
import { bucketOf, type CacheImage } from "./cache_image.ts";
import { DirtFaults } from "./dirt_faults.ts";
import { type Report, RESTORE } from "./findings.ts";
import { intactEntryAt } from "./journal_rescue.ts";
import type { JournalScan, ScannedEntry } from "./journal_scan.ts";
import type { Position } from "./node_scan.ts";

/** More extents than this are not kept: 384 MiB. */
const EXTENTS_MAX = 2 ** 24;

/** A needed entry with its keys: each a slot, valid until the next is asked for. */
export interface EntryKeys {
  readonly entry: ScannedEntry;
  readonly keys: KeySet;
  /** Why keys behind these could not be decoded. */
  readonly fault: string | undefined;
}

/** Every needed entry with its keys, oldest first. */
export async function* journalKeys(
  image: CacheImage,
  scan: JournalScan,
): AsyncGenerator<EntryKeys, void, undefined> {
  const reader = new BucketReader(scan.place);
  const keys = new KeySet(1024);
  for (const entry of scan.needed) {
    keys.clear();
    const parsed = await intactEntryAt(reader, scan.place, entry.index, entry.block);
    const isSame = typeof parsed === "object" && parsed.header.sequence === entry.seq;
    const fault = isSame
      ? decodeKeys(image, parsed.bytes, keys)
      : typeof parsed === "string"
      ? parsed
      : "read differently the second time";
    yield { entry, keys, fault };
  }
}

/** The keys of an entry's bytes, up to the first that cannot be. */
export function decodeEntryKeys(
  image: CacheImage,
  bytes: Uint8Array,
): { keys: KeySet; fault: string | undefined } {
  const keys = new KeySet(64);
  return { fault: decodeKeys(image, bytes, keys), keys };
}

/** Appends the keys of an entry's bytes to `into`; returns what is wrong with the first bad one. */
function decodeKeys(image: CacheImage, bytes: Uint8Array, into: KeySet): string | undefined {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const slot = new Uint32Array(SLOT_WORDS);
  let number = 0;
  for (let at = JSET_HEADER_BYTES / 4; at < words.length; number++) {
    const length = at + 4 <= words.length ? keyDiskWords(words, at) : 4;
    if (at + length > words.length) return `key ${number} is cut off`;
    if (length > SLOT_WORDS) {
      return `key ${number} has ${keyPointers(words, at)} pointers, expected at most 1`;
    }
    slot.fill(0);
    slot.set(words.subarray(at, at + length));
    at += length;
    const why = keyFault(slot, 0, 0, image.geometry);
    if (why !== undefined && why !== "") return `key ${number}, ${keyText(slot, 0)}, ${why}`;
    // Recovery refuses it of a key without size, too.
    if (keyOffset(slot, 0) > Number.MAX_SAFE_INTEGER) {
      return `key ${number} ends beyond sector 2^53`;
    }
    if (why === "") continue;
    into.push(slot, 0);
  }
  return undefined;
}

/** What recovery would put over the leaves. */
export interface Overlay {
  readonly extents: KeySet;
  /** Keys read, and those among them that hold data. */
  readonly keys: number;
  /** Every key of every needed entry is in it. */
  readonly complete: boolean;
}

/** Reads all keys of the journal; takes their generations over. */
export async function readOverlay(
  image: CacheImage,
  scan: JournalScan,
  into: { buckets: BucketView; report: Report },
): Promise<Overlay> {
  const builder = new OverlayBuilder(image.geometry.bucketSectors);
  let complete = scan.complete;
  let count = 0;
  for await (const { entry, keys, fault } of journalKeys(image, scan)) {
    const { index, block, seq } = entry;
    const bucket = scan.place.buckets[index]!;
    const error = (what: string): void =>
      into.report({
        severity: "error",
        subject: "journal",
        device: image.device.name,
        bucket,
        sector: bucket * scan.place.bucketSectors + block * scan.place.blockSectors,
        what,
        advice: RESTORE,
      });
    const dirt = new DirtFaults();
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      dirt.note(keys.words, at);
      builder.add(keys.words, at);
      if (keyPointers(keys.words, at) === 0 || pointerDevice(keys.words, at) !== 0) continue;
      const dataBucket = bucketOf(image, pointerSector(keys.words, at));
      into.buckets.adopt(dataBucket, pointerGen(keys.words, at));
    }
    if (dirt.text !== undefined) error(`entry ${seq}: ${dirt.text}`);
    count += keys.count;
    const tooMany = builder.count > EXTENTS_MAX;
    if (fault === undefined && !tooMany) continue;
    complete = false;
    error(
      tooMany
        ? `more than ${EXTENTS_MAX} extents up to entry ${seq}: too many to be looked at`
        : `entry ${seq}: ${fault}`,
    );
    if (tooMany) break;
  }
  return { extents: builder.finish(), keys: count, complete };
}

/**
 * Collects extents in the order of their insertion. Runs of ascending ones become a set at once;
 * sets are merged with their elder neighbour when they have grown as large as it, so that n keys
 * cost n log n and no more than twice the memory.
 */
class OverlayBuilder {
  /** Oldest first, each less than half as large as the one before. */
  #sets: KeySet[] = [];
  #run = new KeySet(64);
  #bucketSectors: number;

  constructor(bucketSectors: number) {
    this.#bucketSectors = bucketSectors;
  }

  get count(): number {
    return this.#sets.reduce((sum, set) => sum + set.count, this.#run.count);
  }

  add(words: Uint32Array, at: number): void {
    const run = this.#run;
    const last = (run.count - 1) * SLOT_WORDS;
    const ascends = run.count === 0 || isBehind(run.words, last, words, at);
    if (!ascends) this.#close();
    this.#run.push(words, at);
  }

  #close(): void {
    if (this.#run.count === 0) return;
    this.#sets.push(this.#run);
    this.#run = new KeySet(8);
    while (this.#sets.length > 1 && this.#sets.at(-1)!.count * 2 >= this.#sets.at(-2)!.count) {
      this.#mergeLast();
    }
  }

  #mergeLast(): void {
    const newer = this.#sets.pop()!;
    const older = this.#sets.pop()!;
    this.#sets.push(mergeExtents(older, newer, { bucketSectors: this.#bucketSectors }));
  }

  finish(): KeySet {
    this.#close();
    while (this.#sets.length > 1) this.#mergeLast();
    return this.#sets[0] ?? new KeySet(1);
  }
}

/** Whether the extent in slot b begins where the one in slot a ends, or behind. */
function isBehind(a: Uint32Array, aAt: number, b: Uint32Array, bAt: number): boolean {
  const inodes = keyInode(a, aAt) - keyInode(b, bAt);
  return inodes !== 0 ? inodes < 0 : keyOffset(a, aAt) <= keyStart(b, bAt);
}

/** The extents of `overlay` inside a range of keys, cut to it. A copy. */
export function sliceOf(overlay: KeySet, lower: Position, upper: Position): KeySet {
  const slice = new KeySet(16);
  const { words } = overlay;
  let index = overlay.upperBound(lower.inode, lower.offset);
  for (; index < overlay.count; index++) {
    const at = index * SLOT_WORDS;
    const inode = keyInode(words, at);
    if (inode > upper.inode) break;
    if (inode === upper.inode && keyStart(words, at) >= upper.offset) break;
    slice.push(words, at);
    const last = (slice.count - 1) * SLOT_WORDS;
    if (inode === lower.inode) cutFront(slice.words, last, lower.offset);
    if (inode === upper.inode) cutBack(slice.words, last, upper.offset);
    if (keySizeSectors(slice.words, last) === 0) slice.count--;
  }
  return slice;
}
