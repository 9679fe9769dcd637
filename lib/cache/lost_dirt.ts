/**
 * Dirty keys of leaves whose data is gone: their buckets were used again. A journal entry may bring
 * such a key back, after its data was written back or superseded. In a leaf Linux leaves one when
 * it loses power: its journal does not have that data was written back, and the bucket is reused
 * before the leaf is on disk. In a set of our own the leaf is an older copy, or priorities and
 * index do not belong together. What the backing device has can be served there, but not without a
 * word. (Linux itself says "stale dirty pointer", extents.c.)
 */
import type { Log } from "../base/runtime.ts";
import { formatBytes } from "../base/units.ts";
import {
  keyInode,
  keyOffset,
  keySizeSectors,
  keyStart,
  keyText,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";

/** More are only counted. */
const KEPT_MAX = 1000;

export class LostDirt {
  /** Slots of keys that no journaled key covers, as far as is known. */
  #keys: Uint32Array[] = [];
  #omitted = 0;

  /** Notes a key of a leaf; one that was noted before is noted once. */
  note(words: Uint32Array, at: number): void {
    const isSame = (key: Uint32Array) =>
      keyInode(key, 0) === keyInode(words, at) && keyOffset(key, 0) === keyOffset(words, at);
    if (this.#keys.some(isSame)) return;
    if (this.#keys.length < KEPT_MAX) this.#keys.push(words.slice(at, at + SLOT_WORDS));
    else this.#omitted++;
  }

  get isEmpty(): boolean {
    return this.#keys.length === 0;
  }

  /** A journaled key: what it covers was superseded, not lost. */
  cover(words: Uint32Array, at: number): void {
    const [inode, start, end] = [keyInode(words, at), keyStart(words, at), keyOffset(words, at)];
    this.#keys = this.#keys.filter((key) =>
      keyInode(key, 0) !== inode || keyStart(key, 0) < start || keyStart(key, 0) >= end
    );
  }

  /** Says what is lost, if anything is. */
  tell(log: Log, device: string): void {
    const [first] = this.#keys;
    if (first === undefined) return;
    const sectors = this.#keys.reduce((sum, key) => sum + keySizeSectors(key, 0), 0);
    const more = this.#omitted > 0 ? ` and ${this.#omitted} extents more` : "";
    log(
      "warning",
      `${device}: b-tree: the buckets of ${formatBytes(sectors * 512)} of dirty data${more} ` +
        `were used again, first ${keyText(first, 0)}; what the backing device has is served ` +
        "there: after a power cut under Linux that is the same, and nothing is lost; else it is " +
        "older: unmount, see `check`, and compare with a backup",
    );
  }
}
