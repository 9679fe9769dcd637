/**
 * Seeded workloads over one volume: lanes that write, read, flush, zero and sleep side by side,
 * every answer checked against the oracle. Sleeps let the engine's timers (journal delay,
 * writeback, collection) come in between.
 *
 * Two writes may run over the same sectors at once only if both cover them whole: what a race of
 * part-sector writes leaves is nobody's promise.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import type { Clock } from "../../lib/base/runtime.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import type { Oracle, Write } from "./oracle.ts";
import type { SimRandom } from "./sim_random.ts";

export interface WorkloadOptions {
  /** Operations in all lanes together. */
  readonly steps: number;
  readonly lanes: number;
  /** The part of the volume it works on. */
  readonly spanBytes: number;
  /** The usual longest write; a few are longer. */
  readonly writeBytesMax: number;
  /** The share of requests that respect no alignment at all. */
  readonly unaligned: number;
  /** The share of writes that continue where the lane's last one ended. */
  readonly sequential: number;
  readonly weights: {
    readonly write: number;
    readonly read: number;
    readonly flush: number;
    readonly zero: number;
    readonly sleep: number;
    readonly disturb?: number;
  };
  readonly sleepMsMax: number;
  /** What was only read is looked at after a power cut too: it may be wrong in the cache. */
  readonly remembersReads?: boolean;
}

export const USUAL_WORKLOAD: WorkloadOptions = {
  steps: 200,
  lanes: 3,
  spanBytes: 1 << 20,
  writeBytesMax: 16 << 10,
  unaligned: 0.2,
  sequential: 0.2,
  weights: { write: 45, read: 30, flush: 10, zero: 4, sleep: 11 },
  sleepMsMax: 150,
};

/** What a workload runs against. */
export interface WorkloadTarget {
  readonly volume: BlockVolume;
  readonly oracle: Oracle;
  readonly clock: Clock;
  readonly random: SimRandom;
  readonly disturb?: ((random: SimRandom) => Promise<void>) | undefined;
  /** Operations failed by the disks are expected: an error is an answer, not a failure. */
  readonly mayFail?: boolean;
  /** What a flush that fails was to make durable may never be, whatever a later one says. */
  readonly failedFlushLoses?: boolean;
}

interface Range {
  readonly from: number;
  readonly to: number;
  /** Covers its first and last sector whole. */
  readonly whole: boolean;
}

/** What a caller's buffer holds once the volume has no right to it any more. */
const SCRIBBLE = 0xdd;

class Lanes {
  readonly options: WorkloadOptions;
  readonly target: WorkloadTarget;
  #left: number;
  #writing = new Set<Range>();
  /** Writes whose first and last byte say where the last one of a lane ended. */
  #lastEnd: number[];

  constructor(target: WorkloadTarget, options: WorkloadOptions) {
    this.target = target;
    this.options = options;
    this.#left = options.steps;
    this.#lastEnd = new Array<number>(options.lanes).fill(0);
  }

  async lane(index: number): Promise<void> {
    while (this.#left > 0) {
      this.#left--;
      await this.#step(index);
    }
  }

