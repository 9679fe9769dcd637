/**
 * A disk made of memory with a volatile write cache, as a Device. It keeps to the letter of the
 * contract and no further:
 * - a write is stable after a flush that was asked for after it completed, or at once with `fua`;
 * - operations under way at the same time complete in any order; a read that runs beside a write
 *   returns, sector by sector, the old bytes or the new, also when the write completes first;
 * - a buffer belongs to the disk while its operation runs: changed bytes are a violation.
 *
 * Violations are collected, not thrown, because the code under test may swallow what is thrown.
 * After `cutPower` operations never settle, as the machine they would tell it to is off; the
 * synchronous ones throw, for they cannot do otherwise.
 */
import { assert } from "../../lib/base/assert.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { DiskImage, garbageSectors } from "./disk_image.ts";
import type { Unwritten } from "./disk_image.ts";
import type { DiskSnapshot, Pending } from "./power_cut.ts";
import type { SimClock } from "./sim_clock.ts";
import { FaultList } from "./sim_faults.ts";
import type { DiskOperation, Injected } from "./sim_faults.ts";
import type { SimRandom } from "./sim_random.ts";

/** A moment at which a power cut can have an outcome of its own. */
export interface DiskMoment {
  readonly disk: SimDisk;
  readonly operation: DiskOperation;
  readonly phase: "submitted" | "completed";
  readonly atSector: number;
  readonly sectors: number;
}

/** Simulated time one operation takes, in microseconds, both ends included. */
export interface Latency {
  readonly read: readonly [number, number];
  readonly write: readonly [number, number];
  readonly flush: readonly [number, number];
}

export const SSD: Latency = { read: [40, 120], write: [20, 200], flush: [100, 900] };
/** What an operation that a fault slows down takes besides. */
const SPIKE_US = [1_000_000, 8_000_000] as const;
export const HARD_DISK: Latency = { read: [500, 9000], write: [300, 9000], flush: [2000, 15_000] };

export interface SimDiskOptions {
  readonly name: string;
  readonly sizeSectors: number;
  readonly clock: SimClock;
  readonly random: SimRandom;
  readonly logicalBlockSectors?: number;
  readonly readOnly?: boolean;
  /** Bytes of sectors nobody wrote; seeded garbage when absent. */
  readonly unwritten?: Unwritten;
  /** Starts from these bytes (the image is the disk's from now on). */
  readonly image?: DiskImage;
  readonly latency?: Latency;
  /** Offers the synchronous calls too. */
  readonly sync?: boolean;
  /** Told of every moment at which the power could be cut. Must not change anything. */
  readonly onMoment?: (moment: DiskMoment) => void;
}

interface Running {
  readonly operation: DiskOperation;
  readonly atSector: number;
  /** The caller's buffer; for zero and discard one of the disk's own. */
  readonly buffer: Uint8Array;
  readonly hash: number;
}

/** Counts what was asked of the disk, for tests of "how many writes does this cost". */
export interface DiskCounts {
  reads: number;
  writes: number;
  flushes: number;
  zeroes: number;
  discards: number;
  sectorsRead: number;
  sectorsWritten: number;
}

