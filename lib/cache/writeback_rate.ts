/**
 * How fast writeback may go: a proportional-integral controller that steers towards
 * `writeback_percent` of the cache being dirty. Answers to `__update_writeback_rate` and
 * `bch_next_delay` of writeback.c. Pure: numbers in, numbers out.
 */

export interface RateTunables {
  /** Dirty share of the cache that is aimed at, percent; 0: no limit to the rate. */
  percent: number;
  updateSeconds: number;
  pTermInverse: number;
  iTermInverse: number;
  fpTermLow: number;
  fpTermMid: number;
  fpTermHigh: number;
  /** Sectors per second. */
  rateMinimum: number;
  considerFragment: boolean;
}

export const RATE_DEFAULTS: Readonly<RateTunables> = {
  percent: 10,
  updateSeconds: 5,
  pTermInverse: 40,
  iTermInverse: 10_000,
  fpTermLow: 1,
  fpTermMid: 10,
  fpTermHigh: 1000,
  rateMinimum: 8,
  considerFragment: true,
};

/** Sectors per second, at most. */
const RATE_MAX = 1_000_000_000;
/** Until the first update. */
const RATE_INITIAL = 1024;
/** In use, percent: where the fragmentation terms set in. */
const FRAGMENT_LOW = 50;
const FRAGMENT_MID = 57;
const FRAGMENT_HIGH = 64;
/** Sleeping and catching up are bounded by these. */
const AHEAD_MS_MAX = 2500;
const BEHIND_MS_MAX = 2000;

export class RateController {
  readonly tunables: RateTunables = { ...RATE_DEFAULTS };
  /** Sectors per second. */
  rate = RATE_INITIAL;
  proportional = 0;
  integralScaled = 0;
  change = 0;
  targetSectors = 0;
  #integral = 0;
  /** When the next I/O may be issued. */
  #nextMs = 0;

  /** One step. All sizes in sectors; call every `updateSeconds`. */
  update(state: {
    dirtySectors: number;
    cacheSectors: number;
    inUsePercent: number;
    bucketsInUse: number;
    bucketSectors: number;
    nowMs: number;
  }): void {
    const t = this.tunables;
    this.targetSectors = Math.floor((state.cacheSectors * t.percent) / 100);
    const error = state.dirtySectors - this.targetSectors;
    let proportional = Math.trunc(error / t.pTermInverse);
    if (t.considerFragment && state.inUsePercent > FRAGMENT_LOW && state.dirtySectors > 0) {
      proportional = Math.max(proportional, this.#fragmentTerm(state));
    }
    const keepingUp = state.nowMs < this.#nextMs + 1;
    if ((error < 0 && this.#integral > 0) || (error > 0 && keepingUp)) {
      this.#integral += error * t.updateSeconds;
    }
    this.integralScaled = Math.trunc(this.#integral / t.iTermInverse);
    const wanted = proportional + this.integralScaled;
    const next = Math.min(Math.max(wanted, t.rateMinimum), RATE_MAX);
    this.change = next - this.rate;
    this.proportional = proportional;
    this.rate = next;
  }

  /** Few dirty sectors spread over many buckets: they hold up the reuse of those buckets. */
  #fragmentTerm(state: {
    dirtySectors: number;
    inUsePercent: number;
    bucketsInUse: number;
    bucketSectors: number;
  }): number {
    const t = this.tunables;
    const use = state.inUsePercent;
    const fragment = Math.floor((state.bucketsInUse * state.bucketSectors) / state.dirtySectors);
    if (fragment <= 3) return -Infinity;
    const term = use <= FRAGMENT_MID
      ? t.fpTermLow * (use - FRAGMENT_LOW)
      : use <= FRAGMENT_HIGH
      ? t.fpTermMid * (use - FRAGMENT_MID)
      : t.fpTermHigh * (use - FRAGMENT_HIGH);
    // Not the kernel's integer division, which collapses when dirty sectors are few.
    return Math.trunc((state.dirtySectors / state.bucketsInUse) * term);
  }

  /** `sectors` were written; returns how long to wait before the next I/O, in milliseconds. */
  delayMs(sectors: number, nowMs: number): number {
    if (this.tunables.percent === 0) return 0;
    this.#nextMs += (sectors * 1000) / this.rate;
    this.#nextMs = Math.min(Math.max(this.#nextMs, nowMs - BEHIND_MS_MAX), nowMs + AHEAD_MS_MAX);
    return Math.max(this.#nextMs - nowMs, 0);
  }

  /** A new scan begins: nothing is owed. */
  reset(nowMs: number): void {
    this.#nextMs = nowMs;
  }
}
