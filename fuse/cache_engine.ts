/**
 * The real engine behind a mount: opens the devices, with the host's locks, and the cache set on
 * them. Loaded by the data plane's worker, in its own thread.
 */
import type { BackingSource } from "../lib/cache/members/attach.ts";
import { CacheSet } from "../lib/cache/cache_set.ts";
import { openBacking } from "../lib/cache/members/open_backing.ts";
import type { Device } from "../lib/device/device.ts";
import { openFileDevice } from "../lib/device/file.ts";
import { CountingDevice } from "../lib/device/counting.ts";
import type { Engine, EngineWorld } from "./engine.ts";
import { refuseOwnFile } from "./own_file.ts";

export async function openEngine(world: EngineWorld): Promise<Engine> {
  const { config } = world;
  const opened: Device[] = [];
  const open = async (path: string): Promise<CountingDevice> => {
    refuseOwnFile(path, config.mountPoint);
    // Alone, reading too: what another process writes would not be what this one's index says.
    const file = await openFileDevice(path, {
      readOnly: config.readOnly,
      exclusive: true,
      host: world.libc,
    });
    return new CountingDevice(file, world.operations);
  };
  const openSource = async (path: string): Promise<BackingSource> => {
    const device = await openBacking(path, open);
    opened.push(device);
    const release = async (): Promise<void> => {
      opened.splice(opened.indexOf(device), 1);
      await device.close();
    };
    return { device, path, release };
  };
  try {
    const cache = await open(config.cachePath);
    opened.push(cache);
    const backings: BackingSource[] = [];
    for (const path of config.backingPaths) backings.push(await openSource(path));
    const set = await CacheSet.open({
      cache,
      backings,
      clock: world.clock,
      random: world.random,
      log: world.log,
      readOnly: config.readOnly,
      settings: config.settings,
      ...(config.cacheMode !== undefined && { cacheMode: config.cacheMode }),
      openBacking: openSource,
      onVolumesChanged: world.onVolumesChanged,
    });
    return owning(set, opened);
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

/** The cache set, but it takes its devices with it when it closes. */
function owning(set: CacheSet, devices: readonly Device[]): Engine {
  const close = async (): Promise<void> => {
    try {
      await set.close();
    } finally {
      await closeAll(devices);
    }
  };
  return new Proxy<Engine>(set, {
    get: (target, name) => {
      if (name === "close") return close;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
