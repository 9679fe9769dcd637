/**
 * KeySet: a sorted list of keys in one Uint32Array, six words each (see ondisk/bkey.ts).
 * Synchronous, no I/O. Keys are ordered by (inode, end offset); in a leaf live keys do not
 * overlap. Keys of size 0 are tombstones of what was overwritten: they keep their place until the
 * next merge and are to be ignored.
 */
import { assert } from "../base/assert.ts";
import {
  copySlot,
  keyDiskWords,
  keyInode,
  keyOffset,
  keySizeSectors,
  keyStart,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";

const CAPACITY_MIN = 16;

export class KeySet {
  /** Slots [0, count) are the keys; what is behind them is undefined. Replaced when it grows. */
  words: Uint32Array;
  count = 0;

  constructor(capacity: number = CAPACITY_MIN) {
    this.words = new Uint32Array(Math.max(capacity, 1) * SLOT_WORDS);
  }

  get bytes(): number {
    return this.words.byteLength;
  }

  /** Makes room for `capacity` keys in all. */
  reserve(capacity: number): void {
    if (capacity * SLOT_WORDS <= this.words.length) return;
    const grown = Math.max(capacity, 2 * (this.words.length / SLOT_WORDS));
    const words = new Uint32Array(grown * SLOT_WORDS);
    words.set(this.words.subarray(0, this.count * SLOT_WORDS));
    this.words = words;
  }

  /** Appends a copy of a slot; order is the caller's duty. */
  push(from: Uint32Array, at: number): void {
    if (this.count * SLOT_WORDS === this.words.length) this.reserve(this.count + 1);
    copySlot(from, at, this.words, this.count * SLOT_WORDS);
    this.count++;
  }

  /** Appends the keys [from, to) of another set. */
  append(other: KeySet, from: number, to: number): void {
    this.reserve(this.count + Math.max(to - from, 0));
    const slots = other.words.subarray(from * SLOT_WORDS, to * SLOT_WORDS);
    this.words.set(slots, this.count * SLOT_WORDS);
    this.count += Math.max(to - from, 0);
  }

  /** Appends the keys [from, to) of another set but for those of size 0, run by run. */
  appendLive(other: KeySet, from: number, to: number): void {
    this.reserve(this.count + Math.max(to - from, 0));
    const words = other.words;
    let run = from;
    for (let index = from; index <= to; index++) {
      if (index < to && keySizeSectors(words, index * SLOT_WORDS) > 0) continue;
      if (index > run) this.append(other, run, index);
      run = index + 1;
    }
  }

  /** Inserts a copy of a slot before key `index`. `from` must not be this set's own words. */
  insertAt(index: number, from: Uint32Array, at: number): void {
    assert(index <= this.count, "a key is inserted inside the set");
    this.reserve(this.count + 1);
    const place = index * SLOT_WORDS;
    this.words.copyWithin(place + SLOT_WORDS, place, this.count * SLOT_WORDS);
    copySlot(from, at, this.words, place);
    this.count++;
  }

  removeAt(index: number): void {
    const place = index * SLOT_WORDS;
    this.words.copyWithin(place, place + SLOT_WORDS, this.count * SLOT_WORDS);
    this.count--;
  }

  clear(): void {
    this.count = 0;
  }

  /** Gives back memory that `count` keys do not need. */
  trim(): void {
    const needed = Math.max(this.count, 1) * SLOT_WORDS;
    if (needed * 2 < this.words.length) this.words = this.words.slice(0, needed);
  }

  /** Index of the first key strictly after (inode, offset), `count` when there is none. */
  upperBound(inode: number, offset: number): number {
    const words = this.words;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const at = middle * SLOT_WORDS;
      const keyNode = words[at]! & 0xf_ffff;
      const after = keyNode !== inode
        ? keyNode > inode
        : words[at + 3]! * 0x1_0000_0000 + words[at + 2]! > offset;
      if (after) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /**
   * `upperBound`, with a guess: a caller that walks along the keys guesses the next one, and is
   * right. Any guess is safe.
   */
  upperBoundNear(inode: number, offset: number, guess: number): number {
    if (guess > 0 && guess < this.count) {
      const at = guess * SLOT_WORDS;
      if (this.#isAfter(at, inode, offset) && !this.#isAfter(at - SLOT_WORDS, inode, offset)) {
        return guess;
      }
    }
    return this.upperBound(inode, offset);
  }

  #isAfter(at: number, inode: number, offset: number): boolean {
    const words = this.words;
    const keyNode = words[at]! & 0xf_ffff;
    if (keyNode !== inode) return keyNode > inode;
    return words[at + 3]! * 0x1_0000_0000 + words[at + 2]! > offset;
  }

  /** 32-bit words of these keys on disk. */
  diskWords(): number {
    let words = 0;
    for (let index = 0; index < this.count; index++) {
      words += keyDiskWords(this.words, index * SLOT_WORDS);
    }
    return words;
  }

  /** Throws when keys are out of order or live ones overlap. For tests and `check`. */
  checkInvariants(kind: "extents" | "pointers"): void {
    const words = this.words;
    let live = -1;
    for (let at = 0; at < this.count * SLOT_WORDS; at += SLOT_WORDS) {
      const before = at - SLOT_WORDS;
      const inodes = at === 0 ? 1 : keyInode(words, at) - keyInode(words, before);
      assert(inodes >= 0, "inodes of a sorted set ascend");
      if (inodes === 0) {
        assert(keyOffset(words, at) >= keyOffset(words, before), "keys of a sorted set ascend");
      }
      if (kind === "pointers" || keySizeSectors(words, at) === 0) continue;
      if (live >= 0 && keyInode(words, live) === keyInode(words, at)) {
        assert(keyStart(words, at) >= keyOffset(words, live), "extents do not overlap");
      }
      live = at;
    }
  }
}
