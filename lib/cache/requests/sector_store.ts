/**
 * What lies under a volume: whole sectors of one device, read and written by the paths that know
 * where they are. A cached device, a device that goes on without its cache, and a volume that
 * lives on the cache alone differ in this, and in nothing above it.
 *
 * Sectors are counted as the index counts them: those of a backing device include its data offset.
 */
import { BcacheError } from "../../base/errors.ts";
import type { CachedDevice } from "./cached_device.ts";
import { FailedService } from "./failed_service.ts";
import { ReadPath } from "./read.ts";
import type { RequestParts } from "../request_parts.ts";
import { WritePath } from "./write.ts";

export interface SectorStore {
  /** Why nothing is served just now; what every request is refused with. */
  readonly failure: Error | undefined;
  /** Nothing is done without waiting just now. The hit path. */
  readonly obstructed: boolean;
  /** A request came and is asked for next; see BlockVolume.describeNext. */
  noteRequest(task: number, flags: number): void;
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

/**
 * A backing device behind the cache: the read and write paths; once the set has failed, what can
 * still be done without it.
 */
export class CachedStore implements SectorStore {
  #dev: CachedDevice;
  #parts: RequestParts;
  #reader: ReadPath;
  #writer: WritePath;
  readonly failedService: FailedService;

  constructor(dev: CachedDevice, parts: RequestParts) {
    this.#dev = dev;
    this.#parts = parts;
    this.#reader = new ReadPath(dev, parts);
    this.#writer = new WritePath(dev, parts);
    this.failedService = new FailedService(dev, parts);
  }

  get obstructed(): boolean {
    const { faults, tunables } = this.#parts;
    return faults.failed !== undefined || tunables.ioDisabled || this.#dev.ioDisabled;
  }

  get failure(): Error | undefined {
    if (!this.#parts.tunables.ioDisabled) return this.#dev.refusal;
    return new BcacheError(
      "DeviceIo",
      `${this.#dev.name}: I/O of the whole cache set is disabled; set its io_disable to 0`,
    );
  }

  /**
   * Does it with the cache; if the set has failed, before or meanwhile, without.
   * @param without a request that failed half-way is done again as a whole
   */
  async #serve(withCache: () => Promise<void>, without: () => Promise<void>): Promise<void> {
    const { faults } = this.#parts;
    if (faults.failed === undefined) {
      try {
        return await withCache();
      } catch (error) {
        if (faults.failed === undefined) throw error;
      }
    }
    await without();
  }

  noteRequest(task: number, flags: number): void {
    this.#dev.bypass.task = task;
    this.#dev.bypass.flags = flags;
    this.#parts.noteRequest();
  }

  tryRead(start: number, into: Uint8Array): boolean {
    return this.#reader.tryRead(start, into);
  }

  read(start: number, into: Uint8Array): Promise<void> {
    return this.#serve(
      () => this.#reader.read(start, into),
      () => this.failedService.read(start, into),
    );
  }

  tryWrite(start: number, from: Uint8Array): boolean {
    return this.#writer.tryWrite(start, from);
  }

  writeLocked(start: number, from: Uint8Array): Promise<void> {
    return this.#serve(
      () => this.#writer.writeLocked(start, from),
      () => this.failedService.write(start, from),
    );
  }

  zeroLocked(start: number, sectors: number): Promise<void> {
    return this.#serve(
      () => this.#writer.zeroLocked(start, sectors),
      () => this.failedService.zero(start, sectors),
    );
  }

  /**
   * The data and keys of all acknowledged writes: in the journal durably, with the cache device
   * and the backing device flushed before it (see OrderedDevice). Nothing to do when nothing was
   * written since the last flush.
   */
  flush(): Promise<void> {
    return this.#serve(
      async () => {
        const owed = this.#dev.takeFailureOwed();
        await this.#parts.committer.flush();
        if (this.#dev.unflushed) await this.#dev.flushWrites();
        if (owed) throw owed;
      },
      () => this.failedService.flush(),
    );
  }
}

/** A backing device alone: what a device is after it was detached from its cache. */
export class PassThroughStore implements SectorStore {
  #dev: CachedDevice;

  constructor(dev: CachedDevice) {
    this.#dev = dev;
  }

  get obstructed(): boolean {
    return this.#dev.ioDisabled;
  }

  get failure(): Error | undefined {
    return this.#dev.refusal;
  }

  noteRequest(): void {}

  tryRead(start: number, into: Uint8Array): boolean {
    const { sync } = this.#dev.device;
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
    return this.#dev.readBacking(start, into);
  }

  writeLocked(start: number, from: Uint8Array): Promise<void> {
    return this.#dev.writeBacking(start, from);
  }

  zeroLocked(start: number, sectors: number): Promise<void> {
    return this.#dev.zeroBacking(start, sectors);
  }

  async flush(): Promise<void> {
    const owed = this.#dev.takeFailureOwed();
    if (this.#dev.unflushed) await this.#dev.flushWrites();
    if (owed) throw owed;
  }
}
