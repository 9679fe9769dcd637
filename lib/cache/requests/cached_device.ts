/**
 * One backing device that is attached to the cache set: its superblock and state, and what the
 * request paths and writeback keep about it. Answers to `struct cached_dev` of bcache.h and the
 * backing half of super.c.
 *
 * The state in the superblock is never better than the truth: it says dirty before the first dirty
 * write is acknowledged, and clean only after every key in the index says so durably.
 *
 * A failed flush leaves open which of the writes since the last good one are on the device, and
 * asking again does not help: Linux answers that a second flush is good, and the writes are lost.
 * So after one of an attached device
 *   - it is disabled at once, as at its error limit, and told so once; no other device notices
 *   - its dirty data stays in the cache: a key hides dirty data only after a good flush of what
 *     took its place (write.ts, writeback_output.ts)
 *   - none of its clean keys becomes durable from then on (DistrustedInodes): the next start reads
 *     these ranges from the backing device, whatever is there
 *   - to enable it again, or to attach it anew, drops what is clean of it (members/trust.ts)
 * So the cache never says something of the device that the device may have lost.
 */
import { assert } from "../../base/assert.ts";
import { LoadAverages } from "../../base/load.ts";
import { BcacheError, messageOf } from "../../base/errors.ts";
import type { Clock, Log } from "../../base/runtime.ts";
import { Mutex, Shared } from "../../base/sync.ts";
import type { DistrustedInodes } from "../../bset/distrusted.ts";
import { CountingDevice } from "../../device/counting.ts";
import type { Device } from "../../device/device.ts";
import {
  backingState,
  cacheMode,
  encodeSuperblock,
  setBackingState,
  setCacheMode,
  type Superblock,
  SUPERBLOCK_SECTOR,
} from "../../ondisk/superblock.ts";
import type { Bypass } from "./bypass.ts";
import { DirtyMap } from "../dirty/dirty_map.ts";
import type { DirtySectors } from "../dirty/dirty_sectors.ts";
import { BACKING_ERROR_LIMIT, IoErrors, isDeviceError } from "../devices/io_errors.ts";
import type { Dependent } from "../devices/ordered_device.ts";
import type { CacheMode, DeviceState } from "../ports.ts";
import { RangeLocks } from "../ranges.ts";
import { RequestStats } from "../stats.ts";

/** What becomes of a device whose cache set failed; see failed_service.ts. */
export type StopWhenFailed = "auto" | "always";

export class CachedDevice implements Dependent {
  /** `bcache0`, ... */
  readonly name: string;
  readonly path: string;
  readonly device: Device;
  readonly superblock: Superblock;
  /** The number of this device's keys. */
  readonly inode: number;
  /** First sector of the data: keys count sectors of the whole backing device. */
  readonly dataOffset: number;
  /** Sectors of the exported device. */
  readonly sizeSectors: number;
  readonly locks: RangeLocks = new RangeLocks();
  readonly bypass: Bypass;
  readonly stats: RequestStats;
  /** How busy the backing device is, whoever keeps it so: requests and writeback alike. */
  readonly load: LoadAverages;
  /** Where it is dirty. */
  readonly map: DirtyMap;
  /** Called when the superblock came to say dirty. */
  onDirty: () => void = () => {};
  /** The superblock on disk says that there may be dirty data. */
  hasDirty: boolean;
  detaching = false;
  /** Clean hits are compared with the backing device; slow. */
  verify = false;
  /** False once it was detached: it has no slot in the UUID table any more. */
  attached = true;
  /** Of the backing device; at the limit it is disabled. */
  readonly errors: IoErrors = new IoErrors(BACKING_ERROR_LIMIT);
  /** Of the backing device, whatever kind it was. */
  lastError: string | undefined;
  /** Every request is refused. */
  ioDisabled = false;
  /** What was written last may be lost: a flush failed. I/O is disabled as long as this is so. */
  #failedFlush: string | undefined;
  /** How often one did: what was written before the last time may be lost. */
  failedFlushes = 0;
  stopWhenFailed: StopWhenFailed = "auto";
  #writesDone = 0;
  #writesStable = 0;
  #owesFailure = false;
  #flush = new Shared(() => this.#flushOnce());
  #superblockWrites = new Mutex();
  /** The superblock on disk may not be the one in memory: a write of it failed. */
  #mayDiffer = false;
  #labels = new Mutex();
  #dirty: DirtySectors;
  #distrusted: DistrustedInodes;
  #mode: CacheMode;
  #log: Log;
  /** The superblock on disk says that the device was changed without its cache. */
  #stale = false;

