/**
 * Finds what a journal says after a restart: the newest entry, and all entries it still needs.
 *
 * The first entry of a bucket is at its start, and tells how old the bucket is. So one small read
 * per bucket (at most 256) gives their order, and then only the buckets from the newest down to
 * the one with `last_seq` are read whole. Linux probes a few buckets by a hash and searches by
 * halves, which can miss the newest entry when a bucket in the middle is damaged; the result on
 * an undamaged journal is the same, and here it does not depend on luck.
 *
 * An entry is begun when the one before it is durable, so a power cut leaves nothing intact behind
 * a torn one. Intact newer entries behind the end of the newest bucket, or in the one after it,
 * therefore mean that damage hides what was promised to be durable. Linux goes on without them, and
 * nobody learns that flushed writes are gone; here that is refused.
 *
 * What is remembered per entry is a number and a place; `entries` reads the keys again, so memory
 * does not grow with the journal.
 *
 * Answers to bch_journal_read() and the checks of bch_journal_replay() of Linux's journal.c.
 */
import { assert } from "../base/assert.ts";
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import { keyDiskWords, keyOffset, keyPointers, keySizeSectors } from "../ondisk/bkey.ts";
import { SECTOR_BYTES } from "../device/device.ts";
import { SEQUENCE_MAX } from "../ondisk/layout.ts";
import { JSET, JSET_HEADER_BYTES, JSET_KEY_BYTES, JSET_VERSION } from "../ondisk/jset.ts";
import {
  BucketReader,
  IMPOSSIBLE,
  ImpossibleEntry,
  type JournalPlace,
  type ParsedEntry,
} from "./parse.ts";
import type { JournalStart } from "./writer.ts";

const HEADER_WORDS = JSET_HEADER_BYTES / 4;
/** Warnings kept; a journal has at most 256 buckets, each can have one. */
const WARNINGS_MAX = 300;

/** How far behind the end of the newest bucket entries are looked for: many of the largest. */
const HIDDEN_BYTES_MAX = 1024 * 1024;

/** What the newest entry says besides keys. */
export interface JournalHead {
  readonly seq: number;
  readonly lastSeq: number;
  /** 0: the UUID table has the old 64-byte entries. */
  readonly version: number;
  /** The on-disk words of the key of the UUID table's bucket (16 words, the tail undefined). */
  readonly uuidBucketKey: Uint32Array;
  /** The on-disk words of the key of the root node (16 words, the tail undefined). */
  readonly rootKey: Uint32Array;
  readonly rootLevel: number;
  /** The bucket number of the first prio_set. */
  readonly prioBucket: number;
}

/** An entry to replay: its keys are `words[start, end)`, valid until the next one is asked for. */
export interface ReplayEntry {
  readonly seq: number;
  readonly words: Uint32Array;
  readonly start: number;
  readonly end: number;
}

export interface JournalReplay {
  readonly head: JournalHead;
  /** How a `Journal` goes on from here. */
  readonly start: JournalStart;
  /** How many entries `entries` yields. */
  readonly entryCount: number;
  /** Damage that was passed over, one line each. */
  readonly warnings: readonly string[];
  /** The entries to replay, oldest first; may be run through more than once. */
  entries(): AsyncIterable<ReplayEntry>;
}

export interface ReadJournalOptions {
  /** The superblock's discard flag: entries missing at the beginning were discarded, not lost. */
  readonly discard?: boolean;
}

interface Found {
  readonly seq: number;
  readonly index: number;
  readonly block: number;
  /** What is wrong with its keys. */
  readonly fault: string | undefined;
}

interface Survey {
  readonly found: Map<number, Found>;
  readonly bucketNewestSeq: number[];
  readonly currentIndex: number;
  readonly currentUsedBlocks: number;
  readonly head: JournalHead;
  readonly warnings: string[];
}

