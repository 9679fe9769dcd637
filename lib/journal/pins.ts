/**
 * What keeps journal entries alive: a reference count per entry, and who to ask to let go.
 *
 * Entry numbers are dense. The table holds the entries [first, next): `next` is the number that
 * the next opened entry gets. An entry is held by the journal until it is durable, by recovery
 * until it has been replayed, and by every dirty b-tree leaf whose *oldest* unwritten key is in
 * it. The oldest entry held is what the journal writes as `last_seq`: replay starts there.
 *
 * Pins are compared by number, never by their place in the ring, so a wrapped ring cannot confuse
 * old and new. Opening an entry and taking its first reference are one step: `last_seq` can never
 * pass an entry that is being filled.
 *
 * Answers to journal.pin, last_seq() and the selection in btree_flush_write() of Linux's
 * journal.c. Synchronous; no I/O.
 */
import { assert } from "../base/assert.ts";

/** Somebody whose unwritten keys are in the journal: a dirty b-tree leaf. */
export interface PinHolder {
  /**
   * Writes what the holder had pinned when called, and resolves when that is durable and
   * unpinned. Never waits for room in the journal. Rejects with BcacheError DeviceIo.
   */
  flushForJournal(): Promise<void>;
}

/** Entries that may be active at once, as in Linux (20000, rounded up); recovery may need more. */
export const PINS_MIN = 32768;

type Holders = Map<PinHolder, number>;

export class Pins {
  /** A power of two; entry `n` is at index `n & (capacity - 1)`. */
  readonly capacity: number;
  #counts: Uint32Array;
  /** Who pins the entry and how often; made when the first leaf pins it. */
  #holders: Array<Holders | undefined>;
  #first: number;
  #next: number;
  #onRelease: () => void;

  /**
   * The entries [firstSeq, nextSeq) exist already and may be any number: each starts held once,
   * for recovery, which releases it when it has replayed it. At least as many entries again have
   * room beyond them, and never fewer than `capacity` in all.
   * @param onRelease called when the oldest entry lost a reference; it must not throw.
   */
  constructor(firstSeq: number, nextSeq: number, onRelease: () => void, capacity = PINS_MIN) {
    assert(Number.isSafeInteger(nextSeq), "a journal sequence number is exact");
    assert(firstSeq >= 0 && firstSeq <= nextSeq, "the active journal entries are a range");
    let rounded = 4;
    while (rounded < capacity || rounded < 2 * (nextSeq - firstSeq)) rounded *= 2;
    this.capacity = rounded;
    this.#counts = new Uint32Array(rounded);
    this.#holders = new Array<Holders | undefined>(rounded).fill(undefined);
    this.#first = firstSeq;
    this.#next = nextSeq;
    for (let seq = firstSeq; seq < nextSeq; seq++) this.#counts[this.#index(seq)] = 1;
    this.#onRelease = onRelease;
  }

  /** Entries in the table: `active_journal_entries`. */
  get used(): number {
    this.#advance();
    return this.#next - this.#first;
  }

  /** How many entries can be opened. */
  get free(): number {
    return this.capacity - this.used;
  }

  /** The number the next opened entry gets. */
  get next(): number {
    return this.#next;
  }

  /** Opens the next entry, held once, and returns its number. There must be room. */
  open(): number {
    assert(this.free > 0, "the journal pin table has room");
    const seq = this.#next++;
    this.#counts[this.#index(seq)] = 1;
    return seq;
  }

  /** The oldest entry held, or the next to open when none is: `last_seq`. */
  oldest(): number {
    this.#advance();
    return this.#first;
  }

  hold(seq: number): void {
    const index = this.#index(seq);
    this.#counts[index]!++;
  }

  release(seq: number): void {
    const index = this.#index(seq);
    assert(this.#counts[index]! > 0, "a released journal entry was held");
    this.#counts[index]!--;
    if (seq === this.#first) this.#onRelease();
  }

  /** The holder's oldest unwritten key is in entry `seq`. A holder may pin an entry twice. */
  pin(seq: number, holder: PinHolder): void {
    this.hold(seq);
    const index = this.#index(seq);
    const holders = this.#holders[index] ??= new Map();
    holders.set(holder, (holders.get(holder) ?? 0) + 1);
  }

  /** The keys that `pin` was called for are durable. */
  unpin(seq: number, holder: PinHolder): void {
    const holders = this.#holders[this.#index(seq)];
    const times = holders?.get(holder) ?? 0;
    assert(times > 0, "an unpinned journal entry was pinned by this holder");
    if (times === 1) holders!.delete(holder);
    else holders!.set(holder, times - 1);
    this.release(seq);
  }

  isPinnedBy(seq: number, holder: PinHolder): boolean {
    if (seq < this.oldest()) return false;
    return this.#holders[this.#index(seq)]?.has(holder) ?? false;
  }

  /** Up to `max` holders of the oldest entry held; none if only the journal or recovery hold it. */
  holdersOfOldest(max: number): PinHolder[] {
    this.#advance();
    const found: PinHolder[] = [];
    if (this.#first === this.#next) return found;
    const holders = this.#holders[this.#index(this.#first)];
    if (holders === undefined) return found;
    for (const holder of holders.keys()) {
      if (found.length === max) break;
      found.push(holder);
    }
    return found;
  }

  /**
   * Drops the entries at the front that nobody holds. Each is dropped once: constant on average.
   */
  #advance(): void {
    while (this.#first < this.#next && this.#counts[this.#index(this.#first)] === 0) {
      this.#holders[this.#index(this.#first)] = undefined;
      this.#first++;
    }
  }

  #index(seq: number): number {
    assert(seq >= this.#first, "a pinned journal entry is still active");
    assert(seq < this.#next, "a pinned journal entry has been opened");
    // A power of two up to 2^32 divides 2^32, so the low word is enough for the remainder.
    return (seq % 0x1_0000_0000) & (this.capacity - 1);
  }
}
