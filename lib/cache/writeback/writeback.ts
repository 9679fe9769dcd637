/**
 * Writing dirty data back, of one device: when, how fast, and what the superblock then says.
 * Answers to `bch_writeback_thread` and `update_writeback_rate` of writeback.c. What is written is
 * found by writeback_refill.ts and written by writeback_output.ts.
 *
 * In the background, at the controller's rate: scan after scan over the device, with a pause after
 * each. Three things go past the rate (never past its hard maximum): a drain, an idle set, and data
 * that has been dirty for longer than the age limit. With `running` off only a drain writes.
 * The superblock says clean only when a scan of the whole device found nothing, and after the
 * clean keys are durable.
 */
import { BcacheError, DAMAGE_ADVICE, messageOf } from "../../base/errors.ts";
import { Signal } from "../../base/sync.ts";
import { formatBytes } from "../../base/units.ts";
import type { CachedDevice } from "../requests/cached_device.ts";
import { setFailed } from "../faults.ts";
import { KeyBuffer } from "../key_buffer.ts";
import type { RequestParts } from "../request_parts.ts";
import type { WritebackGroup } from "./writeback_group.ts";
import { WritebackOutput } from "./writeback_output.ts";
import { RateController } from "./writeback_rate.ts";
import { DirtyScan } from "./writeback_refill.ts";
import { StarvationWatch } from "./writeback_starvation.ts";

/** With so many failures in a row the rest of a scan would fail as well. */
const FAILURES_MAX = 16;
/** So many scans in a row that change nothing mean that no scan will. */
const FUTILE_SCANS_MAX = 10;
/** Rest after a failure, at least. */
const FAILURE_REST_MS = 1000;
/** Timers do not take more than 2^31 ms; looking once more after a day costs nothing. */
const REST_MS_MAX = 86_400_000;

/** Keeps the collector from what is being written back; see Collector. */
export interface BufferGuard {
  guard(buffer: KeyBuffer): void;
  unguard(buffer: KeyBuffer): void;
}

export class Writeback {
  readonly rate: RateController = new RateController();
  /** Off: dirty data stays in the cache, but for `drain`. */
  running = true;
  /** Kept for the kernel's attribute; means nothing there either. */
  metadata = true;
  /** Pause between two scans of the whole device, seconds. */
  delaySeconds = 30;
  readonly backingSectors: number;
  readonly starvation: StarvationWatch;
  #dev: CachedDevice;
  #parts: RequestParts;
  #group: WritebackGroup;
  #settleClean: () => Promise<void>;
  #guard: BufferGuard;
  #keys = new KeyBuffer();
  #scan: DirtyScan;
  #output: WritebackOutput;
  #wake = new Signal();
  #draining = 0;
  #drainFailure: unknown;
  #passDone = new Signal();
  /** Scans of the whole device after which all that was dirty still is, and nothing else is. */
  #futileScans = 0;
  /** `changes` of the device's dirty map when the last one ended. */
  #changesSeen = 0;
  /** Nothing comes of age before this. */
  #ageDueMs = 0;
  #ageLimitSeconds = 0;
  #stopped = false;

  /** @param settleClean makes every key of the index durable */
  constructor(
    dev: CachedDevice,
    parts: RequestParts,
    options: { settleClean: () => Promise<void>; group: WritebackGroup; guard: BufferGuard },
  ) {
    this.#dev = dev;
    this.#parts = parts;
    this.#settleClean = options.settleClean;
    this.#group = options.group;
    this.#guard = options.guard;
    this.backingSectors = dev.device.sizeSectors;
    const { tunables } = this.rate;
    tunables.percent = Math.min(tunables.percent, parts.tunables.cutoffWriteback);
    this.starvation = new StarvationWatch(parts.clock.nowMs());
    this.#scan = new DirtyScan(this.#keys, parts.btree, dev.inode);
    this.#output = new WritebackOutput(dev, parts, this.#keys, options.group);
    dev.onDirty = () => this.wake();
  }

