/**
 * Since when data may be dirty, by region of a device, so that writeback can keep a bound on the
 * age of dirty data. Keys on disk carry no time.
 *
 * A region's time is the moment its first sector became dirty, which is not after the moment any
 * other of its sectors did: to write a region back by its time is to write each of its extents back
 * in time, some of them early. When all that was dirty at some moment is clean, that moment is the
 * region's new time. After a restart every age begins anew.
 *
 * Memory is bounded: 65536 regions at most, 12 bytes each.
 */
import type { Clock } from "../../base/runtime.ts";
import { SectorCounts } from "./sector_counts.ts";

const REGIONS_MAX = 65536;
const REGION_SECTORS_MIN = (1 << 20) / 512;

export class DirtyRegions extends SectorCounts {
  #clock: Clock;
  /** Milliseconds on the clock; only of regions with dirty sectors. */
  #sinceMs: Float64Array;

  constructor(deviceSectors: number, clock: Clock) {
    let unitSectors = REGION_SECTORS_MIN;
    while (unitSectors * REGIONS_MAX < deviceSectors) unitSectors *= 2;
    super(unitSectors, deviceSectors);
    this.#clock = clock;
    this.#sinceMs = new Float64Array(this.counts.length);
  }

  protected changed(unit: number, before: number, _after: number): void {
    if (before === 0) this.#sinceMs[unit] = this.#clock.nowMs();
  }

  /** The region that has been dirty longest, and since when; undefined: nothing is dirty. */
  oldest(): { region: number; sinceMs: number } | undefined {
    let region = -1;
    let sinceMs = Infinity;
    for (let unit = 0; unit < this.counts.length; unit++) {
      if (this.counts[unit] === 0 || this.#sinceMs[unit]! >= sinceMs) continue;
      region = unit;
      sinceMs = this.#sinceMs[unit]!;
    }
    return region < 0 ? undefined : { region, sinceMs };
  }

  /** Everything in the region that was dirty before `atMs` is clean now. */
  writtenBack(region: number, atMs: number): void {
    if (atMs > this.#sinceMs[region]!) this.#sinceMs[region] = atMs;
  }
}
