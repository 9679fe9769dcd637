/**
 * Priorities and generations on disk: reading the chain of prio_sets at start, and replacing it
 * by a new one before invalidated buckets are reused.
 *
 * Invariants:
 * - A crash at any moment leaves a whole chain that the newest journal entry names: the new one is
 *   written beside the old one, then journaled, and only then are the old one's buckets released.
 * - All sets of a round hold the generations of one moment, that of the call. They are composed in
 *   slices; what was raised meanwhile is put back to what it was. (The kernel composes each set
 *   just before it is written; a b-tree node freed in between could reach the disk as stale before
 *   its parent.) A bucket invalidated later is not in the round.
 * - The buckets of the chain in force are pinned, and so are the next one's: nothing takes them,
 *   whatever a collection finds.
 *
 * Linux: prio_read, bch_prio_write and prio_io in super.c.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { SEQUENCE_MAX } from "../ondisk/layout.ts";
import type { Magic } from "../ondisk/magic.ts";
import {
  genAt,
  prioAt,
  priosPerSet,
  putPrio,
  readPrioSetHeader,
  sealPrioSet,
  verifyPrioSet,
} from "../ondisk/prio_set.ts";
import { RESERVE, type Reserve } from "./reserves.ts";
import { type BucketTable, MARK } from "./table.ts";

/** Buckets composed between two turns of other work: well below a millisecond. */
const SLICE_BUCKETS = 16_384;

/** Where the buckets of a new chain come from (the allocator). None of these waits. */
export interface PrioBuckets {
  available(reserve: Reserve): number;
  tryTake(reserve: Reserve): number;
  giveBack(bucket: number, reserve: Reserve): void;
  release(bucket: number): void;
}

export interface PrioWriterOptions {
  readonly table: BucketTable;
  /** The cache device, bucket 0 at its sector 0. */
  readonly device: Device;
  /** Bytes of a bucket that a prio_set fills: a multiple of 512. */
  readonly metaBytes: number;
  /** The set's magic for prio_sets. */
  readonly magic: Magic;
  readonly buckets: PrioBuckets;
  /**
   * Journals that the chain begins in `firstBucket`. On return the entry is durable, and with it
   * (the entry is written with a preflush) every write that completed before the call.
   */
  readonly commitPrios: (firstBucket: number) => Promise<void>;
  /** Lets other work run (Clock.turn), between slices. Absent: nothing is interrupted. */
  readonly turn?: () => Promise<void>;
}

/** How many prio_sets describe `bucketCount` buckets. */
export function prioSetCount(bucketCount: number, metaBytes: number): number {
  return Math.ceil(bucketCount / priosPerSet(metaBytes));
}

export class PrioWriter {
  readonly setCount: number;
  readonly #options: PrioWriterOptions;
  readonly #perSet: number;
  /** One meta area per set, kept: while it is written it is the device's. */
  readonly #buffers: readonly Uint8Array[];
  /** Written and journaled, in the order of the sets; empty before the first. */
  #chain: readonly number[] = [];
  /** Taken for a chain that is not journaled yet. */
  #nextChain: readonly number[] = [];
  #sequence = 0;
  #writing = false;
  /** prio_sets written since start. */
  setsWritten = 0;

  constructor(options: PrioWriterOptions) {
    const { table, metaBytes } = options;
    assert(metaBytes % 512 === 0, "a meta area is whole sectors");
    assert(metaBytes <= table.bucketSectors * 512, "a meta area lies in one bucket");
    this.#options = options;
    this.#perSet = priosPerSet(metaBytes);
    this.setCount = prioSetCount(table.bucketCount, metaBytes);
    this.#buffers = Array.from({ length: this.setCount }, () => new Uint8Array(metaBytes));
  }

  /** The bucket that the newest journaled chain begins in; 0 when there is none yet. */
  get firstBucket(): number {
    return this.#chain[0] ?? 0;
  }

  /** One more at every write. */
  get sequence(): number {
    return this.#sequence;
  }

