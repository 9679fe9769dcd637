/**
 * What every recovery is held to: all that was ever written is read back as the oracle allows, and
 * the drained backing disks alone hold it.
 */
import type { BlockVolume } from "../../lib/cache/ports.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { OracleMismatch } from "./oracle.ts";
import type { Oracle } from "./oracle.ts";
import { imageAfterCut } from "./power_cut.ts";
import { hashOf, SimRandom } from "./sim_random.ts";
import type { Engine, World } from "./world.ts";

/** Equal for equal seeds, another for each volume. */
export function contentSeed(seed: number, volume: number): number {
  return volume === 0 ? seed : hashOf(seed, volume, 51);
}

export function volumesOf(engine: Engine): readonly BlockVolume[] {
  return [engine.volume, ...(engine.beside ?? [])];
}

/** What a drained backing disk holds for certain is what the oracle says. @throws OracleMismatch */
export function checkBackingAlone(world: World, oracle: Oracle, number = 0): void {
  if (world.kind.backingHolds === false) return;
  const begunAt = oracle.beginRead();
  const alone = imageAfterCut(world.backings[number]!.snapshot(), "none", new SimRandom(0));
  for (const { sector, sectors } of rangesOf(oracle.touchedSectors())) {
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    alone.read(sector + world.kind.dataOffsetSectors, bytes);
    try {
      oracle.checkRead(begunAt, sector * SECTOR_BYTES, bytes);
    } catch (error) {
      if (!(error instanceof OracleMismatch)) throw error;
      throw new OracleMismatch(
        `the drained ${world.backings[number]!.name} disk alone: ${error.message}`,
      );
    }
  }
}

/** Reads back all that was ever written, and returns the oracle of the time after. */
export async function checkAllRecovered(
  volume: BlockVolume,
  oracle: Oracle,
  options: { cutAt: number; steadfast: boolean },
): Promise<Oracle> {
  const after = oracle.successor();
  for (const { sector, sectors } of rangesOf(oracle.touchedSectors())) {
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    const at = sector * SECTOR_BYTES;
    if (!volume.tryRead(at, bytes)) await volume.read(at, bytes);
    oracle.checkRecovered({ ...options, sector, bytes, after });
  }
  return after;
}

/** Neighbouring sectors as one read, of 64 KiB at most. */
export function rangesOf(sectors: readonly number[]): Array<{ sector: number; sectors: number }> {
  const ranges: Array<{ sector: number; sectors: number }> = [];
  for (const sector of sectors) {
    const last = ranges.at(-1);
    if (last && last.sector + last.sectors === sector && last.sectors < 128) last.sectors++;
    else ranges.push({ sector, sectors: 1 });
  }
  return ranges;
}
