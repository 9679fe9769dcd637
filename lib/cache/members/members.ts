/**
 * The devices of a running cache set: how they come, go and are found. Answers to
 * `bch_cached_dev_attach`, `bch_cached_dev_detach`, `bcache_device_stop` and their finishes in
 * super.c.
 *
 * Changes of membership are made one at a time, under one mutex; a detach writes back before it
 * takes it. Each device has a task group of its own, so that all that runs for it has ended before
 * the device is let go of.
 */
import { BcacheError, ERRNO, messageOf } from "../../base/errors.ts";
import { Mutex, type TaskGroup } from "../../base/sync.ts";
import { formatBytes } from "../../base/units.ts";
import type { Superblock } from "../../ondisk/superblock.ts";
import { attach, type BackingSource, readSuperblock, refuseBacking } from "./attach.ts";
import type { CachedMember } from "./cached_member.ts";
import { detachFromSet } from "./detach.ts";
import type { Engine } from "../engine.ts";
import { type FlashMember, FlashVolumes } from "./flash_volumes.ts";
import type { BlockVolume, UuidStatus } from "../ports.ts";
import type { RequestParts } from "../request_parts.ts";
import { enable } from "./trust.ts";
import { CachedStore } from "../requests/sector_store.ts";
import type { RequestStats } from "../stats.ts";
import { dropLeftovers } from "./leftovers.ts";
import { forget, listUuids } from "./uuid_list.ts";
import { Volume } from "../requests/volume.ts";
import { Writeback } from "../writeback/writeback.ts";
import type { WritebackGroup } from "../writeback/writeback_group.ts";

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
  readonly #flash: FlashVolumes;
  #options: MembersOptions;
  #changes = new Mutex();
  #closed = false;

  constructor(options: MembersOptions) {
    this.#options = options;
    const { engine, readOnly, parts } = options;
    this.#flash = new FlashVolumes({ engine, readOnly, parts, freeName: () => this.#freeName() });
  }

  get flash(): readonly FlashMember[] {
    return this.#flash.list;
  }

  /** Serves the volumes that live on the cache, behind the cached devices there are. */
  openFlash(): void {
    this.#flash.openExisting();
  }

  /** In the order of their files. One that is being stopped is no longer among them. */
  get volumes(): readonly BlockVolume[] {
    const served = this.cached.filter((member) => !member.stopping);
    return [...served, ...this.#flash.list].map((member) => member.volume);
  }

  #names(): string[] {
    return [...this.cached.map(({ dev }) => dev.name), ...this.#flash.list.map(({ name }) => name)];
  }

  /** The lowest that is free, as in the kernel. */
  #freeName(): string {
    const names = this.#names();
    for (let number = 0;; number++) {
      if (!names.includes(`bcache${number}`)) return `bcache${number}`;
    }
  }

  /** @throws BcacheError NotFound, naming those there are */
  find(name: string): CachedMember {
    const found = this.cached.find((member) => member.dev.name === name);
    if (found) return found;
    if (this.#flash.list.some((member) => member.name === name)) {
      const message = `${name} is a volume of the cache itself: it has no backing device; ` +
        "to give it up: bcache-fuse volume destroy";
      throw new BcacheError("InvalidArgument", message);
    }
    throw this.#unknown(name);
  }

  #unknown(name: string): BcacheError {
    const names = this.#names().join(", ") || "none";
    const wanted = JSON.stringify(name);
    return new BcacheError("NotFound", `there is no device ${wanted}; there are: ${names}`);
  }

  /** The volume of that name; undefined when it is a cached device. @throws BcacheError NotFound */
  findFlash(name: string): FlashMember | undefined {
    const found = this.#flash.list.find((member) => member.name === name);
    if (found === undefined && !this.#names().includes(name)) throw this.#unknown(name);
    return found;
  }

  /** @throws BcacheError when there is no such volume, or it is a cached device */
  #volume(name: string): FlashMember {
    const found = this.findFlash(name);
    if (found !== undefined) return found;
    const message = `${name} is a cached device, not a volume of the cache itself`;
    throw new BcacheError("InvalidArgument", message);
  }

  async createVolume(options: { sizeBytes: number; label: string }): Promise<FlashMember> {
    return await this.#changes.run(async () => {
      this.#writable("volume");
      const member = await this.#flash.create(options);
      this.#options.onChange();
      return member;
    });
  }

  /** Refuses to cut data off, unless by force. */
  async resizeVolume(
    name: string,
    sizeBytes: number,
    options: { force: boolean },
  ): Promise<FlashMember> {
    return await this.#changes.run(async () => {
      this.#writable(name);
      const member = this.#volume(name);
      await this.#flash.resize(member, sizeBytes, options);
      this.#options.onChange();
      return member;
    });
  }

  async labelVolume(name: string, label: string): Promise<void> {
    await this.#changes.run(async () => {
      this.#writable(name);
      await this.#flash.setLabel(this.#volume(name), label);
    });
  }

  /** The name that the device of an entry in the UUID table is served under with the cache. */
  #nameOf(inode: number): string | undefined {
    const cached = this.cached.find(({ dev }) => dev.attached && dev.inode === inode);
    return cached?.dev.name ?? this.#flash.list.find((member) => member.inode === inode)?.name;
  }

  uuids(): Promise<UuidStatus[]> {
    return listUuids(this.#options.engine, (inode) => this.#nameOf(inode));
  }

  async forget(uuid: string, options: { force: boolean }): Promise<void> {
    await this.#changes.run(async () => {
      this.#writable(uuid);
      const nameOf = (inode: number) => this.#nameOf(inode);
      await forget(this.#options.engine, uuid, { ...options, nameOf });
    });
  }

  /** Gives up a volume and all that is in it. Refuses one with data, unless by force. */
  async destroyVolume(name: string, options: { force: boolean }): Promise<void> {
    await this.#changes.run(async () => {
      this.#writable(name);
      const member = this.#volume(name);
      const usedBytes = this.#flash.usedSectors(member) * 512;
      if (usedBytes > 0 && !options.force) {
        throw new BcacheError(
          "HoldsData",
          `${name}: holds ${formatBytes(usedBytes)} that are nowhere else; they are given up by ` +
            "force only (--force, over HTTP force=true)",
        );
      }
      await this.#flash.destroy(member, () => this.#options.onChange());
    });
  }

  /** Gives up what a crash left of devices and volumes, until `signal` is aborted. */
  async dropLeftovers(signal: AbortSignal): Promise<void> {
    await dropLeftovers(this.#options.engine, (step) => this.#changes.run(step), signal);
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
      throw new BcacheError("WrongState", `${name}: has no cache; there is nothing to detach`);
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

  /** Serves a device again that is disabled; see trust.ts. */
  async enable(name: string): Promise<void> {
    await this.#changes.run(async () => {
      if (this.#closed) throw new BcacheError("Shutdown", "the cache set is being stopped");
      await enable(this.#options.engine, this.find(name).dev);
    });
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

  /** Takes every device out of the set, as `detach` does, and stops the volumes. */
  async unregister(): Promise<void> {
    const attached = this.cached.filter(({ dev }) => dev.attached);
    await Promise.all(attached.map(({ dev }) => this.detach(dev.name)));
    await this.#changes.run(() => this.#stopVolumes());
  }

  /** Stops serving everything; dirty data stays in the cache. */
  async stopAll(): Promise<void> {
    for (const name of this.cached.map(({ dev }) => dev.name)) {
      await this.stop(name, { force: false });
    }
    await this.#changes.run(() => this.#stopVolumes());
  }

  async #stopVolumes(): Promise<void> {
    for (const member of [...this.#flash.list]) {
      await this.#flush(member.volume, false);
      await this.#flash.stop(member, () => this.#options.onChange());
    }
  }

  async #flush(volume: Volume, force: boolean): Promise<void> {
    try {
      await volume.flush();
    } catch (error) {
      if (force) return;
      const message =
        `${volume.name} is not stopped: ${messageOf(error)}; it is stopped anyway by ` +
        "force (--force, over HTTP force: true)";
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
