/**
 * How fast writeback may go: a proportional-integral controller that steers towards
 * `writeback_percent` of the cache being dirty, and a hard maximum. Answers to
 * `__update_writeback_rate` of writeback.c and `bch_next_delay` of util.c. Pure: numbers in,
 * numbers out.
 *
 * The rate holds for writeback in the background. The maximum holds for everything: a drain, data
 * that has come of age and an idle set go past the rate, and never past the maximum, which is there
 * for the sake of others who use the backing device.
 */
import { formatSize } from "../../base/units.ts";

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
  /** Sectors per second that nothing exceeds; 0: none. */
  rateMaximum: number;
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
  rateMaximum: 0,
  considerFragment: true,
};

/** Sectors per second, at most. */
const RATE_MAX = 1_000_000_000;
/** Of an idle set. */
const RATE_IDLE = 2 ** 31 - 1;
/** Until the first update. */
const RATE_INITIAL = 1024;
/** In use, percent: where the fragmentation terms set in. */
const FRAGMENT_LOW = 50;
const FRAGMENT_MID = 57;
const FRAGMENT_HIGH = 64;
/** Sleeping and catching up are bounded by these. */
const AHEAD_MS_MAX = 2500;
const BEHIND_MS_MAX = 2000;

/** What one step of the controller looks at; sizes in sectors. */
export interface RateState {
  readonly dirtySectors: number;
  readonly targetSectors: number;
  readonly inUsePercent: number;
  readonly bucketsInUse: number;
  readonly bucketSectors: number;
  readonly nowMs: number;
}

export class RateController {
  readonly tunables: RateTunables = { ...RATE_DEFAULTS };
  proportional = 0;
  integralScaled = 0;
  change = 0;
  targetSectors = 0;
  #rate = RATE_INITIAL;
  #integral = 0;
  /** When the rate allows the next I/O, and when the maximum does. */
  #nextMs = 0;
  #maximumNextMs = 0;

  /** Sectors per second, within the maximum. */
  get rate(): number {
    return this.#bounded(this.#rate);
  }

  /** Holds until the next step. */
  set rate(value: number) {
    this.#rate = value;
  }

  #bounded(rate: number): number {
    const { rateMaximum } = this.tunables;
    return rateMaximum > 0 ? Math.min(rate, rateMaximum) : rate;
  }

  /** @param value sectors per second; 0: none. What the old one delayed may go at once. */
  setMaximum(value: number): void {
    this.tunables.rateMaximum = value;
    this.#maximumNextMs = 0;
  }

  /** One step; call every `updateSeconds`. Divisions truncate, as the kernel's do. */
  update(state: RateState): void {
    const t = this.tunables;
    this.targetSectors = state.targetSectors;
    const error = state.dirtySectors - this.targetSectors;
    let proportional = Math.trunc(error / t.pTermInverse);
    if (t.considerFragment && state.inUsePercent > FRAGMENT_LOW && state.dirtySectors > 0) {
      proportional = Math.max(proportional, this.#fragmentTerm(state));
    }
    // More than the device takes is no reason to ask for more still.
    const keepingUp = state.nowMs < this.#nextMs + 1;
    if ((error < 0 && this.#integral > 0) || (error > 0 && keepingUp)) {
      this.#integral += error * t.updateSeconds;
    }
    this.integralScaled = Math.trunc(this.#integral / t.iTermInverse);
    const wanted = proportional + this.integralScaled;
    const next = this.#bounded(Math.min(Math.max(wanted, t.rateMinimum), RATE_MAX));
    this.change = next - this.#rate;
    this.proportional = proportional;
    this.#rate = next;
  }

  /** Few dirty sectors spread over many buckets: they hold up the reuse of those buckets. */
  #fragmentTerm(state: RateState): number {
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

  /** Nobody uses the set: as fast as the devices go. */
  boost(): void {
    this.#rate = this.#bounded(RATE_IDLE);
    this.proportional = 0;
    this.integralScaled = 0;
    this.change = 0;
  }

  /** Somebody uses the set again: the next step finds the right rate. */
  restart(): void {
    this.#rate = 1;
  }

  /** `sectors` are written now. @param paced at the rate; else only the maximum holds */
  charge(sectors: number, nowMs: number, paced: boolean): void {
    const { percent, rateMaximum } = this.tunables;
    if (paced && percent > 0) {
      this.#nextMs += (sectors * 1000) / this.rate;
      this.#nextMs = Math.min(Math.max(this.#nextMs, nowMs - BEHIND_MS_MAX), nowMs + AHEAD_MS_MAX);
    }
    if (rateMaximum === 0) return;
    // What was not used is not saved up, or a maximum would not be one.
    this.#maximumNextMs = Math.max(this.#maximumNextMs, nowMs) + (sectors * 1000) / rateMaximum;
  }

  /** How long until the next I/O may be issued, in milliseconds. */
  waitMs(nowMs: number, paced: boolean): number {
    const { percent, rateMaximum } = this.tunables;
    const atMs = Math.max(
      paced && percent > 0 ? this.#nextMs : 0,
      rateMaximum > 0 ? this.#maximumNextMs : 0,
    );
    return Math.max(atMs - nowMs, 0);
  }

  /** A new scan begins: nothing is owed to the rate. */
  reset(nowMs: number): void {
    this.#nextMs = nowMs;
  }

  /** Seven lines for people, in the kernel's form. @param running else nothing is written */
  debugText(state: { dirtySectors: number; nowMs: number; running: boolean }): string {
    const { running } = state;
    const size = (sectors: number) => formatSize(sectors * 512);
    const nextMs = running ? Math.trunc(this.#nextMs - state.nowMs) : 0;
    return [
      `rate:\t\t${size(running ? this.rate : 0)}/sec`,
      `dirty:\t\t${size(state.dirtySectors)}`,
      `target:\t\t${size(this.targetSectors)}`,
      `proportional:\t${size(running ? this.proportional : 0)}`,
      `integral:\t${size(running ? this.integralScaled : 0)}`,
      `change:\t\t${size(running ? this.change : 0)}/sec`,
      `next io:\t${nextMs}ms`,
    ].join("\n");
  }
}
