/**
 * Which requests go past the cache. Answers to `check_should_bypass` of request.c. No allocation:
 * it runs for every request.
 */
import type { Clock, Random } from "../../base/runtime.ts";
import type { Congestion } from "../devices/congestion.ts";
import { type CacheMode, REQUEST_METADATA, REQUEST_READAHEAD } from "../ports.ts";
import { RecentStreams } from "./recent_streams.ts";

/** Above this many percent in use nothing new is cached. */
const CUTOFF_CACHE_ADD = 95;
const SEQUENTIAL_CUTOFF_BYTES = 4 * 1024 * 1024;

/** Why a request went past the cache, for the counters; in the order in which they are asked. */
export const BYPASS_REASONS = [
  "none",
  "detaching",
  "discard",
  "full",
  "mode",
  "readahead",
  "unaligned",
  "torture",
  "sequential",
  "congested",
] as const;
export type BypassReason = (typeof BYPASS_REASONS)[number];

/** Whether what is read ahead is cached: all of it, or only what is metadata of a file system. */
export const READAHEAD_POLICIES = ["all", "meta-only"] as const;
export type ReadaheadPolicy = (typeof READAHEAD_POLICIES)[number];

/** Decides for one device. */
export class Bypass {
  #streams = new RecentStreams();
  #clock: Clock;
  #random: Random;
  #congestion: Congestion;
  #blockSectors: number;
  /** Bytes after which a stream goes past the cache; 0: never. */
  sequentialCutoffBytes: number = SEQUENTIAL_CUTOFF_BYTES;
  readaheadPolicy: ReadaheadPolicy = "all";
  /** Every fourth request goes past the cache, by chance, and no stream counts. For tests. */
  torture = false;
  /** Who asks next, and how; see BlockVolume.describeNext. */
  task = 0;
  flags = 0;
  readonly counts: Record<BypassReason, number>;

  constructor(
    parts: { clock: Clock; random: Random; congestion: Congestion; blockSectors: number },
  ) {
    this.#clock = parts.clock;
    this.#random = parts.random;
    this.#congestion = parts.congestion;
    this.#blockSectors = parts.blockSectors;
    const zeroes = BYPASS_REASONS.map((reason) => [reason, 0]);
    this.counts = Object.fromEntries(zeroes) as Record<BypassReason, number>;
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
    const isAhead = (this.flags & (REQUEST_READAHEAD | REQUEST_METADATA)) === REQUEST_READAHEAD;
    if (isAhead && this.readaheadPolicy !== "all") return "readahead";
    if (start % this.#blockSectors !== 0 || sectors % this.#blockSectors !== 0) return "unaligned";
    if (this.torture) return (this.#random.nextU32() & 3) === 3 ? "torture" : "none";
    const nowMs = this.#clock.nowMs();
    const limitSectors = this.#congestion.limitSectors(nowMs);
    const cutoff = this.sequentialCutoffBytes;
    if (limitSectors === 0 && cutoff === 0) return "none";
    const bytes = this.#streams.note(start, sectors, nowMs, this.task);
    const streamSectors = Math.floor(bytes / 512);
    if (cutoff !== 0 && streamSectors >= Math.floor(cutoff / 512)) return "sequential";
    return limitSectors !== 0 && streamSectors >= limitSectors ? "congested" : "none";
  }

  /** Counts a request that was carried out as `reason` said. */
  count(reason: BypassReason): void {
    this.counts[reason]++;
  }
}
