/**
 * How many sectors of each device are dirty, exactly: every insert into the index says what it
 * changed. Answers to `bcache_dev_sectors_dirty`.
 */
import type { DirtyLedger } from "../bset/extents.ts";

export class DirtySectors implements DirtyLedger {
  #byInode: Float64Array;

  /** @param inodeCount slots of the UUID table: no valid key has a larger inode. */
  constructor(inodeCount: number) {
    this.#byInode = new Float64Array(inodeCount);
  }

  add(inode: number, _startSector: number, sectors: number): void {
    this.#byInode[inode]! += sectors;
  }

  of(inode: number): number {
    return this.#byInode[inode] ?? 0;
  }
}
