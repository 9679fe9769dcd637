/**
 * Replacing a node by one or two new ones in other buckets: compaction, split, growth of the
 * root. Answers to `btree_split`, `btree_gc_rewrite_node`, `bch_btree_set_root` and
 * `make_btree_freeing_key` of btree.c.
 *
 * One replacement is under way at a time. Its order, none of which may be swapped:
 *   1. the buckets are reserved, before anything changes
 *   2. its keys are copied; the new nodes are written and stable. What is inserted meanwhile stays
 *      in the old node's delta, held by the journal
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
import { Mutex, Signal, type TaskGroup } from "../base/sync.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { insertExtent, insertPointer, InsertScratch } from "../bset/extents.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeExtents, mergePointers } from "../bset/merge.ts";
import {
  copySlot,
  cutBack,
  cutFront,
  INODE_MAX,
  keyDiskWords,
  keyInode,
  keyOffset,
  keySizeSectors,
  keyStart,
  OFFSET_MAX,
  setExtent,
  setMaxKey,
  setOffset,
  setPointer,
  setPointerGen,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { BSET_HEADER_BYTES, bsetBlocks } from "../ondisk/bset.ts";
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

/** A leaf with less than this part of its blocks left is replaced. */
const NEARLY_FULL_SHARE = 8;

/** Keys that surely fit into each of the nodes, once they are written, whatever they overlap. */
function keysForAll(copies: readonly BtreeNode[]): number {
  let least = Infinity;
  for (const copy of copies) {
    const used = bsetBlocks(copy.delta.diskWords() / 2, copy.blockBytes);
    const bytes = (copy.blocks - used) * copy.blockBytes - BSET_HEADER_BYTES;
    least = Math.min(least, Math.floor(bytes / (SLOT_WORDS * 4) / (KEYS_PER_INSERT + 1)));
  }
  return Math.max(least, 0);
}

/** Writes the journal entry that names the current root; resolves when it is durable. */
export type CommitRoot = () => Promise<void>;

export class Replacer implements NodeReplacer {
  #btree: Btree;
  #writer: NodeWriter;
  #allocator: Allocator;
  #random: Random;
  #commitRoot: CommitRoot;
  #tasks: TaskGroup;
  #mutex = new Mutex();
  #queued = new Map<BtreeNode, Promise<void>>();
  /** A leaf that waited takes keys again, or was replaced. */
  #begun = new Signal();
  #scratch = new InsertScratch();
  #rest = new Uint32Array(SLOT_WORDS);
  #part = new Uint32Array(SLOT_WORDS);
  splits = 0;
  compactions = 0;

  constructor(options: {
    btree: Btree;
    writer: NodeWriter;
    allocator: Allocator;
    random: Random;
    commitRoot: CommitRoot;
    tasks: TaskGroup;
  }) {
    this.#btree = options.btree;
    this.#writer = options.writer;
    this.#allocator = options.allocator;
    this.#random = options.random;
    this.#commitRoot = options.commitRoot;
    this.#tasks = options.tasks;
    this.#writer.onNearlyFull = (leaf) => void this.replaceSoon(leaf);
  }

  /**
   * Resolves as soon as the leaf takes keys again, or is replaced: usually when its replacement
   * has only begun.
   */
  async makeRoom(leaf: BtreeNode): Promise<void> {
    this.#writer.assertServing();
    if (leaf.replacingKeysMax !== undefined) {
      // It took as many keys as the new nodes have room for.
      return await leaf.replacement;
    }
    await Promise.race([this.#begun.wait(), this.replaceSoon(leaf)]);
  }

  /** Replaces the leaf in the background, unless that is under way. Resolves when it is done. */
  replaceSoon(leaf: BtreeNode): Promise<void> {
    const underWay = this.#queued.get(leaf);
    if (underWay !== undefined) return underWay;
    // Held while it waits for its turn: dropped and read again meanwhile, it would be another
    // node, with newer keys, that this one's replacement would lose.
    leaf.holds++;
    const run = this.#mutex.run(() => this.#replaceIfFull(leaf)).finally(() => {
      leaf.holds--;
      this.#queued.delete(leaf);
      this.#begun.raise();
    });
    this.#queued.set(leaf, run);
    this.#tasks.start(() => run);
    return run;
  }

