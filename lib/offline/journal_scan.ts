/**
 * Looks through the journal for all that recovery would use, and for what it would pass over in
 * silence: an entry that is damaged hides those behind it in its bucket. Unlike recovery
 * (lib/journal/reader.ts) this goes on behind damage and reports it.
 *
 * Needed are the entries from the newest one's `last_seq` on. What is not needed may be anything.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import {
  BucketReader,
  IMPOSSIBLE,
  ImpossibleEntry,
  type JournalPlace,
  type ParsedEntry,
} from "../journal/parse.ts";
import { headOf, type JournalHead } from "../journal/reader.ts";
import { JSET, JSET_VERSION, verifyJset } from "../ondisk/jset.ts";
import { readU64, SEQUENCE_MAX, viewOf } from "../ondisk/layout.ts";
import { discardsBuckets } from "../ondisk/superblock.ts";
import { type CacheImage, tryRead } from "./cache_image.ts";
import { type Report, RESTORE } from "./findings.ts";

/** More entries than this are never open at a time; Linux has room for 32767. */
export const ENTRIES_MAX = 65536;
/** How far behind damage is searched for entries that it hides. */
const HIDDEN_BYTES_MAX = 32 * 1024 * 1024;

/** The damage of a bucket of which it was told already that it cannot be read. */
const UNREADABLE = "unreadable";

/** An entry's number and place. */
export interface ScannedEntry {
  readonly seq: number;
  readonly lastSeq: number;
  readonly index: number;
  readonly block: number;
}

export interface JournalScan {
  readonly place: JournalPlace;
  readonly head: JournalHead;
  /** What recovery needs, as far as it was found, oldest first. */
  readonly needed: readonly ScannedEntry[];
  /** Every entry that is needed was found, as far as can be told, and all could be read. */
  readonly complete: boolean;
}

export function journalPlace(image: CacheImage): JournalPlace {
  const { geometry, superblock } = image;
  return {
    device: image.device,
    magic: image.magics.jset,
    bucketSectors: geometry.bucketSectors,
    blockSectors: geometry.blockSectors,
    buckets: Array.from(
      { length: superblock.journalBucketCount },
      (_, index) => superblock.firstBucket + index,
    ),
  };
}

/** What one bucket holds from its start on. */
interface BucketScan {
  newestSeq: number;
  /** Where its entries end, and what is there instead of the next. */
  endBlock: number;
  damage: string | undefined;
  /** What is there has a right checksum, but its numbers cannot be. */
  isWhole?: boolean;
}

/** What lies behind the place where recovery ends. */
interface Hidden {
  /** Numbers of intact entries, in order. */
  readonly seqs: number[];
  /** The first whose checksum is right and whose numbers cannot be. */
  impossible: { block: number; detail: string } | undefined;
}

class Scanner {
  readonly place: JournalPlace;
  readonly found: Map<number, ScannedEntry> = new Map();
  readonly buckets: Map<number, BucketScan> = new Map();
  head: JournalHead | undefined;
  headIndex = 0;
  /** Something could not be read, or cannot be: newer entries may be there. */
  isUnreadable = false;
  #reader: BucketReader;
  #image: CacheImage;
  #report: Report;
  #impossibleFirst: Array<[index: number, entry: ImpossibleEntry]> = [];

  constructor(image: CacheImage, report: Report) {
    this.#image = image;
    this.#report = report;
    this.place = journalPlace(image);
    this.#reader = new BucketReader(this.place);
  }

  fault(severity: "error" | "warning", at: { index: number; block: number } | undefined, more: {
    what: string;
    found?: string;
    expected?: string;
    advice: string;
  }): void {
    const where = at === undefined ? {} : {
      bucket: this.place.buckets[at.index]!,
      sector: this.#reader.sector(at.index, at.block),
    };
    const { device } = this.#image;
    this.#report({ severity, subject: "journal", device: device.name, ...where, ...more });
  }

  /** The number of each bucket's first entry, 0 for none. */
  async firstSeqs(): Promise<number[]> {
    const seqs: number[] = [];
    for (let index = 0; index < this.place.buckets.length; index++) {
      const first = await this.#firstEntry(index);
      seqs.push(typeof first === "object" ? first.header.sequence : 0);
      const damage = typeof first === "string" ? first : undefined;
      this.buckets.set(index, { newestSeq: 0, endBlock: 0, damage });
    }
    return seqs;
  }

