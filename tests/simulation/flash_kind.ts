/**
 * A volume on the cache alone, as the simulator runs it: there is nothing to drain it to. It is
 * made at the first start, and filled with what the oracle takes for its first content; its label
 * says when that is durable. A start that finds it unfinished destroys it and begins again.
 *
 * Beside it others are made, filled, flushed, resized and destroyed. After a power cut such a one
 * is there with all that was flushed, until it is to be destroyed; from then on it is there whole,
 * or not at all.
 */
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { bcacheKind, type BcacheOptions } from "./bcache_kind.ts";
import { fillSector } from "./pattern.ts";
import { auditedSet } from "./recovery_audit.ts";
import { SMALL_SLICES } from "./sim_clock.ts";
import type { SimRandom } from "./sim_random.ts";
import type { Engine, EngineKind, EngineParts } from "./world.ts";

const READY = "filled";
/** Others are labelled so, with the number that all their bytes are once they were flushed. */
const GUEST = "guest ";
const GUEST_BYTES = 65536;
/** What some are made smaller to. */
const SMALL_BYTES = 4096;

type FlashOptions = BcacheOptions & { readonly seed: number };
/** Labels of what a power cut must not change. */
interface Promised {
  /** Is there. */
  readonly present: Set<string>;
  /** Is whole, if it is there. */
  readonly whole: Set<string>;
}

export function flashKind(
  options: FlashOptions,
  promised: Promised = { present: new Set(), whole: new Set() },
): EngineKind {
  return {
    ...bcacheKind(options),
    name: "volume on the cache alone",
    backingHolds: false,
    open: (parts) => openVolume(parts, options, promised),
    copy: (remembers) => {
      if (remembers === "nothing") return flashKind(options);
      const { present, whole } = promised;
      return flashKind(options, { present: new Set(present), whole: new Set(whole) });
    },
  };
}

async function openVolume(
  parts: EngineParts,
  options: FlashOptions,
  promised: Promised,
): Promise<Engine> {
  const { cache, clock, random, log } = parts;
  const set = await CacheSet.open({
    cache,
    backings: [],
    clock,
    random,
    log,
    sliceBudget: SMALL_SLICES,
  });
  const audited = await auditedSet(set);
  const { volumes } = await set.status();
  // Those that were not finished when the power was cut are of no use to anybody.
  for (const { name, label } of volumes) {
    if (label === READY) continue;
    if (promised.whole.has(label)) await checkWhole(set, name, label);
    else if (!promised.present.has(label)) await set.destroyVolume(name, { force: true });
  }
  const missing = [...promised.present].filter((label) =>
    !volumes.some((each) => each.label === label)
  );
  if (missing.length > 0) throw new Error(`volumes were lost: ${missing.join(", ")}`);
  const found = volumes.filter(({ label }) => label === READY).map(({ name }) => name);
  if (found.length > 1) throw new Error("two volumes say that they are the one");
  const name = found[0] ?? await makeVolume(set, options);
  const volume = set.volumes.find((each) => each.name === name)!;
  const main = { set, name };
  let turns = 0;
  return {
    volume,
    audited,
    drain: () => volume.flush(),
    close: () => set.close(),
    disturb: (random: SimRandom) => disturb(main, promised, { random, turn: turns++ }),
  };
}

/** @throws when it holds anything but what its label says. */
async function checkWhole(set: CacheSet, name: string, label: string): Promise<void> {
  const volume = set.volumes.find((each) => each.name === name)!;
  // It may have been made smaller, or be about to: its end goes before its size changes.
  const bytes = new Uint8Array(Math.min(GUEST_BYTES, volume.sizeBytes));
  await volume.read(0, bytes);
  const expected = Number(label.slice(GUEST.length).split(" ")[0]);
  const wrong = bytes.findIndex((byte, at) =>
    byte !== expected && !(byte === 0 && at >= SMALL_BYTES)
  );
  if (wrong < 0) return;
  throw new Error(`volume "${label}": byte ${wrong} is ${bytes[wrong]}, expected ${expected}`);
}

/** @returns its name. */
async function makeVolume(set: CacheSet, options: FlashOptions): Promise<string> {
  const { volumeSectors: sectors, seed } = options;
  const { name } = await set.createVolume({ sizeBytes: sectors * SECTOR_BYTES });
  const volume = set.volumes.find((each) => each.name === name)!;
  const bytes = new Uint8Array(sectors * SECTOR_BYTES);
  for (let sector = 0; sector < sectors; sector++) {
    const at = sector * SECTOR_BYTES;
    fillSector(bytes.subarray(at, at + SECTOR_BYTES), seed, sector, 0);
  }
  await volume.write(0, bytes);
  await volume.flush();
  await set.setAttribute(name, "label", READY);
  return name;
}

/** Volumes come and go, and grow, beside the one that is looked at. */
async function disturb(
  main: { readonly set: CacheSet; readonly name: string },
  promised: Promised,
  { random, turn }: { readonly random: SimRandom; readonly turn: number },
): Promise<void> {
  const { set } = main;
  const byte = 1 + random.below(255);
  const label = `${GUEST}${byte} ${turn}`;
  const { name } = await set.createVolume({ sizeBytes: GUEST_BYTES, label });
  promised.present.add(label);
  const other = set.volumes.find((volume) => volume.name === name)!;
  await other.write(0, new Uint8Array(GUEST_BYTES).fill(byte));
  await other.flush();
  promised.whole.add(label);
  if (random.chance(0.5)) await set.resizeVolume(name, SMALL_BYTES, { force: true });
  promised.present.delete(label);
  await set.destroyVolume(name, { force: true });
  if (!random.chance(0.3)) return;
  const first = set.volumes.find((volume) => volume.name === main.name)!;
  await set.resizeVolume(first.name, first.sizeBytes + 4096);
}
