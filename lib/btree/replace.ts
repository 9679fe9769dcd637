/**
 * Replacing a node by one or two new ones in other buckets: compaction, split, growth of the
 * root. Answers to `btree_split`, `btree_gc_rewrite_node`, `bch_btree_set_root` and
 * `make_btree_freeing_key` of btree.c.
 *
 * One replacement is under way at a time. Its order, none of which may be swapped:
 *   1. the buckets are reserved, before anything changes
 *   2. the old node is frozen; the new ones are written and stable
 *   3. in one synchronous step the parent (or the root) comes to name the new nodes, and the old
 *      bucket's generation is raised by a *freed-node key* in the same parent
 *   4. that parent is written (or the journal entry that names the root) and stable; until then
 *      the new nodes are not appended to, so no journal entry their keys need is let go, and the
 *      raised generation is not persisted (`prioBlocked`)
 *   5. the old bucket is released
 * A power cut before 4 finds the old node, complete but for what is in the journal.
 */
import { assert } from "../base/assert.ts";
import type { Random } from "../base/runtime.ts";
import { Mutex, Signal } from "../base/sync.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { insertPointer } from "../bset/extents.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeExtents, mergePointers } from "../bset/merge.ts";
import {
  copySlot,
  INODE_MAX,
  keyDiskWords,
  OFFSET_MAX,
  setExtent,
  setMaxKey,
  setOffset,
  setPointer,
  setPointerGen,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { bsetBlocks } from "../ondisk/bset.ts";
import type { Btree } from "./btree.ts";
import type { BtreeNode } from "./node.ts";
import { KEYS_PER_INSERT } from "./node.ts";
import { newNode } from "./node_read.ts";
import type { NodeWriter } from "./node_write.ts";
import { BATCH_KEYS_MAX, type NodeReplacer } from "./insert.ts";

/** Keys that one replacement adds to the parent: two new nodes and the freed one. */
const PARENT_KEYS = 3;
/** Buckets one replacement takes at most: two nodes, and a new root. */
const BUCKETS_MAX = 3;

/** Writes the journal entry that names the current root; resolves when it is durable. */
export type CommitRoot = () => Promise<void>;

export class Replacer implements NodeReplacer {
  #btree: Btree;
  #writer: NodeWriter;
  #allocator: Allocator;
  #random: Random;
  #commitRoot: CommitRoot;
  #mutex = new Mutex();
  #replaced = new Signal();
  splits = 0;
  compactions = 0;

  constructor(options: {
    btree: Btree;
    writer: NodeWriter;
    allocator: Allocator;
    random: Random;
    commitRoot: CommitRoot;
  }) {
    this.#btree = options.btree;
    this.#writer = options.writer;
    this.#allocator = options.allocator;
    this.#random = options.random;
    this.#commitRoot = options.commitRoot;
  }

  async makeRoom(leaf: BtreeNode): Promise<void> {
    await this.#mutex.run(async () => {
      // await: somebody else may have replaced it meanwhile.
      if (leaf.freed || leaf.hasRoom(BATCH_KEYS_MAX * KEYS_PER_INSERT)) return;
      await this.#replaceHeld(leaf);
    });
  }

  whenReplaced(): Promise<void> {
    return this.#replaced.wait();
  }

  /** Writes a node anew without its stale keys, for the collector. False: not now. */
  async rewrite(node: BtreeNode): Promise<boolean> {
    return await this.#mutex.run(async () => {
      if (node.freed || this.#allocator.available(RESERVE.btree) < BUCKETS_MAX) return false;
      await this.#replaceHeld(node);
      return true;
    });
  }

  /** An empty leaf as the root of a new cache set, written and stable. */
  async makeFirstRoot(): Promise<void> {
    const key = new Uint32Array(SLOT_WORDS);
    setMaxKey(key, 0, this.#btree.geometry.nodeSectors);
    const node = this.#make(0, key, 0, new KeySet(1));
    await this.#writer.write(node);
    this.#btree.setRoot(node);
    this.#btree.buckets.unpin(node.bucket);
  }

  async #replaceHeld(node: BtreeNode): Promise<void> {
    node.holds++;
    try {
      await this.#replace(node);
    } finally {
      node.holds--;
    }
  }

  async #replace(node: BtreeNode): Promise<void> {
    const parent = await this.#parentWithRoom(node);
    while (this.#allocator.available(RESERVE.btree) < BUCKETS_MAX) {
      await this.#allocator.whenAvailable(RESERVE.btree, BUCKETS_MAX);
    }
    node.frozen = true;
    let made: BtreeNode[] = [];
    try {
      made = this.#copies(node);
      await Promise.all(made.map((copy) => this.#writer.write(copy)));
      if (parent) await this.#commitToParent(node, parent, made);
      else await this.#commitAsRoot(node, made);
    } finally {
      if (parent) parent.holds--;
      node.frozen = false;
      this.#replaced.raise();
    }
    for (const copy of made) this.#btree.buckets.unpin(copy.bucket);
    this.#allocator.release(node.bucket);
    if (made.length > 1) this.splits++;
    else this.compactions++;
  }

  /** The node's parent, with room for what a replacement adds, held; undefined for the root. */
  async #parentWithRoom(node: BtreeNode): Promise<BtreeNode | undefined> {
    for (;;) {
      if (node === this.#btree.root) return undefined;
      // The position just before the node's last one; MAX_KEY stands apart from real offsets.
      const offset = node.endOffset >= OFFSET_MAX ? Number.MAX_SAFE_INTEGER : node.endOffset - 0.5;
      const parent = await this.#btree.loadNode(node.level + 1, node.endInode, offset);
      parent.holds++;
      if (parent.hasRoom(PARENT_KEYS)) return parent;
      try {
        await this.#replace(parent);
      } finally {
        parent.holds--;
      }
    }
  }

  /** One or two unwritten nodes with the good keys of `node`, in new buckets. Synchronous. */
  #copies(node: BtreeNode): BtreeNode[] {
    const btree = this.#btree;
    const drop = (words: Uint32Array, at: number) => btree.isBad(words, at, node.level);
    const { bucketSectors } = btree.geometry;
    const keys = node.level === 0
      ? mergeExtents(node.base, node.delta, { bucketSectors, drop })
      : mergePointers(node.base, node.delta, drop);
    const words32 = keys.diskWords();
    const split = bsetBlocks(words32 / 2, node.blockBytes) > Math.floor((node.blocks * 4) / 5);
    if (!split || keys.count < 2) return [this.#make(node.level, node.key, 0, keys)];

    let cut = 0;
    for (let sum = 0; sum < (words32 * 3) / 5 && cut < keys.count - 1; cut++) {
      sum += keyDiskWords(keys.words, cut * SLOT_WORDS);
    }
    const lower = new KeySet(cut);
    const upper = new KeySet(keys.count - cut);
    for (let index = 0; index < keys.count; index++) {
      (index < cut ? lower : upper).push(keys.words, index * SLOT_WORDS);
    }
    // The lower node ends where its last key ends; the upper one keeps the old node's place.
    return [
      this.#make(node.level, keys.words, (cut - 1) * SLOT_WORDS, lower),
      this.#make(node.level, node.key, 0, upper),
    ];
  }

  /** A node that ends where the slot at `at` of `end` says, not written yet, its bucket pinned. */
  #make(level: number, end: Uint32Array, at: number, keys: KeySet): BtreeNode {
    const { geometry } = this.#btree;
    const bucket = this.#allocator.tryTake(RESERVE.btree);
    assert(bucket >= 0, "the buckets of a replacement were reserved");
    const key = new Uint32Array(SLOT_WORDS);
    copySlot(end, at, key, 0);
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

  async #commitToParent(node: BtreeNode, parent: BtreeNode, made: BtreeNode[]): Promise<void> {
    const btree = this.#btree;
    for (const copy of made) insertPointer(parent.delta, copy.key, 0);
    const freed = node.key.slice();
    freed[0]! &= ~INODE_MAX;
    setOffset(freed, 0, 0);
    this.#allocator.blockPrios();
    setPointerGen(freed, 0, btree.buckets.bumpGen(node.bucket));
    insertPointer(parent.delta, freed, 0);
    parent.dirty = true;
    const durable = this.#writer.write(parent);
    this.#swap(node, made, durable);
    // await: from here on the new nodes serve; they are appended to once the parent is stable.
    try {
      await durable;
    } finally {
      this.#release(made);
      this.#allocator.unblockPrios();
    }
  }

  async #commitAsRoot(node: BtreeNode, made: BtreeNode[]): Promise<void> {
    const btree = this.#btree;
    let root = made[0]!;
    if (made.length > 1) {
      const pointers = new KeySet(made.length);
      for (const copy of made) insertPointer(pointers, copy.key, 0);
      const max = new Uint32Array(SLOT_WORDS);
      setMaxKey(max, 0, btree.geometry.nodeSectors);
      root = this.#make(node.level + 1, max, 0, pointers);
      made.push(root);
      await this.#writer.write(root);
    }
    btree.setRoot(root);
    const commit = this.#commitRoot();
    this.#swap(node, made, commit);
    try {
      await commit;
    } finally {
      this.#release(made);
    }
  }

  /** The new nodes take the old one's place in memory. Synchronous with the change that names them. */
  #swap(node: BtreeNode, made: BtreeNode[], durable: Promise<void>): void {
    for (const copy of made) {
      copy.writesHeldBy = durable;
      this.#btree.adopt(copy);
    }
    node.freed = true;
    this.#btree.drop(node);
    // What the old node still pinned in the journal is in the new ones, and let go when these
    // are reachable. When that fails the set has failed, and nothing is let go any more.
    node.replacedBy = durable.then(() => this.#writer.forget(node));
    node.replacedBy.catch(() => undefined);
  }

  #release(made: BtreeNode[]): void {
    for (const copy of made) copy.writesHeldBy = undefined;
  }
}
