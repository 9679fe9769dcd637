/**
 * The journal: keys go in, entries come out on the disk, in order.
 *
 *   tryAppend -> [open entry] -> sealed queue -> [entry being written] -> durable
 *
 * One entry is open. It is sealed when it is full, or when somebody wants it on the disk and the
 * writer is free: so all who ask while a write is under way share the next entry. Full entries
 * queue up (a bounded number), so that appending does not stop while a device flush runs; Linux
 * has two buffers and stops.
 *
 * Invariants:
 *   - Sequence numbers have no gaps; opening an entry and pinning it are one step (pins.ts).
 *   - At most one entry is being written, and it is durable before the next is *begun*. With two
 *     in flight a power cut could keep the later and lose the earlier one, and behind the gap an
 *     old entry of a former round may lead the reader on: Linux would refuse such a journal.
 *     Full entries hold over a thousand keys, so this costs little.
 *   - Header and `last_seq` of an entry are taken in one synchronous step, then the device is
 *     flushed, then the entry is written. So all that either relies on (data the keys point to,
 *     leaves that were written and unpinned, the root, priorities) is durable before the entry.
 *     Taken apart, an entry could name a root that lacks the keys its `last_seq` gives up.
 *   - The ring keeps room for itself (ring.ts).
 *
 * Answers to journal_write_unlocked(), journal_wait_for_write(), bch_journal() and
 * bch_journal_meta() of Linux's journal.c.
 */
import { assert } from "../base/assert.ts";
import { BcacheError, messageOf } from "../base/errors.ts";
import type { Clock } from "../base/runtime.ts";
import { type Faults, Signal, type TaskGroup } from "../base/sync.ts";
import { DistrustedInodes } from "../bset/distrusted.ts";
import { SECTOR_BYTES } from "../device/device.ts";
import { JSET_BYTES_MAX } from "../ondisk/jset.ts";
import { amendEntry, type EntrySpot } from "./amend.ts";
import { Entry, type JsetStamper } from "./entry.ts";
import type { JournalPlace } from "./parse.ts";
import { Pins } from "./pins.ts";
import { Reclaimer } from "./reclaim.ts";
import { Ring, type RingStart } from "./ring.ts";

/** Entries that may wait for the writer, full: 2 MiB. */
const QUEUE_ENTRIES = 64;
const DELAY_MS = 100;
/** Pins that appending leaves to the writer, for entries that only carry a new `last_seq`. */
const PINS_KEPT = 8;

/** How the journal was left: from `readJournal`, or `freshJournal`. */
export interface JournalStart {
  readonly ring: RingStart;
  /** The oldest entry to be replayed; `nextSeq` when there is none. */
  readonly firstSeq: number;
  /** The number of the next entry. */
  readonly nextSeq: number;
  /** Where the newest entry is; absent when there is none. */
  readonly newest?: EntrySpot;
}

export interface JournalOptions {
  readonly place: JournalPlace;
  readonly start: JournalStart;
  readonly clock: Clock;
  readonly faults: Faults;
  readonly tasks: TaskGroup;
  readonly stamper: JsetStamper;
  /** Devices no clean key of which may become durable; none if absent. */
  readonly distrusted?: DistrustedInodes;
  /** Full entries that may wait for the writer, 64 if absent. */
  readonly queueEntries?: number;
  /** Entries that may be active at once, 32768 if absent. */
  readonly pins?: number;
}

export interface JournalCounters {
  entriesWritten: number;
  bytesWritten: number;
  /** Journal buckets begun. */
  bucketsOpened: number;
  /** Rounds of asking leaves to write. */
  reclaimRounds: number;
  /** Leaves asked to write. */
  pressureFlushes: number;
  /** Entries that would be replayed now, and the open one. */
  activeEntries: number;
}

/** The journal of a new cache set: nothing is in it. Writing begins, as in Linux, in bucket 1. */
export function freshJournal(bucketCount: number): JournalStart {
  return {
    ring: {
      currentIndex: 0,
      currentUsedBlocks: 0,
      bucketNewestSeq: new Array<number>(bucketCount).fill(0),
      lastSeq: 1,
    },
    firstSeq: 1,
    nextSeq: 1,
  };
}

