/**
 * Makes room in the journal by having the oldest dirty leaves written: one round at a time, up to
 * eight leaves that hold the very oldest entry. It starts before the ring is full, so that
 * writers seldom notice.
 *
 * Writing a leaf never needs the journal, so this always gets on as long as leaves can be
 * written. It asks the leaves themselves; whether a leaf is the root, or cached for long, plays no
 * part (engine fault 15).
 *
 * Answers to btree_flush_write() of Linux's journal.c.
 */
import { assert } from "../base/assert.ts";
import { type Faults, Signal } from "../base/sync.ts";
import type { PinHolder, Pins } from "./pins.ts";

/** Leaves asked at once. */
export const FLUSH_HOLDERS_MAX = 8;

export interface ReclaimOptions {
  readonly pins: Pins;
  readonly faults: Faults;
  /** Whether room is short now. Synchronous. */
  readonly pressure: () => boolean;
}

export class Reclaimer {
  /** Rounds run. */
  rounds = 0;
  /** Leaves asked to write. */
  flushes = 0;
  #options: ReclaimOptions;
  #wake = new Signal();
  #ended = false;

  constructor(options: ReclaimOptions) {
    this.#options = options;
  }

  /** Something changed that the pressure may depend on. */
  wake(): void {
    this.#wake.raise();
  }

  end(): void {
    this.#ended = true;
    this.#wake.raise();
  }

  /** Until `end` or a failure. Never rejects: what goes wrong is raised as a fault. */
  async run(): Promise<void> {
    const { pins, faults, pressure } = this.#options;
    while (!this.#ended && faults.failed === undefined) {
      const holders = pressure() ? pins.holdersOfOldest(FLUSH_HOLDERS_MAX) : [];
      if (holders.length === 0) {
        // No pressure, or the oldest entry is held by recovery or by its own write: their
        // release wakes us.
        await this.#wake.wait();
        continue;
      }
      try {
        await this.#round(pins.oldest(), holders);
      } catch (error) {
        faults.raise(error);
      }
    }
  }

  async #round(seq: number, holders: PinHolder[]): Promise<void> {
    const { pins, faults } = this.#options;
    this.rounds++;
    this.flushes += holders.length;
    // allSettled: after a failure the other leaves' writes must not go on unobserved.
    const results = await Promise.allSettled(holders.map((holder) => holder.flushForJournal()));
    for (const result of results) if (result.status === "rejected") throw result.reason;
    if (faults.failed) return;
    // A holder that stays pinned would have us ask for ever.
    for (const holder of holders) {
      assert(!pins.isPinnedBy(seq, holder), "a flushed leaf lets go of its journal entry");
    }
  }
}
