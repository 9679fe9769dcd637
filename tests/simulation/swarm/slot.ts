/**
 * One place that requests go to, with an oracle of its own: a cached device or a volume on the
 * cache alone, there or not at the moment. A request that meets the end of its volume may fail; any
 * other only if the disks were told to.
 */
import { BcacheError } from "../../../lib/base/errors.ts";
import type { BlockVolume } from "../../../lib/cache/ports.ts";
import { SECTOR_BYTES } from "../../../lib/device/device.ts";
import type { Oracle, Write } from "../oracle.ts";

interface Range {
  readonly from: number;
  readonly to: number;
  /** Covers its first and last sector whole. */
  readonly whole: boolean;
}

/** What a caller's buffer holds once the volume has no right to it any more. */
const SCRIBBLE = 0xdd;

export class Slot {
  readonly number: number;
  readonly name: string;
  oracle: Oracle;
  /** Undefined: there is none now. */
  volume: BlockVolume | undefined;
  /** The disks fail operations: a request may fail too. */
  mayFail = false;
  /** It is being stopped or exchanged: requests may be refused. */
  leaving = false;
  /** A volume on the cache alone may find no room: the cache is what it lives on. */
  readonly mayBeFull: boolean;
  #changing = new Set<Range>();

  constructor(number: number, options: { name: string; oracle: Oracle; mayBeFull: boolean }) {
    this.number = number;
    this.name = options.name;
    this.oracle = options.oracle;
    this.mayBeFull = options.mayBeFull;
  }

  async write(fromBytes: number, lengthBytes: number): Promise<void> {
    const volume = this.volume;
    const range = this.#rangeIn(volume, fromBytes, lengthBytes);
    if (volume === undefined || range === undefined || !this.#isFree(range)) return;
    const buffer = new Uint8Array(range.to - range.from);
    const write = this.oracle.beginWrite(range.from, buffer);
    await this.#change(volume, range, write, async () => {
      if (!volume.tryWrite(range.from, buffer)) await volume.write(range.from, buffer);
    });
    buffer.fill(SCRIBBLE); // It is ours again: an engine that still looks at it is wrong.
  }

  async zero(fromBytes: number, lengthBytes: number): Promise<void> {
    const volume = this.volume;
    const range = this.#rangeIn(volume, fromBytes, lengthBytes);
    if (volume === undefined || range === undefined || !this.#isFree(range)) return;
    const write = this.oracle.beginZero(range.from, range.to - range.from);
    await this.#change(volume, range, write, () => volume.zero(range.from, range.to - range.from));
  }

  async read(fromBytes: number, lengthBytes: number): Promise<void> {
    const { volume, oracle } = this;
    const range = this.#rangeIn(volume, fromBytes, lengthBytes);
    if (volume === undefined || range === undefined) return;
    const buffer = new Uint8Array(range.to - range.from).fill(SCRIBBLE);
    const begunAt = oracle.beginRead();
    try {
      if (!volume.tryRead(range.from, buffer)) await volume.read(range.from, buffer);
    } catch (error) {
      oracle.endRead(begunAt);
      this.#forgive(error, volume, range);
      return;
    }
    this.#named(() => oracle.checkRead(begunAt, range.from, buffer));
  }

  async flush(): Promise<void> {
    const { volume, oracle } = this;
    if (volume === undefined) return;
    const covered = oracle.beginFlush();
    try {
      await volume.flush();
    } catch (error) {
      return this.#forgive(error, volume);
    }
    oracle.endFlush(covered);
  }

  /**
   * Whatever `body` does gives up sectors from `fromBytes` on; not while a part of a sector there
   * is being written. Returns what it returned, or undefined when it was not done.
   */
  async cutOff(fromBytes: number, toBytes: number, body: () => Promise<boolean>): Promise<boolean> {
    const range = { from: fromBytes, to: toBytes, whole: true };
    if (!this.#isFree(range)) return false;
    const write = this.oracle.beginZero(fromBytes, toBytes - fromBytes);
    this.#changing.add(range);
    try {
      const done = await body();
      this.oracle.settle(write, !done);
      return done;
    } finally {
      this.#changing.delete(range);
    }
  }

  /** Forgets what was under way: the power is off. */
  forgetRequests(): void {
    this.#changing.clear();
  }

  async #change(
    volume: BlockVolume,
    range: Range,
    write: Write,
    body: () => Promise<void>,
  ): Promise<void> {
    const { oracle } = this;
    this.#changing.add(range);
    try {
      await body();
      oracle.settle(write);
    } catch (error) {
      oracle.settle(write, true);
      this.#forgive(error, volume, range);
    } finally {
      this.#changing.delete(range);
    }
  }

  /** Throws what nothing excuses. */
  #forgive(error: unknown, volume: BlockVolume, range?: Range): void {
    if (error instanceof BcacheError) {
      const cutShort = range !== undefined && range.to > volume.sizeBytes;
      if (cutShort && error.code === "InvalidArgument") return;
      if (this.mayFail) return;
      if (this.mayBeFull && error.code === "NoSpace") return;
      const gone = this.leaving || volume !== this.volume;
      if (gone && error.code === "Shutdown") return;
    }
    throw error;
  }

  #named(body: () => void): void {
    try {
      body();
    } catch (error) {
      if (error instanceof Error) error.message = `${this.name}: ${error.message}`;
      throw error;
    }
  }

  /** What of a range the volume has now; undefined when it is none. */
  #rangeIn(volume: BlockVolume | undefined, from: number, lengthBytes: number): Range | undefined {
    const to = Math.min(volume?.sizeBytes ?? 0, from + lengthBytes);
    if (from >= to) return undefined;
    return { from, to, whole: from % SECTOR_BYTES === 0 && to % SECTOR_BYTES === 0 };
  }

  /** Two changes of the same sectors at once are only made when both cover them whole. */
  #isFree(range: Range): boolean {
    const first = Math.floor(range.from / SECTOR_BYTES);
    const last = Math.floor((range.to - 1) / SECTOR_BYTES);
    for (const other of this.#changing) {
      const overlaps = Math.floor(other.from / SECTOR_BYTES) <= last &&
        Math.floor((other.to - 1) / SECTOR_BYTES) >= first;
      if (overlaps && !(range.whole && other.whole)) return false;
    }
    return true;
  }
}
