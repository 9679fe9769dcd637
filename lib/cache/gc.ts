/**
 * Garbage collection: finds out what of the cache device the index still uses. Answers to
 * `bch_btree_gc` and its helpers in btree.c.
 *
 * Mark and sweep, a node at a time: each node is marked in one synchronous step, and other work
 * runs in between. That is right because whatever changes meanwhile marks itself: a bucket taken
 * from the allocator is marked as it is taken, one that receives dirty data is marked dirty then,
 * and both stay pinned until their key is in the index. Before the marks become valid all dirty
 * leaves are written: clean keys are not journaled, so what they replaced must not be on disk.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import type { Clock, Log } from "../base/runtime.ts";
import { type Faults, Signal, type TaskGroup } from "../base/sync.ts";
import { TimeStats } from "../base/time_stats.ts";
import type { Btree } from "../btree/btree.ts";
import type { BtreeNode } from "../btree/node.ts";
import type { NodeWriter } from "../btree/node_write.ts";
import type { Replacer } from "../btree/replace.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { type BucketTable, MARK, MARK_CONFLICT } from "../buckets/table.ts";
import type { KeySet } from "../bset/key_set.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyText,
  pointerDevice,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { KeyBuffer } from "./key_buffer.ts";

/** A node with a pointer staler than this is written anew. */
const STALE_MAX = 10;
/** Nodes marked between two turns of other work. */
const NODES_PER_TURN = 4;
/** A collection is due when this share of the cache was written. */
const COLLECT_SHARE = 16;

/** Rest between two collections: somebody waits for a bucket, or not. As in the kernel. */
const PAUSE_MS_MIN = 10;
const PAUSE_MS = 100;

/** With more than this many percent in use nothing is cached: nothing else would wake us. */
const CACHING_STOPS_PERCENT = 95;
/** With at least this many percent in use a collection after writeback is worth its while. */
const AFTER_WRITEBACK_PERCENT = 50;

/** What else is metadata: marked anew in every collection. */
export type MarkMetadata = () => void;

export class Collector {
  #btree: Btree;
  #buckets: BucketTable;
  #allocator: Allocator;
  #writer: NodeWriter;
  #replacer: Replacer;
  #clock: Clock;
  #faults: Faults;
  #log: Log;
  #markMetadata: MarkMetadata;
  #wake = new Signal();
  #wanted = false;
  #sectorsToGc: number;
  readonly #sectorsPerGc: number;
  #keyBuffers = new Set<KeyBuffer>();
  #afterWritebackArmed = false;
  /** Collect when writeback has written everything back (`gc_after_writeback`). */
  afterWriteback = false;
  collections = 0;
  lastDurationMs = 0;
  /** Whole collections. */
  readonly times: TimeStats = new TimeStats();
  nodesMarked = 0;
  /** Good keys of leaves, and their sectors, that the last or present collection met. */
  #keys = 0;
  #keySectors = 0;
  nodesRewritten = 0;

  constructor(options: {
    btree: Btree;
    allocator: Allocator;
    writer: NodeWriter;
    replacer: Replacer;
    clock: Clock;
    faults: Faults;
    log: Log;
    markMetadata: MarkMetadata;
  }) {
    this.#btree = options.btree;
    this.#buckets = options.btree.buckets;
    this.#allocator = options.allocator;
    this.#writer = options.writer;
    this.#replacer = options.replacer;
    this.#clock = options.clock;
    this.#faults = options.faults;
    this.#log = options.log;
    this.#markMetadata = options.markMetadata;
    const { bucketCount, bucketSectors } = options.btree.geometry;
    this.#sectorsPerGc = Math.floor((bucketCount * bucketSectors) / COLLECT_SHARE);
    this.#sectorsToGc = this.#sectorsPerGc;
  }

