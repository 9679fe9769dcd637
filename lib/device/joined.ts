/**
 * Two devices one behind the other: sectors [0, n) lie on the first, the rest on the second. A
 * sidecar of n sectors before a plain image makes a backing device without touching the image.
 *
 * Durability is that of both: a flush flushes both; a write with `preflush` first flushes both,
 * since what came before may lie on either.
 */
import { assert } from "../base/assert.ts";
import { assertRange, assertTransfer } from "./checks.ts";
import { type Device, SECTOR_BYTES, type WriteOptions } from "./device.ts";

export class JoinedDevice implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  readonly sync?: NonNullable<Device["sync"]>;
  #first: Device;
  #second: Device;
  #splitSectors: number;

  /** Takes both over: `close` closes them. @param splitSectors what the first one contributes. */
  constructor(first: Device, second: Device, splitSectors: number, name: string = second.name) {
    assert(splitSectors > 0 && splitSectors <= first.sizeSectors, "the first device has its part");
    this.name = name;
    this.sizeSectors = splitSectors + second.sizeSectors;
    this.logicalBlockSectors = Math.max(first.logicalBlockSectors, second.logicalBlockSectors);
    this.readOnly = first.readOnly || second.readOnly;
    this.#first = first;
    this.#second = second;
    this.#splitSectors = splitSectors;
    const [a, b] = [first.sync, second.sync];
    if (!a || !b) return;
    this.sync = {
      read: (atSector, into) => {
        assertTransfer(this, atSector, into.length);
        const inFirst = this.#bytesInFirst(atSector, into.length);
        if (atSector >= splitSectors) return b.read(atSector - splitSectors, into);
        a.read(atSector, into.subarray(0, inFirst));
        if (inFirst < into.length) b.read(0, into.subarray(inFirst));
      },
      write: (atSector, from) => {
        assertTransfer(this, atSector, from.length);
        const inFirst = this.#bytesInFirst(atSector, from.length);
        if (atSector >= splitSectors) return b.write(atSector - splitSectors, from);
        a.write(atSector, from.subarray(0, inFirst));
        if (inFirst < from.length) b.write(0, from.subarray(inFirst));
      },
    };
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    assertTransfer(this, atSector, into.length);
    const inFirst = this.#bytesInFirst(atSector, into.length);
    if (atSector >= this.#splitSectors) {
      return await this.#second.read(atSector - this.#splitSectors, into);
    }
    await both(
      this.#first.read(atSector, into.subarray(0, inFirst)),
      inFirst < into.length ? this.#second.read(0, into.subarray(inFirst)) : undefined,
    );
  }

  async write(atSector: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    assertTransfer(this, atSector, from.length);
    if (options.preflush) await this.flush();
    const rest: WriteOptions = options.fua ? { fua: true } : {};
    const inFirst = this.#bytesInFirst(atSector, from.length);
    if (atSector >= this.#splitSectors) {
      return await this.#second.write(atSector - this.#splitSectors, from, rest);
    }
    await both(
      this.#first.write(atSector, from.subarray(0, inFirst), rest),
      inFirst < from.length ? this.#second.write(0, from.subarray(inFirst), rest) : undefined,
    );
  }

  flush(): Promise<void> {
    return both(this.#first.flush(), this.#second.flush());
  }

  discard(atSector: number, sectors: number): Promise<void> {
    return this.#range(atSector, sectors, (device, at, length) => device.discard(at, length));
  }

  zero(atSector: number, sectors: number): Promise<void> {
    return this.#range(atSector, sectors, (device, at, length) => device.zero(at, length));
  }

  close(): Promise<void> {
    return both(this.#first.close(), this.#second.close());
  }

  async #range(
    atSector: number,
    sectors: number,
    body: (device: Device, atSector: number, sectors: number) => Promise<void>,
  ): Promise<void> {
    assertRange(this, atSector, sectors);
    const inFirst = this.#bytesInFirst(atSector, sectors * SECTOR_BYTES) / SECTOR_BYTES;
    if (atSector >= this.#splitSectors) {
      return await body(this.#second, atSector - this.#splitSectors, sectors);
    }
    await both(
      body(this.#first, atSector, inFirst),
      inFirst < sectors ? body(this.#second, 0, sectors - inFirst) : undefined,
    );
  }

  #bytesInFirst(atSector: number, lengthBytes: number): number {
    const left = (this.#splitSectors - atSector) * SECTOR_BYTES;
    return Math.min(Math.max(left, 0), lengthBytes); // 0 behind the split, too.
  }
}

/** Waits for both to end, also when one fails: their buffers are in use until then. */
async function both(first: Promise<void>, second: Promise<void> | undefined): Promise<void> {
  const outcomes = await Promise.allSettled([first, second]);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
