/**
 * The real engine behind a mount: opens the devices, with the host's locks, and the cache set on
 * them. Loaded by the data plane's worker, in its own thread.
 */
import { readFileSync } from "node:fs";
import { isAbsolute, relative, resolve } from "node:path";
import { BcacheError } from "../lib/base/errors.ts";
import type { BackingSource } from "../lib/cache/attach.ts";
import { CacheSet } from "../lib/cache/cache_set.ts";
import { openBacking } from "../lib/cache/open_backing.ts";
import type { Device } from "../lib/device/device.ts";
import { openFileDevice } from "../lib/device/file.ts";
import { CountingDevice } from "../lib/device/counting.ts";
import type { Engine, EngineWorld } from "./engine.ts";

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

/**
 * A file of this very mount would be served by the thread that waits for it, for ever: it must not
 * even be looked at. @throws BcacheError Busy
 */
function refuseOwnFile(path: string, mountPoint: string): void {
  const inside = relative(resolve(mountPoint), resolve(path));
  const loop = /^\/dev\/(loop\d+)$/.exec(resolve(path))?.[1];
  const behind = loop === undefined ? undefined : loopFile(loop);
  const isInside = !inside.startsWith("..") && !isAbsolute(inside);
  if (!isInside && !behind?.startsWith(`${resolve(mountPoint)}/`)) return;
  throw new BcacheError(
    "Busy",
    `${path}: is served by this mount itself, at ${mountPoint}; name a device outside of it`,
  );
}

/** The file behind a loop device, as the kernel names it. */
function loopFile(name: string): string | undefined {
  try {
    return readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim();
  } catch {
    return undefined; // It has none.
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
