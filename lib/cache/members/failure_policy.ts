/**
 * When a cache set fails, and what follows for it as a whole. Answers to `bch_cache_set_error` and
 * `cache_set_flush` of super.c. What follows for each device is in failed_service.ts.
 *
 * Errors of data on the cache device are counted up to `io_error_limit`; below it whoever met one
 * goes on without the cache. Errors of metadata (journal, index, priorities) fail the set at once:
 * what is in memory could not be found again.
 */
import { BcacheError, messageOf } from "../../base/errors.ts";
import type { Engine } from "../engine.ts";
import { setFailed } from "../faults.ts";
import { type IoErrors, isDeviceError, tooManyErrors } from "../devices/io_errors.ts";
import type { CachedMember } from "./cached_member.ts";
import type { RequestTunables } from "../request_parts.ts";

export interface FailurePolicyOptions {
  readonly engine: Engine;
  readonly tunables: RequestTunables;
  readonly members: () => readonly CachedMember[];
  readonly readOnly: boolean;
}

export class FailurePolicy {
  /** Of the cache device. */
  readonly errors: IoErrors;
  /** Of the cache device, whatever kind it was. */
  lastError: string | undefined;
  /** Reads of clean data that the backing device did after an error of the cache device. */
  readRetries = 0;
  #options: FailurePolicyOptions;
  #abandoned = false;

  constructor(options: FailurePolicyOptions) {
    this.#options = options;
    this.errors = options.engine.errors;
    options.engine.faults.onFailure(() => this.#onFailure());
  }

  /**
   * Data could not be read from or written to the cache device. At the limit the set fails; at once
   * by what is no operating error but a bug.
   */
  noteCacheError(error: unknown): void {
    const { cache, world, faults } = this.#options.engine;
    if (faults.failed) return;
    if (!(error instanceof BcacheError)) return faults.raise(error);
    this.lastError = error.message;
    if (!isDeviceError(error)) return world.log("warning", messageOf(error));
    const isLimit = this.errors.note();
    world.log("warning", `${messageOf(error)} (${this.errors.text})`);
    if (isLimit) faults.raise(tooManyErrors(cache.name, this.errors, error));
  }

  /** The set is given up as by a power cut: nothing more is said or written. */
  abandon(): void {
    this.#abandoned = true;
  }

  /** Those that go on without the cache, and may be written. */
  #passing(): readonly CachedMember[] {
    if (this.#options.readOnly) return [];
    return this.#options.members().filter(({ dev, volume, failedService }) =>
      dev.attached && !volume.readOnly && failedService.manner === "pass through"
    );
  }

  #onFailure(): void {
    if (this.#abandoned) return;
    const { engine, tunables, members } = this.#options;
    if (tunables.errors === "panic") {
      engine.world.log("error", "errors is panic: every request is refused from now on");
      return;
    }
    for (const { dev, failedService } of members()) if (dev.attached) failedService.announce();
    // What was acknowledged must be seen after a restart too, whether anybody flushes or not.
    for (const { failedService, tasks } of this.#passing()) {
      tasks.start(() =>
        failedService.flush().catch((error) => engine.world.log("error", messageOf(error)))
      );
    }
  }

  /** After the end of all tasks, if the set has failed. Rejects with what could not be done. */
  async close(): Promise<void> {
    const { engine, tunables, readOnly } = this.#options;
    const { failed } = engine.faults;
    if (failed === undefined || readOnly || this.#abandoned) return;
    if (tunables.errors === "panic") throw setFailed(engine.cache.name, failed);
    for (const { failedService } of this.#passing()) await failedService.flush();
  }
}
