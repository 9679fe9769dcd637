/**
 * Making the nodes that take the place of others: which keys they hold, and the nodes themselves,
 * not written yet. What comes before that, and after, is replace.ts.
 *
 * The keys are gathered into a snapshot first, which changes nothing, so that others may have
 * their turn between the snapshots of several nodes. A snapshot holds as long as nothing was
 * inserted into its node (`isCurrent`); writing the node does not matter to it.
 */
import { assert } from "../base/assert.ts";
import type { Random } from "../base/runtime.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { insertPointer } from "../bset/extents.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeExtents, mergePointers } from "../bset/merge.ts";
import {
  copySlot,
  INODE_MAX,
  keyDiskWords,
  setExtent,
  setMaxKey,
  setPointer,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { bsetBlocks } from "../ondisk/bset.ts";
import type { Btree } from "./btree.ts";
import type { BtreeNode } from "./node.ts";
import { newNode } from "./node_read.ts";

/** What a node written anew holds. */
export interface NodeSnapshot {
  readonly node: BtreeNode;
  /** All but bad keys, and dead ones. */
  readonly keys: KeySet;
  /** Those left out although they are good; see `CopyMaker.isDead`. */
  readonly dead: KeySet;
  /** The node's `changes` when this was taken. */
  readonly changes: number;
}

/** Whether nothing was inserted into the node since. */
export function isCurrent(snapshot: NodeSnapshot): boolean {
  return snapshot.changes === snapshot.node.changes;
}

export class CopyMaker {
  readonly #btree: Btree;
  readonly #allocator: Allocator;
  readonly #random: Random;
  /**
   * Of the keys of a leaf that is written anew, those to be left out though they are good; none by
   * default. It is told of each once, in the step that leaves it out.
   */
  isDead: (words: Uint32Array, at: number) => boolean = () => false;
  onDeadDropped: (words: Uint32Array, at: number) => void = () => {};

  constructor(options: { btree: Btree; allocator: Allocator; random: Random }) {
    this.#btree = options.btree;
    this.#allocator = options.allocator;
    this.#random = options.random;
  }

  /** Synchronous, one pass over the node's keys; changes nothing. */
  snapshot(node: BtreeNode): NodeSnapshot {
    const btree = this.#btree;
    const { base, delta, level, changes } = node;
    const { bucketSectors } = btree.geometry;
    const dead = new KeySet(1);
    const drop = (words: Uint32Array, at: number) => {
      if (btree.isBad(words, at, level)) return true;
      if (level > 0 || !this.isDead(words, at)) return false;
      dead.push(words, at);
      return true;
    };
    const began = btree.clock.nowMs();
    const keys = level === 0
      ? mergeExtents(base, delta, { bucketSectors, drop })
      : mergePointers(base, delta, drop);
    btree.sortTimes.record(began, btree.clock.nowMs());
    return { node, keys, dead, changes };
  }

  /**
   * From now on the node is being replaced: its base is what its copies hold, its delta what comes
   * in late.
   */
  take(snapshot: NodeSnapshot): void {
    assert(isCurrent(snapshot), "a node that is replaced is as it was when it was looked at");
    const { node, keys, dead } = snapshot;
    for (let index = 0; index < dead.count; index++) {
      this.onDeadDropped(dead.words, index * SLOT_WORDS);
    }
    node.base = keys;
    node.delta = new KeySet();
    this.#btree.cache.resized(node);
  }

  /**
   * Takes the node; one or two unwritten nodes with its keys, in new buckets, and a new root above
   * two that replace the root. The keys are their delta. Synchronous.
   */
  copies(
    snapshot: NodeSnapshot,
    isRoot: boolean,
  ): { copies: BtreeNode[]; root: BtreeNode[] } {
    const { node, keys } = snapshot;
    this.take(snapshot);
    const words32 = keys.diskWords();
    const split = bsetBlocks(words32 / 2, node.blockBytes) > Math.floor((node.blocks * 4) / 5);
    if (!split || keys.count < 2) {
      // Keys of its own: what comes in late cuts those of the old node before this is written.
      const own = new KeySet(keys.count);
      own.append(keys, 0, keys.count);
      return { copies: [this.make(node.level, node.key, own)], root: [] };
    }

    let cut = 0;
    for (let sum = 0; sum < (words32 * 3) / 5 && cut < keys.count - 1; cut++) {
      sum += keyDiskWords(keys.words, cut * SLOT_WORDS);
    }
    const lower = new KeySet(cut);
    const upper = new KeySet(keys.count - cut);
    lower.append(keys, 0, cut);
    upper.append(keys, cut, keys.count);
    // The lower node ends where its last key ends; the upper one keeps the old node's place.
    const copies = [
      this.make(node.level, keys.words.subarray((cut - 1) * SLOT_WORDS, cut * SLOT_WORDS), lower),
      this.make(node.level, node.key, upper),
    ];
    return { copies, root: isRoot ? [this.#rootAbove(copies)] : [] };
  }

  #rootAbove(children: readonly BtreeNode[]): BtreeNode {
    const pointers = new KeySet(children.length);
    for (const child of children) insertPointer(pointers, child.key, 0);
    const max = new Uint32Array(SLOT_WORDS);
    setMaxKey(max, 0, this.#btree.geometry.nodeSectors);
    return this.make(children[0]!.level + 1, max, pointers);
  }

  /** A node that ends where the slot `end` says, not written yet, its bucket pinned. */
  make(level: number, end: Uint32Array, keys: KeySet): BtreeNode {
    const { geometry } = this.#btree;
    const bucket = this.#allocator.tryTake(RESERVE.btree);
    assert(bucket >= 0, "the buckets of a replacement were reserved");
    const key = new Uint32Array(SLOT_WORDS);
    copySlot(end, 0, key, 0);
    // Only the position is taken over; size and pointer are the new node's.
    const inode = key[0]! & INODE_MAX;
    const [low, high] = [key[2]!, key[3]!];
    setExtent(key, 0, inode, 0, geometry.nodeSectors);
    key[2] = low;
    key[3] = high;
    setPointer(key, 0, bucket * geometry.bucketSectors, this.#btree.buckets.gen[bucket]!);
    const node = newNode({ key, at: 0, level }, geometry);
    do {
      node.seqLow = this.#random.nextU32();
      node.seqHigh = this.#random.nextU32();
    } while (node.seqLow === 0 && node.seqHigh === 0);
    node.delta = keys;
    node.dirty = true;
    return node;
  }
}
