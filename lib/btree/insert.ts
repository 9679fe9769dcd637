/**
 * Inserting extents into the index, in two steps: `prepare` (asynchronous) makes the leaves
 * resident and gives them room; `tryInsert` (synchronous) checks once more and makes the whole
 * change, or none. Answers to `bch_btree_insert` and `bch_btree_insert_keys` of btree.c.
 *
 * A batch is a KeySet used as a list: up to `BATCH_KEYS_MAX` extents, in any order.
 */
import { assert } from "../base/assert.ts";
import { type DirtyLedger, insertExtent, InsertScratch } from "../bset/extents.ts";
import type { KeySet } from "../bset/key_set.ts";
import {
  copySlot,
  cutBack,
  cutFront,
  keyInode,
  keyOffset,
  keySizeSectors,
  keyStart,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { Btree } from "./btree.ts";
import { type BtreeNode, KEYS_PER_INSERT } from "./node.ts";
import type { NodeWriter } from "./node_write.ts";

/** Extents of one batch: what fits into the room that every split leaves, twice over. */
export const BATCH_KEYS_MAX = 8;

/** Prepared batches that keep their leaves; who gave up on one leaves it behind. */
const PREPARED_MAX = 64;

/** Makes room in a node that has none, by a split or a compaction. */
export interface NodeReplacer {
  /** Afterwards it is worth looking for room again. Rejects when the set failed. */
  makeRoom(leaf: BtreeNode): Promise<void>;
}

export class Inserter {
  #btree: Btree;
  #writer: NodeWriter;
  #replacer: NodeReplacer;
  #ledger: DirtyLedger;
  /**
   * The leaves of batches that were prepared and are not inserted yet: without a hold, writers who
   * want more leaves than memory has could drive each other's out for ever.
   */
  #prepared = new Map<KeySet, BtreeNode[]>();
  #scratch = new InsertScratch();
  #rest = new Uint32Array(SLOT_WORDS);
  #part = new Uint32Array(SLOT_WORDS);

  constructor(options: {
    btree: Btree;
    writer: NodeWriter;
    replacer: NodeReplacer;
    ledger: DirtyLedger;
  }) {
    this.#btree = options.btree;
    this.#writer = options.writer;
    this.#replacer = options.replacer;
    this.#ledger = options.ledger;
  }

  /**
   * The first leaf of the batch's range that cannot take it now; undefined: all can. `passed`
   * gets those that can.
   */
  #obstacle(
    batch: KeySet,
    passed?: BtreeNode[],
  ): { leaf: BtreeNode | undefined; inode: number; at: number } | undefined {
    for (let index = 0; index < batch.count; index++) {
      const key = index * SLOT_WORDS;
      const inode = keyInode(batch.words, key);
      const end = keyOffset(batch.words, key);
      let at = keyStart(batch.words, key);
      while (at < end) {
        const leaf = this.#btree.findLeaf(inode, at);
        if (leaf === undefined || !leaf.hasRoom(batch.count * KEYS_PER_INSERT)) {
          return { leaf, inode, at };
        }
        passed?.push(leaf);
        at = leaf.covers(inode, end) ? end : leaf.endOffset;
      }
    }
    return undefined;
  }

  /** The batch's leaves stay in memory until it is inserted, or many others were prepared. */
  #keep(batch: KeySet, leaves: BtreeNode[]): void {
    this.#letGo(batch);
    for (const leaf of leaves) leaf.holds++;
    this.#prepared.set(batch, leaves);
    if (this.#prepared.size <= PREPARED_MAX) return;
    const [oldest] = this.#prepared.keys();
    this.#letGo(oldest!);
  }

  #letGo(batch: KeySet): void {
    const leaves = this.#prepared.get(batch);
    if (leaves === undefined) return;
    for (const leaf of leaves) leaf.holds--;
    this.#prepared.delete(batch);
  }

  /** Whether `tryInsert` would succeed now. */
  canInsert(batch: KeySet): boolean {
    return this.#obstacle(batch) === undefined;
  }

  /**
   * Resolves when the batch could be inserted; the caller checks again, in one step with `insert`.
   */
  async prepare(batch: KeySet): Promise<void> {
    assert(batch.count <= BATCH_KEYS_MAX, "a batch is small enough for the room a split leaves");
    for (;;) {
      const passed: BtreeNode[] = [];
      const obstacle = this.#obstacle(batch, passed);
      if (obstacle === undefined) return this.#keep(batch, passed);
      const { leaf, inode, at } = obstacle;
      // Leaves of one batch must not drive each other out of memory.
      for (const other of passed) other.holds++;
      try {
        if (leaf === undefined) await this.#btree.loadLeaf(inode, at);
        else await this.#replacer.makeRoom(leaf);
      } finally {
        for (const other of passed) other.holds--;
      }
    }
  }

  /**
   * Inserts the whole batch; every leaf must be ready (`canInsert`, with no await since). @param
   * seq the journal entry
   * that holds the keys, or 0 for clean keys that may be lost.
   */
  insert(batch: KeySet, seq: number): void {
    if (this.#prepared.size > 0) this.#letGo(batch);
    const context = {
      ledger: this.#ledger,
      scratch: this.#scratch,
      bucketSectors: this.#btree.geometry.bucketSectors,
    };
    const rest = this.#rest;
    for (let index = 0; index < batch.count; index++) {
      copySlot(batch.words, index * SLOT_WORDS, rest, 0);
      const inode = keyInode(rest, 0);
      while (keySizeSectors(rest, 0) > 0) {
        const leaf = this.#btree.findLeaf(inode, keyStart(rest, 0));
        assert(leaf !== undefined, "the leaves of a prepared batch are resident");
        assert(leaf.hasRoom(1), "the leaves of a prepared batch have room");
        if (leaf.covers(inode, keyOffset(rest, 0))) {
          insertExtent(leaf, rest, 0, context);
          this.#writer.markDirty(leaf, seq);
          break;
        }
        copySlot(rest, 0, this.#part, 0);
        cutBack(this.#part, 0, leaf.endOffset);
        cutFront(rest, 0, leaf.endOffset);
        insertExtent(leaf, this.#part, 0, context);
        this.#writer.markDirty(leaf, seq);
      }
    }
  }
}
