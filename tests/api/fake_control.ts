/** A cache set that lives in a few variables, for tests of the API and the command line. */
import { BcacheError } from "../../lib/base/errors.ts";
import {
  type AttributeInfo,
  CACHE_MODES,
  type CacheControl,
  type CacheMode,
  type DeviceStatus,
  type SetStatus,
  type UuidStatus,
  type VolumeStatus,
} from "../../lib/cache/ports.ts";

export class FakeControl implements CacheControl {
  failure: Error | undefined;
  failed: string | undefined;
  flushFailure: Error | undefined;
  flushes: Array<string | undefined> = [];
  /** Calls that change which devices there are. */
  calls: string[] = [];
  /** Files are open. */
  busy = false;
  /** Set, a flush waits for it. */
  flushGate: Promise<void> | undefined;
  devices: DeviceStatus[];
  volumes: VolumeStatus[] = [];
  known: UuidStatus[] = [uuidStatus("11111111-2222-3333-4444-555555555555", "bcache0"), {
    ...uuidStatus("99999999-2222-3333-4444-555555555555", null),
    label: "away\u001b",
  }];
  #setValues = new Map([
    ["journal_delay_ms", "100"],
    ["tree_depth", "1"],
    ["writeback_running", "1"],
  ]);

  constructor(count = 1) {
    this.devices = Array.from({ length: count }, (_, at) => deviceStatus(`bcache${at}`));
  }

  status(): Promise<SetStatus> {
    if (this.failure) return Promise.reject(this.failure);
    return Promise.resolve({
      ...setStatus(this.failed),
      devices: structuredClone(this.devices),
      volumes: structuredClone(this.volumes),
    });
  }

  attributes(device: string | undefined, name?: string): Promise<AttributeInfo[]> {
    const all = device === undefined
      ? [...this.#setValues].map(([name, value]) => attribute(name, value))
      : this.volumes.some((volume) => volume.name === device)
      ? [attribute("label", "of a volume")]
      : deviceAttributes(this.#device(device));
    if (name === undefined) return Promise.resolve(all);
    const found = all.filter((each) => each.name === name);
    if (found.length > 0) return Promise.resolve(found);
    return Promise.reject(new BcacheError("NotFound", `there is no attribute "${name}"`));
  }

  async setAttribute(
    device: string | undefined,
    name: string,
    value: string,
  ): Promise<AttributeInfo> {
    const [before] = await this.attributes(device, name);
    if (!before?.writable) throw new BcacheError("ReadOnly", `${name} cannot be set`);
    if (device === undefined) this.#setValues.set(name, value);
    else setOnDevice(this.#device(device), name, value);
    const [after] = await this.attributes(device, name);
    return after ?? before;
  }

  async flushDirty(device: string | undefined): Promise<void> {
    this.flushes.push(device);
    await this.flushGate;
    if (this.flushFailure) throw this.flushFailure;
    for (const each of this.devices) {
      if (device !== undefined && each.name !== device) continue;
      each.dirtyBytes = 0;
      each.state = "clean";
    }
  }

  attach(backingPath: string, options: { force?: boolean } = {}): Promise<DeviceStatus> {
    this.calls.push(`attach ${backingPath}${options.force ? " by force" : ""}`);
    if (this.failure) return Promise.reject(this.failure);
    const device = { ...deviceStatus(`bcache${this.devices.length}`), backingPath };
    this.devices.push(device);
    return Promise.resolve(device);
  }

  async detach(name: string): Promise<DeviceStatus> {
    this.calls.push(`detach ${name}`);
    await this.flushGate;
    if (this.flushFailure) throw this.flushFailure;
    return Object.assign(this.#device(name), {
      attached: false,
      state: "no cache",
      dirtyBytes: 0,
    });
  }

  stop(name: string, options: { force?: boolean } = {}): Promise<void> {
    this.calls.push(`stop ${name}${options.force ? " by force" : ""}`);
    if (this.busy && !options.force) {
      return Promise.reject(new BcacheError("Busy", `/mnt/${name}: in use by cat (process 7)`));
    }
    this.devices.splice(this.devices.indexOf(this.#device(name)), 1);
    return Promise.resolve();
  }

  createVolume(options: { sizeBytes: number; label?: string }): Promise<VolumeStatus> {
    if (this.failure) return Promise.reject(this.failure);
    const name = `bcache${this.devices.length + this.volumes.length}`;
    const volume = volumeStatus(name, options.sizeBytes, options.label ?? "");
    this.volumes.push(volume);
    return Promise.resolve(volume);
  }

  resizeVolume(
    name: string,
    sizeBytes: number,
    options: { force?: boolean } = {},
  ): Promise<VolumeStatus> {
    this.calls.push(`resize ${name} to ${sizeBytes}${options.force ? " by force" : ""}`);
    const volume = this.volumes.find((each) => each.name === name);
    if (volume === undefined) return Promise.reject(new BcacheError("NotFound", name));
    return Promise.resolve(Object.assign(volume, { sizeBytes }));
  }

  destroyVolume(name: string, options: { force?: boolean } = {}): Promise<void> {
    this.calls.push(`destroy ${name}${options.force ? " by force" : ""}`);
    const at = this.volumes.findIndex((each) => each.name === name);
    if (at < 0) return Promise.reject(new BcacheError("NotFound", name));
    if (!options.force && this.volumes[at]!.usedBytes > 0) {
      return Promise.reject(
        new BcacheError("HoldsData", `${name}: holds data; --force gives it up`),
      );
    }
    this.volumes.splice(at, 1);
    return Promise.resolve();
  }

  uuids(): Promise<UuidStatus[]> {
    return Promise.resolve(structuredClone(this.known));
  }

  forget(uuid: string, options: { force?: boolean } = {}): Promise<void> {
    this.calls.push(`forget ${uuid}${options.force ? " by force" : ""}`);
    const at = this.known.findIndex((each) => each.uuid === uuid);
    if (at < 0) return Promise.reject(new BcacheError("NotFound", `the cache knows no ${uuid}`));
    if (!options.force && this.known[at]!.dirtyBytes > 0) {
      return Promise.reject(new BcacheError("HoldsData", `${uuid}: 4.0 KiB are nowhere else`));
    }
    this.known.splice(at, 1);
    return Promise.resolve();
  }

  #device(name: string): DeviceStatus {
    const found = this.devices.find((each) => each.name === name);
    if (found) return found;
    throw new BcacheError("NotFound", `there is no device "${name}"`);
  }
}

function attribute(name: string, value: string): AttributeInfo {
  return { name, value, writable: name !== "tree_depth" && name !== "state", help: `${name}.` };
}

function deviceAttributes(device: DeviceStatus): AttributeInfo[] {
  return [
    attribute("cache_mode", device.cacheMode),
    attribute("label", device.label),
    attribute("state", device.state),
    attribute("writeback_percent", String(device.writeback.percent)),
    attribute("writeback_running", device.writeback.running ? "1" : "0"),
  ];
}

function setOnDevice(device: DeviceStatus, name: string, value: string): void {
  switch (name) {
    case "cache_mode":
      if (!CACHE_MODES.includes(value as CacheMode)) {
        throw new BcacheError("InvalidArgument", `cache_mode "${value}": expected a mode`);
      }
      device.cacheMode = value as CacheMode;
      return;
    case "label":
      device.label = value;
      return;
    case "writeback_percent":
      if (Number(value) < 0 || Number(value) > 40) {
        throw new BcacheError("OutOfRange", `writeback_percent ${value}: expected 0 to 40`);
      }
      device.writeback.percent = Number(value);
      return;
    default:
      // As the kernel does while nothing is attached.
      if (device.state === "no cache") {
        throw new BcacheError("InvalidArgument", "writeback_running: no cache is attached");
      }
      device.writeback.running = value === "1";
  }
}

export function deviceStatus(name: string): DeviceStatus {
  return {
    name,
    backingPath: `/data/${name}.img`,
    attached: true,
    uuid: "11111111-2222-3333-4444-555555555555",
    label: "",
    sizeBytes: 1024 ** 3,
    blockSizeBytes: 4096,
    cacheMode: "writeback",
    state: "dirty",
    dirtyBytes: 3 * 1024 ** 2,
    writeback: { running: true, percent: 10, rateBytesPerSecond: 4096 },
    ioErrors: 0,
    stats: {
      cacheHits: 75,
      cacheMisses: 25,
      cacheBypassHits: 1,
      cacheBypassMisses: 2,
      cacheHitRatio: 75,
      cacheMissCollisions: 0,
      bypassedBytes: 512,
    },
  };
}

export function volumeStatus(name: string, sizeBytes: number, label = ""): VolumeStatus {
  const uuid = "77777777-2222-3333-4444-555555555555";
  return { name, uuid, label, sizeBytes, blockSizeBytes: 4096, usedBytes: 0 };
}

function uuidStatus(uuid: string, device: string | null): UuidStatus {
  return {
    uuid,
    label: "",
    kind: "cached",
    device,
    dirtyBytes: 4096,
    cachedBytes: 3 * 1024 ** 2,
    firstRegisteredSeconds: 1_600_000_000,
    lastRegisteredSeconds: 1_700_000_000,
  };
}

function setStatus(failed: string | undefined): SetStatus {
  return {
    setUuid: "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    cachePath: "/ssd/cache.img",
    sizeBytes: 4 * 1024 ** 3,
    bucketSizeBytes: 512 * 1024,
    blockSizeBytes: 4096,
    bucketCount: 8192,
    replacementPolicy: "lru",
    ...(failed === undefined ? {} : { failed }),
    inUsePercent: 30,
    availablePercent: 70,
    btree: { depth: 1, nodes: 3, cachedBytes: 3 * 512 * 1024 },
    journal: { sequence: 77, activeEntries: 2 },
    writtenBytes: 1,
    btreeWrittenBytes: 2,
    metadataWrittenBytes: 3,
    ioErrors: 0,
    uptimeSeconds: 12.5,
    devices: [],
    volumes: [],
  };
}
