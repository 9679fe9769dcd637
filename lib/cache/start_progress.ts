/**
 * Tells how far the start of a cache set has come: whoever asked gets every step, the log one line
 * a second once it has taken a second. Answers to nothing in the kernel, where registration of a
 * large set is silent.
 */
import type { Clock, Log } from "../base/runtime.ts";

export interface StartProgress {
  /** Nodes of the index that were read and marked, or journal entries that were replayed. */
  readonly phase: "index" | "replay";
  readonly done: number;
  /** At least `done`; grows while the levels above the leaves are read. */
  readonly total: number;
}

const LOG_EVERY_MS = 1000;

const WHAT = {
  index: "b-tree nodes were read",
  replay: "journal entries were replayed",
} as const;

export class StartReporter {
  #clock: Clock;
  #log: Log;
  #onProgress: ((progress: StartProgress) => void) | undefined;
  #loggedMs: number;

  constructor(world: {
    readonly clock: Clock;
    readonly log: Log;
    readonly onProgress?: ((progress: StartProgress) => void) | undefined;
  }) {
    this.#clock = world.clock;
    this.#log = world.log;
    this.#onProgress = world.onProgress;
    this.#loggedMs = world.clock.nowMs();
  }

  report(phase: StartProgress["phase"], done: number, total: number): void {
    this.#onProgress?.({ phase, done, total });
    const now = this.#clock.nowMs();
    if (now - this.#loggedMs < LOG_EVERY_MS) return;
    this.#loggedMs = now;
    this.#log("info", `starting: ${done} of ${total} ${WHAT[phase]}`);
  }
}
