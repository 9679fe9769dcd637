/**
 * One journal entry in memory, from the first key to the write: a buffer of the largest size an
 * entry may have, filled in place with the words that go to the disk. Buffers are used again.
 *
 * Answers to struct journal_write of Linux's journal.h.
 */
import { assert } from "../base/assert.ts";
import type { DistrustedInodes } from "../bset/distrusted.ts";
import {
  JSET_BYTES_MAX,
  JSET_HEADER_BYTES,
  JSET_VERSION,
  readJsetHeader,
  sealJset,
} from "../ondisk/jset.ts";
import type { Magic } from "../ondisk/magic.ts";

const HEADER_WORDS = JSET_HEADER_BYTES / 4;

/** Fills in what every journal entry carries besides keys. */
export interface JsetStamper {
  /**
   * Writes the root's key and level, the key of the UUID bucket and the first prio bucket into
   * the header of the entry at the start of `words` (offsets: JSET of lib/ondisk/jset.ts, divided
   * by four). What they name may still be in the device's volatile cache: a flush follows before
   * the entry is written. Synchronous; must not throw.
   */
  stamp(words: Uint32Array): void;
}

/** Who waits for an entry to be durable. */
interface Completion {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class Entry {
  readonly words: Uint32Array;
  /** The same memory. */
  readonly bytes: Uint8Array;
  #capacityWords: number;
  #usedWords = HEADER_WORDS;
  #completion: Completion | undefined;
  seq = 0;
  /** Valid once stamped. */
  lastSeq = 0;

  /** @param capacityBytes what an entry may grow to: a bucket, and never more than 32 KiB. */
  constructor(capacityBytes: number) {
    assert(capacityBytes <= JSET_BYTES_MAX, "a journal entry is at most 32 KiB");
    const buffer = new ArrayBuffer(capacityBytes);
    this.words = new Uint32Array(buffer);
    this.bytes = new Uint8Array(buffer);
    this.#capacityWords = capacityBytes / 4;
  }

  /** Makes the buffer an empty entry. */
  begin(seq: number): void {
    assert(this.#completion === undefined, "nobody waits for an entry that begins");
    this.seq = seq;
    this.lastSeq = 0;
    this.#usedWords = HEADER_WORDS;
    this.words.fill(0, 0, HEADER_WORDS);
  }

  get hasKeys(): boolean {
    return this.#usedWords > HEADER_WORDS;
  }

  /** 32-bit words of keys that still fit. */
  get roomWords(): number {
    return this.#capacityWords - this.#usedWords;
  }

  /** 32-bit words of keys in an entry of this size. */
  static keyWordsIn(capacityBytes: number): number {
    return (capacityBytes - JSET_HEADER_BYTES) / 4;
  }

  /** Copies words that fit. A loop: a batch is a few keys, too short for a bulk copy to pay. */
  append(from: Uint32Array, start: number, count: number): void {
    const words = this.words;
    let at = this.#usedWords;
    for (let index = start; index < start + count; index++) words[at++] = from[index]!;
    this.#usedWords = at;
  }

  /** Blocks the entry takes on the disk. */
  blocks(blockBytes: number): number {
    return Math.ceil((this.#usedWords * 4) / blockBytes);
  }

  /**
   * Completes the header and the checksum, and zeroes the rest of the last block. Returns the
   * bytes to write; from here on the buffer is the device's.
   */
  seal(stamper: JsetStamper, magic: Magic, lastSeq: number, blockBytes: number): Uint8Array {
    stamper.stamp(this.words);
    this.lastSeq = lastSeq;
    const bytes = this.bytes.subarray(0, this.blocks(blockBytes) * blockBytes);
    const stamped = readJsetHeader(bytes);
    sealJset(
      bytes,
      {
        sequence: this.seq,
        version: JSET_VERSION,
        keyWords: (this.#usedWords - HEADER_WORDS) / 2,
        lastSequence: lastSeq,
        btreeLevel: stamped.btreeLevel,
        prioBucket: stamped.prioBucket,
      },
      magic,
    );
    return bytes;
  }

  /** Makes keys of a sealed entry stale that must not become durable; see DistrustedInodes. */
  makeStale(distrusted: DistrustedInodes, magic: Magic): void {
    if (!distrusted.makeStale(this.words, HEADER_WORDS, this.#usedWords)) return;
    sealJset(this.bytes, readJsetHeader(this.bytes), magic);
  }

  /** Settles when the entry is durable; all who ask share one promise. */
  whenDurable(): Promise<void> {
    this.#completion ??= Promise.withResolvers<void>();
    return this.#completion.promise;
  }

  /** Whoever waits so far is the caller's to answer. */
  takeCompletion(): Completion | undefined {
    const completion = this.#completion;
    this.#completion = undefined;
    return completion;
  }

  /** The entry is durable. */
  complete(): void {
    this.#completion?.resolve();
    this.#completion = undefined;
  }

  /** The entry will never be durable. */
  fail(error: unknown): void {
    this.#completion?.reject(error);
    this.#completion = undefined;
  }
}
