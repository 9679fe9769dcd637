/**
 * Writes an image from its beginning to its end, leaving holes where there are only zeroes. The
 * output must read as zeroes where nothing was written.
 */
import { assert } from "../base/assert.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";

const PIECE_BYTES = 1024 * 1024;
/** Holes are found in blocks of this size. */
const BLOCK_BYTES = 4096;

export class SparseWriter {
  #output: Device;
  #buffer = new Uint8Array(PIECE_BYTES);
  #words = new Uint32Array(this.#buffer.buffer);
  /** The buffer holds the bytes from this sector on. */
  #start = 0;
  #filled = 0;
  /** Bytes written, holes left out. */
  writtenBytes = 0;

  constructor(output: Device) {
    this.#output = output;
  }

  /** The sector that comes next. */
  get position(): number {
    return this.#start + this.#filled / SECTOR_BYTES;
  }

  /** Where the next sectors go, `sectors` at most; to be filled before the next call. */
  async take(sectors: number): Promise<Uint8Array> {
    if (this.#filled === PIECE_BYTES) await this.flush();
    const length = Math.min(sectors * SECTOR_BYTES, PIECE_BYTES - this.#filled);
    const part = this.#buffer.subarray(this.#filled, this.#filled + length);
    this.#filled += length;
    return part;
  }

  /** Leaves everything up to `sector` as it is: zeroes. */
  async skipTo(sector: number): Promise<void> {
    assert(sector >= this.position, "an image is written forwards");
    await this.flush();
    this.#start = sector;
  }

  /** Writes what is in the buffer. */
  async flush(): Promise<void> {
    let from = 0;
    for (let at = 0; at < this.#filled;) {
      const end = Math.min(at + BLOCK_BYTES, this.#filled);
      if (this.#isBlank(at, end)) {
        await this.#write(from, at);
        from = end;
      }
      at = end;
    }
    await this.#write(from, this.#filled);
    this.#start = this.position;
    this.#filled = 0;
  }

  #isBlank(from: number, to: number): boolean {
    for (let word = from / 4; word < to / 4; word++) if (this.#words[word] !== 0) return false;
    return true;
  }

  async #write(from: number, to: number): Promise<void> {
    if (to <= from) return;
    const sector = this.#start + from / SECTOR_BYTES;
    await this.#output.write(sector, this.#buffer.subarray(from, to));
    this.writtenBytes += to - from;
  }
}
