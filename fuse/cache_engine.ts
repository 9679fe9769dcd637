/**
 * The real engine behind a mount: opens the devices, with the host's locks, and the cache set on
 * them. Loaded by the data plane's worker, in its own thread.
 */
import { CacheSet } from "../lib/cache/cache_set.ts";
import { openBacking } from "../lib/cache/open_backing.ts";
import type { Device } from "../lib/device/device.ts";
import { openFileDevice } from "../lib/device/file.ts";
import { CountingDevice } from "./counting_device.ts";
import type { Engine, EngineWorld } from "./engine.ts";

export async function openEngine(world: EngineWorld): Promise<Engine> {
  const { config } = world;
  const opened: Device[] = [];
  const open = async (path: string): Promise<CountingDevice> => {
    // Alone, reading too: what another process writes would not be what this one's index says.
    const file = await openFileDevice(path, {
      readOnly: config.readOnly,
      exclusive: true,
      host: world.libc,
    });
    return new CountingDevice(file, world.operations);
  };
  try {
    const cache = await open(config.cachePath);
    opened.push(cache);
    const backings: { device: Device; path: string }[] = [];
    for (const path of config.backingPaths) {
      const device = await openBacking(path, open);
      opened.push(device);
      backings.push({ device, path });
    }
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

/** Closes what can be closed; the first failure is reported when all were tried. */
async function closeAll(devices: readonly Device[]): Promise<void> {
  const results = await Promise.allSettled(devices.map((device) => device.close()));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

/** A cache set that takes its devices with it when it closes. */
class DeviceOwningEngine implements Engine {
  readonly #set: CacheSet;
  readonly #devices: readonly Device[];

  constructor(set: CacheSet, devices: readonly Device[]) {
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
