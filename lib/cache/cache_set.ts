/**
 * A running cache set: one cache device, its cached devices as volumes, and their control.
 * Builds the parts and owns them; start and stop order are here, algorithms are not.
 *
 * The engine takes clock, randomness and devices from outside, so it runs in a simulator, in a
 * data-plane worker or inside somebody's program alike.
 */
import { BcacheError } from "../base/errors.ts";
import type { Clock, Log, Random } from "../base/runtime.ts";
import type { TaskGroup } from "../base/sync.ts";
import { formatBytes } from "../base/units.ts";
import type { Device } from "../device/device.ts";
import { OverlayDevice } from "../device/overlay.ts";
import { geometryOf } from "../ondisk/geometry.ts";
import { backingState, isSynchronous, type Superblock } from "../ondisk/superblock.ts";
import { severalCachesFault } from "../ondisk/superblock_verify.ts";
import { type BackingSource, readSuperblock, refuseBacking, refuseSlot } from "./members/attach.ts";
import { bound, type BoundAttributes } from "./attributes/attribute.ts";
import {
  checkSetting,
  DEFAULT_TUNABLES,
  DEVICE_ATTRIBUTES,
  type DeviceTarget,
  SET_ATTRIBUTES,
  type SetTarget,
  VOLUME_ATTRIBUTES,
} from "./attributes/tables.ts";
import type { VolumeTarget } from "./attributes/targets.ts";
import type { Engine } from "./engine.ts";
import { FailurePolicy } from "./members/failure_policy.ts";
import type { FlashMember } from "./members/flash_volumes.ts";
import type { CachedMember } from "./members/cached_member.ts";
import { Members } from "./members/members.ts";
import type {
  AttributeInfo,
  BlockVolume,
  CacheControl,
  CacheMode,
  DeviceStatus,
  SetStatus,
  UuidStatus,
  VolumeStatus,
} from "./ports.ts";
import { startExisting, startNew } from "./recovery.ts";
import type { RequestParts, RequestTunables } from "./request_parts.ts";
import type { SliceBudget } from "./collection/slices.ts";
import type { StartProgress } from "./start_progress.ts";
import { RequestStats, STATS_TICK_MS } from "./stats.ts";
import { deviceStatus, setStatus, volumeStatus } from "./status.ts";
import { refuseUnknownDirt } from "./uuid_damage.ts";
import { flashDirtySectors, WritebackGroup } from "./writeback/writeback_group.ts";

export interface CacheSetOptions {
  /** The cache device. Opened and closed by the caller. */
  readonly cache: Device;
  /** The backing devices, in the order of `bcache0`, `bcache1`, ...; the caller's as well. */
  readonly backings: readonly BackingSource[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Told how far starting has come; the log has it as well, when it takes long. */
  readonly onProgress?: (progress: StartProgress) => void;
  /** Changes nothing on any device: what has to be written is kept in memory and forgotten. */
  readonly readOnly?: boolean;
  /** For all devices; kept in their superblocks. */
  readonly cacheMode?: CacheMode;
  /** Attributes to set at the start, of the set or of every device that has them. */
  readonly settings?: ReadonlyArray<readonly [name: string, value: string]>;
  /** Opens a backing device that is attached while the set runs. What it opens stays its own. */
  readonly openBacking?: (path: string) => Promise<BackingSource>;
  /** How long a collection keeps others waiting; absent: what suits a real clock. */
  readonly sliceBudget?: SliceBudget;
  /** Told when `volumes`, or the size of one, has become another. */
  readonly onVolumesChanged?: () => void;
}

export class CacheSet implements CacheControl {
  readonly #engine: Engine;
  readonly #tunables: RequestTunables = { ...DEFAULT_TUNABLES };
  readonly #stats = new RequestStats();
  readonly #members: Members;
  readonly #writebacks: WritebackGroup;
  readonly #openBacking: CacheSetOptions["openBacking"];
  readonly #startedMs: number;
  readonly #readOnly: boolean;
  readonly #failure: FailurePolicy;
  #closed = false;

