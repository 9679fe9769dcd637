/**
 * Counters of requests, by period. Answers to drivers/md/bcache/stats.c: `total` never decays,
 * five_minute, hour and day lose 1/32 each 22nd of their length, so that they halve in it.
 */
import type { CacheStats } from "./ports.ts";

/** One decay tick of the five-minute counters: 300 s / 22. */
export const STATS_TICK_MS = 300_000 / 22;

export const STATS_PERIODS = ["total", "five_minute", "hour", "day"] as const;
export type StatsPeriod = (typeof STATS_PERIODS)[number];

const NAMES = [
  "cacheHits",
  "cacheMisses",
  "cacheBypassHits",
  "cacheBypassMisses",
  "cacheMissCollisions",
  "bypassedSectors",
] as const;
type CounterName = (typeof NAMES)[number];
const HITS = 0;
const MISSES = 1;
const BYPASS_HITS = 2;
const BYPASS_MISSES = 3;
const COLLISIONS = 4;
const BYPASSED = 5;

/** Ticks of one decay step, by period. */
const TICKS: Record<Exclude<StatsPeriod, "total">, number> = { five_minute: 1, hour: 12, day: 288 };

export class RequestStats {
  /** Since the last tick. */
  #fresh = new Float64Array(NAMES.length);
  #periods: Record<StatsPeriod, Float64Array> = {
    total: new Float64Array(NAMES.length),
    five_minute: new Float64Array(NAMES.length),
    hour: new Float64Array(NAMES.length),
    day: new Float64Array(NAMES.length),
  };
  #ticks = 0;
  /** The same events also count here (the cache set's). */
  #parent: RequestStats | undefined;

  constructor(parent?: RequestStats) {
    this.#parent = parent;
  }

  #add(counter: number, amount: number): void {
    this.#fresh[counter]! += amount;
    if (this.#parent) this.#parent.#fresh[counter]! += amount;
  }

  /** A read: served wholly from the cache or not, going past it or not. */
  read(hit: boolean, bypass: boolean): void {
    this.#add(bypass ? (hit ? BYPASS_HITS : BYPASS_MISSES) : (hit ? HITS : MISSES), 1);
  }

  missCollision(): void {
    this.#add(COLLISIONS, 1);
  }

  bypassed(sectors: number): void {
    this.#add(BYPASSED, sectors);
  }

  /** Call every STATS_TICK_MS. */
  tick(): void {
    this.#ticks++;
    this.#fold();
    for (const period of ["five_minute", "hour", "day"] as const) {
      if (this.#ticks % TICKS[period] !== 0) continue;
      const counters = this.#periods[period];
      for (let index = 0; index < counters.length; index++) counters[index]! *= 31 / 32;
    }
  }

  #fold(): void {
    for (const period of STATS_PERIODS) {
      const counters = this.#periods[period];
      for (let index = 0; index < counters.length; index++) counters[index]! += this.#fresh[index]!;
    }
    this.#fresh.fill(0);
  }

  /** Sets `total` back to zero, as the kernel's clear_stats does. */
  clear(): void {
    this.#fold();
    this.#periods.total.fill(0);
  }

  value(period: StatsPeriod, name: CounterName): number {
    const index = NAMES.indexOf(name);
    return Math.floor(this.#periods[period][index]! + this.#fresh[index]!);
  }

  snapshot(period: StatsPeriod): CacheStats {
    const hits = this.value(period, "cacheHits");
    const misses = this.value(period, "cacheMisses");
    return {
      cacheHits: hits,
      cacheMisses: misses,
      cacheBypassHits: this.value(period, "cacheBypassHits"),
      cacheBypassMisses: this.value(period, "cacheBypassMisses"),
      cacheHitRatio: hits + misses === 0 ? 0 : Math.floor((100 * hits) / (hits + misses)),
      cacheMissCollisions: this.value(period, "cacheMissCollisions"),
      bypassedBytes: this.value(period, "bypassedSectors") * 512,
    };
  }
}