/**
 * Reads the journal. Rejects with BcacheError: DeviceIo; BadFormat when there is no entry at all,
 * when one that is needed is missing, when damage hides newer ones, when a key in one cannot be a
 * key, or when the numbers of one with a right checksum cannot be. A damaged entry with nothing
 * intact behind it is passed over, as in Linux, with a warning: so looks what a power cut tore.
 */
export async function readJournal(
  place: JournalPlace,
  options: ReadJournalOptions = {},
): Promise<JournalReplay> {
  const reader = new BucketReader(place);
  const survey = await readBuckets(place, reader);
  const { head, warnings } = survey;
  const where = `${place.device.name}: journal`;
  await refuseHidden(where, place, { reader, survey });
  if (head.version > JSET_VERSION) {
    throw new BcacheError(
      "BadFormat",
      `${where}: entry ${head.seq} has version ${head.version}, expected at most ` +
        `${JSET_VERSION}; use a program that knows it`,
    );
  }
  if (head.seq > SEQUENCE_MAX) {
    throw new BcacheError(
      "BadFormat",
      `${where}: entry ${head.seq} leaves no room for newer ones, expected at most 2^52; ` +
        DAMAGE_ADVICE,
    );
  }
  const needed = [...survey.found.values()].filter((entry) => entry.seq >= head.lastSeq)
    .sort((a, b) => a.seq - b.seq);
  refuseGaps(where, needed, head, options.discard ?? false, warnings);
  for (const entry of needed) {
    if (entry.fault === undefined) continue;
    const offset = entry.block * place.blockSectors;
    throw new BcacheError(
      "BadFormat",
      `${where} bucket ${place.buckets[entry.index]}, offset ${offset} sectors, entry ` +
        `${entry.seq}: ${entry.fault}; ${DAMAGE_ADVICE}`,
    );
  }
  return {
    head,
    warnings,
    entryCount: needed.length,
    start: {
      ring: {
        currentIndex: survey.currentIndex,
        currentUsedBlocks: survey.currentUsedBlocks,
        bucketNewestSeq: survey.bucketNewestSeq,
        lastSeq: head.lastSeq,
      },
      firstSeq: needed[0]!.seq,
      nextSeq: head.seq + 1,
      newest: needed.at(-1)!,
    },
    entries: () => replay(place, needed),
  };
}

async function readBuckets(place: JournalPlace, reader: BucketReader): Promise<Survey> {
  const warnings: string[] = [];
  const warn = (index: number, block: number, detail: string) => {
    if (warnings.length === WARNINGS_MAX) return;
    warnings.push(
      `${place.device.name}: journal bucket ${place.buckets[index]}, offset ` +
        `${block * place.blockSectors} sectors: ${detail}; the rest of the bucket is ignored`,
    );
  };
  const { bucketNewestSeq, impossible } = await firstSeqs(place, reader, warn);
  const order = bucketNewestSeq.map((_, index) => index)
    .filter((index) => bucketNewestSeq[index]! > 0)
    .sort((a, b) => bucketNewestSeq[b]! - bucketNewestSeq[a]!);

  const found = new Map<number, Found>();
  let head: JournalHead | undefined;
  let currentIndex = 0;
  let currentUsedBlocks = 0;
  for (const index of order) {
    const firstSeq = bucketNewestSeq[index]!;
    const end = await reader.read(index, 0, (entry) => {
      const seq = entry.header.sequence;
      bucketNewestSeq[index] = seq;
      if (!found.has(seq)) {
        found.set(seq, { seq, index, block: entry.block, fault: faultOfKeys(entry) });
      }
      if (head === undefined || seq > head.seq) {
        head = headOf(entry);
        currentIndex = index;
      }
      return true;
    });
    if (end.damage !== undefined) warn(index, end.block, end.damage);
    if (index === currentIndex) currentUsedBlocks = end.block;
    // Older buckets hold only what is older than this one's first entry.
    if (head !== undefined && firstSeq <= head.lastSeq) break;
  }
  for (const [index, entry] of impossible) {
    // Of a former round it is nobody's concern; else it may be one that is needed.
    if (!entry.isBefore(head?.lastSeq ?? 0)) throw entry;
    warn(index, 0, `${IMPOSSIBLE}: ${entry.detail}`);
  }
  if (head === undefined) {
    throw new BcacheError(
      "BadFormat",
      `${place.device.name}: no journal entries found in ${place.buckets.length} buckets` +
        `${warnings.length > 0 ? ` (${warnings[0]})` : ""}; the cache cannot be used: ` +
        DAMAGE_ADVICE,
    );
  }
  return { found, bucketNewestSeq, currentIndex, currentUsedBlocks, head, warnings };
}

