/**
 * How busy something is: the share of time in which at least one operation was under way, over
 * one, five and fifteen minutes, as the load averages of an operating system. The kernel's bcache
 * only plans this (the list at the head of btree.c), to tell when writeback starves.
 */

export const LOAD_PERIODS_MINUTES = [1, 5, 15] as const;
export type LoadPeriodMinutes = (typeof LOAD_PERIODS_MINUTES)[number];

export class LoadAverages {
  #underWay = 0;
  /** When the present busy time began; meaningless while nothing is under way. */
  #busySinceMs = 0;
  /** Busy time since the last tick, that which goes on left out. */
  #busyMs = 0;
  #tickMs: number;
  #averages = new Float64Array(LOAD_PERIODS_MINUTES.length);

  constructor(nowMs: number) {
    this.#tickMs = nowMs;
  }

  /** An operation begins. Every call is answered by one of `end`. */
  begin(nowMs: number): void {
    if (this.#underWay++ === 0) this.#busySinceMs = nowMs;
  }

  end(nowMs: number): void {
    if (--this.#underWay === 0) this.#busyMs += Math.max(0, nowMs - this.#busySinceMs);
  }

  /** Takes the time since the last call into the averages. Any rhythm will do. */
  tick(nowMs: number): void {
    const elapsedMs = nowMs - this.#tickMs;
    if (elapsedMs <= 0) return;
    if (this.#underWay > 0) {
      this.#busyMs += Math.max(0, nowMs - this.#busySinceMs);
      this.#busySinceMs = nowMs;
    }
    const share = Math.min(1, this.#busyMs / elapsedMs);
    LOAD_PERIODS_MINUTES.forEach((minutes, index) => {
      const kept = Math.exp(-elapsedMs / (minutes * 60_000));
      this.#averages[index] = this.#averages[index]! * kept + share * (1 - kept);
    });
    this.#busyMs = 0;
    this.#tickMs = nowMs;
  }

  /** Percent of the time, as of the last tick. */
  percent(minutes: LoadPeriodMinutes): number {
    return Math.round(100 * this.#averages[LOAD_PERIODS_MINUTES.indexOf(minutes)]!);
  }
}