  private constructor(engine: Engine, options: CacheSetOptions) {
    this.#engine = engine;
    this.#readOnly = options.readOnly ?? false;
    this.#openBacking = options.openBacking;
    this.#startedMs = engine.world.clock.nowMs();
    const { bucketCount, bucketSectors } = engine.geometry;
    this.#writebacks = new WritebackGroup({
      cacheSectors: bucketCount * bucketSectors,
      flashDirtySectors: () => flashDirtySectors(engine.uuids, engine.dirty),
    });
    this.#members = new Members({
      engine,
      writebacks: this.#writebacks,
      setStats: this.#stats,
      readOnly: this.#readOnly,
      parts: (tasks) => this.#requestParts(tasks),
      onChange: () => options.onVolumesChanged?.(),
    });
    this.#failure = new FailurePolicy({
      engine,
      tunables: this.#tunables,
      members: () => this.#members.cached,
      readOnly: this.#readOnly,
    });
  }

  /**
   * Starts the set: recovers what is on the cache device, or begins anew on a freshly formatted
   * one, and attaches the backing devices. Rejects with a BcacheError and leaves nothing half-done:
   * superblocks are all checked before anything is written.
   */
  static async open(options: CacheSetOptions): Promise<CacheSet> {
    const changes = options.cacheMode !== undefined || (options.settings?.length ?? 0) > 0;
    if (options.readOnly && changes) {
      throw new BcacheError("ReadOnly", "a read-only cache set takes no settings; leave them out");
    }
    for (const [name, value] of options.settings ?? []) checkSetting(name, value);
    const opened = options.readOnly ? behindOverlays(options) : options;
    const superblock = await readSuperblock(opened.cache);
    const backings = await checkDevices(superblock, opened);
    const geometry = geometryOf(superblock, opened.cache.name);
    const { clock, random, log, onProgress, sliceBudget } = opened;
    const source = {
      device: opened.cache,
      superblock,
      geometry,
      world: { clock, random, log, onProgress, sliceBudget },
    };
    const engine = isSynchronous(superblock) ? await startExisting(source) : await startNew(source);
    const set = new CacheSet(engine, options);
    try {
      refuseUnknownDirt(engine);
      for (const { source, superblock } of backings) await refuseSlot(engine, source, superblock);
      for (const { source, superblock } of backings) {
        await set.#members.add(source, superblock);
      }
      set.#members.openFlash();
      await set.#applySettings(options);
    } catch (error) {
      await set.close();
      throw error;
    }
    if (!options.readOnly) set.#startBackground();
    return set;
  }

  get volumes(): readonly BlockVolume[] {
    return this.#members.volumes;
  }

  #requestParts(tasks: TaskGroup): RequestParts {
    const engine = this.#engine;
    const { clock, log } = engine.world;
    return {
      cache: engine.cache,
      btree: engine.btree,
      buckets: engine.buckets,
      allocator: engine.allocator,
      open: engine.open,
      committer: engine.committer,
      fills: engine.fills,
      clock,
      log,
      faults: engine.faults,
      tasks,
      blockSectors: engine.geometry.blockSectors,
      tunables: this.#tunables,
      mayFill: !this.#readOnly,
      noteCached: (sectors) => engine.collector.noteCached(sectors),
      noteRequest: () => this.#writebacks.noteRequest(),
      noteCacheError: (error) => this.#failure.noteCacheError(error),
      noteReadRetry: () => void this.#failure.readRetries++,
      noteWritebackControl: () => engine.collector.noteWritebackControl(),
      noteClean: () => engine.collector.noteClean(),
    };
  }

  #startBackground(): void {
    const { tasks, world } = this.#engine;
    for (const { writeback } of this.#members.cached) writeback.start();
    tasks.start((signal) => this.#members.dropLeftovers(signal));
    tasks.start(async (signal) => {
      while (!signal.aborted) {
        await world.clock.sleep(STATS_TICK_MS, signal);
        this.#stats.tick();
        for (const { dev } of this.#members.cached) {
          dev.stats.tick();
          dev.load.tick(world.clock.nowMs());
        }
      }
    });
  }

  async #applySettings(options: CacheSetOptions): Promise<void> {
    if (options.cacheMode !== undefined) {
      for (const { dev } of this.#members.cached) await dev.setMode(options.cacheMode);
    }
    for (const [name, value] of options.settings ?? []) {
      if (DEVICE_ATTRIBUTES.some((attribute) => attribute.name === name)) {
        for (const { dev } of this.#members.cached) await this.setAttribute(dev.name, name, value);
      } else await this.setAttribute(undefined, name, value);
    }
  }

  // CacheControl

  status(): Promise<SetStatus> {
    const { clock } = this.#engine.world;
    return Promise.resolve(setStatus(this.#engine, this.#members, {
      uptimeSeconds: Math.floor((clock.nowMs() - this.#startedMs) / 1000),
      ioErrors: this.#failure.errors.count,
      lastError: this.#failure.lastError,
    }));
  }

  attributes(device: string | undefined, name?: string): Promise<AttributeInfo[]> {
    return attempt(() => this.#attributesOf(device).describe(name));
  }

  async setAttribute(
    device: string | undefined,
    name: string,
    value: string,
  ): Promise<AttributeInfo> {
    if (this.#readOnly) {
      throw new BcacheError("ReadOnly", `${name}: the cache set is read-only; nothing was changed`);
    }
    if (this.#closed) throw new BcacheError("Shutdown", `${name}: the cache set is being stopped`);
    return await this.#attributesOf(device).write(name, value);
  }

  #attributesOf(device: string | undefined): BoundAttributes {
    if (device === undefined) return bound(SET_ATTRIBUTES, this.#setTarget(), "the cache set");
    const volume = this.#members.findFlash(device);
    if (volume === undefined) return bound(DEVICE_ATTRIBUTES, this.#deviceTarget(device), device);
    return bound(VOLUME_ATTRIBUTES, this.#volumeTarget(volume), device);
  }

  async flushDirty(device: string | undefined): Promise<void> {
    const members = device === undefined
      ? this.#members.cached.filter(({ dev }) => dev.attached)
      : [this.#members.find(device)];
    for (const { dev } of members) {
      if (!this.#readOnly || !dev.needsWriteback) continue;
      const dirty = formatBytes(dev.dirtySectors * 512);
      throw new BcacheError(
        "ReadOnly",
        `${dev.name}: ${dirty} are dirty, but the cache set is read-only; mount it for writing ` +
          "to flush them",
      );
    }
    await Promise.all(members.map((member) => this.#flushMember(member)));
  }

  async #flushMember({ failedService, writeback }: CachedMember): Promise<void> {
    const { faults } = this.#engine;
    if (faults.failed === undefined) await writeback.drain();
    if (faults.failed !== undefined && !this.#readOnly) await failedService.flush();
  }

  async attach(backingPath: string, options: { force?: boolean } = {}): Promise<DeviceStatus> {
    this.#members.refuseServed(backingPath);
    if (this.#openBacking === undefined) {
      throw new BcacheError("NotSupported", `${backingPath}: this cache set takes no more devices`);
    }
    const source = await this.#openBacking(backingPath);
    let member: CachedMember;
    try {
      member = await this.#members.attach(source, { adopt: options.force ?? false });
    } catch (error) {
      await source.release?.();
      throw error;
    }
    return deviceStatus(member);
  }

  async detach(device: string): Promise<DeviceStatus> {
    return deviceStatus(await this.#members.detach(device));
  }

  async stop(device: string, options: { force?: boolean } = {}): Promise<void> {
    await this.#members.stop(device, { force: options.force ?? false });
  }

  async createVolume(options: { sizeBytes: number; label?: string }): Promise<VolumeStatus> {
    const { sizeBytes, label = "" } = options;
    return volumeStatus(this.#engine, await this.#members.createVolume({ sizeBytes, label }));
  }

  async resizeVolume(
    name: string,
    sizeBytes: number,
    { force = false }: { force?: boolean } = {},
  ): Promise<VolumeStatus> {
    const member = await this.#members.resizeVolume(name, sizeBytes, { force });
    return volumeStatus(this.#engine, member);
  }

  async destroyVolume(name: string, options: { force?: boolean } = {}): Promise<void> {
    await this.#members.destroyVolume(name, { force: options.force ?? false });
  }

  async uuids(): Promise<UuidStatus[]> {
    return await this.#members.uuids();
  }

  async forget(uuid: string, options: { force?: boolean } = {}): Promise<void> {
    await this.#members.forget(uuid, { force: options.force ?? false });
  }

  #deviceTarget(device: string): DeviceTarget {
    const { dev, writeback } = this.#members.find(device);
    return {
      dev,
      writeback,
      engine: this.#engine,
      tunables: this.#tunables,
      enable: () => this.#members.enable(device),
      detach: async () => void await this.#members.detach(device),
      stop: () => this.#members.stop(device, { force: false }),
    };
  }

  #volumeTarget(member: FlashMember): VolumeTarget {
    const { name } = member;
    return {
      status: () => volumeStatus(this.#engine, member),
      setLabel: (text) => this.#members.labelVolume(name, text),
      resize: async (sizeBytes) => void await this.resizeVolume(name, sizeBytes),
      destroy: () => this.#members.destroyVolume(name, { force: true }),
    };
  }

  #setTarget(): SetTarget {
    return {
      engine: this.#engine,
      stats: this.#stats,
      tunables: this.#tunables,
      writebacks: this.#writebacks,
      percents: () =>
        this.#members.cached.filter(({ dev }) => dev.attached)
          .map(({ dev, writeback }) => ({ name: dev.name, ...writeback.rate.tunables })),
      failure: this.#failure,
      createVolume: async (sizeBytes) =>
        void await this.#members.createVolume({ sizeBytes, label: "" }),
      unregister: () => this.#members.unregister(),
      stop: () => this.#members.stopAll(),
    };
  }

  // The end

  /**
   * From now on no request waits for room in the cache: who would, and who does, is refused with
   * Shutdown. Nobody may be left who waits when the set is closed.
   */
  stopWaiting(): void {
    this.#engine.allocator.stopWaiting();
  }

  /**
   * Stops in good order: background work ends, everything in memory is made durable. Dirty data
   * stays in the cache. No request may be under way. The devices remain open. Rejects when the set
   * failed and its attribute `errors` is panic.
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const { tasks, journal, faults, cache } = this.#engine;
    this.stopWaiting();
    try {
      // First everything that commits to the journal, then what is still in memory, then it.
      await this.#members.close();
      await tasks.stop();
      if (!faults.failed) {
        // The next start then finds nothing in the journal that it has to bring back.
        await this.#engine.settleKeys();
        await journal.stop();
        await cache.flush();
      }
    } finally {
      await this.#engine.stopTasks();
      await this.#failure.close();
    }
  }

  /** Lets go of everything without writing: what a power cut does. For simulations and tests. */
  async abandon(): Promise<void> {
    this.#closed = true;
    this.#failure.abandon();
    this.#engine.faults.raise(new BcacheError("Shutdown", "the cache set was abandoned"));
    await Promise.all([this.#members.close(), this.#engine.stopTasks()]);
  }
}

function attempt<T>(body: () => T): Promise<T> {
  try {
    return Promise.resolve(body());
  } catch (error) {
    return Promise.reject(error);
  }
}

/** Reads and checks every superblock before anything is changed. */
async function checkDevices(
  cache: Superblock,
  options: CacheSetOptions,
): Promise<Array<{ source: BackingSource; superblock: Superblock }>> {
  const { name } = options.cache;
  if (cache.kind !== "cache") {
    throw new BcacheError(
      "InvalidArgument",
      `${name}: this is a backing device, not a cache device; give it with --backing`,
    );
  }
  const several = severalCachesFault(cache);
  if (several !== undefined) {
    const { what, found, expected, advice } = several;
    throw new BcacheError(
      "BadFormat",
      `${name}: superblock: ${what}: found ${found}, expected ${expected}; ${advice}`,
    );
  }
  if (cache.mustBeReadOnly && !options.readOnly) {
    throw new BcacheError(
      "ReadOnly",
      `${name}: uses the obsolete large_bucket feature, which can only be mounted with --read-only`,
    );
  }
  const checked: Array<{ source: BackingSource; superblock: Superblock }> = [];
  for (const source of options.backings) {
    const superblock = await readSuperblock(source.device);
    refuseBacking(superblock, source, {
      uuid: cache.setUuid,
      blockSectors: cache.blockSectors,
      others: checked.map((other) => ({
        path: other.source.path,
        uuid: other.superblock.uuid,
      })),
      adopt: false,
    });
    if (!isSynchronous(cache) && backingState(superblock) === "dirty") {
      throw new BcacheError(
        "BadFormat",
        `${source.path}: has dirty data in a cache, but the superblock of ${name} says that it ` +
          "never ran; give the cache that has the data, or restore sector 8 of this one from a " +
          "newer copy",
      );
    }
    checked.push({ source, superblock });
  }
  return checked;
}

/** All devices behind overlays that keep writes in memory: nothing on disk changes. */
function behindOverlays(options: CacheSetOptions): CacheSetOptions {
  return {
    ...options,
    cache: new OverlayDevice(options.cache),
    backings: options.backings.map((source) => ({
      ...source,
      device: new OverlayDevice(source.device),
    })),
  };
}