/** Per bucket the number of its first entry, 0 for none; and those whose first cannot be. */
async function firstSeqs(
  place: JournalPlace,
  reader: BucketReader,
  warn: (index: number, block: number, detail: string) => void,
): Promise<{ bucketNewestSeq: number[]; impossible: Map<number, ImpossibleEntry> }> {
  const bucketNewestSeq: number[] = [];
  const impossible = new Map<number, ImpossibleEntry>();
  for (let index = 0; index < place.buckets.length; index++) {
    try {
      const first = await reader.entryAt(index, 0, true);
      if (typeof first === "string") warn(index, 0, first);
      bucketNewestSeq.push(typeof first === "object" ? first.header.sequence : 0);
    } catch (error) {
      if (!(error instanceof ImpossibleEntry)) throw error;
      impossible.set(index, error);
      bucketNewestSeq.push(0);
    }
  }
  return { bucketNewestSeq, impossible };
}

/**
 * Throws if intact entries newer than the newest that was found lie where the next would be: behind
 * it in its bucket, or in the bucket after it.
 */
async function refuseHidden(
  where: string,
  place: JournalPlace,
  { reader, survey }: { reader: BucketReader; survey: Survey },
): Promise<void> {
  const { head, currentIndex, currentUsedBlocks } = survey;
  const nextIndex = (currentIndex + 1) % place.buckets.length;
  const spots = [{ index: currentIndex, block: currentUsedBlocks }];
  if (nextIndex !== currentIndex) spots.push({ index: nextIndex, block: 0 });
  const blocksMax = Math.ceil(HIDDEN_BYTES_MAX / (place.blockSectors * SECTOR_BYTES));
  for (const { index, block } of spots) {
    const end = Math.min(reader.blocksPerBucket, block + blocksMax);
    for (let at = block; at < end; at++) {
      const entry = await newerAt(reader, { index, block: at }, head.seq);
      if (entry === undefined) continue;
      throw new BcacheError(
        "BadFormat",
        `${where} bucket ${place.buckets[index]}, offset ${block * place.blockSectors} sectors: ` +
          `entry ${head.seq + 1} is damaged, but entry ${entry.header.sequence} behind it is ` +
          `intact: writes that were flushed would be lost; ${DAMAGE_ADVICE}`,
      );
    }
  }
}

/** The intact entry at a block, if it is newer than entry `seq`. */
async function newerAt(
  reader: BucketReader,
  { index, block }: { index: number; block: number },
  seq: number,
): Promise<ParsedEntry | undefined> {
  try {
    const entry = await reader.entryAt(index, block);
    return typeof entry === "object" && entry.header.sequence > seq ? entry : undefined;
  } catch (error) {
    if (error instanceof ImpossibleEntry && error.isBefore(seq + 1)) return undefined;
    throw error;
  }
}

