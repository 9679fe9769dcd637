/**
 * Waiting, for a single thread: everything between two `await`s is already a critical section,
 * so all that is needed is to wait for a condition, to share one run of an operation, and to own
 * background work.
 */
import { assert } from "./assert.ts";

/**
 * Something to wait for. Waiters re-check their condition in a loop: `while (!ok()) await
 * s.wait()`.
 */
export class Signal {
  #waiters: Array<() => void> = [];

  get waiting(): number {
    return this.#waiters.length;
  }

  /** Resolves at the next `raise()`. */
  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** Wakes all who wait now. */
  raise(): void {
    if (this.#waiters.length === 0) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
}

/** First come, first served exclusion across awaits. */
export class Mutex {
  #held = false;
  #queue: Array<() => void> = [];

  get held(): boolean {
    return this.#held;
  }

  tryLock(): boolean {
    if (this.#held) return false;
    this.#held = true;
    return true;
  }

  async lock(): Promise<void> {
    if (this.tryLock()) return;
    await new Promise<void>((resolve) => this.#queue.push(resolve));
  }

  unlock(): void {
    assert(this.#held, "an unlocked mutex was held");
    const next = this.#queue.shift();
    if (next) next(); // Ownership passes on; #held stays true.
    else this.#held = false;
  }

  async run<T>(body: () => Promise<T>): Promise<T> {
    await this.lock();
    try {
      return await body();
    } finally {
      this.unlock();
    }
  }
}

/**
 * Calls `end` once `work` is over, then settles as it did. The runtimes differ in how many turns
 * `Promise.prototype.finally` takes; this takes as many on all of them, so that what follows comes
 * in the same order everywhere.
 */
export async function endingWith<T>(work: Promise<T>, end: () => void): Promise<T> {
  try {
    return await work;
  } finally {
    end();
  }
}

/**
 * Shares runs of an operation among those who ask for it. Every caller is answered by a run that
 * *started* after it asked (the rule for flushes), and at most one run is under way.
 */
export class Shared {
  #operation: () => Promise<void>;
  #running = false;
  #next: Promise<void> | undefined;
  #current: Promise<void> = Promise.resolve();

  constructor(operation: () => Promise<void>) {
    this.#operation = operation;
  }

  run(): Promise<void> {
    // The next run may be waiting for its turn although the current one just ended.
    if (this.#next) return this.#next;
    if (!this.#running) return this.#begin();
    this.#next = this.#current.then(() => this.#begin(), () => this.#begin());
    return this.#next;
  }

  #begin(): Promise<void> {
    this.#running = true;
    this.#next = undefined;
    this.#current = endingWith(this.#operation(), () => {
      this.#running = false;
    });
    return this.#current;
  }
}

/**
 * Resolves when all have resolved. Unlike Promise.all it rejects, with the first failure in their
 * order, only when every one has ended: what they use may be given back then.
 */
export async function allEnded(works: Iterable<Promise<unknown>>): Promise<void> {
  for (const result of await Promise.allSettled(works)) {
    if (result.status === "rejected") throw result.reason;
  }
}

/** Owns background work: every promise started here is awaited by `stop()`. */
export class TaskGroup {
  #controller = new AbortController();
  #tasks = new Set<Promise<void>>();
  #onFailure: (error: unknown) => void;

  /** @param onFailure is told what a task rejected with; tasks never reject in silence. */
  constructor(onFailure: (error: unknown) => void) {
    this.#onFailure = onFailure;
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get size(): number {
    return this.#tasks.size;
  }

  /** Starts `body`; it should end soon after `signal` is aborted. */
  start(body: (signal: AbortSignal) => Promise<void>): void {
    const told = body(this.#controller.signal).catch((error) => this.#onFailure(error));
    const task: Promise<void> = endingWith(told, () => this.#tasks.delete(task));
    this.#tasks.add(task);
  }

  /** Aborts the signal and waits until every task has ended. */
  async stop(): Promise<void> {
    this.#controller.abort();
    while (this.#tasks.size > 0) await Promise.all(this.#tasks);
  }
}

/** The one-way latch of a failed cache set: after `raise`, nothing is written any more. */
export interface Faults {
  readonly failed: Error | undefined;
  /** Records the first error and starts the shutdown of whatever listens. Never throws. */
  raise(error: unknown): void;
}
