/**
 * A memory device with a volatile write cache whose power can be cut at any operation. What was
 * not flushed then survives in part, sector by sector, by a seeded choice. It checks that buffers
 * are left alone while they are written, and that entries of the journal never rely on something
 * that is still volatile.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import type { Random } from "../../lib/base/runtime.ts";
import { type Device, SECTOR_BYTES, type WriteOptions } from "../../lib/device/device.ts";

/** A small, fast, seeded generator (mulberry32). */
export class SeededRandom implements Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  nextU32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }
  /** An integer in [0, below). */
  below(below: number): number {
    return this.nextU32() % below;
  }
}

interface Pending {
  readonly sector: number;
  readonly bytes: Uint8Array;
}

/** How the device breaks the contract, to show that the tests would notice. */
export type Lie = "flush does nothing" | "fua does nothing";

export interface PowerDeviceOptions {
  readonly random: SeededRandom;
  readonly stable: Uint8Array;
  readonly lie?: Lie;
  /** A write that begins in here must not find anything else volatile. */
  readonly ordered?: { readonly from: number; readonly to: number };
}

function overlaps(write: Pending, sector: number, lengthBytes: number): boolean {
  return write.sector < sector + lengthBytes / SECTOR_BYTES &&
    sector < write.sector + write.bytes.length / SECTOR_BYTES;
}

export class PowerDevice implements Device {
  readonly name = "test-cache";
  readonly logicalBlockSectors = 1;
  readonly readOnly = false;
  readonly sizeSectors: number;
  /** What broke the order of writes. */
  readonly violations: string[] = [];
  /** Writes, flushes and erasures so far. */
  operations = 0;
  /** The power fails during this operation. */
  cutAt = Infinity;
  /** Every write fails from this operation on. */
  failAt = Infinity;
  dead = false;
  inFlight = 0;
  #random: SeededRandom;
  #stable: Uint8Array;
  #current: Uint8Array;
  #pending: Pending[] = [];
  #options: PowerDeviceOptions;

  constructor(options: PowerDeviceOptions) {
    this.#options = options;
    this.#random = options.random;
    this.#stable = options.stable;
    this.#current = options.stable.slice();
    this.sizeSectors = options.stable.length / SECTOR_BYTES;
  }

  /** Writes not yet stable. */
  get volatile(): number {
    return this.#pending.length;
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    await this.#latency();
    const start = atSector * SECTOR_BYTES;
    into.set(this.#current.subarray(start, start + into.length));
  }

  async write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    const { ordered, lie } = this.#options;
    if (ordered && atSector >= ordered.from && atSector < ordered.to && this.#pending.length > 0) {
      this.violations.push(`write at ${atSector} with ${this.#pending.length} volatile before it`);
    }
    const bytes = from.slice();
    await this.#operation(() => this.#torn(atSector, bytes));
    if (!bytes.every((byte, index) => byte === from[index])) {
      this.violations.push(`the buffer written at ${atSector} was changed meanwhile`);
    }
    this.#current.set(bytes, atSector * SECTOR_BYTES);
    if (options?.fua && lie !== "fua does nothing") {
      // An older volatile write to the same place cannot come back over this one.
      for (const older of this.#pending) {
        if (overlaps(older, atSector, bytes.length)) this.#settle(older);
      }
      this.#stable.set(bytes, atSector * SECTOR_BYTES);
    } else this.#pending.push({ sector: atSector, bytes });
  }

  async flush(): Promise<void> {
    const covered = this.#pending.length;
    await this.#operation(() => {});
    if (this.#options.lie === "flush does nothing") return;
    for (const write of this.#pending.splice(0, covered)) this.#settle(write);
  }

  async zero(atSector: number, sectors: number): Promise<void> {
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    await this.#operation(() => this.#torn(atSector, bytes));
    this.#current.set(bytes, atSector * SECTOR_BYTES);
    this.#pending.push({ sector: atSector, bytes });
  }

  discard(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  /** What the medium holds after the power was cut: every volatile sector kept or lost. */
  afterPowerCut(): Uint8Array {
    this.dead = true;
    const order = this.#pending.splice(0);
    for (const { sector, bytes } of order) this.#keepSome(sector, bytes);
    return this.#stable;
  }

  #settle(write: Pending): void {
    this.#stable.set(write.bytes, write.sector * SECTOR_BYTES);
  }

  #torn(sector: number, bytes: Uint8Array): void {
    this.#pending.push({ sector, bytes });
  }

  #keepSome(sector: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      if (this.#random.below(2) === 0) continue;
      const kept = bytes.subarray(at, at + SECTOR_BYTES);
      this.#stable.set(kept, sector * SECTOR_BYTES + at);
    }
  }

  /** @param interrupted what is under way when the power fails during this operation. */
  async #operation(interrupted: () => void): Promise<void> {
    const number = ++this.operations;
    this.inFlight++;
    await this.#latency();
    this.inFlight--;
    if (!this.dead && number >= this.cutAt) {
      this.dead = true;
      interrupted();
    }
    if (this.dead || number >= this.failAt) {
      throw new BcacheError("DeviceIo", `${this.name}: operation ${number} failed`);
    }
  }

  async #latency(): Promise<void> {
    for (let turns = this.#random.below(4); turns >= 0; turns--) await Promise.resolve();
  }
}
