/**
 * Dirty sectors by stripe of a backing device: a RAID for which writing a whole stripe is much
 * cheaper than writing a part of one. Writeback then takes full stripes first, and a write to a
 * stripe that is dirty already stays in the cache, so that the stripe may fill up. Answers to
 * `stripe_sectors_dirty` and `full_dirty_stripes` of bcache_device_init and writeback.c.
 *
 * Stripes are any number of sectors long, a power of two or not.
 */
import { SectorCounts } from "./sector_counts.ts";

/** Shorter stripes are taken together, or a tiny one would make a huge table. */
const STRIPE_SECTORS_MIN = (4 << 20) / 512;
/** The stripe of a device that has none. */
export const STRIPE_SECTORS_NONE = 2 ** 31;
/** More are taken together as well: 16 MiB of counters at most. */
const STRIPES_MAX = 2 ** 22;

/**
 * The stripe size that is worked with: a multiple of `optimalSectors`, what the device likes its
 * writes to be (0: it does not say).
 */
export function stripeSectorsOf(optimalSectors: number, deviceSectors: number): number {
  if (optimalSectors === 0) return STRIPE_SECTORS_NONE;
  const least = Math.max(STRIPE_SECTORS_MIN, Math.ceil(deviceSectors / STRIPES_MAX));
  const wanted = Math.ceil(least / optimalSectors) * optimalSectors;
  // A count must fit 32 bits.
  return wanted > STRIPE_SECTORS_NONE ? STRIPE_SECTORS_NONE : wanted;
}

export class Stripes extends SectorCounts {
  #full = 0;

  /** Stripes of which every sector is dirty. */
  get full(): number {
    return this.#full;
  }

  protected changed(_unit: number, before: number, after: number): void {
    const { unitSectors } = this;
    if (after === unitSectors) this.#full++;
    else if (before === unitSectors) this.#full--;
  }

  /** Whether a stripe that [start, start + sectors) touches has dirty data. No allocation. */
  touchesDirty(start: number, sectors: number): boolean {
    const last = Math.min(this.unitOf(start + sectors - 1), this.counts.length - 1);
    for (let stripe = this.unitOf(start); stripe <= last; stripe++) {
      if (this.counts[stripe]! > 0) return true;
    }
    return false;
  }

  /** The first run of full stripes at or behind `from`; undefined: there is none. */
  nextFullRun(from: number): { first: number; end: number } | undefined {
    if (this.#full === 0) return undefined;
    const { counts, unitSectors } = this;
    let first = from;
    while (first < counts.length && counts[first] !== unitSectors) first++;
    if (first >= counts.length) return undefined;
    let end = first + 1;
    while (end < counts.length && counts[end] === unitSectors) end++;
    return { first, end };
  }
}
