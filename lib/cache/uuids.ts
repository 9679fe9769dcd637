/**
 * The UUID table of a cache set: which backing device has which number in the index. Answers to
 * `uuid_read`, `__uuid_write` and `uuid_find` of super.c.
 *
 * Every change goes to a fresh bucket; the journal entry that names it makes it valid.
 */
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import { Mutex } from "../base/sync.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { type BucketTable, MARK } from "../buckets/table.ts";
import type { Device } from "../device/device.ts";
import {
  keyPointers,
  pointerGen,
  pointerSector,
  setExtent,
  setPointer,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { equalUuids, isZeroUuid } from "../ondisk/uuid.ts";
import {
  convertOldUuidTable,
  emptyUuidEntry,
  isInvalidated,
  readUuidEntry,
  UUID_ENTRY_BYTES,
  type UuidEntry,
  writeUuidEntry,
} from "../ondisk/uuid_entry.ts";

export class UuidTable {
  /** The key that names the table's bucket, as the journal carries it. */
  readonly key: Uint32Array = new Uint32Array(SLOT_WORDS);
  readonly #entries: UuidEntry[] = [];
  #device: Device;
  #buckets: BucketTable;
  #metaBytes: number;
  #bucket = 0;
  #writing = new Mutex();
  /** Changes whenever an entry does, in memory or on disk. */
  version = 0;
  /** The table as it is valid on disk; undefined: there is none yet. */
  #onDisk: Uint8Array | undefined;
  /** Times the table was written since start. */
  writes = 0;

  constructor(options: { device: Device; buckets: BucketTable; metaBytes: number }) {
    this.#device = options.device;
    this.#buckets = options.buckets;
    this.#metaBytes = options.metaBytes;
    for (let index = 0; index < this.capacity; index++) this.#entries.push(emptyUuidEntry());
  }

  get capacity(): number {
    return Math.floor(this.#metaBytes / UUID_ENTRY_BYTES);
  }

  /** The bucket the table lies in; 0: it was never written. */
  get bucket(): number {
    return this.#bucket;
  }

  entry(index: number): UuidEntry {
    return this.#entries[index]!;
  }

  /** The slot of a device, or -1. */
  find(uuid: Uint8Array): number {
    return this.#entries.findIndex((entry) =>
      !isZeroUuid(entry.uuid) && !isInvalidated(entry) && equalUuids(entry.uuid, uuid)
    );
  }

  /** What memory and disk agree on about a slot; "used" while they do not. */
  slotState(index: number): "unused" | "invalidated" | "used" {
    if (this.#onDisk === undefined) return "used";
    const state = stateOf(this.entry(index));
    return stateOf(readUuidEntry(this.#onDisk, index)) === state ? state : "used";
  }

  set(index: number, entry: UuidEntry): void {
    this.#entries[index] = entry;
    this.version++;
  }

  /** Reads the table that the journal names. @param old it has 64-byte entries */
  async read(journalKey: Uint32Array, old: boolean): Promise<void> {
    const bucket = Math.floor(pointerSector(journalKey, 0) / this.#buckets.bucketSectors);
    if (keyPointers(journalKey, 0) !== 1 || !this.#buckets.isAllocatable(bucket)) {
      throw new BcacheError(
        "BadFormat",
        `${this.#device.name}: journal: the UUID table's key names bucket ${bucket}, expected ` +
          `one of ${this.#buckets.firstBucket}-${this.#buckets.bucketCount - 1}; ${DAMAGE_ADVICE}`,
      );
    }
    this.key.set(journalKey.subarray(0, SLOT_WORDS));
    this.#bucket = bucket;
    const bytes = new Uint8Array(this.#metaBytes);
    await this.#device.read(bucket * this.#buckets.bucketSectors, bytes);
    if (old) convertOldUuidTable(bytes);
    for (let index = 0; index < this.capacity; index++) {
      this.#entries[index] = readUuidEntry(bytes, index);
    }
    this.#onDisk = bytes;
    this.version++;
  }

  /** Marks the table's bucket as metadata; for the collector and registration. */
  mark(): void {
    if (this.#bucket === 0) return;
    this.#buckets.setMark(this.#bucket, MARK.metadata);
    this.#buckets.addSectorsUsed(this.#bucket, this.#buckets.bucketSectors);
  }

  get gen(): number {
    return pointerGen(this.key, 0);
  }

  /**
   * Changes some entries and makes the table with them the valid one, as `write` does. When that
   * fails they are put back, so that no later write carries a change that was reported as failed.
   */
  async update(
    changes: ReadonlyArray<readonly [index: number, entry: UuidEntry]>,
    allocator: Allocator,
    commit: () => Promise<void>,
  ): Promise<void> {
    const before = changes.map(([index]) => this.entry(index));
    for (const [index, entry] of changes) this.set(index, entry);
    try {
      await this.write(allocator, commit);
    } catch (error) {
      // Each only if it is still ours: another change of it may have come meanwhile.
      changes.forEach(([index, entry], at) => {
        if (this.entry(index) === entry) this.set(index, before[at]!);
      });
      throw error;
    }
  }

  /**
   * Writes the table to a fresh bucket, and makes it the valid one. @param commit writes the
   * journal entry that names it; the old bucket is reused only after that. One at a time: a table
   * that was composed earlier must not replace a later one.
   */
  write(allocator: Allocator, commit: () => Promise<void>): Promise<void> {
    return this.#writing.run(() => this.#write(allocator, commit));
  }

  async #write(allocator: Allocator, commit: () => Promise<void>): Promise<void> {
    let bucket = allocator.tryTake(RESERVE.btree);
    while (bucket < 0) {
      await allocator.whenAvailable(RESERVE.btree, 1);
      bucket = allocator.tryTake(RESERVE.btree);
    }
    const bytes = new Uint8Array(this.#metaBytes);
    this.#entries.forEach((entry, index) => writeUuidEntry(bytes, index, entry));
    const sector = bucket * this.#buckets.bucketSectors;
    try {
      // Stable with the flush before the journal entry that names it.
      await this.#device.write(sector, bytes);
    } catch (error) {
      allocator.giveBack(bucket, RESERVE.btree);
      throw error;
    }
    this.writes++;
    const old = this.#bucket;
    // A collection that ends before the release must not find the old bucket free already.
    if (old > 0) this.#buckets.pin(old);
    setExtent(this.key, 0, 0, 0, this.#metaBytes / 512);
    setPointer(this.key, 0, sector, this.#buckets.gen[bucket]!);
    this.#bucket = bucket;
    await commit();
    this.#onDisk = bytes;
    this.version++;
    this.#buckets.unpin(bucket);
    if (old === 0) return;
    allocator.release(old);
    this.#buckets.unpin(old);
  }
}

function stateOf(entry: UuidEntry): "unused" | "invalidated" | "used" {
  if (isZeroUuid(entry.uuid)) return "unused";
  return isInvalidated(entry) ? "invalidated" : "used";
}
