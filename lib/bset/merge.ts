/**
 * Merging two sorted key sets, the newer winning. Answers to `bch_extent_sort_fixup`,
 * `bch_key_sort_cmp` and `bch_extent_merge` of drivers/md/bcache/{bset,extents}.c.
 *
 * Overlaying is associative, so many sets of a node are merged pairwise, neighbours first:
 * n keys in k sets cost n log k.
 */
import {
  copySlot,
  cutBack,
  cutFront,
  KEY_SIZE_MAX_SECTORS,
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  pointerGen,
  pointerSector,
  setOffset,
  setSize,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { KeySet } from "./key_set.ts";

/** Tells whether a key may be left out of the merged set (a bad one, when a node is rewritten). */
export type KeyFilter = (words: Uint32Array, at: number) => boolean;

/**
 * Whether extent `right` continues extent `left` directly, in the index and in its bucket, so
 * that one key can say both.
 */
export function canMerge(
  left: Uint32Array,
  leftAt: number,
  right: Uint32Array,
  rightAt: number,
  bucketSectors: number,
): boolean {
  const pointers = keyPointers(left, leftAt);
  if (pointers !== keyPointers(right, rightAt)) return false;
  if (keyInode(left, leftAt) !== keyInode(right, rightAt)) return false;
  if (keyOffset(left, leftAt) !== keyStart(right, rightAt)) return false;
  if (keyDirty(left, leftAt) !== keyDirty(right, rightAt)) return false;
  const size = keySizeSectors(left, leftAt);
  if (size + keySizeSectors(right, rightAt) > KEY_SIZE_MAX_SECTORS) return false;
  if (pointers === 0) return true;
  const sector = pointerSector(right, rightAt);
  return pointerGen(left, leftAt) === pointerGen(right, rightAt) &&
    pointerSector(left, leftAt) + size === sector &&
    sector % bucketSectors !== 0;
}

/** Lengthens `left` by the extent that follows it; see `canMerge`. */
export function mergeRight(
  left: Uint32Array,
  leftAt: number,
  right: Uint32Array,
  rightAt: number,
): void {
  const size = keySizeSectors(left, leftAt) + keySizeSectors(right, rightAt);
  setOffset(left, leftAt, keyOffset(right, rightAt));
  setSize(left, leftAt, size);
}

/** Appends extents in key order: drops size 0 and what `drop` names, merges neighbours. */
class ExtentAppender {
  readonly into: KeySet;
  #bucketSectors: number;
  #drop: KeyFilter | undefined;

  constructor(into: KeySet, bucketSectors: number, drop: KeyFilter | undefined) {
    this.into = into;
    this.#bucketSectors = bucketSectors;
    this.#drop = drop;
  }

  push(words: Uint32Array, at: number): void {
    if (keySizeSectors(words, at) === 0) return;
    if (this.#drop?.(words, at)) return;
    const into = this.into;
    const last = (into.count - 1) * SLOT_WORDS;
    if (into.count > 0 && canMerge(into.words, last, words, at, this.#bucketSectors)) {
      mergeRight(into.words, last, words, at);
    } else into.push(words, at);
  }
}

/** Whether slot a ends at or before where slot b begins. */
function endsBefore(a: Uint32Array, aAt: number, b: Uint32Array, bAt: number): boolean {
  const inodes = keyInode(a, aAt) - keyInode(b, bAt);
  return inodes !== 0 ? inodes < 0 : keyOffset(a, aAt) <= keyStart(b, bAt);
}

export interface ExtentMergeOptions {
  readonly bucketSectors: number;
  /** Leaves keys out, after overlaps were settled: a dropped key still hides. */
  readonly drop?: KeyFilter;
  /** Emptied, and takes the result; absent: a set of its own. */
  readonly into?: KeySet;
}

/**
 * The extents of both sets, `newer` winning where they overlap, in as many steps as the caller
 * likes. Neither set is changed, nor may others change them before the last step.
 */
export class ExtentMerge {
  /** Whole once `step` has said so. */
  readonly merged: KeySet;
  readonly #older: KeySet;
  readonly #newer: KeySet;
  readonly #out: ExtentAppender;
  readonly #current = new Uint32Array(SLOT_WORDS);
  readonly #part = new Uint32Array(SLOT_WORDS);
  #index = 0;
  #next = 0;

  constructor(older: KeySet, newer: KeySet, options: ExtentMergeOptions) {
    this.#older = older;
    this.#newer = newer;
    this.merged = options.into ?? new KeySet(older.count + newer.count + 1);
    this.merged.clear();
    this.#out = new ExtentAppender(this.merged, options.bucketSectors, options.drop);
    this.#skipEmpty();
  }

  /** Goes over `keysMax` keys of the older set, and what lies between. True: it is whole. */
  step(keysMax: number): boolean {
    const older = this.#older;
    const end = Math.min(older.count, this.#index + keysMax);
    for (; this.#index < end; this.#index++) {
      copySlot(older.words, this.#index * SLOT_WORDS, this.#current, 0);
      this.#pushCurrent();
    }
    if (end < older.count) return false;
    for (; this.#next < this.#newer.count; this.#next++) {
      this.#out.push(this.#newer.words, this.#next * SLOT_WORDS);
    }
    return true;
  }

  /** Appends what is not hidden of the current key, and all newer keys before its end. */
  #pushCurrent(): void {
    const current = this.#current;
    const out = this.#out;
    const fresh = this.#newer.words;
    while (keySizeSectors(current, 0) > 0) {
      const at = this.#next * SLOT_WORDS;
      if (this.#next === this.#newer.count || endsBefore(current, 0, fresh, at)) {
        out.push(current, 0);
        return;
      }
      if (endsBefore(fresh, at, current, 0)) {
        out.push(fresh, at);
        this.#next++;
        this.#skipEmpty();
        continue;
      }
      const freshStart = keyStart(fresh, at);
      const freshEnd = keyOffset(fresh, at);
      if (freshStart > keyStart(current, 0)) {
        const part = this.#part;
        copySlot(current, 0, part, 0);
        cutBack(part, 0, freshStart);
        out.push(part, 0);
      }
      if (freshEnd >= keyOffset(current, 0)) return; // The rest of it is hidden.
      cutFront(current, 0, freshEnd);
    }
  }

  /** Tombstones of the newer set hide nothing. */
  #skipEmpty(): void {
    const { words, count } = this.#newer;
    let next = this.#next;
    while (next < count && keySizeSectors(words, next * SLOT_WORDS) === 0) next++;
    this.#next = next;
  }
}

/** A whole `ExtentMerge` at once. */
export function mergeExtents(older: KeySet, newer: KeySet, options: ExtentMergeOptions): KeySet {
  const merge = new ExtentMerge(older, newer, options);
  merge.step(older.count);
  return merge.merged;
}

/**
 * Adds a leaf's delta to its base, as `mergeExtents` would. They must not overlap (insertExtent
 * sees to that), so whole runs of the base are copied at once.
 */
export function mergeDelta(base: KeySet, delta: KeySet, bucketSectors: number): KeySet {
  const merged = new KeySet(base.count + delta.count);
  let copied = 0;
  for (let index = 0; index < delta.count; index++) {
    const at = index * SLOT_WORDS;
    const place = base.upperBound(keyInode(delta.words, at), keyOffset(delta.words, at));
    merged.appendLive(base, copied, place);
    copied = Math.max(copied, place);
    const last = (merged.count - 1) * SLOT_WORDS;
    if (merged.count > 0 && canMerge(merged.words, last, delta.words, at, bucketSectors)) {
      mergeRight(merged.words, last, delta.words, at);
    } else merged.push(delta.words, at);
  }
  merged.appendLive(base, copied, base.count);
  return merged;
}

/** The node pointers of both sets by key; of equal keys the newer first (older ones are stale). */
export function mergePointers(older: KeySet, newer: KeySet, drop?: KeyFilter): KeySet {
  const merged = new KeySet(older.count + newer.count + 1);
  let next = 0;
  const pushFresh = (): void => {
    if (!drop?.(newer.words, next * SLOT_WORDS)) merged.push(newer.words, next * SLOT_WORDS);
    next++;
  };
  for (let index = 0; index < older.count; index++) {
    const at = index * SLOT_WORDS;
    const inode = keyInode(older.words, at);
    const offset = keyOffset(older.words, at);
    while (next < newer.count) {
      const fresh = next * SLOT_WORDS;
      const inodes = keyInode(newer.words, fresh) - inode;
      if (inodes > 0 || (inodes === 0 && keyOffset(newer.words, fresh) > offset)) break;
      pushFresh();
    }
    if (!drop?.(older.words, at)) merged.push(older.words, at);
  }
  while (next < newer.count) pushFresh();
  return merged;
}

/** Merges sets given oldest first, neighbours first. */
export function mergeAll(sets: readonly KeySet[], merge: (a: KeySet, b: KeySet) => KeySet): KeySet {
  let round = [...sets];
  while (round.length > 1) {
    const merged: KeySet[] = [];
    for (let index = 0; index < round.length; index += 2) {
      const left = round[index]!;
      const right = round[index + 1];
      merged.push(right ? merge(left, right) : left);
    }
    round = merged;
  }
  return round[0] ?? new KeySet(1);
}