  /** Sectors per second that it goes at now, for those who look; 0 while not running. */
  get rateNow(): number {
    return this.running ? this.rate.rate : 0;
  }

  /** Runs read from the cache and written to the backing device at a time. */
  get inFlightMax(): number {
    return this.#output.inFlightMax;
  }

  set inFlightMax(value: number) {
    this.#output.inFlightMax = value;
  }

  /** Nothing is written any more: the device was stopped, or the set has failed. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Dirty data older than this is written whatever the rate, seconds; 0: there is no limit. */
  get ageLimitSeconds(): number {
    return this.#ageLimitSeconds;
  }

  setAgeLimit(seconds: number): void {
    this.#ageLimitSeconds = seconds;
    this.#ageDueMs = 0;
    this.wake();
  }

  /** There is dirty data, or a setting changed: look again. */
  wake(): void {
    this.#wake.raise();
  }

  start(): void {
    this.#parts.tasks.start((signal) => this.#run(signal));
    this.#parts.tasks.start((signal) => this.#control(signal));
  }

  /**
   * Writes everything back without regard to the rate and resolves when the device is clean, on
   * disk too. Rejects with what stands in the way.
   */
  async drain(): Promise<void> {
    this.#draining++;
    this.#drainFailure = undefined;
    this.wake();
    try {
      while (this.#dev.needsWriteback) {
        const { refusal } = this.#dev;
        if (refusal) throw refusal;
        if (this.#stopped || this.#parts.faults.failed) throw this.#whyStopped();
        if (this.#drainFailure !== undefined) throw this.#drainFailure;
        await this.#passDone.wait();
      }
    } finally {
      this.#draining--;
    }
  }

  #whyStopped(): BcacheError {
    const { failed } = this.#parts.faults;
    const { name, dirtySectors } = this.#dev;
    if (failed) {
      return setFailed(name, failed, `, and ${formatBytes(dirtySectors * 512)} stay dirty in it`);
    }
    return new BcacheError("Shutdown", `${name} is being stopped`);
  }

  // --- The task ---

  async #run(signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => this.#wake.raise(), { once: true });
    this.#guard.guard(this.#keys);
    this.#group.join(this);
    try {
      while (this.#mayRun(signal)) {
        const wanted = this.running || this.#unpaced;
        if (!this.#dev.needsWriteback || !wanted || this.#dev.ioDisabled) {
          this.#passDone.raise();
          await this.#wake.wait();
          continue;
        }
        await this.#pass(signal);
      }
    } finally {
      // What was written is not written again after the next start, and no device is in use.
      await this.#output.finish();
      this.#stopped = true;
      this.#group.leave(this);
      this.#guard.unguard(this.#keys);
      this.#passDone.raise();
    }
  }

