/**
 * Cutting background work into slices, so that no request waits long: each slice ends after so
 * much work or so much time, whichever comes first, and other work runs before the next one.
 * Work is counted as well as time, since a clock may stand still (a simulator's) or be coarse.
 */
import type { Clock } from "../../base/runtime.ts";
import type { WorkMeter } from "../../base/work_meter.ts";

/**
 * What a slice may take. A step more may come on top, or one that cannot be divided: encoding a
 * node that is written anew.
 */
export interface SliceBudget {
  readonly ms: number;
  readonly units: number;
  /** Between two looks at the clock. */
  readonly stepUnits: number;
}

export class Slices implements WorkMeter {
  readonly #clock: Clock;
  /** Of every slice; tests take less. */
  budget: SliceBudget;
  #beganMs = 0;
  #units = 0;
  /** All slices together. */
  totalMs = 0;
  /** The longest slice since `reset`, in time and in units of work. */
  longestMs = 0;
  longestUnits = 0;

  constructor(clock: Clock, budget: SliceBudget) {
    this.#clock = clock;
    this.budget = budget;
  }

  get stepUnits(): number {
    return this.budget.stepUnits;
  }

  reset(): void {
    this.longestMs = 0;
    this.longestUnits = 0;
  }

  /** A slice begins now: whatever was waited for before it kept nobody else waiting. */
  begin(): void {
    this.#beganMs = this.#clock.nowMs();
    this.#units = 0;
  }

  /** Counts work that was just done. True: the slice is over, call `turn`. */
  spend(units: number): boolean {
    this.#units += units;
    return this.#units >= this.budget.units ||
      this.#clock.nowMs() - this.#beganMs >= this.budget.ms;
  }

  /** Ends the slice: notes how long it was. Call before waiting for anything. */
  end(): void {
    const nowMs = this.#clock.nowMs();
    this.totalMs += nowMs - this.#beganMs;
    this.longestMs = Math.max(this.longestMs, nowMs - this.#beganMs);
    this.#beganMs = nowMs;
    this.longestUnits = Math.max(this.longestUnits, this.#units);
    this.#units = 0;
  }

  /** Lets all other ready work run, then begins the next slice. */
  async turn(): Promise<void> {
    this.end();
    await this.#clock.turn();
    this.begin();
  }

  /** Waits for something that others do, and begins the next slice when it is there. */
  async waitFor<T>(work: Promise<T>): Promise<T> {
    this.end();
    try {
      return await work;
    } finally {
      this.begin();
    }
  }
}
