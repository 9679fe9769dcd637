/**
 * Extents found by a scan of the index, waiting to be worked on or being worked on: dirty ones
 * for writeback, those in sparsely used buckets for moving collection. Answers to struct keybuf
 * and `bch_keybuf_*` of btree.c.
 *
 * Each slot is *pending* until `takeNext`, then *in flight* until `finish`. Slots are ordered by
 * position and never overlap: a scan skips what overlaps one that is there already.
 * A slot is a copy of a key as it was when it was scanned. The index goes on changing, so whoever
 * works on a slot compares it with the index before its result goes in.
 */
import { assert } from "../base/assert.ts";
import type { Btree } from "../btree/btree.ts";
import type { BtreeNode } from "../btree/node.ts";
import {
  compareKey,
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";

/** Slots of a buffer, as in the kernel. */
export const KEY_BUFFER_SLOTS = 500;

/** One extent of the index that lies in the cache. Sectors throughout; `end` is exclusive. */
export interface BufferedKey {
  readonly inode: number;
  readonly start: number;
  readonly end: number;
  /** Where it lies on the cache device. */
  readonly sector: number;
  readonly gen: number;
  readonly dirty: boolean;
}

interface Slot extends BufferedKey {
  inFlight: boolean;
}

/** A position in the index: what ends at or before it lies behind. */
export interface Position {
  readonly inode: number;
  readonly offset: number;
}

/** Whether a key of a leaf belongs into the buffer. Called with the leaf's own words. */
export type KeyWanted = (words: Uint32Array, at: number) => boolean;

/** Negative, zero, positive: slot `a` lies before, overlaps, or lies behind the range. */
function compareRange(a: BufferedKey, inode: number, start: number, end: number): number {
  if (a.inode !== inode) return a.inode - inode;
  if (a.end <= start) return -1;
  return a.start >= end ? 1 : 0;
}

export class KeyBuffer {
  readonly capacity: number;
  /** By position; no two overlap. */
  #slots: Slot[] = [];
  #inFlight = 0;
  /** Everything up to here was looked at; the next refill goes on behind it. */
  lastScanned: Position = { inode: 0, offset: 0 };

  constructor(capacity: number = KEY_BUFFER_SLOTS) {
    assert(capacity > 0, "a key buffer has slots");
    this.capacity = capacity;
  }

  /** Pending and in flight. */
  get size(): number {
    return this.#slots.length;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get pending(): number {
    return this.#slots.length - this.#inFlight;
  }

  get full(): boolean {
    return this.#slots.length >= this.capacity;
  }

  /** All slots in order of position, for the collector: what they name must not be reused. */
  keys(): readonly BufferedKey[] {
    return this.#slots;
  }

  /** Takes a copy of the key; false: the buffer is full, or something there overlaps it. */
  tryAdd(words: Uint32Array, at: number): boolean {
    if (this.full) return false;
    const end = keyOffset(words, at);
    const start = end - keySizeSectors(words, at);
    const inode = keyInode(words, at);
    assert(end > start, "a buffered key has a size");
    assert(keyPointers(words, at) > 0, "a buffered key lies in the cache");
    const index = this.#firstNotBefore(inode, start, end);
    const there = this.#slots[index];
    if (there !== undefined && compareRange(there, inode, start, end) === 0) return false;
    this.#slots.splice(index, 0, {
      inode,
      start,
      end,
      sector: pointerSector(words, at),
      gen: pointerGen(words, at),
      dirty: keyDirty(words, at),
      inFlight: false,
    });
    return true;
  }

  /** Index of the first slot that ends behind `start`. */
  #firstNotBefore(inode: number, start: number, end: number): number {
    let low = 0;
    let high = this.#slots.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (compareRange(this.#slots[middle]!, inode, start, end) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The first pending key, not taken; undefined: all are in flight, or there are none. */
  peekNext(): BufferedKey | undefined {
    return this.#slots.find((slot) => !slot.inFlight);
  }

  /** The first pending key, from now on in flight until `finish`. */
  takeNext(): BufferedKey | undefined {
    const slot = this.#slots.find((each) => !each.inFlight);
    if (slot === undefined) return undefined;
    slot.inFlight = true;
    this.#inFlight++;
    return slot;
  }

  /** The work on a key that `takeNext` gave is done: its slot is free. */
  finish(key: BufferedKey): void {
    const index = this.#slots.indexOf(key as Slot);
    assert(index >= 0, "a finished key is in the buffer");
    assert(this.#slots[index]!.inFlight, "a finished key was in flight");
    this.#slots.splice(index, 1);
    this.#inFlight--;
  }

  /**
   * [start, end) of `inode` is about to change: pending keys there are dropped. True: one that
   * overlaps is in flight.
   */
  checkOverlapping(inode: number, start: number, end: number): boolean {
    let inFlight = false;
    let index = this.#firstNotBefore(inode, start, end);
    while (index < this.#slots.length) {
      const slot = this.#slots[index]!;
      if (compareRange(slot, inode, start, end) !== 0) break;
      if (slot.inFlight) {
        inFlight = true;
        index++;
      } else this.#slots.splice(index, 1);
    }
    return inFlight;
  }

  /** Drops all that is pending. */
  clearPending(): void {
    this.#slots = this.#slots.filter((slot) => slot.inFlight);
  }

  /**
   * Scans the index from `lastScanned` on, up to and including keys that end at `end`, and takes
   * what is wanted, until the buffer is full. Returns how many keys were taken. Each leaf is looked
   * at in one synchronous step; others may change the index in between. `lastScanned` is left at
   * the last key that was looked at, and at `end` when the scan came to it.
   */
  async refill(btree: Btree, end: Position, wanted: KeyWanted): Promise<number> {
    let found = 0;
    let full = this.full;
    let past = false;
    await btree.walk(0, this.lastScanned, (leaf) => {
      if (full) return false;
      const { inode, offset } = this.lastScanned;
      forEachExtent(leaf, inode, offset, (words, at) => {
        if (compareKey(words, at, end.inode, end.offset) > 0) {
          past = true;
          return false;
        }
        if (wanted(words, at)) {
          // A full buffer has not looked at this one.
          if (full) return false;
          if (this.tryAdd(words, at)) found++;
          full = this.full;
        }
        this.lastScanned = { inode: keyInode(words, at), offset: keyOffset(words, at) };
        return true;
      });
      return !full && !past && (leaf.endInode < end.inode ||
        (leaf.endInode === end.inode && leaf.endOffset < end.offset));
    });
    if (!full) this.lastScanned = end;
    return found;
  }
}

/**
 * Calls `visit` with every key of size > 0 of a leaf that ends behind (inode, offset), in order,
 * until it returns false. Synchronous; `visit` must not change the leaf.
 */
export function forEachExtent(
  leaf: BtreeNode,
  inode: number,
  offset: number,
  visit: (words: Uint32Array, at: number) => boolean,
): void {
  const { base, delta } = leaf;
  let inBase = base.upperBound(inode, offset);
  let inDelta = delta.upperBound(inode, offset);
  while (inBase < base.count || inDelta < delta.count) {
    const baseAt = inBase * SLOT_WORDS;
    const deltaAt = inDelta * SLOT_WORDS;
    const takeBase = inDelta >= delta.count || (inBase < base.count && compareKey(
          base.words,
          baseAt,
          keyInode(delta.words, deltaAt),
          keyOffset(delta.words, deltaAt),
        ) <= 0);
    const words = takeBase ? base.words : delta.words;
    const at = takeBase ? baseAt : deltaAt;
    if (takeBase) inBase++;
    else inDelta++;
    if (keySizeSectors(words, at) > 0 && !visit(words, at)) return;
  }
}
