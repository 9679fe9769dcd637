/**
 * Marking what the keys of nodes point to, for collections and at registration. Answers to
 * `__bch_btree_mark_key`, `btree_gc_mark_node` and `bch_initial_mark_key` of btree.c.
 *
 * A node is marked a part at a time, with other work in between (`NodeMarking`). That is right
 * because between two parts a key of the base is only ever shortened where it stands, and what
 * else is inserted lies in the delta, which is marked last, in one step with the end of the base.
 * A node whose base became another (it was written, or is being replaced) is marked from the
 * beginning; what was marked before stays marked, which costs no more than a bucket too many.
 */
import { assert } from "../../base/assert.ts";
import { BcacheError, DAMAGE_ADVICE } from "../../base/errors.ts";
import type { Log } from "../../base/runtime.ts";
import type { Faults } from "../../base/sync.ts";
import type { Btree } from "../../btree/btree.ts";
import type { BtreeNode } from "../../btree/node.ts";
import { type BucketTable, MARK, MARK_CONFLICT } from "../../buckets/table.ts";
import type { KeySet } from "../../bset/key_set.ts";
import {
  keyDirty,
  keyDiskWords,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyText,
  pointerDevice,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../../ondisk/bkey.ts";
import type { DeadInodes } from "./dead_inodes.ts";

/** A node that was marked from the beginning so often is marked in one step. */
const RESTARTS_MAX = 3;

/** What marking a node found. */
export interface NodeCensus {
  /** The greatest staleness of a pointer. */
  stalest: number;
  keys: number;
  /** Of these, those that count: not stale, with a pointer; and their 32-bit words on disk. */
  goodKeys: number;
  keyWords: number;
  /** Of the good keys of a leaf: their sectors. */
  dataSectors: number;
  /** Those of a device that is gone for good; see `isDead`. */
  deadKeys: number;
}

export class Marker {
  readonly #btree: Btree;
  readonly #buckets: BucketTable;
  readonly #dead: DeadInodes;
  readonly #faults: Faults;
  readonly #log: Log;
  #census: NodeCensus = newCensus();
  #node: BtreeNode | undefined;
  #base: KeySet | undefined;
  /** Keys of the base that are marked. */
  #marked = 0;
  #restarts = 0;

  constructor(
    options: { btree: Btree; dead: DeadInodes; faults: Faults; log: Log },
  ) {
    this.#btree = options.btree;
    this.#buckets = options.btree.buckets;
    this.#dead = options.dead;
    this.#faults = options.faults;
    this.#log = options.log;
  }

  /** Marks all that a node's keys point to, at once. The result is valid until the next call. */
  markNode(node: BtreeNode): NodeCensus {
    this.begin(node);
    return this.markSome(Infinity)!;
  }

  /** The next calls of `markSome` are about this node, which its caller holds. */
  begin(node: BtreeNode): void {
    this.#node = node;
    this.#restarts = 0;
    this.#restart(node);
  }

  #restart(node: BtreeNode): void {
    this.#base = node.base;
    this.#marked = 0;
    this.#census = newCensus();
  }

  /** Marks `keysMax` more keys of the base; undefined: there is more to do. */
  markSome(keysMax: number): NodeCensus | undefined {
    const node = this.#node;
    assert(node !== undefined, "a node's marking was begun");
    if (node.base !== this.#base) {
      this.#restarts++;
      this.#restart(node);
    }
    const { base, delta, level } = node;
    const most = this.#restarts >= RESTARTS_MAX ? Infinity : keysMax;
    const end = Math.min(this.#marked + most, base.count);
    this.#markKeys(base, this.#marked, end, level);
    this.#marked = end;
    if (end < base.count) return undefined;
    this.#markKeys(delta, 0, delta.count, level);
    this.#node = undefined;
    this.#base = undefined;
    return this.#census;
  }

  #markKeys(set: KeySet, from: number, to: number, level: number): void {
    const census = this.#census;
    for (let at = from * SLOT_WORDS; at < to * SLOT_WORDS; at += SLOT_WORDS) {
      const size = keySizeSectors(set.words, at);
      if (size === 0) continue;
      if (level === 0 && this.#dead.isDead(set.words, at)) {
        this.#passDead(set.words, at);
        continue;
      }
      const stale = this.markKey(set.words, at, level);
      if (stale > census.stalest) census.stalest = stale;
      census.keys++;
      if (this.#btree.isBad(set.words, at, level)) continue;
      census.goodKeys++;
      census.keyWords += keyDiskWords(set.words, at);
      if (level === 0) census.dataSectors += size;
    }
  }

  /**
   * What a dead key points to is free, but the key is on disk still: until the node is written anew
   * the bucket's generation must not go round to it.
   */
  #passDead(words: Uint32Array, at: number): void {
    this.#census.keys++;
    this.#census.deadKeys++;
    if (keyPointers(words, at) === 0 || pointerDevice(words, at) !== 0) return;
    const bucket = Math.floor(pointerSector(words, at) / this.#buckets.bucketSectors);
    this.#buckets.noteOldestGen(bucket, pointerGen(words, at));
  }

  /**
   * Marks the bucket of one key that stands in a node of `level`. @returns its staleness
   * @throws BcacheError BadFormat when the bucket is used both for metadata and as data
   */
  markKey(words: Uint32Array, at: number, level: number): number {
    const size = keySizeSectors(words, at);
    if (size === 0 || keyPointers(words, at) === 0 || pointerDevice(words, at) !== 0) return 0;
    if (level > 0 && keyOffset(words, at) === 0 && keyInode(words, at) === 0) return 0;
    const bucket = Math.floor(pointerSector(words, at) / this.#buckets.bucketSectors);
    const mark = level > 0 ? MARK.metadata : keyDirty(words, at) ? MARK.dirty : MARK.reclaimable;
    const stale = this.#buckets.markPointer(bucket, pointerGen(words, at), mark, size);
    if (stale !== MARK_CONFLICT) return stale;
    const error = new BcacheError(
      "BadFormat",
      `${this.#btree.deviceName}: b-tree: inconsistent pointers: bucket ${bucket} is used for ` +
        `metadata and as data (key ${keyText(words, at)} at level ${level}); ${DAMAGE_ADVICE}`,
    );
    this.#faults.raise(error);
    this.#log("error", error.message);
    throw error;
  }
}

function newCensus(): NodeCensus {
  return { stalest: 0, keys: 0, goodKeys: 0, keyWords: 0, dataSectors: 0, deadKeys: 0 };
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
