/**
 * The real engine behind a mount: opens the devices, with the host's locks, and the cache set on
 * them. Loaded by the data plane's worker, in its own thread. What becomes of the files while they
 * are in use, and what is lost with them, is told in the status and at the end.
 */
import type { BackingSource } from "../lib/cache/members/attach.ts";
import { CacheSet } from "../lib/cache/cache_set.ts";
import { openBacking } from "../lib/cache/members/open_backing.ts";
import type { WhenChanged } from "../lib/cache/members/sidecar.ts";
import type { Device } from "../lib/device/device.ts";
import { type FileDevice, openFileDevice } from "../lib/device/file.ts";
import { CountingDevice } from "../lib/device/counting.ts";
import type { SetRemains, SetStatus } from "../lib/cache/ports.ts";
import { collectGarbage } from "../lib/runtime/garbage.ts";
import type { Engine, EngineWorld } from "./engine.ts";
import { describeLoss, warningsOf } from "./losses.ts";
import { refuseOwnFile } from "./own_file.ts";
import { remainsOf } from "./remains.ts";

export async function openEngine(world: EngineWorld): Promise<Engine> {
  const { config } = world;
  const opened: Device[] = [];
  const files = new Set<FileDevice>();
  const open = async (path: string): Promise<CountingDevice> => {
    await refuseOwnFile(path, config.mountPoint);
    // Alone, reading too: what another process writes would not be what this one's index says.
    const file = await openFileDevice(path, {
      readOnly: config.readOnly,
      exclusive: true,
      host: world.libc,
    });
    files.add(file);
    return new CountingDevice(file, world.operations);
  };
  const openSource = async (path: string, changed?: WhenChanged): Promise<BackingSource> => {
    const device = await openBacking(path, open, changed);
    opened.push(device);
    const release = async (): Promise<void> => {
      opened.splice(opened.indexOf(device), 1);
      await device.close();
    };
    return { device, path, release, dropCached: device.dropCached ?? false };
  };
  try {
    const cache = await open(config.cachePath);
    opened.push(cache);
    const backings: BackingSource[] = [];
    for (const path of config.backingPaths) {
      backings.push(await openSource(path, config.changedImage));
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
      openBacking: (path) => openSource(path),
      onVolumesChanged: world.onVolumesChanged,
    });
    collectGarbage();
    return owning(set, { devices: opened, files, world });
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

interface Owned {
  readonly devices: readonly Device[];
  /** All that were opened; one that was closed is not deleted any more. */
  readonly files: ReadonlySet<FileDevice>;
  readonly world: EngineWorld;
}

/** The cache set, but it takes its devices with it when it closes, and says what was lost. */
function owning(set: CacheSet, { devices, files, world }: Owned): Engine {
  const status = async (): Promise<SetStatus> => {
    const known = await set.status();
    const fates = await Promise.all(
      [...files].map(async (file) => {
        const { name: path, filePath } = file;
        return { path, filePath, fate: await file.fate() };
      }),
    );
    const warnings = warningsOf(known, fates);
    return warnings.length === 0 ? known : { ...known, warnings };
  };
  const close = async (): Promise<SetRemains> => {
    let failure: unknown;
    const before = await set.status();
    try {
      await set.close();
    } catch (error) {
      failure = error;
    }
    const after = await status();
    const loss = world.config.readOnly ? undefined : describeLoss(after, failure);
    await closeAll(devices);
    if (loss?.isLost === true) throw loss.error;
    if (loss !== undefined) world.log("warning", loss.error.message);
    if (failure !== undefined) throw failure;
    return remainsOf(before, after);
  };
  return new Proxy<Omit<Engine, "close">>(set, {
    get: (target, name) => {
      if (name === "close") return close;
      if (name === "status") return status;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  }) as Engine;
}
