/**
 * Simulated time. Nothing moves by itself: `run` fires one event, lets everything that follows
 * from it settle, fires the next. Events are ordered by (time, tie-break, sequence), so a run is
 * a function of its seed, on any runtime.
 *
 * Time is kept in whole microseconds. A world in which nothing is scheduled and the awaited work
 * has not settled is a deadlock, and is reported as one; so is work that outlives its limits.
 */
import { setImmediate } from "node:timers";
import type { Clock } from "../../lib/base/runtime.ts";
import { Trace } from "./sim_random.ts";
import type { SimRandom } from "./sim_random.ts";

interface Event {
  dueUs: number;
  tieBreak: number;
  sequence: number;
  fire: (() => void) | undefined; // Undefined once cancelled: it is dropped when it surfaces.
}

/** The simulated world stopped making sense: a deadlock or a limit that was passed. */
export class SimulationStuck extends Error {
  override name = "SimulationStuck";
}

export interface RunOptions {
  /** Called after each event has settled; may run other worlds meanwhile. */
  readonly afterEvent?: () => Promise<void>;
  /** Ends the run early (a power cut); `run` then returns undefined. */
  readonly stopped?: () => boolean;
  readonly eventsMax?: number;
  /** Simulated time the run may take. */
  readonly limitMs?: number;
}

export interface SimClockOptions {
  /** When given, events due at the same microsecond fire in random order. */
  readonly permute?: SimRandom;
  readonly startSeconds?: number;
}

/** One turn is not free, or a loop of turns that waits for time to pass would never end. */
const TURN_US = 1;

function macrotask(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function before(a: Event, b: Event): boolean {
  if (a.dueUs !== b.dueUs) return a.dueUs < b.dueUs;
  if (a.tieBreak !== b.tieBreak) return a.tieBreak < b.tieBreak;
  return a.sequence < b.sequence;
}

/**
 * For collections under a simulated clock, which stands still while they work: others have their
 * turn after every few keys, so that everything happens in the middle of everything.
 */
export const SMALL_SLICES = { ms: 1, units: 64, stepUnits: 16 };

export class SimClock implements Clock {
  readonly trace = new Trace();
  #nowUs = 0;
  #sequence = 0;
  #heap: Event[] = [];
  #startSeconds: number;
  #permute: SimRandom | undefined;

  constructor(options: SimClockOptions = {}) {
    this.#startSeconds = options.startSeconds ?? 1_700_000_000;
    this.#permute = options.permute;
  }

  nowMs(): number {
    return this.#nowUs / 1000;
  }

  wallSeconds(): number {
    return this.#startSeconds + Math.floor(this.#nowUs / 1_000_000);
  }

  /** Events that wait, cancelled ones included. */
  get scheduled(): number {
    return this.#heap.length;
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const cancel = this.after(delayMs * 1000, () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      });
      const abort = () => {
        cancel();
        resolve();
      };
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  turn(): Promise<void> {
    return new Promise((resolve) => {
      this.after(TURN_US, resolve);
    });
  }

  /** Fires `fire` after `delayUs`; the result cancels it. */
  after(delayUs: number, fire: () => void): () => void {
    // A delay that is no number (a division by zero in a rate, say) would break the heap's order.
    if (!(delayUs >= 0)) throw new SimulationStuck(`sleep of ${delayUs} us: not a duration`);
    const event: Event = {
      dueUs: this.#nowUs + Math.ceil(delayUs),
      tieBreak: this.#permute?.nextU32() ?? 0,
      sequence: this.#sequence++,
      fire,
    };
    this.#push(event);
    return () => {
      event.fire = undefined;
    };
  }

  /**
   * Runs the world until `work` settles, and returns or throws what it did; undefined when
   * `stopped` said so first.
   */
  async run<T>(work: Promise<T>, options: RunOptions = {}): Promise<T | undefined> {
    const eventsMax = options.eventsMax ?? 5_000_000;
    const limitUs = this.#nowUs + (options.limitMs ?? 3_600_000) * 1000;
    let settled = false;
    const mark = () => {
      settled = true;
    };
    work.then(mark, mark);
    for (let events = 0;; events++) {
      await macrotask();
      if (options.afterEvent) await options.afterEvent();
      if (settled) return await work;
      if (options.stopped?.() === true) return undefined;
      if (events >= eventsMax) throw new SimulationStuck(`no end after ${events} events`);
      if (!this.#fireNext()) {
        throw new SimulationStuck(`deadlock: nothing is scheduled at ${this.nowMs()} ms`);
      }
      if (this.#nowUs > limitUs) throw new SimulationStuck(`no end at ${this.nowMs()} ms`);
    }
  }

  #fireNext(): boolean {
    for (;;) {
      const event = this.#pop();
      if (event === undefined) return false;
      if (event.fire === undefined) continue;
      this.#nowUs = event.dueUs;
      this.trace.note(event.dueUs, event.sequence);
      event.fire();
      return true;
    }
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}
