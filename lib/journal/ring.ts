/**
 * Where the next journal entry goes: the ring of journal buckets, and the rules that keep it from
 * ever filling up. Pure bookkeeping; no I/O.
 *
 *   - Entries start on block boundaries and never cross the end of a bucket; a bucket is filled
 *     from its start, and the buckets are used in the order of their indices, round and round.
 *   - A bucket may be overwritten when its newest entry is older than the `last_seq` of an entry
 *     that is *durable*: then no recovery will look for it. (Engine fault 12.)
 *   - The ring never becomes useless. After every entry at least one of these holds:
 *       a. a bucket is free;
 *       b. this very entry's `last_seq` frees one as soon as the entry is durable;
 *       c. at least one block is left in the current bucket, room for an entry that does b.
 *     While the engine serves, c does not count, and entering a bucket must leave another one
 *     free or do b: that bucket is the reserve from which a recovery lives. (Engine fault 14.)
 *     If the power fails before the entry of case b is durable, the bucket it was written to
 *     was free before and is free again.
 *
 * A ring that was left without any room is met by amend.ts, during recovery only.
 *
 * Answers to journal_reclaim(), free_journal_buckets() and journal_full() of Linux's journal.c.
 */
import { assert } from "../base/assert.ts";

/** How the ring looked when it was last used; made by the reader, or for a new cache set. */
export interface RingStart {
  /** The index of the bucket that holds the newest entry. */
  readonly currentIndex: number;
  /** Blocks at the start of that bucket that hold entries. */
  readonly currentUsedBlocks: number;
  /** Per bucket the newest sequence number in it, 0 for none. */
  readonly bucketNewestSeq: readonly number[];
  /** The `last_seq` of the newest entry (which is durable). */
  readonly lastSeq: number;
}

export class Ring {
  readonly bucketCount: number;
  readonly blocksPerBucket: number;
  #newestSeq: number[];
  #current: number;
  #usedBlocks: number;
  #durableLastSeq: number;
  /** False while recovery runs: it may use the bucket that is otherwise kept free. */
  keepReserve = false;
  /** Buckets begun. */
  bucketsOpened = 0;

  constructor(start: RingStart, blocksPerBucket: number) {
    this.bucketCount = start.bucketNewestSeq.length;
    this.blocksPerBucket = blocksPerBucket;
    assert(this.bucketCount >= 2, "a journal has at least two buckets");
    assert(blocksPerBucket >= 1, "a journal bucket holds at least one block");
    assert(start.currentIndex < this.bucketCount, "the current journal bucket exists");
    assert(start.currentUsedBlocks <= blocksPerBucket, "a journal bucket is not overfull");
    this.#newestSeq = [...start.bucketNewestSeq];
    this.#current = start.currentIndex;
    this.#durableLastSeq = start.lastSeq;
    // Like Linux, begin a new bucket; what lies behind the newest entry may be half a write.
    // Only in a full ring go on behind the newest entry (the writer erases that part first, so
    // nothing old can be taken for the continuation): the entries of the bucket stay as they are.
    const nextIsFree = this.free >= 1;
    this.#usedBlocks = nextIsFree ? blocksPerBucket : start.currentUsedBlocks;
  }

  get currentIndex(): number {
    return this.#current;
  }

  /** Buckets that may be overwritten now. */
  get free(): number {
    return this.#freeBehind(this.#current, this.#durableLastSeq);
  }

  get blocksLeft(): number {
    return this.blocksPerBucket - this.#usedBlocks;
  }

  /** Buckets that will be free once an entry with this `last_seq` is durable. */
  freeWith(lastSeq: number): number {
    return this.#freeBehind(this.#current, Math.max(lastSeq, this.#durableLastSeq));
  }

  /** Whether an entry of `blocks` blocks that carries `lastSeq` may be written now. */
  mayPlace(blocks: number, lastSeq: number): boolean {
    assert(blocks >= 1 && blocks <= this.blocksPerBucket, "a journal entry fits a bucket");
    if (blocks <= this.blocksLeft) {
      return this.free >= 1 || this.freeWith(lastSeq) >= 1 || blocks < this.blocksLeft;
    }
    if (this.free === 0) return false;
    if (this.free >= 2) return true;
    const freed = this.#freeBehind(this.#after(this.#current), lastSeq);
    return freed >= 1 || (!this.keepReserve && blocks < this.blocksPerBucket);
  }

  /**
   * Takes the place for entry `seq`: returns its index and block, the place until the next call.
   * Only after `mayPlace`.
   */
  place(seq: number, blocks: number, lastSeq: number): { index: number; block: number } {
    assert(this.mayPlace(blocks, lastSeq), "the journal has a place for the entry");
    if (blocks > this.blocksLeft) {
      const index = this.#after(this.#current);
      assert(this.#newestSeq[index]! < this.#durableLastSeq, "a reused journal bucket is expired");
      this.#current = index;
      this.#usedBlocks = 0;
      this.bucketsOpened++;
    }
    assert(seq > this.#newestSeq[this.#current]!, "journal sequence numbers grow");
    const block = this.#usedBlocks;
    // From now on, not from when it is durable: the bucket must not pass for an old one meanwhile.
    this.#newestSeq[this.#current] = seq;
    this.#usedBlocks += blocks;
    return { index: this.#current, block };
  }

  /** An entry with this `last_seq` is durable. */
  durable(lastSeq: number): void {
    assert(lastSeq >= this.#durableLastSeq, "last_seq never goes back");
    this.#durableLastSeq = lastSeq;
  }

  /** Consecutive buckets after `index` whose entries are all older than `lastSeq`. */
  #freeBehind(index: number, lastSeq: number): number {
    let free = 0;
    let at = this.#after(index);
    while (at !== index && this.#newestSeq[at]! < lastSeq) {
      free++;
      at = this.#after(at);
    }
    return free;
  }

  #after(index: number): number {
    return index + 1 === this.bucketCount ? 0 : index + 1;
  }
}