  async #firstEntry(index: number): Promise<ParsedEntry | string | undefined> {
    try {
      return await this.#reader.entryAt(index, 0, true);
    } catch (error) {
      if (!(error instanceof ImpossibleEntry)) return this.#unreadable(index, error);
      this.#impossibleFirst.push([index, error]);
      return UNREADABLE;
    }
  }

  /** Reports buckets whose first entry cannot be: of a former round it is nobody's concern. */
  reportImpossibleFirst(): void {
    for (const [index, entry] of this.#impossibleFirst) {
      if (entry.isBefore(this.head?.lastSeq ?? 0)) this.#impossible("warning", index, entry);
      else this.#unreadable(index, entry);
    }
  }

  #impossible(severity: "error" | "warning", index: number, entry: ImpossibleEntry): void {
    this.fault(severity, { index, block: entry.block }, {
      what: IMPOSSIBLE,
      found: entry.detail,
      advice: severity === "error" ? RESTORE : "nothing: it is older than what is needed",
    });
  }

  #unreadable(index: number, error: unknown): string {
    if (!(error instanceof BcacheError)) throw error;
    this.isUnreadable = true;
    if (error instanceof ImpossibleEntry) {
      this.#impossible("error", index, error);
      return UNREADABLE;
    }
    this.fault("error", { index, block: this.buckets.get(index)?.endBlock ?? 0 }, {
      what: `cannot be read: ${messageOf(error)}`,
      advice: "see the kernel log of the storage",
    });
    return UNREADABLE;
  }

  /** All entries of a bucket. */
  async readBucket(index: number): Promise<void> {
    const scan = this.buckets.get(index)!;
    try {
      const end = await this.#reader.read(index, 0, (entry) => {
        this.#take(entry, scan);
        return this.found.size < ENTRIES_MAX;
      });
      scan.endBlock = end.block;
      scan.damage = end.damage;
      scan.isWhole = end.isWhole ?? false;
    } catch (error) {
      if (error instanceof ImpossibleEntry) scan.endBlock = error.block;
      scan.damage = this.#unreadable(index, error);
    }
  }

  #take(entry: ParsedEntry, scan: BucketScan): void {
    const { sequence: seq, lastSequence: lastSeq } = entry.header;
    const { index, block } = entry;
    scan.newestSeq = seq;
    if (!this.found.has(seq)) this.found.set(seq, { seq, lastSeq, index, block });
    if (this.head !== undefined && seq <= this.head.seq) return;
    this.head = headOf(entry);
    this.headIndex = index;
  }

  /** What was written whole and is newer than `seq` in a bucket, from a block on. */
  async hiddenBehind(index: number, block: number, seq: number): Promise<Hidden> {
    const blockBytes = this.place.blockSectors * 512;
    const hidden: Hidden = { seqs: [], impossible: undefined };
    const first = this.#reader.sector(index, block);
    const bucketEnd = this.#reader.sector(index, 0) + this.place.bucketSectors;
    const end = Math.min(bucketEnd, this.#image.presentSectors);
    const scanned = Math.min(Math.max(0, end - first) * 512, HIDDEN_BYTES_MAX);
    const bytes = new Uint8Array(Math.floor(scanned / blockBytes) * blockBytes);
    if (await tryRead(this.place.device, first, bytes) !== undefined) return hidden;
    for (let at = 0; at < bytes.length; at += blockBytes) {
      const rest = bytes.subarray(at);
      const fault = verifyJset(rest, rest.length, this.place.magic);
      const found = readU64(viewOf(rest), JSET.seq);
      if (fault === undefined && found > seq) hidden.seqs.push(found);
      const isImpossible = fault?.reason === "bad sequence" && (found === 0 || found > seq);
      if (isImpossible) hidden.impossible ??= { block: block + at / blockBytes, ...fault };
    }
    hidden.seqs.sort((a, b) => a - b);
    return hidden;
  }

  /** The number that a damaged entry carries; 0 when it cannot be read. */
  async seqOfDamaged(index: number, block: number): Promise<number> {
    const bytes = new Uint8Array(512);
    const sector = this.#reader.sector(index, block);
    if (await tryRead(this.place.device, sector, bytes) !== undefined) return 0;
    return readU64(viewOf(bytes), JSET.seq);
  }
}

/** Scans the journal; undefined when there is no entry in it. Reports all damage that matters. */
export async function scanJournal(
  image: CacheImage,
  report: Report,
): Promise<JournalScan | undefined> {
  const scanner = new Scanner(image, report);
  const firstSeqs = await scanner.firstSeqs();
  const order = firstSeqs.map((_, index) => index)
    .filter((index) => firstSeqs[index]! > 0)
    .sort((a, b) => firstSeqs[b]! - firstSeqs[a]!);
  for (const index of order) {
    await scanner.readBucket(index);
    if (scanner.head !== undefined && firstSeqs[index]! <= scanner.head.lastSeq) break;
    if (scanner.found.size < ENTRIES_MAX) continue;
    scanner.fault("error", { index, block: 0 }, {
      what: "more entries than were ever open at a time",
      expected: `at most ${ENTRIES_MAX}`,
      advice: RESTORE,
    });
    break;
  }
  scanner.reportImpossibleFirst();
  const { head } = scanner;
  if (head === undefined) {
    const damaged = [...scanner.buckets.values()].find((bucket) => bucket.damage !== undefined);
    const why = damaged === undefined ? "" : ` (${damaged.damage})`;
    scanner.fault("error", undefined, {
      what: `no entry in any of ${scanner.place.buckets.length} buckets${why}`,
      advice: RESTORE,
    });
    return undefined;
  }
  if (head.version > JSET_VERSION) {
    scanner.fault("error", undefined, {
      what: `entry ${head.seq} has an unknown version`,
      found: String(head.version),
      expected: `at most ${JSET_VERSION}`,
      advice: "use a program that knows it",
    });
  }
  if (head.seq > SEQUENCE_MAX) {
    scanner.fault("error", undefined, {
      what: `entry ${head.seq} leaves no room for newer ones`,
      expected: "at most 2^52",
      advice: RESTORE,
    });
  }
  const needed = [...scanner.found.values()].filter((entry) => entry.seq >= head.lastSeq)
    .sort((a, b) => a.seq - b.seq);
  const complete = reportGaps(scanner, needed, head, discardsBuckets(image.superblock));
  reportBackwards(scanner, needed);
  const isNewest = await reportBehindNewest(scanner, head);
  const isWhole = complete && isNewest && !scanner.isUnreadable;
  return { place: scanner.place, head, needed, complete: isWhole };
}