export class SimDisk implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  readonly sync?: NonNullable<Device["sync"]>;

  readonly faults: FaultList;
  /** What the code under test did that no device allows. A clean run leaves this empty. */
  readonly violations: string[] = [];
  readonly counts: DiskCounts = {
    reads: 0,
    writes: 0,
    flushes: 0,
    zeroes: 0,
    discards: 0,
    sectorsRead: 0,
    sectorsWritten: 0,
  };
  #clock: SimClock;
  #random: SimRandom;
  #latency: Latency;
  #onMoment: ((moment: DiskMoment) => void) | undefined;

  #current: DiskImage; // What reads see: all completed writes.
  #stable: DiskImage; // What survives for certain.
  #pending: Pending[] = [];
  #running = new Set<Running>();
  #sequence = 0;
  #powerIsOff = false;
  #closed = false;

  constructor(options: SimDiskOptions) {
    this.name = options.name;
    this.sizeSectors = options.sizeSectors;
    this.logicalBlockSectors = options.logicalBlockSectors ?? 1;
    this.readOnly = options.readOnly ?? false;
    this.faults = new FaultList(options.name);
    this.#clock = options.clock;
    this.#random = options.random;
    this.#latency = options.latency ?? SSD;
    this.#onMoment = options.onMoment;
    const unwritten = options.unwritten ?? garbageSectors(options.random.nextU32());
    this.#current = options.image ?? new DiskImage(options.sizeSectors, unwritten);
    this.#stable = this.#current.copy();
    if (options.sync) this.sync = this.#syncCalls();
  }

  get inFlight(): number {
    return this.#running.size;
  }

  /** Writes that a power cut now could lose. */
  get unflushed(): number {
    return this.#pending.length;
  }

  /** Sets bytes behind the back of whoever uses the disk: formatting, planted damage. Stable. */
  patch(atSector: number, bytes: Uint8Array): void {
    this.#current.write(atSector, bytes);
    this.#stable.write(atSector, bytes);
  }

  /** The bytes a read would return now, without an operation. */
  peek(atSector: number, sectors: number): Uint8Array {
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    this.#current.read(atSector, bytes);
    return bytes;
  }

  /** No operation settles any more. */
  cutPower(): void {
    this.#powerIsOff = true;
  }

  /** Everything `imageAfterCut` needs to know; cheap, and unaffected by what follows. */
  snapshot(): DiskSnapshot {
    const pending = this.#pending.slice();
    for (const running of this.#running) {
      if (running.operation === "read" || running.operation === "flush") continue;
      const bytes = running.buffer.slice();
      pending.push({ sequence: this.#sequence, atSector: running.atSector, bytes });
    }
    return { stable: this.#stable.copy(), pending };
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    const sectors = this.#check("read", atSector, into.length);
    this.counts.reads++;
    this.counts.sectorsRead += sectors;
    // The bytes are taken at either end of the time it takes: a write may complete in between.
    const early = this.#random.chance(0.5);
    if (early) this.#readNow(atSector, into);
    const running = this.#begin("read", atSector, into);
    await this.#pass(this.#latency.read);
    const fault = this.faults.take("read", atSector, sectors);
    if (fault?.kind === "slow") await this.#pass(SPIKE_US);
    this.#end(running);
    if (fault?.kind === "rot") this.#rotMedium(atSector, sectors);
    if (!early || fault?.kind === "rot") this.#readNow(atSector, into);
    if (fault?.kind === "short") await this.#readRest(atSector, into);
    if (fault?.error) {
      into.fill(0xee, into.length >> 1); // Half of it came, and nobody may trust it.
      throw fault.error;
    }
  }

  /** The second half of a read is as the disk is some time later. */
  async #readRest(atSector: number, into: Uint8Array): Promise<void> {
    const half = into.length / SECTOR_BYTES >> 1;
    const rest = into.subarray(half * SECTOR_BYTES);
    const running = this.#begin("read", atSector + half, rest);
    await this.#pass(this.#latency.read);
    this.#end(running);
    this.#readNow(atSector + half, rest);
  }

  async write(atSector: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    this.#check("write", atSector, from.length);
    this.counts.writes++;
    if (options.preflush) await this.#flushOnce("write");
    await this.#change("write", atSector, from, options.fua ?? false);
  }

  async flush(): Promise<void> {
    this.#check("flush", 0, 0);
    this.counts.flushes++;
    await this.#flushOnce("flush");
  }

  async discard(atSector: number, sectors: number): Promise<void> {
    this.#check("discard", atSector, sectors * SECTOR_BYTES);
    this.counts.discards++;
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    const garbage = garbageSectors(this.#random.nextU32());
    for (let at = 0; at < sectors; at++) {
      const sector = bytes.subarray(at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES);
      const fate = this.#random.below(3);
      if (fate === 0) this.#current.read(atSector + at, sector);
      if (fate === 1) garbage(at, sector);
    }
    await this.#change("discard", atSector, bytes, false);
  }

  async zero(atSector: number, sectors: number): Promise<void> {
    this.#check("zero", atSector, sectors * SECTOR_BYTES);
    this.counts.zeroes++;
    await this.#change("zero", atSector, new Uint8Array(sectors * SECTOR_BYTES), false);
  }

  async close(): Promise<void> {
    this.#checkOpen("close");
    if (this.#running.size > 0) this.#violate(`close with ${this.#running.size} under way`);
    this.#closed = true;
    await Promise.resolve();
  }

  #syncCalls(): NonNullable<Device["sync"]> {
    return {
      read: (atSector, into) => {
        const sectors = this.#check("read", atSector, into.length);
        if (this.#powerIsOff) throw new BcacheError("DeviceIo", `${this.name}: power is off`);
        this.counts.reads++;
        this.counts.sectorsRead += sectors;
        const fault = this.faults.take("read", atSector, sectors);
        if (fault?.kind === "rot") this.#rotMedium(atSector, sectors);
        this.#readNow(atSector, into);
        if (fault?.error) throw fault.error;
      },
      write: (atSector, from) => {
        const sectors = this.#check("write", atSector, from.length);
        if (this.#powerIsOff) throw new BcacheError("DeviceIo", `${this.name}: power is off`);
        this.counts.writes++;
        this.counts.sectorsWritten += sectors;
        const fault = this.faults.take("write", atSector, sectors);
        if (fault?.error) throw fault.error;
        const running = this.#begin("write", atSector, from);
        this.#end(running);
        this.#applyWith(fault, atSector, from.slice(), false);
        this.#tell(running, "completed");
      },
    };
  }

  async #change(
    operation: DiskOperation,
    atSector: number,
    buffer: Uint8Array,
    fua: boolean,
  ): Promise<void> {
    const sectors = buffer.length / SECTOR_BYTES;
    this.counts.sectorsWritten += sectors;
    const running = this.#begin(operation, atSector, buffer);
    await this.#pass(this.#latency.write);
    const fault = this.faults.take(operation, atSector, sectors);
    if (fault?.kind === "slow") await this.#pass(SPIKE_US);
    let done = 0;
    if (fault?.kind === "short" && sectors > 1) {
      done = this.#random.between(1, sectors - 1);
      this.#apply(atSector, buffer.slice(0, done * SECTOR_BYTES), fua);
      await this.#pass(this.#latency.write);
    }
    this.#end(running);
    // A failed write may have changed a part of its range.
    const kept = fault?.error ? this.#random.below(sectors + 1) : sectors;
    const bytes = buffer.slice(done * SECTOR_BYTES, kept * SECTOR_BYTES);
    this.#applyWith(fault, atSector + done, bytes, fua && !fault?.error);
    this.#tell(running, "completed");
    if (fault?.error) throw fault.error;
  }

  async #flushOnce(operation: "flush" | "write"): Promise<void> {
    const coveredSequence = this.#sequence; // Later completions are not this flush's business.
    const running = this.#begin("flush", 0, new Uint8Array(0));
    await this.#pass(this.#latency.flush);
    const fault = this.faults.take("flush", 0, 0);
    if (fault?.kind === "slow") await this.#pass(SPIKE_US);
    this.#end(running);
    if (fault?.error === undefined && fault?.kind !== "lie") this.#settle(coveredSequence);
    else if (fault.fault.loses) this.#lose(coveredSequence);
    if (operation === "flush") this.#tell(running, "completed");
    if (fault?.error) throw fault.error;
  }

  /** Makes writes stable up to one. */
  #settle(coveredSequence: number): void {
    let keep: Pending[] = [];
    for (const write of this.#pending) {
      if (write.sequence > coveredSequence) keep.push(write);
      else {
        this.#stable.write(write.atSector, write.bytes);
        // Only what was lost is older and still pending: it must not come back at a cut.
        const end = write.atSector + write.bytes.length / SECTOR_BYTES;
        keep = keep.flatMap((lost) => without(lost, write.atSector, end));
      }
    }
    this.#pending = keep;
  }

  /** No flush makes these writes stable any more; at a cut they may be there or not. */
  #lose(coveredSequence: number): void {
    this.#pending = this.#pending.map((write) =>
      write.sequence <= coveredSequence ? { ...write, sequence: Infinity } : write
    );
  }

  /** The same as `#apply`, but for what the fault makes of it in silence. */
  #applyWith(
    fault: Injected | undefined,
    atSector: number,
    bytes: Uint8Array,
    fua: boolean,
  ): void {
    const sectors = bytes.length / SECTOR_BYTES;
    if (sectors === 0) return;
    switch (fault?.kind) {
      case "lie":
        return this.#apply(atSector, bytes, false);
      case "rot": {
        const wanted = bytes.slice();
        const at = this.#turnBit(bytes) * SECTOR_BYTES;
        const [right, wrong] = [wanted, bytes].map((all) => all.subarray(at, at + SECTOR_BYTES));
        this.faults.noteDamage(atSector + at / SECTOR_BYTES, right!, wrong!);
        return this.#apply(atSector, bytes, fua);
      }
      case "misdirected": {
        const anywhere = () => this.#random.below(this.sizeSectors - sectors + 1);
        const lands = fault.fault.landsAt?.(atSector, sectors) ?? anywhere();
        const replaced = this.peek(lands, sectors);
        this.#apply(lands, bytes, fua);
        this.faults.noteDamage(atSector, bytes, this.peek(atSector, sectors));
        const astray = { sequence: 0, atSector: lands, bytes };
        for (const hit of without(astray, atSector, atSector + sectors)) {
          const from = (hit.atSector - lands) * SECTOR_BYTES;
          const wanted = replaced.subarray(from, from + hit.bytes.length);
          this.faults.noteDamage(hit.atSector, wanted, hit.bytes);
        }
        return;
      }
      default:
        return this.#apply(atSector, bytes, fua);
    }
  }

  /** Turns one bit over; the number of its sector. */
  #turnBit(bytes: Uint8Array): number {
    const at = this.#random.below(bytes.length);
    bytes[at] = bytes[at]! ^ (1 << this.#random.below(8));
    return Math.floor(at / SECTOR_BYTES);
  }

  /** Turns one bit over, wherever the disk has these bytes. */
  #rotMedium(atSector: number, sectors: number): void {
    if (sectors === 0) return;
    const sector = atSector + this.#random.below(sectors);
    const at = this.#random.below(SECTOR_BYTES);
    const bit = 1 << this.#random.below(8);
    const turn = (bytes: Uint8Array): Uint8Array => {
      const turned = bytes.slice();
      turned[at] = turned[at]! ^ bit;
      this.faults.noteDamage(sector, bytes, turned);
      return turned;
    };
    for (const image of [this.#current, this.#stable]) {
      const bytes = new Uint8Array(SECTOR_BYTES);
      image.read(sector, bytes);
      image.write(sector, turn(bytes));
    }
    this.#pending = this.#pending.map((write) => {
      const offset = (sector - write.atSector) * SECTOR_BYTES;
      if (offset < 0 || offset >= write.bytes.length) return write;
      const bytes = write.bytes.slice();
      bytes.set(turn(bytes.subarray(offset, offset + SECTOR_BYTES)), offset);
      return { ...write, bytes };
    });
  }

  /** Makes completed bytes visible; stable too when `fua`. The bytes are the disk's from now on. */
  #apply(atSector: number, bytes: Uint8Array, fua: boolean): void {
    if (bytes.length === 0) return;
    this.#current.write(atSector, bytes);
    this.#sequence++;
    if (!fua) {
      this.#pending.push({ sequence: this.#sequence, atSector, bytes });
      return;
    }
    this.#stable.write(atSector, bytes);
    // Older unflushed versions of these sectors are gone: they must not come back at a cut.
    const end = atSector + bytes.length / SECTOR_BYTES;
    this.#pending = this.#pending.flatMap((write) => without(write, atSector, end));
  }

  #readNow(atSector: number, into: Uint8Array): void {
    this.#current.read(atSector, into);
    this.#mixWithRunningWrites(atSector, into);
  }

  #mixWithRunningWrites(atSector: number, into: Uint8Array): void {
    const end = atSector + into.length / SECTOR_BYTES;
    for (const running of this.#running) {
      if (running.operation === "read" || running.operation === "flush") continue;
      const from = Math.max(atSector, running.atSector);
      const to = Math.min(end, running.atSector + running.buffer.length / SECTOR_BYTES);
      for (let sector = from; sector < to; sector++) {
        if (this.#random.chance(0.5)) continue;
        const at = (sector - running.atSector) * SECTOR_BYTES;
        const bytes = running.buffer.subarray(at, at + SECTOR_BYTES);
        into.set(bytes, (sector - atSector) * SECTOR_BYTES);
      }
    }
  }

  #check(operation: DiskOperation, atSector: number, lengthBytes: number): number {
    const sectors = lengthBytes / SECTOR_BYTES;
    assert(Number.isInteger(atSector) && atSector >= 0, `${this.name}: sector ${atSector} is one`);
    const whole = Number.isInteger(sectors) && sectors >= 0;
    assert(whole, `${this.name}: ${lengthBytes} bytes are whole sectors`);
    assert(
      atSector + sectors <= this.sizeSectors,
      `${this.name}: ${operation} of ${atSector}+${sectors} is inside ${this.sizeSectors} sectors`,
    );
    this.#checkOpen(operation);
    if (this.readOnly && operation !== "read" && operation !== "flush") {
      throw new BcacheError("ReadOnly", `${this.name}: ${operation} on a read-only device`);
    }
    return sectors;
  }

  #checkOpen(operation: string): void {
    if (this.#closed) this.#violate(`${operation} after close`);
    assert(!this.#closed, `${this.name}: ${operation} only before close`);
  }

  #begin(operation: DiskOperation, atSector: number, buffer: Uint8Array): Running {
    const running = { operation, atSector, buffer, hash: hashBytes(buffer) };
    this.#running.add(running);
    if (operation !== "read") this.#tell(running, "submitted");
    return running;
  }

  #end(running: Running): void {
    this.#running.delete(running);
    if (hashBytes(running.buffer) === running.hash) return;
    const { operation, atSector, buffer } = running;
    const sectors = buffer.length / SECTOR_BYTES;
    this.#violate(`the buffer of ${operation} ${atSector}+${sectors} changed while it ran`);
  }

  /** Resolves when the operation's time has passed; never, once the power is off. */
  #pass([fromUs, toUs]: readonly [number, number]): Promise<void> {
    const delayUs = this.#random.between(fromUs, toUs);
    return new Promise((resolve) => {
      this.#clock.after(delayUs, () => {
        if (!this.#powerIsOff) resolve();
      });
    });
  }

  #tell(running: Running, phase: "submitted" | "completed"): void {
    const sectors = running.buffer.length / SECTOR_BYTES;
    const { operation, atSector } = running;
    this.#clock.trace.note(phase === "submitted" ? 1 : 2, atSector, sectors, running.hash);
    if (this.#powerIsOff) return;
    this.#onMoment?.({ disk: this, operation, phase, atSector, sectors });
  }

  #violate(what: string): void {
    this.violations.push(`${this.name}: ${what}`);
  }
}

/** What remains of a pending write when sectors [from, to) of it are settled otherwise. */
function without(write: Pending, from: number, to: number): Pending[] {
  const start = write.atSector;
  const end = start + write.bytes.length / SECTOR_BYTES;
  if (end <= from || start >= to) return [write];
  const rest: Pending[] = [];
  const { sequence } = write;
  if (start < from) {
    const bytes = write.bytes.subarray(0, (from - start) * SECTOR_BYTES);
    rest.push({ sequence, atSector: start, bytes });
  }
  if (end > to) {
    const bytes = write.bytes.subarray((to - start) * SECTOR_BYTES);
    rest.push({ sequence, atSector: to, bytes });
  }
  return rest;
}

function hashBytes(bytes: Uint8Array): number {
  if (bytes.byteOffset % 4 !== 0) return hashBytes(bytes.slice()); // Words must be aligned.
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  let hash = 0x811c_9dc5;
  for (let at = 0; at < words.length; at++) {
    hash = Math.imul(hash ^ words[at]!, 0x0100_0193);
    hash ^= hash >>> 15;
  }
  return hash >>> 0;
}
