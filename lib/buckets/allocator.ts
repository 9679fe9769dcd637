/**
 * Hands out buckets that may be overwritten, and keeps a stock of them.
 *
 *   in use --policy--> pending --priorities written, journaled--> durable --> a free list --> taken
 *
 * Invariants:
 * - A bucket that something on disk may point to is only handed out after its new generation, and
 *   the journal entry that names the priorities, are durable. After a failed write of priorities
 *   the pending buckets stay pending (the kernel hands them out).
 * - The background task never waits for buckets: it is where they come from.
 * - Priorities are not written while a freed b-tree node's parent is not (`blockPrios`): a
 *   generation on disk must not make a pointer stale that is still needed.
 * - `tryTake` never waits and may be called anywhere; `whenAvailable` only by who holds nothing.
 *
 * Linux: bch_allocator_thread, bch_bucket_alloc and __bch_bucket_free in alloc.c.
 */
import { assert } from "../base/assert.ts";
import { BcacheError, messageOf } from "../base/errors.ts";
import { U32Fifo } from "../base/fifo.ts";
import { PRIO_BTREE } from "../ondisk/prio_set.ts";
import type { Random } from "../base/runtime.ts";
import { type Faults, Signal, type TaskGroup } from "../base/sync.ts";
import {
  type Invalidation,
  REPLACEMENT_POLICIES,
  type ReplacementPolicyName,
} from "./invalidate.ts";
import {
  RESERVE,
  type Reserve,
  RESERVE_NAMES,
  type ReserveSizes,
  reserveSizes,
} from "./reserves.ts";
import { Shortage } from "./shortage.ts";
import { type BucketTable, MARK } from "./table.ts";

export interface AllocatorOptions {
  readonly table: BucketTable;
  readonly prioSetCount: number;
  readonly policy: ReplacementPolicyName;
  readonly random: Random;
  readonly faults: Faults;
  /**
   * Writes priorities and generations as they are when it is called, and makes them durable and
   * journaled. False: there were not enough buckets for it, nothing happened.
   */
  readonly persistPrios: () => Promise<boolean>;
  /** Asks for a collection; answered by `gcOver`. Called again only after that. */
  readonly wakeGc: () => void;
  /** Another number whenever a collection may find more than the last one did; see Shortage. */
  readonly changes?: () => number;
  /** Lets other work run (Clock.turn), between slices of looking for buckets. */
  readonly turn: () => Promise<void>;
  /**
   * What is cached is only dropped once somebody wants buckets for data: a set that is merely
   * read, or mounted and unmounted, stays as it is.
   */
  readonly onDemand?: boolean;
  /** Tells the device that it may forget these buckets, before they are reused. */
  readonly discard?: (buckets: readonly number[]) => Promise<void>;
  /** Instead of the usual sizes; for tests. */
  readonly sizes?: ReserveSizes;
}

interface Waiter {
  readonly reserve: Reserve;
  readonly count: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class Allocator {
  readonly table: BucketTable;
  readonly sizes: ReserveSizes;
  policy: ReplacementPolicyName;
  readonly #options: AllocatorOptions;
  /** Indexed by RESERVE. */
  readonly #free: readonly [U32Fifo, U32Fifo, U32Fifo, U32Fifo];
  /** Invalidated in this round; all durable, or none. */
  readonly #pending: U32Fifo;
  #pendingDurable = true;
  readonly #invalidation: Invalidation;
  readonly #wake = new Signal();
  #waiters: Waiter[] = [];
  #prioBlocked = 0;
  #started = false;
  #stopped = false;
  /** The policy found too little: it is not run again before a collection or a release. */
  #needsGc = false;
  /** `wakeGc` was called and not answered yet, or a collection is under way. */
  #gcAsked = false;
  #gcsFinished = 0;
  /** As many were finished when the policy last began. */
  #gcsLookedAt = 0;
  /** Somebody took or waits for more than the first fill was meant for; see `onDemand`. */
  #wanted = false;
  /** Buckets were released since the policy last ran. */
  #released = false;
  readonly #shortage: Shortage;
  /** Nobody may wait any more. */
  #closing = false;

  constructor(options: AllocatorOptions) {
    const { table, prioSetCount, policy } = options;
    this.table = table;
    this.policy = policy;
    this.#options = options;
    this.sizes = options.sizes ?? reserveSizes(table.bucketCount, prioSetCount);
    const { btree, prio, movingGc, none, pending } = this.sizes;
    assert(prio === prioSetCount, "PRIO holds exactly one round of priorities");
    assert(pending > prioSetCount, "a round frees more than the prio_sets it writes");
    this.#free = [
      new U32Fifo(btree),
      new U32Fifo(prio),
      new U32Fifo(movingGc),
      new U32Fifo(none),
    ];
    this.#pending = new U32Fifo(pending);
    // Whatever the reserves lack they have by then, though each collection find but one bucket.
    const inVainMax = 2 * (btree + prio + movingGc + pending);
    this.#shortage = new Shortage(options.changes ?? (() => 0), inVainMax);
    this.#invalidation = {
      table,
      random: options.random,
      fifoCursor: table.firstBucket,
      wanted: () => this.#pending.room,
      take: (bucket) => {
        if (table.priority[bucket] !== PRIO_BTREE) this.#shortage.noteFound();
        table.invalidate(bucket);
        assert(this.#pending.push(bucket), "a policy takes no more than is wanted");
      },
      needGc: () => {
        this.#needsGc = true;
      },
    };
  }

