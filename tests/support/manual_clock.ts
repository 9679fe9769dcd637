/**
 * A clock that stands still until a test moves it. For unit tests of one part; whole engines run
 * on the simulator's clock (tests/simulation/sim_clock.ts), which moves by itself.
 */
import { setImmediate } from "node:timers";
import type { Clock } from "../../lib/base/runtime.ts";

/** Lets every microtask that is ready, and all that follow from them, run. */
export function drainMicrotasks(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

interface Sleeper {
  dueMs: number;
  wake: () => void;
}

export class ManualClock implements Clock {
  #nowMs = 0;
  #startSeconds: number;
  #sleepers: Sleeper[] = [];

  constructor(startSeconds = 1_700_000_000) {
    this.#startSeconds = startSeconds;
  }

  /** How many sleep now: a stopped part must leave none behind. */
  get sleeping(): number {
    return this.#sleepers.length;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  wallSeconds(): number {
    return this.#startSeconds + Math.floor(this.#nowMs / 1000);
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const sleeper = { dueMs: this.#nowMs + Math.max(0, delayMs), wake: resolve };
      const abort = () => {
        this.#sleepers = this.#sleepers.filter((other) => other !== sleeper);
        resolve();
      };
      sleeper.wake = () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#sleepers.push(sleeper);
    });
  }

  turn(): Promise<void> {
    return drainMicrotasks();
  }

  /**
   * Moves time on; wakes the sleepers in order of time, each before the next one's moment comes.
   */
  async advance(byMs: number): Promise<void> {
    const untilMs = this.#nowMs + byMs;
    await drainMicrotasks();
    for (;;) {
      let next: Sleeper | undefined;
      for (const sleeper of this.#sleepers) {
        if (sleeper.dueMs > untilMs) continue;
        if (next === undefined || sleeper.dueMs < next.dueMs) next = sleeper;
      }
      if (next === undefined) break;
      this.#sleepers = this.#sleepers.filter((other) => other !== next);
      this.#nowMs = Math.max(this.#nowMs, next.dueMs);
      next.wake();
      await drainMicrotasks();
    }
    this.#nowMs = untilMs;
  }
}