interface PlacedEntry {
  readonly entry: Entry;
  readonly bytes: Uint8Array;
  readonly sector: number;
  readonly spot: EntrySpot;
}

export class Journal {
  /** Who needs which entry. Recovery's own holds on the entries to be replayed are in it. */
  readonly pins: Pins;
  /** How long a key may wait for company before its entry is written. */
  delayMs = DELAY_MS;
  #place: JournalPlace;
  #clock: Clock;
  #faults: Faults;
  #tasks: TaskGroup;
  #stamper: JsetStamper;
  #distrusted: DistrustedInodes;
  #queueEntries: number;
  #ring: Ring;
  #reclaimer: Reclaimer;
  #blockBytes: number;
  #entryBytes: number;

  #open: Entry;
  #sealed: Entry[] = [];
  /** The entries being written; the first is at the device. */
  #writing: Entry[] = [];
  #spare: Entry[] = [];
  /** The writer is to go on until this entry is durable. */
  #wantedSeq = 0;
  /** The writer cannot go on before something is unpinned. */
  #starved = false;
  #timerArmed = false;
  /** What lies behind the newest recovered entry in its bucket has yet to be erased. */
  #eraseTail: { index: number; block: number } | undefined;
  /** The newest durable entry, while recovery runs. */
  #newest: EntrySpot | undefined;
  #state: "recovering" | "serving" | "stopping" | "ended" = "recovering";
  #running = 0;
  #ending = new AbortController();
  #work = new Signal();
  #changed = new Signal();
  #entriesWritten = 0;
  #bytesWritten = 0;