/** Throws if one of the entries that `head` needs is not among `needed`, which are in order. */
function refuseGaps(
  where: string,
  needed: readonly Found[],
  head: JournalHead,
  discard: boolean,
  warnings: string[],
): void {
  let expected = head.lastSeq;
  for (const entry of needed) {
    if (entry.seq !== expected) {
      const message = `${where} entries ${expected}-${entry.seq - 1} missing ` +
        `(replaying ${head.lastSeq}-${head.seq})`;
      // Kernels before 6.18 discarded old buckets before the larger last_seq was on the disk.
      const discarded = discard && expected === head.lastSeq;
      if (!discarded) {
        throw new BcacheError(
          "BadFormat",
          `${message}; ${DAMAGE_ADVICE}`,
        );
      }
      warnings.push(`${message}: discarded`);
    }
    expected = entry.seq + 1;
  }
  assert(expected === head.seq + 1, "the newest journal entry is among those to be replayed");
}

/** So many entries a set may have journaled before its superblock said that it is valid. */
const FIRST_ENTRIES_MAX = 16;

/**
 * The first entry of a bucket that is none of the first entries of a set. In a journal that was
 * never valid, as the superblock says, it tells that the superblock is an old copy: `make` blanks
 * the journal, and the magic is that of this very set.
 */
export async function findLaterEntry(
  place: JournalPlace,
): Promise<{ bucket: number; seq: number } | undefined> {
  const reader = new BucketReader(place);
  for (const [index, bucket] of place.buckets.entries()) {
    const entry = await reader.entryAt(index, 0, true);
    if (typeof entry !== "object" || entry.header.sequence <= FIRST_ENTRIES_MAX) continue;
    return { bucket, seq: entry.header.sequence };
  }
  return undefined;
}

/** What an entry says besides keys. */
export function headOf(entry: ParsedEntry): JournalHead {
  const { header } = entry;
  const words = wordsOf(entry);
  const key = (offset: number) => words.slice(offset / 4, (offset + JSET_KEY_BYTES) / 4);
  return {
    seq: header.sequence,
    lastSeq: header.lastSequence,
    version: header.version,
    uuidBucketKey: key(JSET.uuid_bucket),
    rootKey: key(JSET.btree_root),
    rootLevel: header.btreeLevel,
    prioBucket: header.prioBucket,
  };
}

/** What is wrong with the keys of an entry; nobody has looked at them yet. */
function faultOfKeys(entry: ParsedEntry): string | undefined {
  const words = wordsOf(entry);
  let key = 0;
  for (let at = HEADER_WORDS; at < words.length; at += keyDiskWords(words, at), key++) {
    if (at + 4 > words.length) return `key ${key} is cut off`;
    const pointers = keyPointers(words, at);
    if (pointers > 1) return `key ${key} has ${pointers} pointers, expected at most 1`;
    if (at + keyDiskWords(words, at) > words.length) return `key ${key} is cut off`;
    const offset = keyOffset(words, at);
    const size = keySizeSectors(words, at);
    if (size > offset) return `key ${key} has ${size} sectors that end at sector ${offset}`;
    if (offset > Number.MAX_SAFE_INTEGER) return `key ${key} ends beyond sector 2^53`;
  }
  return undefined;
}

function wordsOf(entry: ParsedEntry): Uint32Array {
  const { bytes } = entry;
  // Blocks are whole sectors, so entries are aligned in the reader's window.
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

async function* replay(
  place: JournalPlace,
  needed: readonly Found[],
): AsyncGenerator<ReplayEntry, void, undefined> {
  const reader = new BucketReader(place);
  for (const { seq, index, block } of needed) {
    const entry = await reader.entryAt(index, block);
    // Checked again: these bytes were read a second time.
    if (typeof entry !== "object" || entry.header.sequence !== seq || faultOfKeys(entry)) {
      throw new BcacheError(
        "DeviceIo",
        `${place.device.name}: journal entry ${seq} in bucket ${place.buckets[index]} read ` +
          `differently the second time: ${typeof entry === "string" ? entry : "another entry"}`,
      );
    }
    const words = wordsOf(entry);
    yield { seq, words, start: HEADER_WORDS, end: words.length };
  }
}
