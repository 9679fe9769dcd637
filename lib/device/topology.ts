/**
 * What a block device says of itself in sysfs about writes that suit it. Answers to
 * `queue_limits.io_opt` and `raid_partial_stripes_expensive`, which the kernel has at hand: the
 * second is not shown, but it is what the software RAIDs with parity set.
 */
import * as fs from "node:fs";
import { SECTOR_BYTES } from "./device.ts";

const PARITY_LEVELS = ["raid4", "raid5", "raid6"];

export interface Topology {
  /** The size of writes that suit it best, in sectors; 0: it does not say. */
  readonly optimalIoSectors: number;
  /** Writing less reads the rest of the stripe first. */
  readonly partialStripesExpensive: boolean;
}

export const NO_TOPOLOGY: Topology = { optimalIoSectors: 0, partialStripesExpensive: false };

function textIn(file: string): string {
  try {
    return fs.readFileSync(file, "utf8").trim();
  } catch {
    // No such file, or no sysfs: the device does not say.
    return "";
  }
}

/** @param folder of the device in sysfs; of a partition, its disk is asked. Never throws. */
export function readTopology(folder: string): Topology {
  const disk = fs.existsSync(`${folder}/partition`) ? `${folder}/..` : folder;
  const bytes = Number(textIn(`${disk}/queue/optimal_io_size`));
  if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % SECTOR_BYTES !== 0) return NO_TOPOLOGY;
  return {
    optimalIoSectors: bytes / SECTOR_BYTES,
    partialStripesExpensive: PARITY_LEVELS.includes(textIn(`${disk}/md/level`)),
  };
}
