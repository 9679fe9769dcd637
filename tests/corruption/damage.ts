/** The columns of the table: what is done to the bytes of a structure. */
import { Buffer } from "node:buffer";
import type { Device } from "../../lib/device/device.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import type { Place } from "./places.ts";
import { BUCKET_SECTORS, type Devices, type Sample } from "./set.ts";

export const DAMAGES = ["a bit", "a sector", "the bucket", "zeroed", "an older version"] as const;
export type Damage = (typeof DAMAGES)[number];

/** Sectors of one device with other bytes. */
export interface Change {
  /** What was done, for who looks into a failure. */
  readonly what: string;
  readonly sector: number;
  readonly bytes: Uint8Array;
}

export function deviceOf<D extends Device>(devices: Devices<D>, place: Place): D {
  return place.backing === undefined ? devices.cache : devices.backings[place.backing]!;
}

async function read(device: Device, sector: number, sectors: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(sectors * 512);
  await device.read(sector, bytes);
  return bytes;
}

function garbage(bytes: Uint8Array, seed: number): void {
  const random = new SimRandom(seed);
  for (let at = 0; at < bytes.length; at++) bytes[at] = random.below(256);
}

/** The bytes of the structure with one change each; none where the damage makes no sense. */
export async function changesOf(sample: Sample, place: Place, damage: Damage): Promise<Change[]> {
  const { sector, sectors, reseal } = place;
  const device = deviceOf(sample, place);
  const sound = await read(device, sector, sectors);
  const changed = (what: string, change: (bytes: Uint8Array) => void): Change => {
    const bytes = sound.slice();
    change(bytes);
    reseal?.(bytes);
    return { what, sector, bytes };
  };
  switch (damage) {
    case "a bit":
      return place.bits.map(([byte, bit]) =>
        changed(`byte ${byte}, bit ${bit}`, (bytes) => void (bytes[byte]! ^= 1 << bit))
      );
    case "a sector":
      if (reseal) return [];
      return [changed("its first sector", (bytes) => garbage(bytes.subarray(0, 512), 1))];
    case "the bucket":
      return reseal ? [] : [await wholeBucket(device, place)];
    case "zeroed":
      if (!reseal) return [changed("all of it", (bytes) => bytes.fill(0))];
      return [
        changed("the key", (bytes) => bytes.fill(0, place.bits[0]![0], 4 + place.bits[0]![0])),
      ];
    case "an older version":
      return reseal ? [] : await olderVersions(sample, place, sound);
  }
}

/** Garbage over the bucket; superblocks lie in the first 8 KiB, which are none. */
async function wholeBucket(device: Device, { sector }: Place): Promise<Change> {
  const start = Math.floor(sector / BUCKET_SECTORS) * BUCKET_SECTORS;
  const bytes = await read(device, start, BUCKET_SECTORS);
  garbage(bytes, 2);
  return { what: "its whole bucket", sector: start, bytes };
}

/**
 * What was there before, or of a structure that moves: what it was before. Each different state of
 * it once, the newest first.
 */
async function olderVersions(sample: Sample, place: Place, sound: Uint8Array): Promise<Change[]> {
  const seen = [sound];
  const changes: Change[] = [];
  for (const [age, devices] of [...sample.earlier.entries()].reverse()) {
    const { earlierSectors, sectors } = place;
    const sector = earlierSectors === undefined ? place.sector : earlierSectors[age];
    if (sector === undefined) continue;
    const bytes = await read(deviceOf(devices, place), sector, sectors);
    if (seen.some((other) => Buffer.compare(other, bytes) === 0)) continue;
    seen.push(bytes);
    changes.push({ what: `as in state ${age}`, sector: place.sector, bytes });
  }
  return changes;
}
