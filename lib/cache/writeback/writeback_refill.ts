/**
 * Which dirty extents of a device are written back next: fills its key buffer from the index.
 * Answers to `refill_dirty` and `refill_full_stripes` of writeback.c.
 *
 * A scan begins where the last one ended, goes to the end of the device, and from its start to
 * where it began. Only a scan that came round may say that nothing is dirty.
 */
import type { Btree } from "../../btree/btree.ts";
import { keyDirty, keyInode, keyPointers, keyStart, OFFSET_MAX } from "../../ondisk/bkey.ts";
import type { KeyBuffer } from "../key_buffer.ts";
import type { Stripes } from "../dirty/stripes.ts";

/** No extent is longer: its size has 16 bits. */
const KEY_SECTORS_MAX = 65535;

export class DirtyScan {
  #keys: KeyBuffer;
  #btree: Btree;
  #inode: number;
  /** The last call found full stripes and looked for nothing else. */
  #fullStripesOnly = false;

  constructor(keys: KeyBuffer, btree: Btree, inode: number) {
    this.#keys = keys;
    this.#btree = btree;
    this.#inode = inode;
    keys.lastScanned = { inode, offset: 0 };
  }

  /** Where the next scan begins, in sectors. */
  get cursor(): number {
    return this.#keys.lastScanned.offset;
  }

  set cursor(offset: number) {
    this.#keys.lastScanned = { inode: this.#inode, offset };
  }

  #wanted = (words: Uint32Array, at: number): boolean =>
    keyInode(words, at) === this.#inode && keyDirty(words, at) && keyPointers(words, at) > 0;

  /** Takes dirty extents up to and including one that ends at `end`; how many. */
  async #scanTo(end: number): Promise<number> {
    const position = { inode: this.#inode, offset: end };
    return await this.#keys.refill(this.#btree, position, this.#wanted);
  }

  /**
   * Fills the buffer. True: the scan came round, so every extent that was dirty when it began is
   * in the buffer or was met by an earlier call. @param stripes full ones come first, if given
   */
  async refill(stripes: Stripes | undefined): Promise<boolean> {
    if (stripes !== undefined) {
      const found = await this.#refillFullStripes(stripes);
      // Keys leave the buffer by address: full stripes are first only when they are alone in it.
      // Every other time, so that the rest has its turn too.
      this.#fullStripesOnly = found > 0 && !this.#fullStripesOnly;
      if (this.#fullStripesOnly || this.#keys.full) return false;
    }
    const began = this.cursor;
    await this.#scanTo(OFFSET_MAX);
    if (this.cursor < OFFSET_MAX) return false;
    this.cursor = 0;
    await this.#scanTo(began);
    return this.cursor >= began;
  }

  /** Goes round the stripes once, from the one of the cursor on. Returns how many keys it took. */
  async #refillFullStripes(stripes: Stripes): Promise<number> {
    const { unitSectors } = stripes;
    const began = this.cursor;
    const first = Math.min(stripes.unitOf(began), stripes.counts.length);
    let from = first;
    let wrapped = false;
    let found = 0;
    for (;;) {
      // await: the counts change between two runs; each is looked for anew.
      const run = stripes.nextFullRun(from);
      if (run === undefined || (wrapped && run.first >= first)) {
        if (wrapped || first === 0) break;
        wrapped = true;
        from = 0;
        continue;
      }
      this.cursor = run.first * unitSectors;
      found += await this.#scanTo(run.end * unitSectors);
      if (this.#keys.full) return found;
      from = run.end;
    }
    // Not where the last stripe ended: a scan must not count as come round that left out a part.
    this.cursor = began;
    return found;
  }

  /**
   * Fills the buffer with what lies in [start, end), and leaves the cursor behind what it looked
   * at. True: everything there was met.
   */
  async refillRange(start: number, end: number): Promise<boolean> {
    this.cursor = start;
    // The last extent may reach out of the range.
    const scanEnd = { inode: this.#inode, offset: Math.min(end + KEY_SECTORS_MAX, OFFSET_MAX) };
    await this.#keys.refill(
      this.#btree,
      scanEnd,
      (words, at) => this.#wanted(words, at) && keyStart(words, at) < end,
    );
    return this.cursor >= end;
  }
}
