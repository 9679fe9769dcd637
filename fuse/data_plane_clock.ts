/**
 * The clock of the data plane's thread. Its sleeps are due times in a heap which the thread's own
 * loop looks at, so that a sleep of thirty seconds costs nothing until it is due, and the loop
 * knows for how long it may block.
 */
import { assert } from "../lib/base/assert.ts";
import { RealClock } from "../lib/runtime/clock.ts";

interface Sleeper {
  readonly dueMs: number;
  /** Undefined once it was woken. */
  wake: (() => void) | undefined;
}

export class DataPlaneClock extends RealClock {
  /** A binary heap by `dueMs`; those woken early stay until they are due. */
  #sleepers: Sleeper[] = [];
  #turns: Array<() => void> = [];

  override sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const sleeper: Sleeper = { dueMs: this.nowMs() + Math.max(0, delayMs), wake: undefined };
      const wake = (): void => {
        sleeper.wake = undefined;
        signal?.removeEventListener("abort", wake);
        resolve();
      };
      sleeper.wake = wake;
      signal?.addEventListener("abort", wake);
      this.#push(sleeper);
    });
  }

  override turn(): Promise<void> {
    return new Promise((resolve) => this.#turns.push(resolve));
  }

  /** Wakes all that is due. Returns how many were. */
  fire(): number {
    let woken = 0;
    if (this.#turns.length > 0) {
      const turns = this.#turns;
      this.#turns = [];
      woken = turns.length;
      for (const resolve of turns) resolve();
    }
    if (this.#sleepers.length === 0) return woken;
    const nowMs = this.nowMs();
    while (this.#sleepers.length > 0 && this.#sleepers[0]!.dueMs <= nowMs) {
      const wake = this.#pop().wake;
      if (wake === undefined) continue;
      wake();
      woken++;
    }
    return woken;
  }

  /** How long until something is due: 0 or less now, Infinity never. */
  nextMs(): number {
    if (this.#turns.length > 0) return 0;
    while (this.#sleepers.length > 0 && this.#sleepers[0]!.wake === undefined) this.#pop();
    const first = this.#sleepers[0];
    return first === undefined ? Infinity : first.dueMs - this.nowMs();
  }

  #push(sleeper: Sleeper): void {
    const heap = this.#sleepers;
    let at = heap.push(sleeper) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent]!.dueMs <= sleeper.dueMs) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = sleeper;
  }

  #pop(): Sleeper {
    const heap = this.#sleepers;
    const top = heap[0];
    const last = heap.pop();
    assert(top !== undefined && last !== undefined, "the heap is not empty");
    if (heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.dueMs < heap[child]!.dueMs) child++;
      if (heap[child]!.dueMs >= last.dueMs) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}