  /** Data went into the cache. */
  noteCached(sectors: number): void {
    this.#sectorsToGc -= sectors;
    if (this.#sectorsToGc < 0) this.wake();
  }

  /** The writeback controller has run: what it writes now may be worth a collection later. */
  noteWritebackControl(): void {
    if (!this.afterWriteback) return;
    if (this.#buckets.inUsePercent() >= AFTER_WRITEBACK_PERCENT) this.#afterWritebackArmed = true;
  }

  /**
   * A device has no dirty data left. With the cache full nothing is cached, so nothing would ever
   * ask for the collection that finds out what is clean now.
   */
  noteClean(): void {
    const armed = this.afterWriteback && this.#afterWritebackArmed;
    this.#afterWritebackArmed = false;
    if (armed || this.#buckets.inUsePercent() > CACHING_STOPS_PERCENT) this.wake();
  }

  /** From now on no collection frees what the keys of `buffer` point to: it is being copied. */
  guard(buffer: KeyBuffer): void {
    this.#keyBuffers.add(buffer);
  }

  unguard(buffer: KeyBuffer): void {
    this.#keyBuffers.delete(buffer);
  }

  /** Bytes that a good key stands for on average (`average_key_size`); 0: there are no keys. */
  get averageKeyBytes(): number {
    return this.#keys === 0 ? 0 : Math.floor((this.#keySectors * 512) / this.#keys);
  }

  /** Asks for a collection. */
  wake(): void {
    this.#wanted = true;
    this.#wake.raise();
  }

  start(tasks: TaskGroup): void {
    tasks.start(async (signal) => {
      signal.addEventListener("abort", () => this.#wake.raise(), { once: true });
      while (!signal.aborted && !this.#faults.failed) {
        if (!this.#wanted) {
          await this.#wake.wait();
          continue;
        }
        await this.collect(signal);
        // While everything is dirty a collection frees nothing, and is asked for again at once.
        const pauseMs = this.#allocator.waiting > 0 ? PAUSE_MS_MIN : PAUSE_MS;
        await this.#clock.sleep(Math.max(pauseMs, this.lastDurationMs), signal);
      }
    });
  }

  /** One whole collection. Ends early, with the marks left invalid, only when stopped or failed. */
  async collect(signal: AbortSignal): Promise<void> {
    this.#wanted = false;
    this.#sectorsToGc = this.#sectorsPerGc;
    const began = this.#clock.nowMs();
    this.#buckets.beginGc();
    this.nodesMarked = 0;
    this.#keys = 0;
    this.#keySectors = 0;
    const { root } = this.#btree;
    this.markKey(root.key, 0, root.level + 1);
    for (let level = root.level; level >= 0; level--) {
      await this.#markLevel(level, signal);
      if (signal.aborted || this.#faults.failed) return;
    }
    // Nothing may be reused whose last key is only in memory.
    await this.#writer.writeAllDirty();
    this.#markMetadata();
    this.#markBuffered();
    this.#buckets.finishGc();
    this.#sectorsToGc = this.#sectorsPerGc;
    this.collections++;
    const ended = this.#clock.nowMs();
    this.lastDurationMs = ended - began;
    this.times.record(began, ended);
    this.#allocator.gcFinished();
  }

  /** A key that was overwritten since it was buffered is not in the index, but is being read. */
  #markBuffered(): void {
    for (const buffer of this.#keyBuffers) {
      for (const { sector, gen } of buffer.keys()) {
        const bucket = Math.floor(sector / this.#buckets.bucketSectors);
        if (this.#buckets.staleness(bucket, gen) > 0) continue;
        this.#buckets.setMark(bucket, MARK.dirty);
      }
    }
  }

  async #markLevel(level: number, signal: AbortSignal): Promise<void> {
    let sinceTurn = 0;
    await this.#btree.walk(level, { inode: 0, offset: 0 }, (node) => {
      const stalest = this.markNode(node);
      this.nodesMarked++;
      if (stalest > STALE_MAX) return this.#rewrite(node, signal);
      if (++sinceTurn < NODES_PER_TURN) return true;
      sinceTurn = 0;
      return this.#clock.turn().then(() => !signal.aborted && !this.#faults.failed);
    });
  }

  /** Stale pointers keep generations from advancing: the node is written anew without them. */
  async #rewrite(node: BtreeNode, signal: AbortSignal): Promise<boolean> {
    if (await this.#replacer.rewrite(node)) this.nodesRewritten++;
    return !signal.aborted && !this.#faults.failed;
  }

  /** Marks all that a node's keys point to; returns the greatest staleness among them. */
  markNode(node: BtreeNode): number {
    return Math.max(this.#markSet(node.base, node.level), this.#markSet(node.delta, node.level));
  }

  #markSet(set: KeySet, level: number): number {
    let stalest = 0;
    for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
      const stale = this.markKey(set.words, at, level);
      if (stale > stalest) stalest = stale;
    }
    return stalest;
  }

  /**
   * Marks the bucket of one key that stands in a node of `level`. @returns its staleness
   * @throws BcacheError BadFormat when the bucket is used both as node and as data
   */
  markKey(words: Uint32Array, at: number, level: number): number {
    const size = keySizeSectors(words, at);
    if (size === 0 || keyPointers(words, at) === 0 || pointerDevice(words, at) !== 0) return 0;
    if (level > 0 && keyOffset(words, at) === 0 && keyInode(words, at) === 0) return 0;
    const bucket = Math.floor(pointerSector(words, at) / this.#buckets.bucketSectors);
    const mark = level > 0 ? MARK.metadata : keyDirty(words, at) ? MARK.dirty : MARK.reclaimable;
    const stale = this.#buckets.markPointer(bucket, pointerGen(words, at), mark, size);
    if (stale !== MARK_CONFLICT) {
      if (stale === 0 && level === 0) {
        this.#keys++;
        this.#keySectors += size;
      }
      return stale;
    }
    const error = new BcacheError(
      "BadFormat",
      `inconsistent pointers: bucket ${bucket} is used as b-tree node and as data ` +
        `(key ${keyText(words, at)} at level ${level})`,
    );
    this.#faults.raise(error);
    this.#log("error", error.message);
    throw error;
  }
}

/**
 * Registration's use of the same marks: a pointer may bring a newer generation than the disk's.
 * True: one did after the bucket had been marked (see `BucketTable.adoptPointer`).
 */
export function adoptNode(buckets: BucketTable, node: BtreeNode): boolean {
  assert(node.delta.count === 0, "a node that was just read has no delta");
  const { words, count } = node.base;
  let moved = false;
  for (let at = 0; at < count * SLOT_WORDS; at += SLOT_WORDS) {
    if (adoptKey(buckets, words, at, node.level)) moved = true;
  }
  return moved;
}

/** Takes over the generation of one pointer; freed-node keys count as well. */
export function adoptKey(
  buckets: BucketTable,
  words: Uint32Array,
  at: number,
  level: number,
): boolean {
  if (keyPointers(words, at) === 0 || pointerDevice(words, at) !== 0) return false;
  if (keySizeSectors(words, at) === 0) return false;
  const freed = level > 0 && keyOffset(words, at) === 0 && keyInode(words, at) === 0;
  const bucket = Math.floor(pointerSector(words, at) / buckets.bucketSectors);
  return buckets.adoptPointer(bucket, pointerGen(words, at), level > 0 && !freed);
}
