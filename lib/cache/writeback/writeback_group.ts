/**
 * What the writeback of all backing devices of a cache set has in common: the share of each in the
 * dirty data that is aimed at, the idle boost, and counters. Answers to the fields about writeback
 * in `struct cache_set`, `set_at_max_writeback_rate` and `quit_max_writeback_rate`.
 */
import { UUID_FLASH_ONLY } from "../../ondisk/uuid_entry.ts";
import type { DirtySectors } from "../dirty/dirty_sectors.ts";
import type { UuidTable } from "../uuids.ts";
import type { RateController } from "./writeback_rate.ts";

/** Shares are counted in 1/16384. */
const SHARE_BITS = 14n;
const SHARE_WHOLE = 16384;
/** Controller runs of each device, times devices, without a request: then the set is idle. */
const IDLE_RUNS = 6;

/** A backing device that is written back. */
export interface GroupMember {
  readonly rate: RateController;
  /** Of the whole backing device. */
  readonly backingSectors: number;
}

/** Dirty sectors of all flash-only volumes: they stay in the cache for good. */
export function flashDirtySectors(uuids: UuidTable, dirty: DirtySectors): number {
  let sectors = 0;
  for (let inode = 0; inode < uuids.capacity; inode++) {
    if ((uuids.entry(inode).flags & UUID_FLASH_ONLY) !== 0) sectors += dirty.of(inode);
  }
  return sectors;
}

export class WritebackGroup {
  /** Whether an idle set is written back at full speed. */
  idleMaxRate = true;
  /** Keys made clean; keys that changed or could not be written meanwhile, and stayed dirty. */
  keysDone = 0;
  keysFailed = 0;
  #members = new Set<GroupMember>();
  #cacheSectors: number;
  #flashDirtySectors: () => number;
  /** Controller runs of all members since the last request. */
  #idleRuns = 0;
  #atMaximum = false;

  /** @param flashDirtySectors dirty sectors of flash-only volumes, which are never written back */
  constructor(options: { cacheSectors: number; flashDirtySectors: () => number }) {
    this.#cacheSectors = options.cacheSectors;
    this.#flashDirtySectors = options.flashDirtySectors;
  }

  join(member: GroupMember): void {
    this.#members.add(member);
  }

  leave(member: GroupMember): void {
    this.#members.delete(member);
  }

  /**
   * Dirty sectors that `member` should come to: its part of `percent` of the cache, by size among
   * the members, never nothing. Answers to `__calc_target_rate`.
   */
  targetSectors(member: GroupMember, percent: number): number {
    let total = 0;
    for (const { backingSectors } of this.#members) total += backingSectors;
    const share = total === 0
      ? SHARE_WHOLE
      : Math.max(1, Number((BigInt(member.backingSectors) << SHARE_BITS) / BigInt(total)));
    const usable = Math.max(0, this.#cacheSectors - this.#flashDirtySectors());
    const target = Math.floor(usable * percent / 100);
    // In two parts: the product would not be exact.
    const rest = target % SHARE_WHOLE;
    return (target - rest) / SHARE_WHOLE * share + Math.floor(rest * share / SHARE_WHOLE);
  }

  /** A request came to any device of the set. No allocation: the hit path. */
  noteRequest(): void {
    if (this.#idleRuns === 0) return;
    this.#idleRuns = 0;
    if (this.#atMaximum) this.#leaveMaximum();
  }

  /** The request shall not wait behind writeback at full speed; the controller finds its way. */
  #leaveMaximum(): void {
    this.#atMaximum = false;
    for (const { rate } of this.#members) rate.restart();
  }

  /**
   * Counts a run of a member's controller; true: nobody has used the set for long, full speed.
   * The more devices, the more runs there are in the same time. Not during a collection, which
   * writeback at full speed would slow down.
   */
  noteControllerRun(collecting: boolean): boolean {
    if (!this.idleMaxRate || collecting) return false;
    this.#idleRuns++;
    const count = this.#members.size;
    if (count === 0 || this.#idleRuns < IDLE_RUNS * count * count) return false;
    this.#atMaximum = true;
    return true;
  }
}