  /** Starts nothing; `start` does. */
  constructor(options: JournalOptions) {
    const { place, start } = options;
    this.#place = place;
    this.#clock = options.clock;
    this.#faults = options.faults;
    this.#tasks = options.tasks;
    this.#stamper = options.stamper;
    this.#distrusted = options.distrusted ?? new DistrustedInodes();
    this.#queueEntries = options.queueEntries ?? QUEUE_ENTRIES;
    this.#blockBytes = place.blockSectors * SECTOR_BYTES;
    this.#entryBytes = Math.min(place.bucketSectors * SECTOR_BYTES, JSET_BYTES_MAX);
    assert(place.buckets.length === start.ring.bucketNewestSeq.length, "journal buckets match");
    this.#ring = new Ring(start.ring, Math.floor(place.bucketSectors / place.blockSectors));
    this.#newest = start.newest;
    const tail = start.ring.currentUsedBlocks;
    if (start.nextSeq > 1 && tail < this.#ring.blocksPerBucket) {
      this.#eraseTail = { index: start.ring.currentIndex, block: tail };
    }
    this.pins = new Pins(start.firstSeq, start.nextSeq, () => this.#released(), options.pins);
    this.#reclaimer = new Reclaimer({
      pins: this.pins,
      faults: this.#faults,
      pressure: () => this.#pressure(),
    });
    this.#open = this.#begin();
  }

  /** Begins the background work. Only `commit` works until `finishRecovery`. */
  start(): void {
    this.#background(() => this.#write());
    this.#background(() => this.#reclaimer.run());
  }

  get counters(): JournalCounters {
    return {
      entriesWritten: this.#entriesWritten,
      bytesWritten: this.#bytesWritten,
      bucketsOpened: this.#ring.bucketsOpened,
      reclaimRounds: this.#reclaimer.rounds,
      pressureFlushes: this.#reclaimer.flushes,
      activeEntries: this.pins.used,
    };
  }

  /** The newest entry's number: the open one. */
  get sequence(): number {
    return this.#open.seq;
  }

  /** 32-bit words that one `tryAppend` may have. */
  get appendWordsMax(): number {
    return Entry.keyWordsIn(this.#entryBytes);
  }

  /**
   * All replayed entries were released: brings the ring back to where a bucket is in reserve, and
   * lets appending begin. A new set calls it too. Rejects with what ended the journal, if something
   * that runs beside the recovery failed meanwhile.
   */
  async finishRecovery(): Promise<void> {
    this.#refuseIfDone();
    assert(this.#state === "recovering", "the journal recovers once");
    while (this.#ring.free === 0) {
      // Have leaves written until the next entry's last_seq frees a bucket; then write it.
      while (this.#ring.freeWith(this.pins.oldest()) === 0) await this.#untilChange();
      await this.commit();
    }
    this.#refuseIfDone();
    this.#ring.keepReserve = true;
    this.#state = "serving";
  }

  /**
   * Copies the on-disk words of one or more keys into the open entry. Returns the entry's number,
   * or 0 if there is no room just now (`whenRoom`) or the journal has failed or is stopping. The
   * caller pins the entry for what these keys change before it awaits anything. Does not allocate.
   */
  tryAppend(words: Uint32Array, startWord: number, wordCount: number): number {
    assert(wordCount > 0 && (wordCount & 1) === 0, "keys are whole 64-bit words");
    assert(wordCount <= this.appendWordsMax, "a batch of keys fits an empty journal entry");
    if (this.#state !== "serving" || this.#faults.failed !== undefined) return 0;
    if (wordCount > this.#open.roomWords) {
      if (!this.#maySeal()) return 0;
      this.#seal();
      this.#work.raise();
    }
    const open = this.#open;
    if (!open.hasKeys) this.#armTimer();
    open.append(words, startWord, wordCount);
    return open.seq;
  }

  /**
   * Resolves when `tryAppend` would take the largest batch (another may come first: try again).
   * Rejects when the journal has failed or is stopping. Not to be awaited while holding a node.
   */
  async whenRoom(): Promise<void> {
    while (this.#open.hasKeys && !this.#maySeal()) await this.#untilChange();
    this.#refuseIfDone();
  }

  /**
   * Resolves when everything appended before the call, the data it points to, and what the
   * stamper says by then are durable. All who ask together share one entry.
   */
  commit(): Promise<void> {
    const refusal = this.#refusal();
    if (refusal) return Promise.reject(refusal);
    return this.#commitOpen();
  }

  /** Writes what is pending and ends the background work. Rejects if that could not be written. */
  async stop(): Promise<void> {
    assert(this.#state !== "stopping", "the journal is stopped once");
    if (this.#state === "ended") return;
    this.#state = "stopping";
    this.#wakeAll();
    try {
      const pending = this.#open.hasKeys || this.#sealed.length > 0 || this.#writing.length > 0;
      if (pending && this.#faults.failed === undefined) await this.#commitOpen();
    } finally {
      this.#end(new BcacheError("Shutdown", "the journal was stopped"));
      while (this.#running > 0) await this.#changed.wait();
    }
  }

  /** The cache set has failed: all who wait are rejected with `error`, nothing more is written. */
  abandon(error: unknown): void {
    this.#end(error);
  }

  // The open entry.

  #begin(): Entry {
    const entry = this.#spare.pop() ?? new Entry(this.#entryBytes);
    entry.begin(this.pins.open());
    return entry;
  }

  #maySeal(): boolean {
    return this.#sealed.length < this.#queueEntries && this.pins.free > PINS_KEPT;
  }

  /** From now on nothing is added to the entry; the next one is open. Needs one free pin. */
  #seal(): void {
    this.#sealed.push(this.#open);
    this.#open = this.#begin();
    this.#reclaimer.wake();
  }

  #commitOpen(): Promise<void> {
    const durable = this.#open.whenDurable();
    this.#want(this.#open.seq);
    return durable;
  }

  #want(seq: number): void {
    this.#wantedSeq = Math.max(this.#wantedSeq, seq);
    this.#work.raise();
  }

  /**
   * One timer for all: it was armed no later than any key of the open entry came, so when it
   * rings, none has waited longer than the delay.
   */
  #armTimer(): void {
    if (this.#timerArmed) return;
    this.#timerArmed = true;
    this.#background(async () => {
      await this.#clock.sleep(this.delayMs, this.#ending.signal);
      this.#timerArmed = false;
      if (this.#open.hasKeys) this.#want(this.#open.seq);
    });
  }

  // The writer.

  /** Writes whatever is sealed or wanted, for ever. */
  async #write(): Promise<void> {
    while (this.#state !== "ended") {
      if (this.#faults.failed !== undefined) throw this.#faults.failed;
      const wanted = this.#wantedSeq === this.#open.seq;
      if (wanted && this.#mustAmend()) {
        await this.#amend();
        continue;
      }
      // With the queue full it stays open: in a journal that stands still, whoever wants one
      // entry after the other would pile them up.
      if (wanted && this.pins.free > 0 && this.#sealed.length < this.#queueEntries) this.#seal();
      const batch = this.#placeBatch();
      if (batch.length === 0) {
        // Nothing to do, or no place to do it: then leaves must be written first.
        this.#starved = this.#sealed.length > 0 || this.#wantedSeq === this.#open.seq;
        this.#reclaimer.wake();
        await this.#work.wait();
        continue;
      }
      this.#starved = false;
      await this.#writeBatch(batch);
    }
  }

  /**
   * Gives the sealed entries their places, as many as one bucket takes, and completes them.
   * Synchronous: one last_seq, one state of the stamper.
   */
  #placeBatch(): PlacedEntry[] {
    const batch: PlacedEntry[] = [];
    const lastSeq = this.pins.oldest();
    const { magic, buckets, bucketSectors, blockSectors } = this.#place;
    while (this.#sealed.length > 0) {
      const entry = this.#sealed[0]!;
      const blocks = entry.blocks(this.#blockBytes);
      if (batch.length > 0 && blocks > this.#ring.blocksLeft) break;
      if (!this.#ring.mayPlace(blocks, lastSeq)) break;
      assert(lastSeq <= entry.seq, "an entry keeps itself");
      const spot = this.#ring.place(entry.seq, blocks, lastSeq);
      const bytes = entry.seal(this.#stamper, magic, lastSeq, this.#blockBytes);
      const sector = buckets[spot.index]! * bucketSectors + spot.block * blockSectors;
      batch.push({ entry, bytes, sector, spot });
      this.#writing.push(entry);
      this.#sealed.shift();
    }
    return batch;
  }

  async #writeBatch(batch: readonly PlacedEntry[]): Promise<void> {
    const { device, magic } = this.#place;
    await this.#erase();
    // Durable before: data, leaves, nodes, priorities that these entries rely on; the erasure.
    await device.flush();
    // But for what a backing device could not make so.
    for (const { entry } of batch) entry.makeStale(this.#distrusted, magic);
    for (const { entry, bytes, sector, spot } of batch) {
      if (this.#faults.failed !== undefined) throw this.#faults.failed;
      if (this.#state === "ended") return;
      assert(entry === this.#writing[0], "entries are written in order");
      // Durable after: this entry; only then is the next one begun.
      await device.write(sector, bytes, { fua: true });
      this.#newest = spot;
      this.#durable(entry, bytes.length);
    }
  }

  /** The entry survives a power cut: who needed it may go on, and what it replaced is free. */
  #durable(entry: Entry, lengthBytes: number): void {
    this.#entriesWritten++;
    this.#bytesWritten += lengthBytes;
    if (this.#writing[0] !== entry) return; // Ended meanwhile; who waited has been told.
    this.#writing.shift();
    this.#ring.durable(entry.lastSeq);
    this.pins.release(entry.seq);
    entry.complete();
    this.#spare.push(entry);
    this.#changed.raise();
    this.#reclaimer.wake();
  }

  /**
   * Before the first entry after a recovery: erases what lies behind the newest entry in its
   * bucket. Where a damaged entry hid later ones, those are given up now; their numbers are used
   * again, and they must never come to light between new entries.
   */
  async #erase(): Promise<void> {
    const tail = this.#eraseTail;
    if (tail === undefined) return;
    const { device, buckets, bucketSectors, blockSectors } = this.#place;
    const skipSectors = tail.block * blockSectors;
    const sector = buckets[tail.index]! * bucketSectors + skipSectors;
    await device.zero(sector, this.#ring.blocksPerBucket * blockSectors - skipSectors);
    this.#eraseTail = undefined;
  }

  /**
   * Recovery wants metadata on the disk, and there is no place for another entry: see amend.ts.
   * Waiting would not help: recovery itself may hold what would have to be let go of.
   */
  #mustAmend(): boolean {
    if (this.#ring.keepReserve || this.#newest === undefined) return false;
    assert(!this.#open.hasKeys, "nothing is appended during recovery");
    return this.pins.free <= PINS_KEPT || !this.#ring.mayPlace(1, this.pins.oldest());
  }

  /** Does what writing the open entry would do, without an entry. It stays open. */
  async #amend(): Promise<void> {
    let completion: ReturnType<Entry["takeCompletion"]>;
    try {
      const lastSeq = await amendEntry({
        place: this.#place,
        spot: this.#newest!,
        stamper: this.#stamper,
        lastSeqFor: (seq) => {
          // From here on, who asks wants something newer.
          completion = this.#open.takeCompletion();
          this.#wantedSeq = 0;
          return Math.min(this.pins.oldest(), seq);
        },
      });
      this.#ring.durable(lastSeq);
      completion?.resolve();
      this.#changed.raise();
    } catch (error) {
      completion?.reject(error);
      throw error;
    }
  }

  // Room.

  /** Room is short: few buckets would be free if an entry were written now, or few pins are. */
  #pressure(): boolean {
    if (this.#state === "ended") return false;
    const oldest = this.pins.oldest();
    if (oldest >= this.#open.seq) return false;
    if (this.#starved || this.pins.used > this.pins.capacity * 0.75) return true;
    const count = this.#ring.bucketCount;
    const low = Math.min(Math.max(2, count >> 2), count - 1);
    return this.#ring.freeWith(oldest) < low;
  }

  /** The oldest entry lost a reference. */
  #released(): void {
    this.#work.raise();
    this.#changed.raise();
    this.#reclaimer.wake();
  }

  async #untilChange(): Promise<void> {
    this.#refuseIfDone();
    this.#reclaimer.wake();
    await this.#changed.wait();
    this.#refuseIfDone();
  }

  // The end.

  #refusal(): unknown {
    if (this.#faults.failed !== undefined) return this.#faults.failed;
    if (this.#state === "recovering" || this.#state === "serving") return undefined;
    return new BcacheError("Shutdown", "the journal is stopping");
  }

  #refuseIfDone(): void {
    const refusal = this.#refusal();
    if (refusal !== undefined) throw refusal;
  }

  #end(error: unknown): void {
    if (this.#state === "ended") return;
    this.#state = "ended";
    for (const entry of [...this.#writing, ...this.#sealed, this.#open]) entry.fail(error);
    this.#writing = [];
    this.#sealed = [];
    this.#ending.abort();
    this.#reclaimer.end();
    this.#wakeAll();
  }

  #wakeAll(): void {
    this.#work.raise();
    this.#changed.raise();
  }

  /** Runs `body` as a task; its failure is the cache set's. The group's abort ends the journal. */
  #background(body: () => Promise<void>): void {
    this.#running++;
    this.#tasks.start(async (signal) => {
      const onAbort = () => this.#end(new BcacheError("Shutdown", "the journal was stopped"));
      signal.addEventListener("abort", onAbort);
      try {
        await body();
      } catch (error) {
        this.#failed(error);
      } finally {
        signal.removeEventListener("abort", onAbort);
        this.#running--;
        if (this.#faults.failed !== undefined) this.#end(this.#faults.failed);
        this.#changed.raise();
      }
    });
  }

  #failed(cause: unknown): void {
    const error = this.#faults.failed ?? (cause instanceof BcacheError
      ? new BcacheError(
        cause.code,
        `${this.#place.device.name}: journal: ${messageOf(cause)}; the cache set stops writing`,
        { cause, errno: cause.errno },
      )
      : cause);
    this.#faults.raise(error);
    this.#end(error);
  }
}
