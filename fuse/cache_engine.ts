/**
 * The real engine behind a mount: opens the devices, with the host's locks, and the cache set on
 * them. Loaded by the data plane's worker, in its own thread.
 */
import { existsSync } from "node:fs";
import type { Clock, Log, Random } from "../lib/base/runtime.ts";
import type { CacheMode } from "../lib/cache/ports.ts";
import { type Device, SECTOR_BYTES } from "../lib/device/device.ts";
import { openFileDevice } from "../lib/device/file.ts";
import { JoinedDevice } from "../lib/device/joined.ts";
import { hasSuperblockMagic } from "../lib/ondisk/superblock_verify.ts";
import { CountingDevice } from "./counting_device.ts";
import type { Engine, EngineWorld } from "./engine.ts";

/** Where the superblock is, on every bcache device. */
const SUPERBLOCK_SECTOR = 8;
const SUPERBLOCK_PAGE_BYTES = 4096;

/** What `CacheSet.open` is given. */
interface CacheSetOptions {
  readonly cache: Device;
  readonly backings: readonly { readonly device: Device; readonly path: string }[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly readOnly: boolean;
  readonly cacheMode?: CacheMode;
  readonly settings: readonly (readonly [name: string, value: string])[];
}

interface CacheSetModule {
  readonly CacheSet: { open(options: CacheSetOptions): Promise<Engine> };
}

export async function openEngine(world: EngineWorld): Promise<Engine> {
  const { config } = world;
  const opened: Device[] = [];
  try {
    const cache = await openCounted(world, config.cachePath, opened);
    const backings: { device: Device; path: string }[] = [];
    for (const path of config.backingPaths) {
      backings.push({ device: await openBacking(world, path, opened), path });
    }
    const address = new URL("../lib/cache/cache_set.ts", import.meta.url).href;
    const { CacheSet } = await import(address) as CacheSetModule;
    const set = await CacheSet.open({
      cache,
      backings,
      clock: world.clock,
      random: world.random,
      log: world.log,
      readOnly: config.readOnly,
      settings: config.settings,
      ...(config.cacheMode !== undefined && { cacheMode: config.cacheMode }),
    });
    return new DeviceOwningEngine(set, opened);
  } catch (error) {
    // Why it could not be opened says more than what closing adds to it.
    await Promise.allSettled(opened.map((device) => device.close()));
    throw error;
  }
}

async function openCounted(world: EngineWorld, path: string, opened: Device[]): Promise<Device> {
  const file = await openFileDevice(path, { readOnly: world.config.readOnly, host: world.libc });
  const device = new CountingDevice(file, world.operations);
  opened.push(device);
  return device;
}

/** A plain image with its superblock in `PATH.bcache` beside it becomes one device of the two. */
async function openBacking(world: EngineWorld, path: string, opened: Device[]): Promise<Device> {
  const image = await openCounted(world, path, opened);
  const sidecarPath = `${path}.bcache`;
  if (!existsSync(sidecarPath) || await hasSuperblock(image)) return image;
  const sidecar = await openCounted(world, sidecarPath, opened);
  const joined = new JoinedDevice(sidecar, image, sidecar.sizeSectors, path);
  opened.splice(opened.indexOf(image), opened.length, joined);
  return joined;
}

async function hasSuperblock(device: Device): Promise<boolean> {
  const page = new Uint8Array(SUPERBLOCK_PAGE_BYTES);
  if (device.sizeSectors < SUPERBLOCK_SECTOR + page.length / SECTOR_BYTES) return false;
  await device.read(SUPERBLOCK_SECTOR, page);
  return hasSuperblockMagic(page);
}

/** Closes what can be closed; the first failure is reported when all were tried. */
async function closeAll(devices: readonly Device[]): Promise<void> {
  const results = await Promise.allSettled(devices.map((device) => device.close()));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

/** A cache set that takes its devices with it when it closes. */
class DeviceOwningEngine implements Engine {
  readonly #set: Engine;
  readonly #devices: readonly Device[];

  constructor(set: Engine, devices: readonly Device[]) {
    this.#set = set;
    this.#devices = devices;
  }

  get volumes(): Engine["volumes"] {
    return this.#set.volumes;
  }

  status(): ReturnType<Engine["status"]> {
    return this.#set.status();
  }

  attributes(device: string | undefined, name?: string): ReturnType<Engine["attributes"]> {
    return this.#set.attributes(device, name);
  }

  setAttribute(
    device: string | undefined,
    name: string,
    value: string,
  ): ReturnType<Engine["setAttribute"]> {
    return this.#set.setAttribute(device, name, value);
  }

  flushDirty(device: string | undefined): Promise<void> {
    return this.#set.flushDirty(device);
  }

  async close(): Promise<void> {
    try {
      await this.#set.close();
    } finally {
      await closeAll(this.#devices);
    }
  }
}
