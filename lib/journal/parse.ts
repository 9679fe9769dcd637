/**
 * Reads one journal bucket: entry after entry from its start, until something is not the next
 * entry. Works through a window of bounded size, so a bucket of any size costs the same memory.
 *
 * An entry whose checksum is wrong may be one that a power cut tore. One whose checksum is right
 * was written whole: if its numbers cannot be, a faulty memory or program made them, and what it
 * was to say is lost. That is an error, `ImpossibleEntry`; only one that calls itself older than
 * what should follow, as a former round's is, may end the bucket, and is told of.
 *
 * Within a bucket every entry is the successor of the one before; the first that is not was
 * written in a former round, and everything behind it too. (Linux reads on and drops former
 * entries by their `last_seq`; what is kept is the same.)
 *
 * Answers to journal_read_bucket() of Linux's journal.c.
 */
import { assert } from "../base/assert.ts";
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import {
  JSET_BYTES_MAX,
  jsetBytes,
  type JsetHeader,
  readJsetHeader,
  verifyJset,
} from "../ondisk/jset.ts";
import type { Magic } from "../ondisk/magic.ts";

/** What is read at once: room for several of the largest entries. */
const WINDOW_BYTES = 8 * JSET_BYTES_MAX;

/** Where the journal is and what its bytes look like. */
export interface JournalPlace {
  readonly device: Device;
  readonly magic: Magic;
  readonly bucketSectors: number;
  readonly blockSectors: number;
  /** The bucket numbers, in the order of the superblock. */
  readonly buckets: readonly number[];
}

/** One entry, in a buffer that is used again for the next. */
export interface ParsedEntry {
  readonly header: JsetHeader;
  /** The header and the keys. */
  readonly bytes: Uint8Array;
  readonly index: number;
  readonly block: number;
}

/** Why reading a bucket ended. */
export interface BucketEnd {
  /** The block at which it ended. */
  readonly block: number;
  /** Something that is no entry, although it carries the journal's magic number. */
  readonly damage?: string;
  /** Its checksum is right: no power cut tore it. */
  readonly isWhole?: boolean;
}

/** What an entry is whose checksum is right, and whose numbers cannot be. */
export const IMPOSSIBLE = "an entry with a right checksum says what cannot be";

/** An entry with a right checksum and numbers that cannot be. */
export class ImpossibleEntry extends BcacheError {
  /** Found and expected numbers. */
  readonly detail: string;
  /** Within its bucket. */
  readonly block: number;
  readonly #sequence: number;

  constructor(where: string, detail: string, at: { block: number; sequence: number }) {
    super("BadFormat", `${where}: ${IMPOSSIBLE}: ${detail}; ${DAMAGE_ADVICE}`);
    this.detail = detail;
    this.block = at.block;
    this.#sequence = at.sequence;
  }

  /** Whether it is older than entry `sequence`: where that may follow it is nobody's concern. */
  isBefore(sequence: number): boolean {
    return this.#sequence > 0 && this.#sequence < sequence;
  }
}

/** Its methods reject with what the device's `read` rejects with, and with `ImpossibleEntry`. */
export class BucketReader {
  #place: JournalPlace;
  #blockBytes: number;
  #bucketBytes: number;
  #window: Uint8Array;
  /** What of the bucket is in the window. */
  #windowIndex = -1;
  #windowStart = 0;
  #windowEnd = 0;

  constructor(place: JournalPlace) {
    this.#place = place;
    this.#blockBytes = place.blockSectors * SECTOR_BYTES;
    const blocks = Math.floor(place.bucketSectors / place.blockSectors);
    this.#bucketBytes = blocks * this.#blockBytes;
    this.#window = new Uint8Array(Math.min(this.#bucketBytes, WINDOW_BYTES));
  }

  get blocksPerBucket(): number {
    return this.#bucketBytes / this.#blockBytes;
  }