  async #step(lane: number): Promise<void> {
    const { random, clock, disturb } = this.target;
    const { weights } = this.options;
    const kinds = Object.entries(weights);
    let draw = random.below(kinds.reduce((sum, [, weight]) => sum + weight, 0));
    const kind = kinds.find(([, weight]) => (draw -= weight) < 0)?.[0];
    switch (kind) {
      case "write":
        return await this.#write(lane);
      case "zero":
        return await this.#zero();
      case "read":
        return await this.#read();
      case "flush":
        return await this.#flush();
      case "disturb":
        return await this.#disturb(disturb?.(random));
      default:
        return await clock.sleep(random.between(1, this.options.sleepMsMax));
    }
  }

  async #disturb(work: Promise<void> | undefined): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (!this.#mayFail(error)) throw error;
    }
  }

  async #write(lane: number): Promise<void> {
    const { volume, oracle } = this.target;
    const range = this.#freeRange(lane);
    if (range === undefined) return;
    const buffer = new Uint8Array(range.to - range.from);
    const write = oracle.beginWrite(range.from, buffer);
    this.#lastEnd[lane] = range.to;
    await this.#change(range, write, async () => {
      if (!volume.tryWrite(range.from, buffer)) await volume.write(range.from, buffer);
    });
    buffer.fill(SCRIBBLE); // It is ours again: an engine that still looks at it is wrong.
  }

  async #zero(): Promise<void> {
    const { volume, oracle } = this.target;
    const range = this.#freeRange(undefined);
    if (range === undefined) return;
    const lengthBytes = range.to - range.from;
    const write = oracle.beginZero(range.from, lengthBytes);
    await this.#change(range, write, () => volume.zero(range.from, lengthBytes));
  }

  async #change(range: Range, write: Write, body: () => Promise<void>): Promise<void> {
    this.#writing.add(range);
    try {
      await body();
      this.target.oracle.settle(write);
    } catch (error) {
      this.target.oracle.settle(write, true);
      if (!this.#mayFail(error)) throw error;
    } finally {
      this.#writing.delete(range);
    }
  }

  async #read(): Promise<void> {
    const { volume, oracle } = this.target;
    const { from, to } = this.#range(undefined, 4);
    const buffer = new Uint8Array(to - from).fill(SCRIBBLE);
    const begunAt = oracle.beginRead();
    try {
      if (!volume.tryRead(from, buffer)) await volume.read(from, buffer);
    } catch (error) {
      oracle.endRead(begunAt);
      if (!this.#mayFail(error)) throw error;
      return;
    }
    oracle.checkRead(begunAt, from, buffer);
    if (this.options.remembersReads) oracle.noteRead(from, to - from);
  }

  async #flush(): Promise<void> {
    const { volume, oracle, failedFlushLoses } = this.target;
    const covered = oracle.beginFlush();
    try {
      await volume.flush();
    } catch (error) {
      if (!this.#mayFail(error)) throw error;
      if (failedFlushLoses) oracle.loseUnflushed();
      return;
    }
    oracle.endFlush(covered);
  }

  #mayFail(error: unknown): boolean {
    return this.target.mayFail === true && error instanceof BcacheError;
  }

  /** A range no running write forbids; undefined when a few draws found none. */
  #freeRange(lane: number | undefined): Range | undefined {
    for (let attempt = 0; attempt < 8; attempt++) {
      const range = this.#range(lane, 1);
      const first = Math.floor(range.from / SECTOR_BYTES);
      const last = Math.floor((range.to - 1) / SECTOR_BYTES);
      let free = true;
      for (const other of this.#writing) {
        const overlaps = Math.floor(other.from / SECTOR_BYTES) <= last &&
          Math.floor((other.to - 1) / SECTOR_BYTES) >= first;
        if (overlaps && !(range.whole && other.whole)) free = false;
      }
      if (free) return range;
    }
    return undefined;
  }

  #range(lane: number | undefined, scale: number): Range {
    const { random } = this.target;
    const { spanBytes, writeBytesMax, unaligned, sequential } = this.options;
    const align = random.chance(unaligned) ? 1 : random.pick([512, 4096, 4096]);
    let lengthMax = writeBytesMax * scale;
    if (random.chance(0.05)) lengthMax *= 4;
    if (random.chance(0.5)) lengthMax = Math.min(lengthMax, 4096);
    lengthMax = Math.min(lengthMax, spanBytes);
    const lengthBytes = align * random.between(1, Math.max(1, Math.floor(lengthMax / align)));
    let from = align * random.below(Math.floor((spanBytes - lengthBytes) / align) + 1);
    if (lane !== undefined && random.chance(sequential)) {
      const end = this.#lastEnd[lane]!;
      if (end % align === 0 && end + lengthBytes <= spanBytes) from = end;
    }
    return { from, to: from + lengthBytes, whole: align % SECTOR_BYTES === 0 };
  }
}

/** Runs a workload to its end. @throws OracleMismatch, or what the volume rejected with. */
export async function runWorkload(
  target: WorkloadTarget,
  options: WorkloadOptions,
): Promise<void> {
  const lanes = new Lanes(target, options);
  const running: Array<Promise<void>> = [];
  for (let lane = 0; lane < options.lanes; lane++) running.push(lanes.lane(lane));
  await Promise.all(running);
}
