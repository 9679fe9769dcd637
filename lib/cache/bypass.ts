/**
 * Which requests go past the cache. Answers to `check_should_bypass` of request.c and the
 * recent-I/O list beside it. No allocation: it runs for every request.
 */
import type { Clock } from "../base/runtime.ts";
import type { CacheMode } from "./ports.ts";

/** Streams remembered, as in the kernel. */
const RECENT_STREAMS = 128;
/** A stream that paused longer than this has ended. */
const STREAM_IDLE_MS = 5000;
/** Above this many percent of buckets in use nothing new is cached. */
const CUTOFF_CACHE_ADD = 95;

/** Why a request went past the cache, for the counters. */
export const BYPASS_REASONS = [
  "none",
  "detaching",
  "full",
  "mode",
  "unaligned",
  "sequential",
] as const;
export type BypassReason = (typeof BYPASS_REASONS)[number];

export class SequentialTracker {
  #ends = new Float64Array(RECENT_STREAMS).fill(-1);
  #bytes = new Float64Array(RECENT_STREAMS);
  #lastMs = new Float64Array(RECENT_STREAMS);
  #lastUsed = new Uint32Array(RECENT_STREAMS);
  #tick = 0;
  #lastStart = -1;
  #lastSectors = 0;
  #lastSlot = 0;

  /** Notes the request; returns how many bytes its stream has come to, this one included. */
  note(start: number, sectors: number, nowMs: number): number {
    // The same request again: it was tried without waiting first.
    if (start === this.#lastStart && sectors === this.#lastSectors) {
      return this.#bytes[this.#lastSlot]!;
    }
    let found = -1;
    let oldest = 0;
    for (let index = 0; index < RECENT_STREAMS; index++) {
      if (this.#ends[index] === start && nowMs - this.#lastMs[index]! <= STREAM_IDLE_MS) {
        found = index;
        break;
      }
      if (this.#lastUsed[index]! < this.#lastUsed[oldest]!) oldest = index;
    }
    const slot = found >= 0 ? found : oldest;
    if (found < 0) this.#bytes[slot] = 0;
    this.#bytes[slot]! += sectors * 512;
    this.#ends[slot] = start + sectors;
    this.#lastMs[slot] = nowMs;
    this.#lastUsed[slot] = ++this.#tick;
    this.#lastStart = start;
    this.#lastSectors = sectors;
    this.#lastSlot = slot;
    return this.#bytes[slot]!;
  }
}

/** Decides for one device. */
export class Bypass {
  #tracker = new SequentialTracker();
  #clock: Clock;
  #blockSectors: number;
  /** Bytes after which a stream goes past the cache; 0: never. */
  sequentialCutoffBytes = 4 * 1024 * 1024;
  readonly counts: Record<BypassReason, number> = {
    none: 0,
    detaching: 0,
    full: 0,
    mode: 0,
    unaligned: 0,
    sequential: 0,
  };

  constructor(clock: Clock, blockSectors: number) {
    this.#clock = clock;
    this.#blockSectors = blockSectors;
  }

  /**
   * Why the request goes past the cache, "none" if it does not. Asking twice about the same
   * request does not make its stream longer. @param start sector on the exported device
   */
  reason(
    start: number,
    sectors: number,
    isWrite: boolean,
    set: { mode: CacheMode; inUsePercent: number; detaching: boolean },
  ): BypassReason {
    if (set.detaching) return "detaching";
    if (set.inUsePercent > CUTOFF_CACHE_ADD) return "full";
    if (set.mode === "none" || (set.mode === "writearound" && isWrite)) return "mode";
    if (start % this.#blockSectors !== 0 || sectors % this.#blockSectors !== 0) return "unaligned";
    if (this.sequentialCutoffBytes === 0) return "none";
    const streamBytes = this.#tracker.note(start, sectors, this.#clock.nowMs());
    return streamBytes >= this.sequentialCutoffBytes ? "sequential" : "none";
  }

  /** Counts a request that was carried out as `reason` said. */
  count(reason: BypassReason): void {
    this.counts[reason]++;
  }
}