/** False: an entry that is needed is missing. */
function reportGaps(
  scanner: Scanner,
  needed: readonly ScannedEntry[],
  head: JournalHead,
  discard: boolean,
): boolean {
  let complete = true;
  let expected = head.lastSeq;
  for (const entry of needed) {
    // Kernels before 6.18 discarded old buckets before the larger last_seq was on the disk.
    const discarded = discard && expected === head.lastSeq;
    if (entry.seq !== expected && !discarded) {
      complete = false;
      const before = scanner.found.get(expected - 1);
      const bucket = before === undefined ? undefined : scanner.buckets.get(before.index);
      const damage = bucket?.damage;
      const at = before === undefined || damage === undefined
        ? undefined
        : { index: before.index, block: bucket!.endBlock };
      scanner.fault("error", at, {
        what: `entries ${expected}-${entry.seq - 1} missing ` +
          `(replaying ${head.lastSeq}-${head.seq})`,
        ...(damage === undefined || damage === UNREADABLE ? {} : { found: damage }),
        advice: RESTORE,
      });
    }
    expected = entry.seq + 1;
  }
  return complete;
}

/** `last_seq` never goes back, or an entry was called unneeded and then needed. */
function reportBackwards(scanner: Scanner, needed: readonly ScannedEntry[]): void {
  for (let at = 1; at < needed.length; at++) {
    const [before, entry] = [needed[at - 1]!, needed[at]!];
    if (entry.lastSeq >= before.lastSeq) continue;
    scanner.fault("error", entry, {
      what: `entry ${entry.seq} needs older entries than entry ${before.seq} does`,
      found: `last_seq ${entry.lastSeq}`,
      expected: `${before.lastSeq} or more`,
      advice: RESTORE,
    });
    return;
  }
}

/**
 * Looks behind the newest entry, where the next would be: in its bucket, or at the start of the
 * next. False: newer entries are there, which recovery does not see.
 */
async function reportBehindNewest(scanner: Scanner, head: JournalHead): Promise<boolean> {
  const { place, headIndex } = scanner;
  const next = (headIndex + 1) % place.buckets.length;
  const current = scanner.buckets.get(headIndex)!;
  const spots = [{ index: headIndex, block: current.endBlock }];
  if (next !== headIndex) spots.push({ index: next, block: 0 });
  for (const at of spots) {
    const { damage, isWhole } = scanner.buckets.get(at.index)!;
    const found = damage === undefined ? {} : { found: damage };
    const { seqs, impossible } = await scanner.hiddenBehind(at.index, at.block, head.seq);
    if (seqs.length > 0) {
      scanner.fault("error", at, {
        what: `entries ${seqs[0]}-${seqs.at(-1)} are intact, but recovery ends at ${head.seq}, ` +
          "since what should follow is damaged",
        ...found,
        advice: `do not mount it for writing; ${RESTORE}`,
      });
      return false;
    }
    if (impossible !== undefined && damage !== UNREADABLE) {
      const { block, detail } = impossible;
      const where = { index: at.index, block };
      scanner.fault("error", where, { what: IMPOSSIBLE, found: detail, advice: RESTORE });
    }
    if (impossible !== undefined) return false;
    if (damage === undefined || damage === UNREADABLE) continue;
    const isNext = isWhole || await scanner.seqOfDamaged(at.index, at.block) > head.seq;
    if (!isNext) continue;
    scanner.fault("warning", at, {
      what: `${isWhole ? "an impossible" : "an incomplete"} entry behind the newest one, ` +
        `${head.seq}`,
      ...found,
      advice: isWhole
        ? "nothing, if it is older than that; else the last writes are lost"
        : "nothing, if the power failed while it was written: it was never acknowledged; else " +
          "the last writes are lost",
    });
  }
  return true;
}