  /** Where on the device block `block` of bucket `index` begins. */
  sector(index: number, block: number): number {
    const { buckets, bucketSectors, blockSectors } = this.#place;
    const bucket = buckets[index];
    assert(bucket !== undefined, "a journal bucket's index is below their count");
    return bucket * bucketSectors + block * blockSectors;
  }

  /** Calls `take` for each entry from `block` on, while it returns true. */
  async read(
    index: number,
    block: number,
    take: (entry: ParsedEntry) => boolean,
  ): Promise<BucketEnd> {
    let at = block;
    let expectedSeq = 0;
    // Every turn moves on by at least one block, so this ends.
    while (at < this.blocksPerBucket) {
      const found = await this.#next(index, at, expectedSeq);
      if (typeof found === "string") return { block: at, damage: found };
      if (found instanceof ImpossibleEntry) {
        return { block: at, damage: `${IMPOSSIBLE}: ${found.detail}`, isWhole: true };
      }
      if (found === undefined) return { block: at };
      const { header } = found;
      if (expectedSeq !== 0 && header.sequence !== expectedSeq) return { block: at };
      expectedSeq = header.sequence + 1;
      at += Math.ceil(jsetBytes(header.keyWords) / this.#blockBytes);
      if (!take(found)) break;
    }
    return { block: at };
  }

  /**
   * As `entryAt`, where entry `expectedSeq` would be next. Returns an impossible one that calls
   * itself older: it may be of a former round, or that very one with a wrong number.
   */
  async #next(
    index: number,
    block: number,
    expectedSeq: number,
  ): Promise<ParsedEntry | ImpossibleEntry | string | undefined> {
    try {
      return await this.entryAt(index, block);
    } catch (error) {
      if (error instanceof ImpossibleEntry && error.isBefore(expectedSeq)) return error;
      throw error;
    }
  }

  /**
   * The entry at a block; a string says why the bytes there are a damaged one; else none.
   * `alone` reads no more than one entry may take, for a caller that will not read on.
   */
  async entryAt(
    index: number,
    block: number,
    alone = false,
  ): Promise<ParsedEntry | string | undefined> {
    const offsetBytes = block * this.#blockBytes;
    const leftBytes = this.#bucketBytes - offsetBytes;
    const length = Math.min(leftBytes, JSET_BYTES_MAX);
    const bytes = await this.#bytesAt(index, offsetBytes, length, alone);
    const fault = verifyJset(bytes, leftBytes, this.#place.magic);
    if (fault?.reason === "bad magic") return undefined;
    if (fault?.reason === "bad sequence") {
      const { device, buckets, blockSectors } = this.#place;
      const offset = block * blockSectors;
      const where = `${device.name}: journal bucket ${buckets[index]}, offset ${offset} sectors`;
      const { sequence } = readJsetHeader(bytes);
      throw new ImpossibleEntry(where, fault.detail, { block, sequence });
    }
    if (fault) return fault.detail;
    const header = readJsetHeader(bytes);
    return { header, bytes: bytes.subarray(0, jsetBytes(header.keyWords)), index, block };
  }

  async #bytesAt(
    index: number,
    offsetBytes: number,
    lengthBytes: number,
    alone: boolean,
  ): Promise<Uint8Array> {
    const inWindow = index === this.#windowIndex && offsetBytes >= this.#windowStart &&
      offsetBytes + lengthBytes <= this.#windowEnd;
    if (!inWindow) {
      const length = alone
        ? lengthBytes
        : Math.min(this.#window.length, this.#bucketBytes - offsetBytes);
      this.#windowIndex = -1; // Until the read has succeeded.
      const sector = this.sector(index, 0) + offsetBytes / SECTOR_BYTES;
      await this.#place.device.read(sector, this.#window.subarray(0, length));
      this.#windowIndex = index;
      this.#windowStart = offsetBytes;
      this.#windowEnd = offsetBytes + length;
    }
    const start = offsetBytes - this.#windowStart;
    return this.#window.subarray(start, start + lengthBytes);
  }
}
