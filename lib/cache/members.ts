/**
 * The devices of a running cache set: how they come, go and are found. Answers to
 * `bch_cached_dev_attach`, `bch_cached_dev_detach`, `bcache_device_stop` and their finishes in
 * super.c.
 *
 * Changes of membership are made one at a time, under one mutex; a detach writes back before it
 * takes it. Each device has a task group of its own, so that all that runs for it has ended before
 * the device is let go of.
 */
import { BcacheError, ERRNO, messageOf } from "../base/errors.ts";
import { Mutex, type TaskGroup } from "../base/sync.ts";
import type { Superblock } from "../ondisk/superblock.ts";
import { attach, type BackingSource, readSuperblock, refuseBacking } from "./attach.ts";
import type { CachedDevice } from "./cached_device.ts";
import { detachFromSet } from "./detach.ts";
import type { Engine } from "./engine.ts";
import type { FailedService } from "./failed_service.ts";
import type { BlockVolume } from "./ports.ts";
import type { RequestParts } from "./request_parts.ts";
import { CachedStore } from "./sector_store.ts";
import type { RequestStats } from "./stats.ts";
import { Volume } from "./volume.ts";
import { Writeback } from "./writeback.ts";
import type { WritebackGroup } from "./writeback_group.ts";

export interface CachedMember {
  readonly source: BackingSource;
  readonly dev: CachedDevice;
  readonly volume: Volume;
  readonly writeback: Writeback;
  /** Serves the device once the set has failed. */
  readonly failedService: FailedService;
  /** All that runs by itself for this device. */
  readonly tasks: TaskGroup;
  /** It is on its way out. */
  stopping: boolean;
}

export interface MembersOptions {
  readonly engine: Engine;
  readonly setStats: RequestStats;
  readonly writebacks: WritebackGroup;
  readonly readOnly: boolean;
  /** What the request paths of a device work with. */
  readonly parts: (tasks: TaskGroup) => RequestParts;
  /** The list of volumes, or the size of one, is another now. */
  readonly onChange: () => void;
}

export class Members {
  readonly cached: CachedMember[] = [];
  #options: MembersOptions;
  #changes = new Mutex();
  #closed = false;

  constructor(options: MembersOptions) {
    this.#options = options;
  }

  /** In the order of their files. One that is being stopped is no longer among them. */
  get volumes(): readonly BlockVolume[] {
    return this.cached.filter((member) => !member.stopping).map((member) => member.volume);
  }

