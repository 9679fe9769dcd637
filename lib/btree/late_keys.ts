/** Keys that came into a leaf while the nodes that take its place were being written. */
import { insertExtent, InsertScratch } from "../bset/extents.ts";
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
import type { BtreeNode } from "./node.ts";
import type { NodeWriter } from "./node_write.ts";

/** Scratch memory of one b-tree, and what it needs to know. */
export class LateKeys {
  readonly #writer: NodeWriter;
  readonly #bucketSectors: number;
  readonly #scratch = new InsertScratch();
  readonly #rest = new Uint32Array(SLOT_WORDS);
  readonly #part = new Uint32Array(SLOT_WORDS);

  constructor(writer: NodeWriter, bucketSectors: number) {
    this.#writer = writer;
    this.#bucketSectors = bucketSectors;
  }

  /**
   * Moves them over into `made`, in order and covering the leaf's range, with their journal pin.
   * There is room: while a leaf is replaced it takes no more than fit into each new node.
   */
  move(node: BtreeNode, made: readonly BtreeNode[]): void {
    const { delta, pinSeq } = node;
    // These keys were counted when they came in.
    const context = {
      ledger: { add: () => {} },
      scratch: this.#scratch,
      bucketSectors: this.#bucketSectors,
    };
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
}