  constructor(options: {
    name: string;
    path: string;
    device: Device;
    superblock: Superblock;
    inode: number;
    clock: Clock;
    log: Log;
    dirty: DirtySectors;
    distrusted: DistrustedInodes;
    setStats: RequestStats;
    bypass: Bypass;
  }) {
    this.name = options.name;
    this.path = options.path;
    const { clock } = options;
    this.load = new LoadAverages(clock.nowMs());
    this.device = new CountingDevice(options.device, {
      begin: () => this.load.begin(clock.nowMs()),
      end: () => this.load.end(clock.nowMs()),
    });
    this.superblock = options.superblock;
    this.inode = options.inode;
    this.#log = options.log;
    this.#dirty = options.dirty;
    this.#distrusted = options.distrusted;
    this.dataOffset = options.superblock.dataOffsetSectors;
    this.sizeSectors = options.device.sizeSectors - this.dataOffset;
    this.bypass = options.bypass;
    this.stats = new RequestStats(options.setStats);
    this.map = new DirtyMap(options.device, options.clock);
    this.hasDirty = backingState(options.superblock) === "dirty";
    // A number without a meaning acts as writethrough, the mode that cannot lose anything.
    this.#mode = cacheMode(options.superblock) ?? "writethrough";
  }

  /** Sectors whose only good copy is in the cache, exactly. */
  get dirtySectors(): number {
    return this.#dirty.of(this.inode);
  }

  /**
   * Something may have to be written back. Dirty keys can outlive a superblock that says clean:
   * clean keys are not journaled, so a crash brings the dirty ones back.
   */
  get needsWriteback(): boolean {
    return this.hasDirty || this.dirtySectors > 0;
  }

  get mode(): CacheMode {
    return this.#mode;
  }

  get state(): DeviceState {
    const state = backingState(this.superblock);
    if (state === "stale") return "inconsistent";
    return state === "none" ? "no cache" : state;
  }

