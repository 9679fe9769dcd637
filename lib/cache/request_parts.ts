/**
 * What the request paths of a cached device share: the parts of the cache set they may use, and
 * what is put into the index on their behalf.
 */
import type { Clock, Log } from "../base/runtime.ts";
import type { Faults, TaskGroup } from "../base/sync.ts";
import type { Btree } from "../btree/btree.ts";
import type { Allocator } from "../buckets/allocator.ts";
import type { BucketTable } from "../buckets/table.ts";
import { KeySet } from "../bset/key_set.ts";
import type { Device } from "../device/device.ts";
import { keySizeSectors, setDirty, setExtent, setPointer, SLOT_WORDS } from "../ondisk/bkey.ts";
import type { KeyCommitter } from "./commit.ts";
import type { Grant, OpenBuckets } from "./open_buckets.ts";
import type { Fills } from "./ranges.ts";

export interface RequestParts {
  /** The cache device. */
  readonly cache: Device;
  readonly btree: Btree;
  readonly buckets: BucketTable;
  readonly allocator: Allocator;
  readonly open: OpenBuckets;
  readonly committer: KeyCommitter;
  readonly fills: Fills;
  readonly clock: Clock;
  readonly log: Log;
  readonly faults: Faults;
  readonly tasks: TaskGroup;
  readonly blockSectors: number;
  readonly tunables: RequestTunables;
  /** Reads may put what they missed into the cache. Not in a set that changes nothing. */
  readonly mayFill: boolean;
  /** Data of foreground requests went into the cache; drives collection and ageing. */
  noteCached(sectors: number): void;
  /** Data could not be read from or written to the cache device. May make the set fail. */
  noteCacheError(error: unknown): void;
  /** A request came, to whichever device of the set. */
  noteRequest(): void;
  /** A read of clean data is done by the backing device, after such an error. */
  noteReadRetry(): void;
  /** For the collector: the rate controller has run; a device has no dirty data left. */
  noteWritebackControl(): void;
  noteClean(): void;
}

export interface RequestTunables {
  /** Above this many percent of buckets in use no write is left dirty, sync or not. */
  cutoffWritebackSync: number;
  /** Above this many percent, only writes that must be quick. */
  cutoffWriteback: number;
  /** After the set failed: serve what can be served, or nothing at all. */
  errors: "unregister" | "panic";
  /** Every request to every device is refused. */
  ioDisabled: boolean;
}

/** Keys without a pointer cover at most this much, as in the kernel. */
const HOLE_SECTORS_MAX = 32768;

const scratch = (): Uint32Array => new Uint32Array(SLOT_WORDS);

/** Builds keys for a batch without allocating per key. */
export class BatchBuilder {
  readonly batch: KeySet = new KeySet(8);
  #slot = scratch();

  clear(): void {
    this.batch.clear();
  }

  /** Size of key `index` of the batch. */
  sizeSectors(index: number): number {
    return keySizeSectors(this.batch.words, index * SLOT_WORDS);
  }

  /** A key for data that lies at `grant`. */
  addData(inode: number, start: number, grant: Grant, dirty: boolean): void {
    setExtent(this.#slot, 0, inode, start + grant.sectors, grant.sectors);
    setPointer(this.#slot, 0, grant.sector, grant.gen);
    if (dirty) setDirty(this.#slot, 0, true);
    this.batch.push(this.#slot, 0);
  }

  /** A key that says "nothing cached" from `start` on; returns where it ends. */
  addHole(inode: number, start: number, end: number): number {
    const size = Math.min(end - start, HOLE_SECTORS_MAX);
    setExtent(this.#slot, 0, inode, start + size, size);
    this.batch.push(this.#slot, 0);
    return start + size;
  }
}
