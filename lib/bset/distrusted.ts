/**
 * Devices whose backing device could not be flushed. Which of the writes since its last good flush
 * are on it nobody knows then, so a clean key of such a device may be false: what it says is there
 * too may be lost. No such key becomes durable: on its way to the disk, in a journal entry or in a
 * set of a leaf, its pointer is made stale. To every reader of the format that is a key that hides
 * what is older and has nothing itself, as it is for a bucket that was used again meanwhile: the
 * range is read from the backing device. Dirty keys say nothing about the backing device and stay.
 */
import {
  keyDirty,
  keyDiskWords,
  keyInode,
  keyPointers,
  pointerGen,
  setPointerGen,
} from "../ondisk/bkey.ts";

export class DistrustedInodes {
  /** The number of its addition, by inode. */
  #inodes = new Map<number, number>();
  /** How often one was added: what came later has a larger number. */
  additions = 0;

  add(inode: number): void {
    this.#inodes.set(inode, ++this.additions);
  }

  /** What it has cached is true again, or gone from the index, durably. */
  delete(inode: number): void {
    this.#inodes.delete(inode);
  }

  has(inode: number): boolean {
    return this.#inodes.has(inode);
  }

  /**
   * Makes the clean keys of these devices stale, among the on-disk keys of a leaf or of the journal
   * in words [from, to). True: some were.
   * @param after only of devices added after so many additions: the others were done before
   */
  makeStale(words: Uint32Array, from: number, to: number, after: number = 0): boolean {
    if (this.#inodes.size === 0 || after === this.additions) return false;
    let found = false;
    for (let at = from; at < to; at += keyDiskWords(words, at)) {
      if (keyPointers(words, at) === 0 || keyDirty(words, at)) continue;
      if ((this.#inodes.get(keyInode(words, at)) ?? 0) <= after) continue;
      // The bucket's own generation is never behind its pointers': one less is stale.
      setPointerGen(words, at, (pointerGen(words, at) - 1) & 0xff);
      found = true;
    }
    return found;
  }
}
