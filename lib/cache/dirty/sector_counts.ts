/**
 * How many sectors of a device are dirty, per unit of its address space: the common part of
 * stripes (stripes.ts) and of regions with an age (dirty_regions.ts).
 *
 * The index is the truth. `countDirtyKeys` counts what is there, leaf by leaf, while the device is
 * in use: changes before the place it has come to are added as they happen, changes behind it are
 * left to the count. So every key is counted once. Answers to `bch_sectors_dirty_init` of
 * writeback.c.
 */
import { assert } from "../../base/assert.ts";
import type { Btree } from "../../btree/btree.ts";
import { keyDirty, keyInode, keySizeSectors, keyStart, SLOT_WORDS } from "../../ondisk/bkey.ts";
import type { KeySet } from "../../bset/key_set.ts";

export abstract class SectorCounts {
  readonly unitSectors: number;
  /** Dirty sectors of each unit. */
  readonly counts: Uint32Array;
  /** Everything up to here (exclusive) is counted; what changes behind it is not noted yet. */
  #countedTo = 0;

  constructor(unitSectors: number, deviceSectors: number) {
    assert(Number.isSafeInteger(unitSectors) && unitSectors > 0, "a unit has sectors");
    this.unitSectors = unitSectors;
    this.counts = new Uint32Array(Math.ceil(deviceSectors / unitSectors));
  }

  get complete(): boolean {
    return this.#countedTo === Infinity;
  }

  /** Unit of a sector; beyond the last unit for what lies behind the device's end. */
  unitOf(sector: number): number {
    return Math.floor(sector / this.unitSectors);
  }

  /** `sectors` (negative: fewer) from `start` on became dirty. No allocation: the hit path. */
  add(start: number, sectors: number): void {
    const length = Math.min(Math.abs(sectors), this.#countedTo - start);
    if (length > 0) this.#change(start, length, sectors > 0 ? 1 : -1);
  }

  #change(start: number, length: number, sign: 1 | -1): void {
    const { unitSectors, counts } = this;
    const end = start + length;
    let at = start;
    // Keys behind the device's end belong to no unit: they must not write outside the table.
    for (let unit = this.unitOf(at); at < end && unit < counts.length; unit++) {
      const unitEnd = Math.min((unit + 1) * unitSectors, end);
      const before = counts[unit]!;
      // Extents of a damaged index may overlap. Counts only say what is worth doing first.
      const after = Math.min(Math.max(before + sign * (unitEnd - at), 0), unitSectors);
      counts[unit] = after;
      this.changed(unit, before, after);
      at = unitEnd;
    }
  }

  /** Called for every unit whose count changed. Must not wait. */
  protected abstract changed(unit: number, before: number, after: number): void;

  /** Counts the dirty keys of `inode` in the index. Call once; requests may go on meanwhile. */
  async countDirtyKeys(btree: Btree, inode: number): Promise<void> {
    assert(this.#countedTo === 0, "keys are counted once");
    await btree.walk(0, { inode, offset: 0 }, (leaf) => {
      this.#countSet(leaf.base, inode);
      this.#countSet(leaf.delta, inode);
      this.#countedTo = leaf.endInode > inode ? Infinity : leaf.endOffset;
      return leaf.endInode <= inode;
    });
    this.#countedTo = Infinity;
  }

  #countSet(set: KeySet, inode: number): void {
    const { words } = set;
    for (let index = set.upperBound(inode, this.#countedTo); index < set.count; index++) {
      const at = index * SLOT_WORDS;
      if (keyInode(words, at) !== inode) return;
      const sectors = keySizeSectors(words, at);
      if (sectors > 0 && keyDirty(words, at)) this.#change(keyStart(words, at), sectors, 1);
    }
  }

  /** There are no dirty keys to be counted. */
  countNothing(): void {
    this.#countedTo = Infinity;
  }
}