  #mayRun(signal: AbortSignal): boolean {
    return !signal.aborted && this.#parts.faults.failed === undefined;
  }

  /** Somebody waits for everything to be written. */
  get #unpaced(): boolean {
    return this.#draining > 0 || this.#dev.detaching;
  }

  /** A buffer full of keys, or what is left of a scan; then a rest, if it is time for one. */
  async #pass(signal: AbortSignal): Promise<void> {
    let scanned = false;
    try {
      await this.#parts.clock.turn();
      await this.#writeAged(signal);
      scanned = await this.#refill();
      if (scanned && this.#keys.size === 0) await this.#becomeClean();
      if (!await this.#writeOut(signal, () => !this.#unpaced)) scanned = false;
      if (scanned) await this.#output.finish();
      // Keys that wait for their flush take up room: the next refill must find some.
      else while (this.#keys.size > this.#keys.capacity / 2) await this.#output.progress();
    } catch (error) {
      if (this.#parts.faults.failed) throw error;
      await this.#output.finish();
      await this.#failed(error, signal);
      return;
    }
    const failure = scanned ? this.#output.takeFailure() ?? this.#futility() : undefined;
    if (failure !== undefined) await this.#failed(failure, signal);
    else this.#passDone.raise();
    if (scanned && this.#mayRun(signal) && !this.#unpaced) await this.#rest(signal);
  }

  #refill(): Promise<boolean> {
    const { stripes, partialStripesExpensive } = this.#dev.map;
    return this.#scan.refill(partialStripesExpensive ? stripes : undefined);
  }

  async #becomeClean(): Promise<void> {
    await this.#dev.becomeClean(this.#settleClean);
    if (!this.#dev.needsWriteback) this.#parts.noteClean();
  }

  /**
   * A scan has come round, and nothing of it failed. Why no further one will change anything, when
   * that is so: what counts as dirty is in the index where no lookup finds it, or not at all.
   */
  #futility(): BcacheError | undefined {
    const { map, dirtySectors, name } = this.#dev;
    const isFutile = dirtySectors > 0 && map.changes === this.#changesSeen;
    this.#changesSeen = map.changes;
    this.#futileScans = isFutile ? this.#futileScans + 1 : 0;
    if (this.#futileScans < FUTILE_SCANS_MAX) return undefined;
    this.#futileScans = 0;
    return new BcacheError(
      "BadFormat",
      `${this.#parts.cache.name}: b-tree: ${formatBytes(dirtySectors * 512)} of ${name} count as ` +
        `dirty, but no lookup finds them, so they cannot be written back; ${DAMAGE_ADVICE}`,
    );
  }

  /**
   * Dispatches what is pending in the buffer. False: not all of it. Rejects when it makes no sense
   * to go on.
   */
  async #writeOut(signal: AbortSignal, paced: () => boolean): Promise<boolean> {
    const { clock } = this.#parts;
    while (this.#mayRun(signal) && (this.running || this.#unpaced)) {
      if (this.#output.failuresInARow >= FAILURES_MAX) {
        this.#keys.clearPending();
        await this.#output.finish();
        throw this.#output.takeFailure();
      }
      // What has come of age goes first; then the scan goes on from where it is.
      if (paced() && this.#ageIsDue() && await this.#writeAged(signal)) return false;
      const sectors = await this.#output.dispatch();
      if (sectors === 0) return true;
      this.rate.charge(sectors, clock.nowMs(), paced());
      await this.#pace(signal, paced);
    }
    this.#keys.clearPending();
    return false;
  }

  async #pace(signal: AbortSignal, paced: () => boolean): Promise<void> {
    const { clock } = this.#parts;
    for (;;) {
      const waitMs = this.rate.waitMs(clock.nowMs(), paced());
      if (waitMs === 0 || !this.#mayRun(signal)) return;
      this.#output.settleIfDue();
      await this.#sleep(waitMs, signal);
    }
  }

  // --- Age ---

  #ageIsDue(): boolean {
    return this.ageLimitSeconds > 0 && this.#parts.clock.nowMs() >= this.#ageDueMs;
  }

  /** The region whose time has come; notes when the next one's will. */
  #agedRegion(): number | undefined {
    if (!this.#ageIsDue()) return undefined;
    const nowMs = this.#parts.clock.nowMs();
    const limitMs = this.ageLimitSeconds * 1000;
    const oldest = this.#dev.map.regions.oldest();
    // What becomes dirty from now on is not due before the limit is over.
    this.#ageDueMs = (oldest?.sinceMs ?? nowMs) + limitMs;
    return oldest !== undefined && this.#ageDueMs <= nowMs ? oldest.region : undefined;
  }

  /**
   * Writes every region back that has been dirty for too long, unpaced. False: there was none.
   * Else the buffer is empty, and the scan goes on where it had come to.
   */
  async #writeAged(signal: AbortSignal): Promise<boolean> {
    if (!this.running || !this.#ageIsDue()) return false;
    let region = this.#agedRegion();
    if (region === undefined) return false;
    const before = this.#firstPending() ?? this.#scan.cursor;
    this.#keys.clearPending();
    try {
      for (; region !== undefined && this.#mayRun(signal) && this.running;) {
        await this.#writeRegion(region, signal);
        region = this.#agedRegion();
      }
      return true;
    } finally {
      this.#keys.clearPending();
      this.#scan.cursor = before;
    }
  }

  #firstPending(): number | undefined {
    const first = this.#keys.peekNext();
    return first === undefined ? undefined : Math.min(first.start, this.#scan.cursor);
  }

  async #writeRegion(region: number, signal: AbortSignal): Promise<void> {
    const { regions } = this.#dev.map;
    const beganMs = this.#parts.clock.nowMs();
    const start = region * regions.unitSectors;
    const end = start + regions.unitSectors;
    let from = start;
    for (;;) {
      const whole = await this.#scan.refillRange(from, end);
      from = this.#scan.cursor;
      await this.#writeOut(signal, () => false);
      await this.#output.finish();
      const failure = this.#output.takeFailure();
      if (failure !== undefined) throw failure;
      if (!this.#mayRun(signal) || !this.running) return;
      if (whole) break;
    }
    regions.writtenBack(region, beganMs);
  }

  // --- Rests ---

  async #failed(error: unknown, signal: AbortSignal): Promise<void> {
    this.#drainFailure = error;
    this.#log(error);
    this.#passDone.raise();
    await this.#sleep(Math.max(FAILURE_REST_MS, this.delaySeconds * 1000), signal);
  }

  #log(error: unknown): void {
    this.#parts.log("warning", `${this.#dev.name}: writeback: ${messageOf(error)}`);
  }

  /** The pause after a scan of the whole device, shorter when something comes of age before. */
  async #rest(signal: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    let restMs = this.delaySeconds * 1000;
    if (this.ageLimitSeconds > 0) {
      this.#ageDueMs = 0;
      if (this.#agedRegion() !== undefined) return;
      restMs = Math.min(restMs, this.#ageDueMs - clock.nowMs());
    }
    if (this.#dev.needsWriteback) await this.#sleep(restMs, signal);
    this.rate.reset(clock.nowMs());
  }

  /** Sleeps, unless something is changed meanwhile. */
  async #sleep(delayMs: number, signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const end = () => stop.abort();
    signal.addEventListener("abort", end, { once: true });
    const woken = this.#wake.wait().then(end);
    await this.#parts.clock.sleep(Math.min(delayMs, REST_MS_MAX), stop.signal);
    signal.removeEventListener("abort", end);
    this.#wake.raise();
    await woken;
  }

  // --- The controller ---

  async #control(signal: AbortSignal): Promise<void> {
    const { buckets, clock } = this.#parts;
    const { tunables } = this.rate;
    while (this.#mayRun(signal)) {
      await clock.sleep(tunables.updateSeconds * 1000, signal);
      if (!this.#mayRun(signal)) return;
      this.starvation.tick(clock.nowMs(), {
        dirtySectors: this.#dev.dirtySectors,
        targetSectors: this.#group.targetSectors(this, tunables.percent),
        keysDone: this.#output.keysDone,
      });
      if (!this.#dev.needsWriteback || tunables.percent === 0) continue;
      if (this.#group.noteControllerRun(!buckets.gcMarksValid)) {
        this.rate.boost();
        continue;
      }
      this.rate.update({
        dirtySectors: this.#dev.dirtySectors,
        targetSectors: this.#group.targetSectors(this, tunables.percent),
        inUsePercent: buckets.inUsePercent(),
        bucketsInUse: buckets.bucketCount - buckets.availableBuckets,
        bucketSectors: buckets.bucketSectors,
        nowMs: clock.nowMs(),
      });
      this.#parts.noteWritebackControl();
    }
  }
}
