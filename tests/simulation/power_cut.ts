/**
 * What a power cut does to a disk with a volatile write cache. A snapshot holds the stable bytes
 * and everything that was not yet stable: completed writes that no flush covers, and writes still
 * under way. Per sector of 512 bytes, any one of its pending versions may have reached the disk,
 * or none: that covers writes lost, kept, torn and reordered.
 */
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import type { DiskImage } from "./disk_image.ts";
import type { SimRandom } from "./sim_random.ts";

/** A write that is not stable yet. The bytes never change. */
export interface Pending {
  /** Its place in the order of completion. */
  readonly sequence: number;
  readonly atSector: number;
  readonly bytes: Uint8Array;
}

/** How much of the unflushed data survives. */
export const CUT_POLICIES = ["none", "all", "sectors", "writes", "newest torn"] as const;
/**
 * none: the disk forgets all of it. all: it forgets nothing. sectors: each pending sector is kept
 * or lost by itself. writes: each write is kept or lost as a whole. newest torn: all is kept but
 * the newest write, of which a random part is.
 */
export type NamedCutPolicy = (typeof CUT_POLICIES)[number];
/** Or exactly the pending writes whose bits are set, the oldest of the disk in the lowest bit. */
export type CutPolicy = NamedCutPolicy | { readonly subset: number };
/** Of up to so many pending writes every subset can be tried. */
export const SUBSET_WRITES_MAX = 8;

export interface DiskSnapshot {
  readonly stable: DiskImage;
  /** Oldest first; writes under way come last. */
  readonly pending: readonly Pending[];
}

/** How many outcomes differ: with nothing pending there is only one. */
export function pendingSectors(snapshot: DiskSnapshot): number {
  let sectors = 0;
  for (const write of snapshot.pending) sectors += write.bytes.length / SECTOR_BYTES;
  return sectors;
}

/** The bytes the next boot finds. The snapshot stays as it is. */
export function imageAfterCut(
  snapshot: DiskSnapshot,
  policy: CutPolicy,
  random: SimRandom,
): DiskImage {
  const image = snapshot.stable.copy();
  const last = snapshot.pending.at(-1);
  for (const [index, write] of snapshot.pending.entries()) {
    if (typeof policy === "object") {
      if (policy.subset >>> index & 1) image.write(write.atSector, write.bytes);
      continue;
    }
    switch (policy) {
      case "none":
        break;
      case "all":
        image.write(write.atSector, write.bytes);
        break;
      case "writes":
        if (random.chance(0.5)) image.write(write.atSector, write.bytes);
        break;
      case "sectors":
        keepSome(image, write, random);
        break;
      case "newest torn":
        if (write === last) keepSome(image, write, random);
        else image.write(write.atSector, write.bytes);
        break;
    }
  }
  return image;
}

/** Keeps each sector with a chance that differs from write to write, so that long runs happen. */
function keepSome(image: DiskImage, write: Pending, random: SimRandom): void {
  const chance = random.pick([0.1, 0.5, 0.9]);
  for (let at = 0; at < write.bytes.length; at += SECTOR_BYTES) {
    if (!random.chance(chance)) continue;
    image.write(write.atSector + at / SECTOR_BYTES, write.bytes.subarray(at, at + SECTOR_BYTES));
  }
}