  /** All buckets that hold priorities now, of the chain in force and of the next. */
  liveBuckets(): readonly number[] {
    return [...this.#chain, ...this.#nextChain];
  }

  /**
   * Reads the chain that begins in `firstBucket` (as journaled; not trusted) into the table, and
   * marks and pins its buckets. Rejects with BadChecksum or BadFormat, or DeviceIo; the table is
   * then partly loaded and of no use.
   */
  async read(firstBucket: number): Promise<void> {
    assert(this.#chain.length === 0, "priorities are read once, before any is written");
    const { table } = this.#options;
    const chain: number[] = [];
    let next = firstBucket;
    for (let set = 0; set < this.setCount; set++) {
      this.#checkLink(next, set, chain);
      chain.push(next);
      next = await this.#readSet(next, set);
    }
    for (const bucket of chain) {
      assert(table.setMark(bucket, MARK.metadata), "nothing was marked before");
      table.addSectorsUsed(bucket, table.bucketSectors);
      table.pin(bucket);
    }
    this.#chain = chain;
  }

  /**
   * Writes all priorities and the generations as they are now, journals the new chain, releases
   * the old. False: too few buckets, nothing happened. Rejects when a write failed, the buckets
   * given back; or when journaling failed: then either chain may be in force and both are kept.
   */
  async write(): Promise<boolean> {
    assert(!this.#writing, "priorities are written one round at a time");
    assert(this.#nextChain.length === 0, "no round follows one whose journaling failed");
    const { buckets, device, table, commitPrios } = this.#options;
    if (buckets.available(RESERVE.prio) < this.setCount) return false;
    this.#writing = true;
    try {
      this.#nextChain = Array.from({ length: this.setCount }, () => this.#takeBucket());
      await this.#compose();
      try {
        // Last to first, as the kernel does; a set is sealed just before it is written, so that
        // no other work waits for more than one checksum.
        for (let set = this.setCount - 1; set >= 0; set--) {
          await this.#options.turn?.();
          await device.write(this.#nextChain[set]! * table.bucketSectors, this.#sealed(set));
        }
      } catch (error) {
        for (const bucket of this.#nextChain) buckets.giveBack(bucket, RESERVE.prio);
        this.#nextChain = [];
        throw error;
      }
      await commitPrios(this.#nextChain[0]!);
      const old = this.#chain;
      this.#chain = this.#nextChain;
      this.#nextChain = [];
      for (const bucket of old) {
        table.unpin(bucket);
        buckets.release(bucket);
      }
      return true;
    } finally {
      this.#writing = false;
    }
  }

  #takeBucket(): number {
    const bucket = this.#options.buckets.tryTake(RESERVE.prio);
    assert(bucket > 0, "there were enough buckets for priorities");
    return bucket;
  }

  /** Copies every bucket's priority, and its generation as it is at the call, into the buffers. */
  async #compose(): Promise<void> {
    const { table, turn } = this.#options;
    this.#sequence++;
    const raised = table.watchGens();
    try {
      for (let first = 0; first < table.bucketCount; first += SLICE_BUCKETS) {
        if (first > 0) await turn?.();
        this.#composeSlice(first, Math.min(first + SLICE_BUCKETS, table.bucketCount));
      }
      // A freed b-tree node's bucket must not be stale on disk before the parent that says so is.
      for (const [bucket, gen] of raised) {
        const buffer = this.#buffers[Math.floor(bucket / this.#perSet)]!;
        putPrio(buffer, bucket % this.#perSet, table.priority[bucket]!, gen);
      }
    } finally {
      table.endGenWatch();
    }
  }

  #composeSlice(from: number, to: number): void {
    const { priority, gen } = this.#options.table;
    for (let bucket = from; bucket < to;) {
      const set = Math.floor(bucket / this.#perSet);
      const buffer = this.#buffers[set]!;
      const first = set * this.#perSet;
      const end = Math.min(first + this.#perSet, to);
      for (; bucket < end; bucket++) {
        putPrio(buffer, bucket - first, priority[bucket]!, gen[bucket]!);
      }
    }
  }

  #sealed(set: number): Uint8Array {
    const buffer = this.#buffers[set]!;
    const nextBucket = this.#nextChain[set + 1] ?? 0;
    this.setsWritten++;
    sealPrioSet(buffer, { sequence: this.#sequence, nextBucket }, this.#options.magic);
    return buffer;
  }

  #checkLink(bucket: number, set: number, chain: readonly number[]): void {
    const { table } = this.#options;
    const where = set === 0 ? "the journal" : `the prio_set in bucket ${chain[set - 1]}`;
    if (!table.isAllocatable(bucket)) {
      throw this.#damage(
        "BadFormat",
        `${where} names bucket ${bucket} for prio_set ${set} of ${this.setCount}, ` +
          `expected one from ${table.firstBucket} to ${table.bucketCount - 1}`,
      );
    }
    if (chain.includes(bucket)) {
      throw this.#damage(
        "BadFormat",
        `${where} names bucket ${bucket} for prio_set ${set}, which holds ` +
          `prio_set ${chain.indexOf(bucket)} already`,
      );
    }
  }

  /** Reads and checks one set, loads what it says. Returns the bucket of the next. */
  async #readSet(bucket: number, set: number): Promise<number> {
    const { device, table, magic } = this.#options;
    const buffer = this.#buffers[set]!;
    await device.read(bucket * table.bucketSectors, buffer);
    const where = `prio_set ${set} of ${this.setCount} in bucket ${bucket}`;
    const fault = verifyPrioSet(buffer, magic);
    if (fault) throw this.#damage("BadChecksum", `${where} has a ${fault.reason}: ${fault.detail}`);
    const header = readPrioSetHeader(buffer);
    // The next round counts on from it, and must still be exact.
    if (header.sequence > SEQUENCE_MAX) {
      const found = `${where} has sequence ${header.sequence}`;
      throw this.#damage("BadFormat", `${found}, expected at most 2^52`);
    }
    if (set > 0 && header.sequence !== this.#sequence) {
      throw this.#damage(
        "BadFormat",
        `${where} has sequence ${header.sequence}, expected ${this.#sequence} as in prio_set 0`,
      );
    }
    this.#sequence = header.sequence;
    const first = set * this.#perSet;
    const count = Math.min(this.#perSet, table.bucketCount - first);
    for (let index = 0; index < count; index++) {
      table.load(first + index, prioAt(buffer, index), genAt(buffer, index));
    }
    // What the kernel left behind the last entry is not ours to keep.
    buffer.fill(0);
    return header.nextBucket;
  }

  #damage(code: "BadChecksum" | "BadFormat", what: string): BcacheError {
    const advice = "the cache cannot be used as it is; restore it from a copy, or format it anew " +
      "if nothing in it is dirty";
    return new BcacheError(code, `${this.#options.device.name}: ${what}; ${advice}`);
  }
}
