/**
 * What lies under a volume: whole sectors of one device, read and written by the paths that know
 * where they are. A cached device, a device that goes on without its cache, and a volume that
 * lives on the cache alone differ in this, and in nothing above it.
 *
 * Sectors are counted as the index counts them: those of a backing device include its data offset.
 */
import type { Device } from "../device/device.ts";
import type { CachedDevice } from "./cached_device.ts";
import { ReadPath } from "./read.ts";
import type { RequestParts } from "./request_parts.ts";
import { WritePath } from "./write.ts";

export interface SectorStore {
  /** Why nothing is served just now. */
  readonly failure: Error | undefined;
  /** A request came. */
  noteRequest(): void;
  /** Fills `into` without waiting, or returns false with nothing done. The hit path. */
  tryRead(start: number, into: Uint8Array): boolean;
  read(start: number, into: Uint8Array): Promise<void>;
  /** Takes `from` without waiting, or returns false with nothing changed. The hit path. */
  tryWrite(start: number, from: Uint8Array): boolean;
  /** For a caller that holds the range, as the next one. */
  writeLocked(start: number, from: Uint8Array): Promise<void>;
  /** The range reads as zeroes afterwards. */
  zeroLocked(start: number, sectors: number): Promise<void>;
  /** Everything acknowledged before is durable. */
  flush(): Promise<void>;
}

/** A backing device behind the cache: the read and write paths. */
export class CachedStore implements SectorStore {
  #dev: CachedDevice;
  #parts: RequestParts;
  #reader: ReadPath;
  #writer: WritePath;

  constructor(dev: CachedDevice, parts: RequestParts) {
    this.#dev = dev;
    this.#parts = parts;
    this.#reader = new ReadPath(dev, parts);
    this.#writer = new WritePath(dev, parts);
  }

  get failure(): Error | undefined {
    return this.#parts.faults.failed;
  }

  noteRequest(): void {
    this.#parts.noteRequest();
  }

  tryRead(start: number, into: Uint8Array): boolean {
    return this.#reader.tryRead(start, into);
  }

  read(start: number, into: Uint8Array): Promise<void> {
    return this.#reader.read(start, into);
  }

  tryWrite(start: number, from: Uint8Array): boolean {
    return this.#writer.tryWrite(start, from);
  }

  writeLocked(start: number, from: Uint8Array): Promise<void> {
    return this.#writer.writeLocked(start, from);
  }

  zeroLocked(start: number, sectors: number): Promise<void> {
    return this.#writer.zeroLocked(start, sectors);
  }

  /**
   * The data and keys of all acknowledged writes: in the journal durably, with the cache device
   * and the backing device flushed before it (see OrderedDevice). Nothing to do when nothing was
   * written since the last flush.
   */
  async flush(): Promise<void> {
    await this.#parts.committer.flush();
    if (this.#dev.unflushed) await this.#dev.flushWrites();
  }
}

/** A backing device alone: what a device is after it was detached from its cache. */
export class PassThroughStore implements SectorStore {
  readonly failure = undefined;
  #dev: CachedDevice;
  #device: Device;

  constructor(dev: CachedDevice) {
    this.#dev = dev;
    this.#device = dev.device;
  }

  noteRequest(): void {}

  tryRead(start: number, into: Uint8Array): boolean {
    const { sync } = this.#device;
    if (sync === undefined) return false;
    try {
      sync.read(start, into);
      return true;
    } catch {
      return false; // The other path reads again, and counts the error.
    }
  }

  tryWrite(): boolean {
    return false;
  }

  read(start: number, into: Uint8Array): Promise<void> {
    return this.#counted(this.#device.read(start, into));
  }

  async writeLocked(start: number, from: Uint8Array): Promise<void> {
    try {
      await this.#counted(this.#device.write(start, from));
    } finally {
      this.#dev.noteWrite();
    }
  }

  async zeroLocked(start: number, sectors: number): Promise<void> {
    try {
      await this.#counted(this.#device.zero(start, sectors));
    } finally {
      this.#dev.noteWrite();
    }
  }

  async flush(): Promise<void> {
    if (this.#dev.unflushed) await this.#dev.flushWrites();
  }

  async #counted(work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      this.#dev.ioErrors++;
      throw error;
    }
  }
}
