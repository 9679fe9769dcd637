/**
 * The recent-I/O list: which requests belong to a sequential stream, and how long it is. Answers to
 * `struct io` of bcache.h and the middle of `check_should_bypass` of request.c.
 *
 * A request that begins where one of the last 128 streams ended, less than five seconds ago,
 * carries it on; any other begins a stream, in the place of the one that was idle the longest.
 * Each task also has an average of its runs, so that one that always reads long runs goes past the
 * cache with the beginning of each as well. No allocation: this runs for every request.
 */

/** Streams remembered, as in the kernel. */
const STREAMS = 128;
/** A stream that paused for so long has ended. */
const IDLE_MS = 5000;
const HASHES = 256;
const NONE = -1;
/** Tasks remembered, by the low bits of their number: one that comes anew drives another out. */
const TASKS = 64;
/** A run counts with one eighth in the average. */
const AVERAGE_WEIGHT = 8;
const U32_MAX = 2 ** 32 - 1;

const hashOf = (sector: number): number => ((sector >>> 3) ^ (sector >>> 11)) & (HASHES - 1);

export class RecentStreams {
  #ends = new Float64Array(STREAMS).fill(-1);
  #bytes = new Float64Array(STREAMS);
  #lastMs = new Float64Array(STREAMS);
  /** Chains of streams whose ends have the same hash. */
  #heads = new Int16Array(HASHES).fill(NONE);
  #next = new Int16Array(STREAMS).fill(NONE);
  /** A ring from the stream that was idle the longest; slot STREAMS is its anchor. */
  #newer = Int16Array.from({ length: STREAMS + 1 }, (_, slot) => (slot + 1) % (STREAMS + 1));
  #older = Int16Array.from({ length: STREAMS + 1 }, (_, slot) => (slot + STREAMS) % (STREAMS + 1));
  #tasks = new Float64Array(TASKS).fill(-1);
  #runs = new Float64Array(TASKS);
  #averages = new Float64Array(TASKS);
  #lastStart = -1;
  #lastSectors = 0;
  #lastTask = -1;
  #lastResult = 0;

  /**
   * Notes a request. Returns the bytes to compare with a limit: of the stream up to its end, or of
   * the average run of its task, whichever is more. The same request again changes nothing: it was
   * tried without waiting first.
   * @param task who asks; 0 where nobody knows
   */
  note(start: number, sectors: number, nowMs: number, task: number): number {
    if (start === this.#lastStart && sectors === this.#lastSectors && task === this.#lastTask) {
      return this.#lastResult;
    }
    const of = this.#slotOfTask(task);
    let slot = this.#find(start, nowMs);
    if (slot === NONE) {
      slot = this.#newer[STREAMS]!;
      this.#bytes[slot] = 0;
      const average = this.#averages[of]! * (AVERAGE_WEIGHT - 1) + this.#runs[of]!;
      this.#averages[of] = Math.floor(average / AVERAGE_WEIGHT);
    }
    const bytes = this.#bytes[slot]! + sectors * 512;
    if (bytes <= U32_MAX) this.#bytes[slot] = bytes;
    this.#runs[of] = this.#bytes[slot]!;
    this.#moveEnd(slot, start + sectors);
    this.#lastMs[slot] = nowMs;
    this.#makeNewest(slot);
    this.#lastStart = start;
    this.#lastSectors = sectors;
    this.#lastTask = task;
    this.#lastResult = Math.max(this.#runs[of]!, this.#averages[of]!);
    return this.#lastResult;
  }

  #slotOfTask(task: number): number {
    const slot = task & (TASKS - 1);
    if (this.#tasks[slot] !== task) {
      this.#tasks[slot] = task;
      this.#runs[slot] = 0;
      this.#averages[slot] = 0;
    }
    return slot;
  }

  /** The stream that ended at `sector` and has not been idle for too long. */
  #find(sector: number, nowMs: number): number {
    for (let slot = this.#heads[hashOf(sector)]!; slot !== NONE; slot = this.#next[slot]!) {
      if (this.#ends[slot] === sector && nowMs - this.#lastMs[slot]! < IDLE_MS) return slot;
    }
    return NONE;
  }

  /** Puts the stream first into the chain of its new end. */
  #moveEnd(slot: number, end: number): void {
    const was = this.#ends[slot]!;
    if (was >= 0) {
      const head = hashOf(was);
      if (this.#heads[head] === slot) this.#heads[head] = this.#next[slot]!;
      else {
        let before = this.#heads[head]!;
        while (this.#next[before] !== slot) before = this.#next[before]!;
        this.#next[before] = this.#next[slot]!;
      }
    }
    const head = hashOf(end);
    this.#ends[slot] = end;
    this.#next[slot] = this.#heads[head]!;
    this.#heads[head] = slot;
  }

  #makeNewest(slot: number): void {
    const newer = this.#newer;
    const older = this.#older;
    newer[older[slot]!] = newer[slot]!;
    older[newer[slot]!] = older[slot]!;
    const newest = older[STREAMS]!;
    newer[newest] = slot;
    older[slot] = newest;
    newer[slot] = STREAMS;
    older[STREAMS] = slot;
  }
}
