/**
 * A device in memory, for tests and experiments: sparse (64 KiB pieces that appear when they are
 * first written), zero where nothing was written, done at once. It has no volatile cache, so
 * flushes have nothing to do; the simulated disk of the tests is another device.
 */
import { assert } from "../base/assert.ts";
import { assertRange, assertTransfer, refuseReadOnly } from "./checks.ts";
import { type Device, SECTOR_BYTES, type WriteOptions } from "./device.ts";

const PIECE_BYTES = 65536;

export interface MemoryDeviceOptions {
  readonly name?: string;
  readonly readOnly?: boolean;
  /** Default 1. */
  readonly logicalBlockSectors?: number;
}

export class MemoryDevice implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  readonly sync: NonNullable<Device["sync"]>;
  #pieces = new Map<number, Uint8Array>();
  #open = true;

  constructor(sizeSectors: number, options: MemoryDeviceOptions = {}) {
    assert(Number.isSafeInteger(sizeSectors) && sizeSectors >= 0, "a size is a natural number");
    this.name = options.name ?? "memory";
    this.sizeSectors = sizeSectors;
    this.logicalBlockSectors = options.logicalBlockSectors ?? 1;
    this.readOnly = options.readOnly ?? false;
    this.sync = {
      read: (atSector, into) => this.#read(atSector, into),
      write: (atSector, from) => this.#write(atSector, from),
    };
  }

  /** Bytes of memory in use for contents. */
  get allocatedBytes(): number {
    return this.#pieces.size * PIECE_BYTES;
  }

  // The methods are async so that a failed assertion rejects, as on every other device.
  // deno-lint-ignore require-await
  async read(atSector: number, into: Uint8Array): Promise<void> {
    this.#read(atSector, into);
  }

  // deno-lint-ignore require-await
  async write(atSector: number, from: Uint8Array, _options?: WriteOptions): Promise<void> {
    this.#write(atSector, from);
  }

  // deno-lint-ignore require-await
  async flush(): Promise<void> {
    assert(this.#open, "a closed device is not used");
  }

  discard(atSector: number, sectors: number): Promise<void> {
    return this.zero(atSector, sectors);
  }

  // deno-lint-ignore require-await
  async zero(atSector: number, sectors: number): Promise<void> {
    assert(this.#open, "a closed device is not used");
    assertRange(this, atSector, sectors);
    refuseReadOnly(this);
    this.#eachPiece(atSector * SECTOR_BYTES, sectors * SECTOR_BYTES, (key, start, length) => {
      if (length === PIECE_BYTES) this.#pieces.delete(key);
      else this.#pieces.get(key)?.fill(0, start, start + length);
    });
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    assert(this.#open, "a device is closed once");
    this.#open = false;
  }

  #read(atSector: number, into: Uint8Array): void {
    assert(this.#open, "a closed device is not used");
    assertTransfer(this, atSector, into.length);
    this.#eachPiece(atSector * SECTOR_BYTES, into.length, (key, start, length, done) => {
      const piece = this.#pieces.get(key);
      if (piece) into.set(piece.subarray(start, start + length), done);
      else into.fill(0, done, done + length);
    });
  }

  #write(atSector: number, from: Uint8Array): void {
    assert(this.#open, "a closed device is not used");
    assertTransfer(this, atSector, from.length);
    refuseReadOnly(this);
    this.#eachPiece(atSector * SECTOR_BYTES, from.length, (key, start, length, done) => {
      let piece = this.#pieces.get(key);
      if (!piece) this.#pieces.set(key, piece = new Uint8Array(PIECE_BYTES));
      piece.set(from.subarray(done, done + length), start);
    });
  }

  #eachPiece(
    atByte: number,
    lengthBytes: number,
    body: (key: number, start: number, length: number, done: number) => void,
  ): void {
    for (let done = 0; done < lengthBytes;) {
      const at = atByte + done;
      const start = at % PIECE_BYTES;
      const length = Math.min(PIECE_BYTES - start, lengthBytes - done);
      body((at - start) / PIECE_BYTES, start, length, done);
      done += length;
    }
  }
}
