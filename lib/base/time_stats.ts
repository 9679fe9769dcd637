/**
 * How often something happens and how long it takes: moving averages that give the newest sample
 * an eighth, and the longest. Answers to struct time_stats and `bch_time_stats_update` of util.c.
 */

/** The newest sample's weight in an average is 1 / this. */
const WEIGHT = 8;

export class TimeStats {
  #averageDurationMs = 0;
  #averageFrequencyMs = 0;
  #maxDurationMs = 0;
  #lastMs = 0;
  #count = 0;

  /** Something that began at `startMs` has just ended, at `endMs` of the same clock. */
  record(startMs: number, endMs: number): void {
    const durationMs = Math.max(0, endMs - startMs);
    if (durationMs > this.#maxDurationMs) this.#maxDurationMs = durationMs;
    if (this.#count === 0) this.#averageDurationMs = durationMs;
    else {
      const sinceMs = Math.max(0, endMs - this.#lastMs);
      this.#averageDurationMs += (durationMs - this.#averageDurationMs) / WEIGHT;
      this.#averageFrequencyMs = this.#count === 1
        ? sinceMs
        : this.#averageFrequencyMs + (sinceMs - this.#averageFrequencyMs) / WEIGHT;
    }
    this.#lastMs = endMs;
    this.#count++;
  }

  get count(): number {
    return this.#count;
  }

  get averageDurationMs(): number {
    return this.#averageDurationMs;
  }

  /** Average time from one end to the next; 0 before the second. */
  get averageFrequencyMs(): number {
    return this.#averageFrequencyMs;
  }

  get maxDurationMs(): number {
    return this.#maxDurationMs;
  }

  /** How long ago it ended last; -1 when it never happened. */
  sinceLastMs(nowMs: number): number {
    return this.#count === 0 ? -1 : Math.max(0, nowMs - this.#lastMs);
  }
}
