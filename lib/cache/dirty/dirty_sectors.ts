/**
 * How many sectors of each device are dirty, exactly: every insert into the index says what it
 * changed. Answers to `bcache_dev_sectors_dirty`.
 */
import type { DirtyLedger } from "../../bset/extents.ts";

/** Is told of every change of one device; see `DirtySectors.watch`. */
export interface DirtyWatcher {
  /** `sectors` (negative: fewer) from `start` on became dirty. Must not wait nor allocate. */
  add(start: number, sectors: number): void;
}

export class DirtySectors implements DirtyLedger {
  #byInode: Float64Array;
  /** Where the last sector that ever was dirty ends. */
  #ends: Float64Array;
  #watchers: Array<DirtyWatcher | undefined>;
  /** Of inodes beyond the UUID table, which only a damaged index has. */
  #beyond = new Map<number, number>();
  /** Sectors that were dirty once and are not any more, since start. */
  dropped = 0;

  /** @param inodeCount slots of the UUID table: no valid key has a larger inode. */
  constructor(inodeCount: number) {
    this.#byInode = new Float64Array(inodeCount);
    this.#ends = new Float64Array(inodeCount);
    this.#watchers = new Array<DirtyWatcher | undefined>(inodeCount).fill(undefined);
  }

  add(inode: number, startSector: number, sectors: number): void {
    if (inode >= this.#byInode.length) {
      this.#beyond.set(inode, this.of(inode) + sectors);
      return;
    }
    this.#byInode[inode]! += sectors;
    if (sectors < 0) this.dropped -= sectors;
    // A number that nothing dirty has any more may be another device's next.
    if (this.#byInode[inode] === 0) this.#ends[inode] = 0;
    else if (startSector + sectors > this.#ends[inode]!) this.#ends[inode] = startSector + sectors;
    this.#watchers[inode]?.add(startSector, sectors);
  }

  /** From now on `watcher` is told of every change of `inode`; undefined: nobody is. */
  watch(inode: number, watcher: DirtyWatcher | undefined): void {
    this.#watchers[inode] = watcher;
  }

  /** Counting begins anew. */
  clear(): void {
    this.#byInode.fill(0);
    this.#ends.fill(0);
    this.#beyond.clear();
  }

  /** Who has dirty sectors, in order; also who cannot have any. */
  inodes(): number[] {
    const known = Array.from(this.#byInode.keys()).filter((inode) => this.of(inode) > 0);
    const beyond = [...this.#beyond.keys()].filter((inode) => this.of(inode) > 0);
    return [...known, ...beyond.sort((a, b) => a - b)];
  }

  /** A device must be at least this long for its dirty data to fit, if it has any. */
  endOf(inode: number): number {
    return this.of(inode) > 0 ? this.#ends[inode]! : 0;
  }

  of(inode: number): number {
    return this.#byInode[inode] ?? this.#beyond.get(inode) ?? 0;
  }
}
