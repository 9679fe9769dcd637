/**
 * A volume on the cache alone, as the simulator runs it: there is nothing to drain it to. It is
 * made at the first start, and filled with what the oracle takes for its first content; its label
 * says when that is durable. A start that finds it unfinished destroys it and begins again.
 */
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { bcacheKind, type BcacheOptions } from "./bcache_kind.ts";
import { fillSector } from "./pattern.ts";
import type { SimRandom } from "./sim_random.ts";
import type { Engine, EngineKind, EngineParts } from "./world.ts";

const READY = "filled";

export function flashKind(options: BcacheOptions & { readonly seed: number }): EngineKind {
  return {
    ...bcacheKind(options),
    name: "volume on the cache alone",
    backingHolds: false,
    open: (parts) => openVolume(parts, options),
  };
}

async function openVolume(
  parts: EngineParts,
  options: BcacheOptions & { readonly seed: number },
): Promise<Engine> {
  const { cache, clock, random, log } = parts;
  const set = await CacheSet.open({ cache, backings: [], clock, random, log });
  // Others that were there when the power was cut are of no use to anybody.
  for (const { name, label } of (await set.status()).volumes) {
    if (label !== READY) await set.destroyVolume(name, { force: true });
  }
  if (set.volumes.length === 0) await makeVolume(set, options);
  if (set.volumes.length > 1) throw new Error("two volumes say that they are the one");
  const [volume] = set.volumes;
  return {
    volume: volume!,
    drain: () => volume!.flush(),
    close: () => set.close(),
    disturb: (random: SimRandom) => disturb(set, random),
  };
}

async function makeVolume(
  set: CacheSet,
  options: { readonly volumeSectors: number; readonly seed: number },
): Promise<void> {
  const { volumeSectors: sectors, seed } = options;
  const { name } = await set.createVolume({ sizeBytes: sectors * SECTOR_BYTES });
  const [volume] = set.volumes;
  const bytes = new Uint8Array(sectors * SECTOR_BYTES);
  for (let sector = 0; sector < sectors; sector++) {
    const at = sector * SECTOR_BYTES;
    fillSector(bytes.subarray(at, at + SECTOR_BYTES), seed, sector, 0);
  }
  await volume!.write(0, bytes);
  await volume!.flush();
  await set.setAttribute(name, "label", READY);
}

/** Volumes come and go, and grow, beside the one that is looked at. */
async function disturb(set: CacheSet, random: SimRandom): Promise<void> {
  const [first] = set.volumes;
  const { name } = await set.createVolume({ sizeBytes: 65536 });
  const other = set.volumes.find((volume) => volume.name === name)!;
  await other.write(0, new Uint8Array(32768).fill(random.below(256)));
  if (random.chance(0.5)) await set.resizeVolume(name, 32768);
  await set.destroyVolume(name, { force: true });
  if (random.chance(0.3)) await set.resizeVolume(first!.name, first!.sizeBytes + 4096);
}
