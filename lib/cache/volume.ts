/**
 * A cached device as a range of bytes: BlockVolume over the read and write paths.
 *
 * The paths below work in whole sectors, and cache whole blocks. Here a request of any offset and
 * length becomes that: a read that is not in blocks goes through a buffer; a write that is not in
 * blocks reads the blocks at its ends, under the range's lock, and writes them whole.
 */
import { BcacheError } from "../base/errors.ts";
import { Shared } from "../base/sync.ts";
import type { CachedDevice } from "./cached_device.ts";
import type { BlockVolume } from "./ports.ts";
import { ReadPath } from "./read.ts";
import type { RequestParts } from "./request_parts.ts";
import { WritePath } from "./write.ts";

const SECTOR = 512;
/** A range is zeroed in steps of this, so that other requests get their turn. */
const ZERO_STEP_BYTES = 64 * 1024 * 1024;

export class CachedVolume implements BlockVolume {
  readonly name: string;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly: boolean;
  #dev: CachedDevice;
  #parts: RequestParts;
  #reader: ReadPath;
  #writer: WritePath;
  #flush: Shared;

  constructor(
    dev: CachedDevice,
    parts: RequestParts,
    options: { readOnly: boolean },
  ) {
    this.name = dev.name;
    this.sizeBytes = dev.sizeSectors * SECTOR;
    this.blockSizeBytes = parts.blockSectors * SECTOR;
    this.readOnly = options.readOnly;
    this.#dev = dev;
    this.#parts = parts;
    this.#reader = new ReadPath(dev, parts);
    this.#writer = new WritePath(dev, parts);
    this.#flush = new Shared(() => this.#flushAll());
  }

  #note(): void {
    this.#dev.lastRequestMs = this.#parts.clock.nowMs();
  }

  #inside(offsetBytes: number, lengthBytes: number): void {
    if (offsetBytes < 0 || offsetBytes + lengthBytes > this.sizeBytes) {
      throw new BcacheError(
        "InvalidArgument",
        `${this.name}: bytes ${offsetBytes}-${offsetBytes + lengthBytes} are outside the device ` +
          `of ${this.sizeBytes} bytes`,
      );
    }
  }

  #writable(): void {
    if (this.#parts.faults.failed) {
      throw new BcacheError(
        "SetFailed",
        `${this.name}: the cache set has failed: ${this.#parts.faults.failed.message}`,
      );
    }
    if (this.readOnly) throw new BcacheError("ReadOnly", `${this.name} is read-only`);
  }

  tryRead(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#parts.faults.failed) return false;
    if (((offsetBytes | into.length) & (SECTOR - 1)) !== 0 || into.length === 0) return false;
    if (offsetBytes + into.length > this.sizeBytes) return false;
    this.#note();
    return this.#reader.tryRead(this.#dev.dataOffset + offsetBytes / SECTOR, into);
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#inside(offsetBytes, into.length);
    this.#note();
    if (this.#parts.faults.failed) {
      throw new BcacheError(
        "SetFailed",
        `${this.name}: the cache set has failed: ${this.#parts.faults.failed.message}`,
      );
    }
    if (into.length === 0) return;
    // Whole blocks: only these can be cached, so a reader of smaller ones gets its neighbours too.
    const { start, end } = this.#blocks(offsetBytes, into.length);
    const { dataOffset } = this.#dev;
    if ((end - start) * SECTOR === into.length) {
      return await this.#reader.read(dataOffset + start, into);
    }
    const whole = new Uint8Array((end - start) * SECTOR);
    await this.#reader.read(dataOffset + start, whole);
    const skip = offsetBytes - start * SECTOR;
    into.set(whole.subarray(skip, skip + into.length));
  }

  tryWrite(offsetBytes: number, from: Uint8Array): boolean {
    if (this.readOnly || this.#parts.faults.failed) return false;
    const block = this.blockSizeBytes - 1;
    if (((offsetBytes | from.length) & block) !== 0 || from.length === 0) return false;
    if (offsetBytes + from.length > this.sizeBytes) return false;
    this.#note();
    return this.#writer.tryWrite(this.#dev.dataOffset + offsetBytes / SECTOR, from);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#writable();
    this.#inside(offsetBytes, from.length);
    if (from.length === 0) return;
    this.#note();
    const { start, end } = this.#blocks(offsetBytes, from.length);
    const { dataOffset, locks } = this.#dev;
    const bytes = (end - start) * SECTOR;
    const range = await locks.acquire(dataOffset + start, dataOffset + end);
    try {
      if (bytes === from.length) return await this.#writer.writeLocked(dataOffset + start, from);
      const whole = new Uint8Array(bytes);
      const skip = offsetBytes - start * SECTOR;
      await this.#readEdges(start, whole, skip, skip + from.length);
      whole.set(from, skip);
      await this.#writer.writeLocked(dataOffset + start, whole);
    } finally {
      locks.release(range);
    }
  }

  /** The whole blocks around a range, in sectors; the last one may be cut short by the device. */
  #blocks(offsetBytes: number, lengthBytes: number): { start: number; end: number } {
    const block = this.blockSizeBytes;
    const sectors = block / SECTOR;
    return {
      start: Math.floor(offsetBytes / block) * sectors,
      end: Math.min(
        Math.ceil((offsetBytes + lengthBytes) / block) * sectors,
        this.sizeBytes / SECTOR,
      ),
    };
  }

  /** Reads the blocks of `whole` that [from, to) does not cover completely. */
  async #readEdges(start: number, whole: Uint8Array, from: number, to: number): Promise<void> {
    const block = this.blockSizeBytes;
    const at = this.#dev.dataOffset + start;
    const headEnd = from > 0 ? Math.min(block, whole.length) : 0;
    if (headEnd > 0) await this.#reader.read(at, whole.subarray(0, headEnd));
    const tailStart = Math.floor((whole.length - 1) / block) * block;
    if (to < whole.length && tailStart >= headEnd) {
      await this.#reader.read(at + tailStart / SECTOR, whole.subarray(tailStart));
    }
  }

  flush(): Promise<void> {
    return this.#flush.run();
  }

  /**
   * The data and keys of all acknowledged writes: in the journal durably, with the cache device
   * and the backing device flushed before it (see OrderedDevice). Nothing to do when nothing was
   * written since the last flush.
   */
  async #flushAll(): Promise<void> {
    if (this.#parts.faults.failed) this.#writable();
    if (this.readOnly) return;
    await this.#parts.committer.flush();
    if (this.#dev.unflushed) await this.#dev.flushWrites();
  }

  async zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#writable();
    this.#inside(offsetBytes, lengthBytes);
    this.#note();
    const block = this.blockSizeBytes;
    const end = offsetBytes + lengthBytes;
    let at = offsetBytes;
    if (at % block !== 0) {
      const edge = Math.min(Math.ceil(at / block) * block, end);
      await this.write(at, new Uint8Array(edge - at));
      at = edge;
    }
    const wholeEnd = end === this.sizeBytes ? end : Math.floor(end / block) * block;
    const { dataOffset, locks } = this.#dev;
    while (at < wholeEnd) {
      const step = Math.min(ZERO_STEP_BYTES, wholeEnd - at);
      const start = dataOffset + at / SECTOR;
      const range = await locks.acquire(start, start + step / SECTOR);
      try {
        await this.#writer.zeroLocked(start, step / SECTOR);
      } finally {
        locks.release(range);
      }
      at += step;
    }
    if (at < end) await this.write(at, new Uint8Array(end - at));
  }
}
