/**
 * How much the cache device is behind: when its operations take long, long streams go past it.
 * Answers to `bch_bbio_count_io_errors` of io.c and `bch_get_congested` of request.c.
 *
 * Every operation slower than its threshold lowers a level by its milliseconds, to -1024 at the
 * lowest; every other raises it by one, to 0 at the highest. Below 0, and for a time after the last
 * slow operation, there is a limit in sectors: a stream that has come to it goes past the cache.
 * Far below 0 the limit is one sector; it doubles with every 64 steps up. A random number takes a
 * little away, so that not all streams change their ways at the same moment.
 */
import type { Random } from "../../base/runtime.ts";
import type { DeviceMeter } from "./measured_device.ts";

/** The kernel's clock counts in 1024 ns and calls it a microsecond. */
const UNITS_PER_MS = 1_000_000 / 1024;
const LEVEL_MAX = 1024;
const FRACTION_BITS = 6;

export const READ_THRESHOLD_US = 2000;
export const WRITE_THRESHOLD_US = 20_000;

/** 2 to the power of level / 64, in straight pieces between the whole powers. */
function limitOf(level: number): number {
  const fraction = level & ((1 << FRACTION_BITS) - 1);
  return (((1 << FRACTION_BITS) + fraction) << (level >> FRACTION_BITS)) >> FRACTION_BITS;
}

/** How many bits of a 32-bit number are set. */
function bitsOf(value: number): number {
  let count = 0;
  for (let rest = value; rest !== 0; rest &= rest - 1) count++;
  return count;
}

export class Congestion implements DeviceMeter {
  /** 0: operations of this kind do not count. */
  readThresholdUs: number = READ_THRESHOLD_US;
  writeThresholdUs: number = WRITE_THRESHOLD_US;
  #random: Random;
  #level = 0;
  /** When the last slow operation ended, in units. */
  #slowUnits = 0;

  constructor(random: Random) {
    this.#random = random;
  }

  /** An operation of the cache device has ended. The hit path. */
  note(isWrite: boolean, beganMs: number, endedMs: number): void {
    const threshold = isWrite ? this.writeThresholdUs : this.readThresholdUs;
    if (threshold === 0) return;
    const took = Math.floor((endedMs - beganMs) * UNITS_PER_MS);
    if (took > threshold) {
      this.#slowUnits = Math.floor(endedMs * UNITS_PER_MS);
      this.#level -= Math.min(Math.floor(took / 1024), LEVEL_MAX + this.#level);
    } else if (this.#level < 0) this.#level++;
  }

  /** A stream of so many sectors goes past the cache; 0: none has to. */
  limitSectors(nowMs: number): number {
    if (this.#level === 0 || (this.readThresholdUs === 0 && this.writeThresholdUs === 0)) return 0;
    const since = Math.floor(nowMs * UNITS_PER_MS) - this.#slowUnits;
    if (since < 0) return 0;
    let limit = Math.floor(since / 1024) + this.#level;
    if (limit >= 0) return 0;
    limit += LEVEL_MAX;
    if (limit > 0) limit = limitOf(limit);
    return Math.max(1, limit - bitsOf(this.#random.nextU32()));
  }
}