  async #replaceIfFull(leaf: BtreeNode): Promise<void> {
    // await: it may have been replaced meanwhile, by the collector.
    if (leaf.freed) return;
    const left = leaf.blocks - leaf.writtenBlocks;
    const spacious = left * NEARLY_FULL_SHARE >= leaf.blocks;
    if (spacious && leaf.hasRoom(BATCH_KEYS_MAX * KEYS_PER_INSERT)) return;
    await this.#replace(leaf);
  }

  /** Writes a node anew without its stale keys, for the collector. False: not now. */
  async rewrite(node: BtreeNode): Promise<boolean> {
    node.holds++;
    try {
      return await this.#mutex.run(async () => {
        if (node.freed || this.#allocator.available(RESERVE.btree) < BUCKETS_MAX) return false;
        await this.#replace(node);
        return true;
      });
    } finally {
      node.holds--;
    }
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

  /** The caller holds the node, and has since it looked at it. */
  async #replace(node: BtreeNode): Promise<void> {
    assert(this.#btree.cache.get(node.bucket) === node, "a replaced node is the one in memory");
    const { clock, splitTimes } = this.#btree;
    const began = clock.nowMs();
    const parent = await this.#parentWithRoom(node);
    const done = Promise.withResolvers<void>();
    node.replacement = done.promise;
    await this.#reserve(node, parent === undefined && node.level === 0);
    // A collection that ends before the release must not find the old bucket free already.
    this.#btree.buckets.pin(node.bucket);
    const { copies, root } = this.#copies(node, parent === undefined);
    const release = this.#writer.detach(node);
    node.writesHeldBy = done.promise;
    // Late keys are held by the journal; a root's journal entry must not wait for room in it.
    node.replacingKeysMax = parent === undefined ? 0 : keysForAll(copies);
    this.#begun.raise();
    try {
      await Promise.all([...copies, ...root].map((copy) => this.#writer.write(copy)));
      if (parent) await this.#commitToParent(node, parent, copies);
      else await this.#commitAsRoot(node, copies, root);
      // The keys of the old node are durable in nodes that are durably reachable.
      release();
    } finally {
      if (parent) parent.holds--;
      node.writesHeldBy = undefined;
      done.resolve();
    }
    for (const copy of [...copies, ...root]) this.#btree.buckets.unpin(copy.bucket);
    this.#allocator.release(node.bucket);
    this.#btree.buckets.unpin(node.bucket);
    if (copies.length === 1) this.compactions++;
    else {
      this.splits++;
      splitTimes.record(began, clock.nowMs());
    }
  }

  /**
   * Resolves when the buckets for a replacement are there. The only leaf is also made to let go of
   * the journal and to take no keys: its replacement needs a journal entry, and a full journal
   * would need this leaf to be written.
   */
  async #reserve(node: BtreeNode, isOnlyLeaf: boolean): Promise<void> {
    for (;;) {
      while (this.#allocator.available(RESERVE.btree) < BUCKETS_MAX) {
        await this.#allocator.whenAvailable(RESERVE.btree, BUCKETS_MAX);
      }
      if (!isOnlyLeaf) return;
      node.replacingKeysMax = 0;
      await this.#writer.write(node);
      assert(!node.dirty, "a leaf that takes no keys stays clean");
      // await: somebody else may have taken the buckets.
      if (this.#allocator.available(RESERVE.btree) >= BUCKETS_MAX) return;
      node.replacingKeysMax = undefined;
    }
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

  /**
   * One or two unwritten nodes with the good keys of `node`, in new buckets, and a new root above
   * two that replace the root. The keys become the node's base; its delta is empty. Synchronous.
   */
  #copies(node: BtreeNode, isRoot: boolean): { copies: BtreeNode[]; root: BtreeNode[] } {
    const btree = this.#btree;
    const drop = (words: Uint32Array, at: number) => btree.isBad(words, at, node.level);
    const { bucketSectors } = btree.geometry;
    const began = btree.clock.nowMs();
    const keys = node.level === 0
      ? mergeExtents(node.base, node.delta, { bucketSectors, drop })
      : mergePointers(node.base, node.delta, drop);
    btree.sortTimes.record(began, btree.clock.nowMs());
    const words32 = keys.diskWords();
    const split = bsetBlocks(words32 / 2, node.blockBytes) > Math.floor((node.blocks * 4) / 5);
    node.base = keys;
    node.delta = new KeySet();
    btree.cache.resized(node);
    if (!split || keys.count < 2) {
      return { copies: [this.#make(node.level, node.key, 0, keys)], root: [] };
    }

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
    const copies = [
      this.#make(node.level, keys.words, (cut - 1) * SLOT_WORDS, lower),
      this.#make(node.level, node.key, 0, upper),
    ];
    return { copies, root: isRoot ? [this.#rootAbove(copies)] : [] };
  }

  #rootAbove(children: readonly BtreeNode[]): BtreeNode {
    const pointers = new KeySet(children.length);
    for (const child of children) insertPointer(pointers, child.key, 0);
    const max = new Uint32Array(SLOT_WORDS);
    setMaxKey(max, 0, this.#btree.geometry.nodeSectors);
    return this.#make(children[0]!.level + 1, max, 0, pointers);
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
    btree.cache.resized(parent);
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

  async #commitAsRoot(
    node: BtreeNode,
    copies: BtreeNode[],
    above: BtreeNode[],
  ): Promise<void> {
    const made = [...copies, ...above];
    this.#btree.setRoot(made[made.length - 1]!);
    const commit = this.#commitRoot();
    this.#swap(node, copies, commit);
    for (const root of above) root.writesHeldBy = commit;
    try {
      await commit;
    } finally {
      this.#release(made);
    }
  }

  /**
   * The new nodes take the old one's place in memory. Synchronous with the change that names them.
   */
  #swap(node: BtreeNode, made: BtreeNode[], durable: Promise<void>): void {
    for (const copy of made) {
      copy.writesHeldBy = durable;
      this.#btree.adopt(copy);
    }
    node.freed = true;
    this.#btree.drop(node);
    this.#moveLateKeys(node, made);
    // Whoever waits for this node's keys to be durable waits for this. When it fails the set has
    // failed, and nothing is let go any more.
    node.replacedBy = durable;
    durable.catch(() => undefined);
  }

  /** What came into a leaf while its replacement was written moves over, with its journal pin. */
  #moveLateKeys(node: BtreeNode, made: readonly BtreeNode[]): void {
    const { delta, pinSeq } = node;
    const { bucketSectors } = this.#btree.geometry;
    // These keys were counted when they came in.
    const context = { ledger: { add: () => {} }, scratch: this.#scratch, bucketSectors };
    const rest = this.#rest;
    const part = this.#part;
    for (let index = 0; index < delta.count; index++) {
      copySlot(delta.words, index * SLOT_WORDS, rest, 0);
      const inode = keyInode(rest, 0);
      for (const leaf of made) {
        if (keySizeSectors(rest, 0) === 0) break;
        const whole = leaf.covers(inode, keyOffset(rest, 0));
        if (!whole && !leaf.covers(inode, keyStart(rest, 0) + 1)) continue;
        copySlot(rest, 0, part, 0);
        if (!whole) cutBack(part, 0, leaf.endOffset);
        cutFront(rest, 0, whole ? keyOffset(rest, 0) : leaf.endOffset);
        insertExtent(leaf, part, 0, context);
        // First the new pin, then (below) the old one goes: the entry is held throughout.
        this.#writer.markDirty(leaf, pinSeq);
      }
    }
    this.#writer.detach(node)();
  }

  #release(made: BtreeNode[]): void {
    for (const copy of made) copy.writesHeldBy = undefined;
  }
}
