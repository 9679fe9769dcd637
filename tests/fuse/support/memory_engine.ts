/**
 * An engine without a cache, for tests of the data plane: volumes in memory. The configuration's
 * `settings` steer it: `size` (bytes), `volumes` (how many), `async` ("yes": nothing is done
 * without waiting; "stuck": not before the engine is told to stop waiting), `fail-open`, `crash`
 * (see below).
 */
import { assert } from "../../../lib/base/assert.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import type {
  AttributeInfo,
  BlockVolume,
  CacheControl,
  DeviceStatus,
  SetStatus,
  UuidStatus,
  VolumeStatus,
} from "../../../lib/cache/ports.ts";
import { deviceStatus, volumeStatus } from "../../api/fake_control.ts";
import type { Engine, EngineWorld } from "../../../fuse/engine.ts";

export class MemoryVolume implements BlockVolume {
  readonly name: string;
  readonly blockSizeBytes = 512;
  readonly readOnly: boolean;
  bytes: Uint8Array;
  flushes = 0;
  /** Nothing at once: every read and write takes `delay`. */
  delay: (() => Promise<void>) | undefined;

  constructor(name: string, sizeBytes: number, readOnly = false) {
    this.name = name;
    this.bytes = new Uint8Array(sizeBytes);
    this.readOnly = readOnly;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  tryRead(offsetBytes: number, into: Uint8Array): boolean {
    if (this.delay !== undefined) return false;
    assert(offsetBytes + into.length <= this.bytes.length, "reads lie inside");
    into.set(this.bytes.subarray(offsetBytes, offsetBytes + into.length));
    return true;
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    await this.delay?.();
    assert(offsetBytes + into.length <= this.bytes.length, "reads lie inside");
    into.set(this.bytes.subarray(offsetBytes, offsetBytes + into.length));
  }

  tryWrite(offsetBytes: number, from: Uint8Array): boolean {
    if (this.delay !== undefined) return false;
    assert(offsetBytes + from.length <= this.bytes.length, "writes lie inside");
    this.bytes.set(from, offsetBytes);
    return true;
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.delay?.();
    assert(offsetBytes + from.length <= this.bytes.length, "writes lie inside");
    this.bytes.set(from, offsetBytes);
  }

  async flush(): Promise<void> {
    await this.delay?.();
    this.flushes++;
  }

  async zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.delay?.();
    assert(offsetBytes + lengthBytes <= this.bytes.length, "zeroed ranges lie inside");
    this.bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
  }
}

class MemoryEngine implements Engine, CacheControl {
  volumes: readonly MemoryVolume[];
  #world: EngineWorld;
  #stuck: PromiseWithResolvers<void>;

  constructor(
    world: EngineWorld,
    volumes: readonly MemoryVolume[],
    stuck: PromiseWithResolvers<void>,
  ) {
    this.#world = world;
    this.volumes = volumes;
    this.#stuck = stuck;
  }

  stopWaiting(): void {
    this.#stuck.reject(new BcacheError("Shutdown", "memory waits no more"));
  }

  status(): Promise<SetStatus> {
    return Promise.reject(new BcacheError("NotSupported", "memory has no status"));
  }

  /** The engine's own clock is tested with `sleep-ms`, its flushes are counted by `flushes`. */
  async attributes(_device: string | undefined, name?: string): Promise<AttributeInfo[]> {
    const flushes = this.volumes.reduce((sum, volume) => sum + volume.flushes, 0);
    const memory = process.memoryUsage().rss;
    const all = { flushes, memory };
    await Promise.resolve();
    return Object.entries(all).filter(([key]) => name === undefined || key === name)
      .map(([key, value]) => ({ name: key, value: String(value), writable: false, help: "" }));
  }

  async setAttribute(
    _device: string | undefined,
    name: string,
    value: string,
  ): Promise<AttributeInfo> {
    if (name === "sleep-ms") await this.#world.clock.sleep(Number(value));
    else if (name === "crash") setImmediate(() => thrower(value));
    else throw new BcacheError("NotFound", `${name}: no such attribute`);
    return { name, value, writable: true, help: "" };
  }

  flushDirty(): Promise<void> {
    return Promise.resolve();
  }

  /** A volume more, named as the path ends. */
  attach(backingPath: string): Promise<DeviceStatus> {
    const name = backingPath.slice(backingPath.lastIndexOf("/") + 1);
    this.volumes = [...this.volumes, new MemoryVolume(name, 65536)];
    this.#world.onVolumesChanged();
    return Promise.resolve(deviceStatus(name));
  }

  detach(): Promise<DeviceStatus> {
    return Promise.reject(new BcacheError("NotSupported", "memory has no cache"));
  }

  stop(device: string): Promise<void> {
    this.volumes = this.volumes.filter((volume) => volume.name !== device);
    this.#world.onVolumesChanged();
    return Promise.resolve();
  }

  createVolume(): Promise<VolumeStatus> {
    return Promise.reject(new BcacheError("NotSupported", "memory has no cache"));
  }

  /** Its bytes are what `sizeBytes` follows. */
  resizeVolume(name: string, sizeBytes: number): Promise<VolumeStatus> {
    const found = this.volumes.find((volume) => volume.name === name)!;
    found.bytes = new Uint8Array(sizeBytes);
    this.#world.onVolumesChanged();
    return Promise.resolve(volumeStatus(name, sizeBytes));
  }

  destroyVolume(name: string): Promise<void> {
    return this.stop(name);
  }

  uuids(): Promise<UuidStatus[]> {
    return Promise.resolve([]);
  }

  forget(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<undefined> {
    this.#world.log("info", "closed");
    return Promise.resolve(undefined);
  }
}

function thrower(message: string): never {
  throw new Error(message);
}

export function openEngine(world: EngineWorld): Promise<Engine> {
  const settings = new Map(world.config.settings);
  const failure = settings.get("fail-open");
  if (failure !== undefined) {
    return Promise.reject(new BcacheError("BadChecksum", failure));
  }
  const sizeBytes = Number(settings.get("size") ?? 16 * 1024 * 1024);
  const volumes: MemoryVolume[] = [];
  const stuck = Promise.withResolvers<void>();
  stuck.promise.catch(() => {});
  for (let index = 0; index < Number(settings.get("volumes") ?? 1); index++) {
    const volume = new MemoryVolume(`bcache${index}`, sizeBytes, world.config.readOnly);
    if (settings.get("async") === "yes") volume.delay = () => world.clock.sleep(0.1);
    if (settings.get("async") === "turn") volume.delay = eventLoopDelay(world);
    if (settings.get("async") === "stuck") volume.delay = () => stuck.promise;
    volumes.push(volume);
  }
  return Promise.resolve(new MemoryEngine(world, volumes, stuck));
}

/** As a device does: the result comes through the runtime's event loop. */
function eventLoopDelay(world: EngineWorld): () => Promise<void> {
  return async () => {
    world.operations.begin();
    await new Promise<void>((resolve) => setTimeout(resolve, 1));
    world.operations.end();
  };
}