  /** Whether a collection is needed to find more buckets (`invalidate_needs_gc`). */
  get needsGc(): boolean {
    return this.#needsGc;
  }

  /** Whether collections free nothing: everything is dirty or metadata. */
  get exhausted(): boolean {
    return this.#shortage.exhausted;
  }

  /** How many callers wait for buckets; the collector pauses shorter while some do. */
  get waiting(): number {
    return this.#waiters.length;
  }

  /** Whether somebody waits for a bucket for data. */
  get dataWaits(): boolean {
    return this.#waiters.some(({ reserve }) => reserve === RESERVE.none);
  }

  /** How many buckets lie in one list, for statistics. */
  freeCount(reserve: Reserve): number {
    return this.#free[reserve].length;
  }

  /** Buckets invalidated and not yet on a free list, for statistics. */
  get pendingCount(): number {
    return this.#pending.length;
  }

  /** How many times `tryTake(reserve)` would succeed now. */
  available(reserve: Reserve): number {
    if (this.#options.faults.failed !== undefined) return 0;
    const shared = this.#free[RESERVE.none].length;
    return reserve === RESERVE.none ? shared : shared + this.#free[reserve].length;
  }

  /** Whether metadata can have a bucket without anything cached being dropped for it. */
  get stocked(): boolean {
    return this.available(RESERVE.none) > 0 &&
      this.#free[RESERVE.btree].length * 2 >= this.sizes.btree;
  }

  /** Whether the index should not grow: what is left for it is for what makes room. */
  get indexIsShort(): boolean {
    return this.#free[RESERVE.none].length === 0 &&
      this.#free[RESERVE.btree].length * 2 < this.sizes.btree;
  }

  /**
   * Takes a bucket that may be overwritten at once, pinned once for the caller; -1 when there is
   * none. BTREE and PRIO buckets are marked as metadata, others as clean data. Never waits.
   */
  tryTake(reserve: Reserve): number {
    if (this.#options.faults.failed !== undefined) return -1;
    if (reserve === RESERVE.none || this.#free[RESERVE.btree].length * 2 < this.sizes.btree) {
      this.#wanted = true;
    }
    let bucket = this.#free[RESERVE.none].shift();
    if (bucket < 0 && reserve !== RESERVE.none) bucket = this.#free[reserve].shift();
    if (bucket < 0) {
      this.#demandGc();
      this.#wake.raise();
      return -1;
    }
    this.table.take(bucket, reserve === RESERVE.btree || reserve === RESERVE.prio);
    this.#wake.raise();
    return bucket;
  }

  /**
   * Resolves when `tryTake(reserve)` would succeed `count` times; others may be faster, so check
   * again. Rejects with SetFailed or Shutdown, and, for data (NONE, MOVINGGC), with NoSpace when
   * collections find nothing to drop. Metadata waits on: writeback makes room.
   */
  whenAvailable(reserve: Reserve, count: number): Promise<void> {
    assert(count >= 1, "somebody waits for a bucket at least");
    assert(
      count <= this.#free[reserve].capacity,
      "nobody waits for more buckets than the reserve holds",
    );
    if (this.available(reserve) >= count) return Promise.resolve();
    const refusal = this.#refusal(reserve);
    if (refusal) {
      this.#demandGc();
      return Promise.reject(refusal);
    }
    this.#wanted = true;
    return new Promise((resolve, reject) => {
      this.#waiters.push({ reserve, count, resolve, reject });
      this.#demandGc();
      this.#wake.raise();
    });
  }

  /**
   * Nothing points to `bucket` any more (a freed b-tree node, an old table). It is reused once its
   * pins are gone, like any other that holds nothing. Pins are the caller's to drop.
   */
  release(bucket: number): void {
    this.table.release(bucket);
    this.#released = true;
    this.#wake.raise();
  }

  /**
   * Puts a taken bucket back, with its one pin, that nothing durable or queued points to: its
   * generation is on disk, so it may be handed out again at once.
   */
  giveBack(bucket: number, reserve: Reserve): void {
    if (this.#free[reserve].push(bucket) || this.#free[RESERVE.none].push(bucket)) {
      this.table.giveBack(bucket);
      this.#settle();
      return;
    }
    this.release(bucket);
    this.table.unpin(bucket);
  }

  /** From now on a generation in memory must not reach the disk; until `unblockPrios`. */
  blockPrios(): void {
    this.#prioBlocked++;
  }

  /** The parent of a freed node is durable. */
  unblockPrios(): void {
    assert(this.#prioBlocked > 0, "priorities were blocked");
    this.#prioBlocked--;
    if (this.#prioBlocked === 0) this.#wake.raise();
  }

  get prioBlocked(): number {
    return this.#prioBlocked;
  }

  /** A collection begins. */
  gcBegan(): void {
    this.#gcAsked = true;
    this.#shortage.gcBegan();
  }

  /** Its marks are valid: what it found to be free may be taken. */
  gcFinished(): void {
    this.#needsGc = false;
    this.#gcsFinished++;
    this.#wake.raise();
  }

  /** What it asked to be moved has moved, too. */
  gcOver(): void {
    this.#gcAsked = false;
    this.#shortage.gcOver();
    this.#wake.raise();
  }

  /**
   * At registration, after the first marking: fills PRIO, then BTREE, with buckets that nothing
   * points to; and NONE with `forData`, so that data need not wait for a first round. No
   * priorities need be written for these: whatever generation the disk has for
   * them, no pointer on the disk could be taken for a good one. False: PRIO could not be filled.
   */
  firstFill(forData: boolean = false): boolean {
    assert(!this.#started, "the first fill comes before the background task");
    assert(this.table.gcMarksValid, "the first fill knows what is in use");
    const prio = this.#free[RESERVE.prio];
    const btree = this.#free[RESERVE.btree];
    const none = this.#free[RESERVE.none];
    const wantsNone = (): boolean => forData && none.room > 0;
    for (let bucket = this.table.firstBucket; bucket < this.table.bucketCount; bucket++) {
      if (prio.room === 0 && btree.room === 0 && !wantsNone()) break;
      if (this.table.mark[bucket] !== MARK.none || !this.table.canInvalidate(bucket)) continue;
      this.table.invalidate(bucket);
      if (!prio.push(bucket) && !btree.push(bucket)) none.push(bucket);
    }
    this.#settle();
    return prio.room === 0;
  }

  /** Starts the background task. It ends with the group, or when the set fails. */
  start(tasks: TaskGroup): void {
    assert(!this.#started, "the allocator is started once");
    this.#started = true;
    tasks.start(async (signal) => {
      const wake = () => this.#wake.raise();
      signal.addEventListener("abort", wake);
      try {
        await this.#run(signal);
      } catch (error) {
        this.#options.faults.raise(error);
      } finally {
        signal.removeEventListener("abort", wake);
        this.#stopped = true;
        this.#rejectWaiters((waiter) => this.#refusal(waiter.reserve));
      }
    });
  }

  /** From now on nobody waits: who would, and who does, is refused with Shutdown. */
  stopWaiting(): void {
    this.#closing = true;
    this.#rejectWaiters((waiter) => this.#refusal(waiter.reserve));
  }

  /** The set failed elsewhere: refuses all who wait, ends the task. To be called on the fault. */
  setFailed(): void {
    this.#wake.raise();
    this.#rejectWaiters((waiter) => this.#refusal(waiter.reserve));
  }

  /** For tests: throws when the lists contradict the table or each other. */
  checkInvariants(): void {
    const seen = new Set<number>();
    for (const list of [...this.#free, this.#pending]) {
      for (let index = 0; index < list.length; index++) {
        const bucket = list.at(index);
        assert(!seen.has(bucket), "a free bucket is in one list");
        assert(this.table.isHeld(bucket), "a free bucket is held");
        seen.add(bucket);
      }
    }
    let held = 0;
    for (let bucket = 0; bucket < this.table.bucketCount; bucket++) {
      if (this.table.isHeld(bucket)) held++;
    }
    assert(held === seen.size, "a held bucket is in a list");
    this.table.checkInvariants();
  }

  // --- The background task ---

  #ending(signal: AbortSignal): boolean {
    return signal.aborted || this.#options.faults.failed !== undefined;
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (this.#options.onDemand && !this.#wanted && !this.#ending(signal)) {
      await this.#wake.wait();
    }
    while (!this.#ending(signal)) {
      if (this.#pendingDurable && this.#distribute()) {
        // All lists are full and the next round is in stock.
        await this.#wake.wait();
        continue;
      }
      this.#pendingDurable = false;
      if (await this.#invalidate(signal)) await this.#persist(signal);
      else if (!this.#ending(signal) && !this.#hasNews()) await this.#wake.wait();
    }
  }

  /** Moves durable buckets to the lists, the most needed first. True: some found no room. */
  #distribute(): boolean {
    const { btree, prio, movingGc, none } = RESERVE;
    for (const reserve of [prio, btree, movingGc, none]) {
      const list = this.#free[reserve];
      if (reserve === none && list.room > 0 && this.#pending.length > 0) {
        this.#shortage.noteServed();
      }
      while (list.room > 0 && this.#pending.length > 0) list.push(this.#pending.shift());
    }
    this.#settle();
    return this.#pending.length > 0;
  }

  /** Something came since the policy last ran, or it found all that it was asked for. */
  #hasNews(): boolean {
    return !this.#needsGc || this.#released || this.#gcsLookedAt < this.#gcsFinished ||
      this.#shortage.isOpen;
  }

  /** Runs the policy. True: enough is pending to be worth a round. */
  async #invalidate(signal: AbortSignal): Promise<boolean> {
    if (this.#pending.room > 0 && this.#hasNews()) {
      if (this.#gcsLookedAt < this.#gcsFinished) this.#shortage.beginLook();
      this.#gcsLookedAt = this.#gcsFinished;
      this.#needsGc = false;
      this.#released = false;
      const steps = REPLACEMENT_POLICIES[this.policy](this.#invalidation);
      while (!steps.next().done) {
        await this.#options.turn();
        if (this.#ending(signal)) return false;
      }
      this.#judge();
    }
    return this.#worthARound();
  }

  /**
   * A round takes as many buckets as there are prio_sets, and sets free as many old ones. With no
   * more than those it would go on for ever, writing priorities only to replace them.
   */
  #worthARound(): boolean {
    return this.#pending.length > this.#options.prioSetCount;
  }

  /** Concludes from what the policy found how things are, and whether a collection is wanted. */
  #judge(): void {
    if (!this.#needsGc) return this.#shortage.noteEnough();
    // What a collection found that has finished meanwhile is looked at first.
    if (this.#gcsLookedAt < this.#gcsFinished) return;
    if (this.#shortage.conclude()) this.#rejectWaiters((waiter) => this.#refusal(waiter.reserve));
    if (!this.#shortage.exhausted || this.#waiters.length > 0) this.#askGc();
  }

  async #persist(signal: AbortSignal): Promise<void> {
    while (this.#prioBlocked > 0) {
      await this.#wake.wait();
      if (this.#ending(signal)) return;
    }
    // No await between the check and the call, which composes what it writes before it waits.
    const written = await this.#options.persistPrios();
    if (!written) {
      this.#needsGc = true;
      this.#askGc();
      if (this.#needsGc && !this.#ending(signal)) await this.#wake.wait();
      return;
    }
    if (this.#options.discard) await this.#options.discard(this.#pendingBuckets());
    this.#pendingDurable = true;
  }

  #pendingBuckets(): number[] {
    return Array.from({ length: this.#pending.length }, (_, index) => this.#pending.at(index));
  }

  #askGc(): void {
    if (this.#gcAsked) return;
    this.#gcAsked = true;
    this.#options.wakeGc();
  }

  /** While everything is dirty, a collection is worth its while only if somebody needs a bucket. */
  #demandGc(): void {
    if (this.#shortage.exhausted) this.#askGc();
  }

  // --- Those who wait ---

  /** Wakes all whose wish is fulfilled; they check again. */
  #settle(): void {
    if (this.#waiters.length === 0) return;
    const waiting: Waiter[] = [];
    for (const waiter of this.#waiters) {
      if (this.available(waiter.reserve) >= waiter.count) waiter.resolve();
      else waiting.push(waiter);
    }
    this.#waiters = waiting;
  }

  #refusal(reserve: Reserve): BcacheError | undefined {
    const { failed } = this.#options.faults;
    if (failed !== undefined) {
      const reason = messageOf(failed);
      return new BcacheError("SetFailed", `no buckets from a failed cache set: ${reason}`, {
        cause: failed,
      });
    }
    if (this.#stopped || this.#closing) {
      return new BcacheError("Shutdown", "no buckets any more: the cache set is being stopped");
    }
    const isData = reserve === RESERVE.none || reserve === RESERVE.movingGc;
    if (!isData || !this.#shortage.isHopeless) return undefined;
    return new BcacheError(
      "NoSpace",
      `no bucket of the cache can be dropped (reserve ${RESERVE_NAMES[reserve]}, ` +
        `${this.table.inUsePercent()} % in use): what is cached is dirty or metadata; ` +
        "go around the cache, or wait for writeback",
    );
  }

  #rejectWaiters(why: (waiter: Waiter) => BcacheError | undefined): void {
    const waiting: Waiter[] = [];
    for (const waiter of this.#waiters) {
      const refusal = why(waiter);
      if (refusal) waiter.reject(refusal);
      else waiting.push(waiter);
    }
    this.#waiters = waiting;
  }
}
