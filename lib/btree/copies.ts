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
import { ExtentMerge, mergePointers } from "../bset/merge.ts";
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

/** Memory for one gathering at a time: most of a node may turn out to be bad keys. */
interface Scratch {
  readonly keys: KeySet;
  owner: Gathering | undefined;
}

/**
 * A snapshot in the making, some keys at a time; changes nothing. It comes to nothing when the node
 * changes meanwhile: whoever lets others have their turn between steps looks at `isCurrent` before
 * the next one, and before it takes the snapshot for whole.
 */
export class Gathering implements NodeSnapshot {
  readonly node: BtreeNode;
  readonly changes: number;
  readonly dead = new KeySet(1);
  keys = new KeySet(1);
  readonly #btree: Btree;
  readonly #drop: (words: Uint32Array, at: number) => boolean;
  readonly #merge: ExtentMerge | undefined;
  readonly #scratch: Scratch;
  #spentMs = 0;

  constructor(
    node: BtreeNode,
    { btree, isDead, scratch }: {
      btree: Btree;
      isDead: (words: Uint32Array, at: number) => boolean;
      scratch: Scratch;
    },
  ) {
    const { base, delta, level, changes } = node;
    this.node = node;
    this.changes = changes;
    this.#btree = btree;
    this.#drop = (words, at) => {
      if (btree.isBad(words, at, level)) return true;
      if (level > 0 || !isDead(words, at)) return false;
      this.dead.push(words, at);
      return true;
    };
    this.#scratch = scratch;
    scratch.owner = this;
    if (level > 0) return;
    const { bucketSectors } = btree.geometry;
    const into = scratch.keys;
    this.#merge = new ExtentMerge(base, delta, { bucketSectors, drop: this.#drop, into });
  }

  /** Looks at about `keysMax` more keys of a leaf; at all of an interior node. True: all done. */
  step(keysMax: number): boolean {
    assert(isCurrent(this), "a node is as it was when its keys began to be gathered");
    assert(this.#scratch.owner === this, "one node is gathered at a time");
    const { clock, sortTimes } = this.#btree;
    const began = clock.nowMs();
    const { base, delta } = this.node;
    const done = this.#merge?.step(keysMax) ?? true;
    if (done && this.#merge === undefined) this.keys = mergePointers(base, delta, this.#drop);
    else if (done) this.keys.append(this.#scratch.keys, 0, this.#scratch.keys.count);
    const endMs = clock.nowMs();
    this.#spentMs += endMs - began;
    if (done) sortTimes.record(endMs - this.#spentMs, endMs);
    return done;
  }
}

export class CopyMaker {
  readonly #btree: Btree;
  readonly #allocator: Allocator;
  readonly #random: Random;
  readonly #scratch: Scratch = { keys: new KeySet(), owner: undefined };
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

  /** Begins to look at what a node holds; see `Gathering`. The one begun before is over. */
  gather(node: BtreeNode): Gathering {
    return new Gathering(node, {
      btree: this.#btree,
      isDead: (words, at) => this.isDead(words, at),
      scratch: this.#scratch,
    });
  }

  /** All of it at once: synchronous, one pass over the node's keys; changes nothing. */
  snapshot(node: BtreeNode): NodeSnapshot {
    const gathering = this.gather(node);
    gathering.step(Infinity);
    return gathering;
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
