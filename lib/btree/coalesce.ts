/**
 * Which keys go where when neighbouring nodes become one fewer. Answers to the part of
 * `btree_gc_coalesce` of btree.c that moves keys. Synchronous and without side effects: the caller
 * has compacted copies, and writes what comes out.
 */
import { assert } from "../base/assert.ts";
import { KeySet } from "../bset/key_set.ts";
import { copySlot, keyDiskWords, SLOT_WORDS } from "../ondisk/bkey.ts";
import { bsetBlocks } from "../ondisk/bset.ts";

/** Neighbours that are looked at together. */
export const COALESCE_NODES_MAX = 4;

/** One of the nodes that take the place of the old ones. */
export interface CoalescedNode {
  readonly keys: KeySet;
  /** A slot whose position is the last one of the node. */
  readonly end: Uint32Array;
}

interface NodeShape {
  readonly blocks: number;
  readonly blockBytes: number;
}

/** Blocks that a node is filled to: the rest is for what comes in before its next rewrite. */
function filledBlocks(blocks: number): number {
  return Math.floor((blocks * 2) / 3);
}

/** Whether `count` neighbours with so many words of good keys are worth one node fewer. */
export function mayCoalesce(words32: number, count: number, shape: NodeShape): boolean {
  if (count < 2) return false;
  return bsetBlocks(words32 / 2, shape.blockBytes) <= filledBlocks(shape.blocks) * (count - 1);
}

/**
 * Moves keys to the left neighbour, each node being filled to two thirds, until the last one is
 * empty; its left neighbour, which may become quite full, takes over its end. `sets` are the good
 * keys of the nodes in order, `ends` the keys that point to them; neither is changed. Undefined:
 * they do not fit.
 */
export function coalesceKeys(
  sets: readonly KeySet[],
  ends: readonly Uint32Array[],
  shape: NodeShape,
): CoalescedNode[] | undefined {
  assert(sets.length >= 2, "a node is coalesced with another");
  assert(sets.length === ends.length, "every node has its end");
  const { blocks, blockBytes } = shape;
  const limit = filledBlocks(blocks);
  const coalesced: CoalescedNode[] = [];
  /** Keys of the next set that went to the left already. */
  let taken = 0;
  for (let index = 0; index + 1 < sets.length; index++) {
    const own = sets[index]!;
    const right = sets[index + 1]!;
    const keys = new KeySet(own.count - taken + right.count);
    keys.append(own, taken, own.count);
    const last = index + 2 === sets.length;
    const end = new Uint32Array(SLOT_WORDS);
    copySlot(ends[index]!, 0, end, 0);
    taken = pushWhileRoom(keys, right, { blockBytes, limit: last ? blocks : limit });
    if (last) {
      if (taken < right.count) return undefined;
      copySlot(ends[index + 1]!, 0, end, 0);
    } else if (taken > 0) copySlot(right.words, (taken - 1) * SLOT_WORDS, end, 0);
    coalesced.push({ keys, end });
  }
  return coalesced;
}

/** Appends keys of `from` while the result takes at most `limit` blocks; returns how many. */
function pushWhileRoom(
  keys: KeySet,
  from: KeySet,
  room: { blockBytes: number; limit: number },
): number {
  let words32 = keys.diskWords();
  let count = 0;
  for (; count < from.count; count++) {
    words32 += keyDiskWords(from.words, count * SLOT_WORDS);
    if (bsetBlocks(words32 / 2, room.blockBytes) > room.limit) break;
  }
  keys.append(from, 0, count);
  return count;
}