  /**
   * Takes effect for every request when it is stored; a mode that cannot be stays as it was.
   *
   * Writeback must not take effect earlier: were it refused then, dirty data would be left on the
   * cache of a device whose mode promises that there is none. To leave it earlier would do no harm,
   * as every mode writes back what is dirty; but nobody is promised anything before the answer, and
   * with one order for all modes there is never a mode in force that has to be taken back.
   */
  async setMode(mode: CacheMode): Promise<void> {
    await this.#superblockWrites.run(async () => {
      if (cacheMode(this.superblock) === mode && !this.#mayDiffer) return;
      await this.#store(() => setCacheMode(this.superblock, mode));
      this.#mode = mode;
    });
  }

  /**
   * Changes the label here and, by `register`, where else it is kept. When one of the two fails it
   * is as before in both. @param label 32 raw bytes
   */
  async setLabel(label: Uint8Array, register: () => Promise<void>): Promise<void> {
    await this.#labels.run(async () => {
      const before = this.superblock.label;
      const chosen = label.slice();
      await this.#superblockWrites.run(() => this.#store(() => this.superblock.label = chosen));
      try {
        await register();
      } catch (error) {
        await this.#superblockWrites.run(async () => {
          // It is not shown in any case, and any later write of the superblock has the old one.
          this.superblock.label = before;
          // What the caller is told is why it was refused, and not that this fails as well.
          await this.writeSuperblock().catch(() => {});
        });
        throw error;
      }
    });
  }

  /** Resolves when the superblock on disk says dirty: before the first dirty write is answered. */
  async ensureDirty(): Promise<void> {
    await this.#superblockWrites.run(async () => {
      if (this.hasDirty) return;
      if (this.#stale) throw new BcacheError("SetFailed", `${this.name} has left its cache`);
      setBackingState(this.superblock, "dirty");
      await this.writeSuperblock();
      this.hasDirty = true;
      this.onDirty();
    });
  }

  /**
   * Says clean on disk, if nothing is dirty. @param settle makes the clean keys of the index
   * durable; called after new dirty writes were stopped from slipping in unnoticed.
   */
  async becomeClean(settle: () => Promise<void>): Promise<void> {
    await this.#superblockWrites.run(async () => {
      if (!this.hasDirty || this.dirtySectors > 0) return;
      // From here on a dirty write first waits for `ensureDirty`, which waits for this.
      this.hasDirty = false;
      await settle();
      if (this.#stale) return;
      setBackingState(this.superblock, "clean");
      await this.writeSuperblock();
    });
  }

  /**
   * Says on disk that no cache belongs to the device. Nothing may be dirty, and no write may be
   * under way or begin meanwhile. When this fails the device is still attached.
   */
  async leaveSet(): Promise<void> {
    await this.#superblockWrites.run(async () => {
      assert(!this.needsWriteback, "a device that leaves its set has nothing dirty");
      await this.#store(() => {
        this.superblock.setUuid = new Uint8Array(this.superblock.setUuid.length);
        setBackingState(this.superblock, "none");
      });
      this.attached = false;
    });
  }

  /**
   * Says on disk that the device is changed without its cache: what is cached of it is never used
   * again. Only when nothing is dirty, and for good: the set has failed.
   */
  async becomeStale(): Promise<void> {
    await this.#superblockWrites.run(async () => {
      if (this.#stale || !this.attached) return;
      await this.#store(() => setBackingState(this.superblock, "stale"));
      this.#stale = true;
      this.hasDirty = false;
    });
  }

  /**
   * Changes the superblock, and has it as before when it cannot be written: the change may be on
   * disk all the same, until the next write. The caller holds `superblockWrites`.
   */
  async #store(change: () => void): Promise<void> {
    const { label, setUuid, flagsLow, flagsHigh } = this.superblock;
    change();
    try {
      await this.writeSuperblock();
    } catch (error) {
      Object.assign(this.superblock, { label, setUuid, flagsLow, flagsHigh });
      throw error;
    }
  }

  /** Writes the superblock as it is now and makes it stable. */
  async writeSuperblock(): Promise<void> {
    this.#mayDiffer = true;
    await this.device.write(SUPERBLOCK_SECTOR, encodeSuperblock(this.superblock));
    await this.#flushDevice();
    this.#mayDiffer = false;
  }

  /** Whether a completed write is not known to be stable. */
  get unflushed(): boolean {
    return this.#writesDone > this.#writesStable;
  }

  /** A write to the backing device was completed, or may have been. */
  noteWrite(): void {
    this.#writesDone++;
  }

  get flushFailed(): boolean {
    return this.#failedFlush !== undefined;
  }

  /** What errors of the device it is disabled for; not that somebody disabled it. */
  get disabledBy(): string | undefined {
    if (!this.ioDisabled) return undefined;
    if (this.flushFailed) return `a flush of it failed (${this.#failedFlush})`;
    const { count, limit } = this.errors;
    return count >= Math.max(1, limit) ? `${count} I/O errors` : undefined;
  }

  get wantsFlush(): boolean {
    return this.unflushed && !this.flushFailed;
  }

  /** Makes every write that completed before the call stable; rejects once a flush has failed. */
  flushWrites(): Promise<void> {
    return this.#flush.run();
  }

  async settleWrites(): Promise<void> {
    try {
      await this.flushWrites();
    } catch {
      // It was told, and the device is not trusted any more.
    }
  }

  async #flushOnce(): Promise<void> {
    const { refusal } = this;
    if (this.flushFailed && refusal) throw refusal;
    const covered = this.#writesDone;
    await this.#flushDevice();
    // Another one failed meanwhile, and what this was to make stable may be lost.
    if (this.flushFailed && this.refusal) throw this.refusal;
    this.#writesStable = covered;
  }

  async #flushDevice(): Promise<void> {
    try {
      await this.device.flush();
    } catch (error) {
      this.#noteFailedFlush(error);
      throw error;
    }
  }

  /** From here on nothing is promised of what was written since the last good flush. */
  #noteFailedFlush(error: unknown): void {
    if (!this.attached) return this.noteError(error);
    this.#distrusted.add(this.inode);
    const isFirst = !this.flushFailed;
    this.failedFlushes++;
    this.#failedFlush ??= messageOf(error);
    this.ioDisabled = true;
    this.noteError(error);
    if (!isFirst) return;
    this.#log(
      "error",
      `${this.name}: a flush of ${this.path} failed, so what was written last may not be on it: ` +
        "every request is refused from now on; when it works again, set io_disable to 0",
    );
  }

  /** Tries a failed flush once more. @throws what the device rejects with */
  async flushAgain(): Promise<void> {
    const covered = this.#writesDone;
    await this.#flushDevice();
    this.#writesStable = covered;
  }

  /** The device is not disabled any more; nothing of it is cached that is not dirty. */
  serveAgain(): void {
    this.#failedFlush = undefined;
    this.ioDisabled = false;
    this.#owesFailure = true;
  }

  /**
   * What a flush request has to reject with whatever comes of it: the first one after the device
   * was enabled again still speaks for writes from before, which may be lost. Once.
   */
  takeFailureOwed(): BcacheError | undefined {
    if (!this.#owesFailure) return undefined;
    this.#owesFailure = false;
    return new BcacheError(
      "DeviceIo",
      `${this.name}: a flush of ${this.path} failed before: what was written by then may be lost`,
    );
  }

  // The backing device, with its errors counted.

  /** Fills `into` from sector `start` of the backing device. */
  async readBacking(start: number, into: Uint8Array): Promise<void> {
    try {
      await this.device.read(start, into);
    } catch (error) {
      this.noteError(error);
      throw error;
    }
  }

  /** The caller holds the range, and keeps `from` as it is until this settles. */
  async writeBacking(start: number, from: Uint8Array): Promise<void> {
    try {
      await this.device.write(start, from);
    } catch (error) {
      this.noteError(error);
      throw error;
    } finally {
      this.noteWrite();
    }
  }

  /** The caller holds the range. */
  async zeroBacking(start: number, sectors: number): Promise<void> {
    try {
      await this.device.zero(start, sectors);
    } catch (error) {
      this.noteError(error);
      throw error;
    } finally {
      this.noteWrite();
    }
  }

  /** Counts an error of the backing device and logs it; at the limit disables the device. */
  noteError(error: unknown): void {
    this.lastError = messageOf(error);
    if (!isDeviceError(error)) return this.#log("warning", `${this.name}: ${messageOf(error)}`);
    const isLimit = this.errors.note();
    this.#log("warning", `${this.name}: ${messageOf(error)} (${this.errors.text})`);
    if (!isLimit || this.ioDisabled) return;
    this.ioDisabled = true;
    this.#log(
      "error",
      `${this.name}: too many I/O errors of ${this.path}: every request is refused from now on; ` +
        "set io_disable to 0 to try again",
    );
  }

  /** What every request is refused with while I/O is disabled. */
  get refusal(): BcacheError | undefined {
    if (!this.ioDisabled) return undefined;
    if (this.flushFailed) {
      return new BcacheError(
        "DeviceIo",
        `${this.name}: I/O is disabled after a failed flush of ${this.path} ` +
          `(${this.#failedFlush}); when it works again, set io_disable to 0`,
        { isLogged: true },
      );
    }
    return new BcacheError(
      "DeviceIo",
      `${this.name}: I/O is disabled after ${this.errors.count} errors of ${this.path}; when it ` +
        "works again, set io_disable to 0",
      { isLogged: true },
    );
  }
}
