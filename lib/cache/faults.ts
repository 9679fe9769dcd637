/**
 * The one-way latch of a cache set: the first error that the index, the journal or the allocator
 * cannot live with. Answers to `bch_cache_set_error` of super.c.
 */
import type { Log } from "../base/runtime.ts";
import { BcacheError, messageOf } from "../base/errors.ts";
import type { Faults } from "../base/sync.ts";

/**
 * What a request is refused with after the failure.
 * @param more continues the sentence that begins "the cache set has failed"
 */
export function setFailed(device: string, failure: unknown, more: string = ""): BcacheError {
  return new BcacheError(
    "SetFailed",
    `${device}: the cache set has failed${more}: ${messageOf(failure)}; when that is mended, ` +
      "unmount and mount again",
    { cause: failure },
  );
}

export class FaultLatch implements Faults {
  failed: Error | undefined;
  #log: Log;
  #listeners: Array<(error: Error) => void> = [];

  constructor(log: Log) {
    this.#log = log;
  }

  /** Calls `listener` once, at the failure; at once if it has happened already. */
  onFailure(listener: (error: Error) => void): void {
    if (this.failed) listener(this.failed);
    else this.#listeners.push(listener);
  }

  raise(error: unknown): void {
    if (this.failed) return;
    this.failed = error instanceof Error ? error : new Error(String(error));
    this.#log("error", `the cache set has failed and stops caching: ${messageOf(error)}`);
    const listeners = this.#listeners;
    this.#listeners = [];
    for (const listener of listeners) listener(this.failed);
  }
}