  /** The number of names that were ever in use at once is small: the lowest free one is found. */
  #freeName(): string {
    for (let number = 0;; number++) {
      const name = `bcache${number}`;
      if (!this.cached.some((member) => member.dev.name === name)) return name;
    }
  }

  /** @throws BcacheError NotFound, naming those there are */
  find(name: string): CachedMember {
    const found = this.cached.find((member) => member.dev.name === name);
    if (found) return found;
    const names = this.cached.map((member) => member.dev.name).join(", ") || "none";
    const wanted = JSON.stringify(name);
    throw new BcacheError("NotFound", `there is no device ${wanted}; there are: ${names}`);
  }

  /** Refuses while the set is stopped, failed, or read-only. */
  #writable(what: string): void {
    const { engine, readOnly } = this.#options;
    if (this.#closed) throw new BcacheError("Shutdown", `${what}: the cache set is being stopped`);
    if (readOnly) {
      throw new BcacheError("ReadOnly", `${what}: the cache set is read-only; nothing was changed`);
    }
    const { failed } = engine.faults;
    if (failed) {
      throw new BcacheError("SetFailed", `${what}: the cache set has failed: ${failed.message}`);
    }
  }

  /** Adds a device whose superblock `refuseBacking` let pass, without starting its tasks. */
  async add(source: BackingSource, superblock: Superblock): Promise<CachedMember> {
    const { engine, readOnly, setStats, writebacks } = this.#options;
    const dev = await attach(engine, source, superblock, { name: this.#freeName(), setStats });
    const tasks = engine.newTasks();
    const parts = this.#options.parts(tasks);
    const { blockSectors } = engine.geometry;
    const store = new CachedStore(dev, parts);
    const volume = new Volume({
      name: dev.name,
      blockSectors,
      offsetSectors: dev.dataOffset,
      sizeSectors: dev.sizeSectors,
      locks: dev.locks,
      readOnly: readOnly || dev.device.readOnly,
      store,
    });
    const writeback = new Writeback(dev, parts, {
      settleClean: () => engine.settleKeys(),
      group: writebacks,
      guard: engine.collector,
    });
    const { failedService } = store;
    const member = { source, dev, volume, writeback, failedService, tasks, stopping: false };
    this.cached.push(member);
    return member;
  }

  /**
   * Attaches a device while the set runs. Rejects, with nothing changed, when it does not belong
   * here; `adopt` takes one that was made for another set and never had a cache.
   */
  async attach(source: BackingSource, options: { adopt: boolean }): Promise<CachedMember> {
    return await this.#changes.run(async () => {
      this.#writable(source.path);
      const superblock = await readSuperblock(source.device);
      const { superblock: cache } = this.#options.engine;
      refuseBacking(superblock, source, {
        uuid: cache.setUuid,
        blockSectors: cache.blockSectors,
        others: this.cached.map(({ dev }) => ({
          path: dev.path,
          uuid: dev.superblock.uuid,
          name: dev.name,
        })),
        adopt: options.adopt,
      });
      const member = await this.add(source, superblock);
      member.writeback.start();
      this.#options.onChange();
      return member;
    });
  }

  /** Refuses a path that is served already, before it is opened a second time. */
  refuseServed(path: string): void {
    this.#writable(path);
    const member = this.cached.find(({ dev }) => dev.path === path);
    if (member === undefined) return;
    const { name, attached } = member.dev;
    const advice = attached ? "" : `; stop ${name}, then attach it again`;
    const how = attached ? "attached" : "served without a cache";
    throw new BcacheError("Busy", `${path}: is ${how} as ${name} already${advice}`);
  }

  /**
   * Writes all dirty data of a device back and takes it out of the set. It goes on as a device
   * without cache. Rejects when that cannot be done; it is then attached as before.
   */
  async detach(name: string): Promise<CachedMember> {
    const member = this.find(name);
    this.#writable(name);
    if (!member.dev.attached) {
      throw new BcacheError("InvalidArgument", `${name}: has no cache; there is nothing to detach`);
    }
    if (member.dev.detaching) throw new BcacheError("Busy", `${name}: is being detached already`);
    const { engine } = this.#options;
    await detachFromSet(member, {
      engine,
      alone: (step) =>
        this.#changes.run(async () => {
          this.#writable(name);
          return await step();
        }),
    });
    return member;
  }

  /**
   * Stops serving a device and lets go of it. Its dirty data stays in the cache, and is taken up
   * again when it is attached again. Rejects, with the device still served, when what was written
   * to it cannot be made durable; `force` stops it all the same.
   */
  async stop(name: string, options: { force: boolean }): Promise<void> {
    await this.#changes.run(async () => {
      const member = this.find(name);
      if (this.#closed) throw new BcacheError("Shutdown", "the cache set is being stopped");
      if (member.dev.detaching && member.dev.attached) {
        throw new BcacheError("Busy", `${name}: is being detached; wait until that is done`);
      }
      await this.#stop(member, options.force);
    });
  }

  async #stop(member: CachedMember, force: boolean): Promise<void> {
    const { engine, onChange } = this.#options;
    const { dev, volume, tasks } = member;
    await this.#flush(volume, force);
    member.stopping = true;
    onChange();
    await volume.stop();
    await tasks.stop();
    // What came between the flush and the stop; then nothing speaks of the device any more.
    await this.#flushLast(member);
    engine.cache.remove(dev);
    this.cached.splice(this.cached.indexOf(member), 1);
    engine.world.log("info", `${dev.name} (${dev.path}) was stopped`);
    await member.source.release?.();
  }

  async #flush(volume: Volume, force: boolean): Promise<void> {
    try {
      await volume.flush();
    } catch (error) {
      if (force) return;
      const message = `${volume.name} is not stopped: ${messageOf(error)}; --force stops it anyway`;
      throw new BcacheError("DeviceIo", message, { cause: error, errno: ERRNO.EIO });
    }
  }

  async #flushLast({ dev, failedService }: CachedMember): Promise<void> {
    const { engine, readOnly } = this.#options;
    if (readOnly) return;
    try {
      if (engine.faults.failed && dev.attached) return await failedService.flush();
      if (!engine.faults.failed) await engine.committer.flush();
      if (dev.unflushed) await dev.flushWrites();
    } catch (error) {
      engine.world.log(
        "error",
        `${dev.name}: what was written last may not be durable: ${messageOf(error)}`,
      );
    }
  }

  /** No device comes or goes from now on; ends all that runs for those there are. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all(this.cached.map((member) => member.tasks.stop()));
    // What was changing when this was called sees the end, and what it started ends too.
    await this.#changes.run(() => Promise.resolve());
    await Promise.all(this.cached.map((member) => member.tasks.stop()));
  }
}
