/**
 * Inserting an extent into a leaf. Answers to `bch_extent_insert_fixup` of
 * drivers/md/bcache/extents.c and section 3 of the engine's reference.
 *
 * A leaf is two sets: `base`, which is on disk and whose keys are only ever shortened in place,
 * and `delta`, the keys to be appended by the next write. Read back, the delta's keys win over
 * the base's, so the same shortening happens again: what is on disk and what is in memory agree.
 */
import {
  copySlot,
  cutBack,
  cutFront,
  keyDirty,
  keyInode,
  keyOffset,
  keySizeSectors,
  setSize,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { KeySet } from "./key_set.ts";
import { canMerge, mergeRight } from "./merge.ts";

/**
 * Told of every change in the number of dirty sectors. Answers to `bcache_dev_sectors_dirty_add`.
 */
export interface DirtyLedger {
  /** `sectors` (negative: fewer) of `inode` from `startSector` on became dirty. */
  add(inode: number, startSector: number, sectors: number): void;
}

/** Scratch memory for one b-tree; an insert uses it within one synchronous call. */
export class InsertScratch {
  readonly key: Uint32Array = new Uint32Array(SLOT_WORDS);
  readonly top: Uint32Array = new Uint32Array(SLOT_WORDS);
}

/**
 * Shortens everything in `set` that the extent [start, end) of `inode` covers. A key that sticks
 * out on both sides is split: its upper part is put into `into` (which may be `set` itself).
 * @param written keys of `set` are on disk: what is wholly covered stays as a tombstone
 */
function cutOverlaps(
  set: KeySet,
  range: { inode: number; start: number; end: number },
  into: { upper: KeySet; ledger: DirtyLedger; scratch: InsertScratch; written: boolean },
): void {
  const { inode, start, end } = range;
  let index = set.upperBound(inode, start);
  while (index < set.count) {
    const words = set.words;
    const at = index * SLOT_WORDS;
    if (keyInode(words, at) !== inode) return;
    const size = keySizeSectors(words, at);
    const keyEnd = keyOffset(words, at);
    if (size === 0) {
      index++;
      continue;
    }
    const keyBegin = keyEnd - size;
    if (keyBegin >= end) return;
    if (keyDirty(words, at)) {
      const from = Math.max(start, keyBegin);
      into.ledger.add(inode, from, -(Math.min(end, keyEnd) - from));
    }
    if (keyBegin < start && keyEnd > end) {
      const top = into.scratch.top;
      copySlot(words, at, top, 0);
      cutFront(top, 0, end);
      cutBack(words, at, start);
      const place = into.upper.upperBound(inode, keyEnd);
      into.upper.insertAt(place, top, 0);
      return;
    }
    if (keyBegin < start) {
      cutBack(words, at, start);
      index++;
    } else if (keyEnd > end) {
      cutFront(words, at, end);
      return;
    } else if (into.written) {
      setSize(words, at, 0);
      index++;
    } else set.removeAt(index);
  }
}

/**
 * Inserts the extent in slot `at` of `words` (size > 0, inside the leaf). Every older key gives
 * way; what the ledger is told is exact. Uses at most two more keys of `delta`.
 */
export function insertExtent(
  leaf: { base: KeySet; delta: KeySet },
  words: Uint32Array,
  at: number,
  context: { ledger: DirtyLedger; scratch: InsertScratch; bucketSectors: number },
): void {
  const { base, delta } = leaf;
  const { ledger, scratch, bucketSectors } = context;
  const inode = keyInode(words, at);
  const end = keyOffset(words, at);
  const size = keySizeSectors(words, at);
  const start = end - size;
  const range = { inode, start, end };
  cutOverlaps(base, range, { upper: delta, ledger, scratch, written: true });
  cutOverlaps(delta, range, { upper: delta, ledger, scratch, written: false });
  if (keyDirty(words, at)) ledger.add(inode, start, size);

  // Nothing in the delta overlaps any more: the key goes before the first that ends later.
  const place = delta.upperBound(inode, end);
  if (place > 0) {
    const before = (place - 1) * SLOT_WORDS;
    if (canMerge(delta.words, before, words, at, bucketSectors)) {
      mergeRight(delta.words, before, words, at);
      return;
    }
  }
  if (place < delta.count) {
    const after = place * SLOT_WORDS;
    if (canMerge(words, at, delta.words, after, bucketSectors)) {
      copySlot(words, at, scratch.key, 0);
      mergeRight(scratch.key, 0, delta.words, after);
      copySlot(scratch.key, 0, delta.words, after);
      return;
    }
  }
  delta.insertAt(place, words, at);
}

/** Inserts a pointer to a node, before older keys of the same position. */
export function insertPointer(delta: KeySet, words: Uint32Array, at: number): void {
  const inode = keyInode(words, at);
  const offset = keyOffset(words, at);
  let place = delta.upperBound(inode, offset);
  while (place > 0) {
    const before = (place - 1) * SLOT_WORDS;
    if (keyInode(delta.words, before) !== inode || keyOffset(delta.words, before) !== offset) break;
    place--;
  }
  delta.insertAt(place, words, at);
}
