/**
 * Compares backing devices with what the cache knows of them. Answers to the refusals of
 * `bch_cached_dev_attach` of super.c.
 */
import type { Device } from "../device/device.ts";
import { formatSize } from "../base/units.ts";
import {
  type BackingState,
  backingState,
  DATA_OFFSET_SECTORS_DEFAULT,
  type Superblock,
} from "../ondisk/superblock.ts";
import { BEFORE_DATA, smallBlocksFault } from "../ondisk/superblock_verify.ts";
import { equalUuids, formatUuid, isZeroUuid } from "../ondisk/uuid.ts";
import { slotKind } from "../ondisk/uuid_table.ts";
import { readSuperblockOf } from "./cache_image.ts";
import type { CacheImage } from "./cache_image.ts";
import type { DeviceTally } from "./check_extents.ts";
import { sectorsNotWrittenBack } from "./check_written_back.ts";
import type { Finding, Report } from "./findings.ts";
import type { IndexView } from "./index_view.ts";
import type { UuidScan } from "./uuid_scan.ts";

export interface CheckedBacking {
  readonly name: string;
  readonly uuid: string;
  readonly state: BackingState;
  /** Its number in the index; undefined: the cache does not know it. */
  readonly inode: number | undefined;
}

/** What the cache says; undefined parts could not be read, or are not there yet. */
export interface KnownToCache {
  readonly image: CacheImage;
  /** False: its superblock says that it never ran. */
  readonly started: boolean;
  readonly uuids: UuidScan | undefined;
  readonly index: IndexView | undefined;
  readonly devices: ReadonlyMap<number, DeviceTally> | undefined;
}

type Fault = (
  severity: "error" | "warning",
  more: Pick<Finding, "what" | "found" | "expected" | "advice">,
) => void;

/** The slot of a device in the UUID table; undefined: none. */
export function slotOf(uuids: UuidScan, uuid: Uint8Array): number | undefined {
  const slot = uuids.entries.findIndex((entry) =>
    slotKind(entry) === "cached device" && equalUuids(entry.uuid, uuid)
  );
  return slot < 0 ? undefined : slot;
}

/** Checks every backing device that was given. */
export async function checkBackings(
  devices: readonly Device[],
  known: KnownToCache | undefined,
  report: Report,
): Promise<CheckedBacking[]> {
  const checked: CheckedBacking[] = [];
  for (const device of devices) {
    const superblock = await readSuperblockOf(device, "backing", report);
    if (superblock === undefined) continue;
    const fault: Fault = (severity, more) =>
      report({ severity, subject: "backing", device: device.name, ...more });
    if (superblock.kind !== "backing") {
      const advice = "give it with --cache";
      fault("error", { what: "this is a cache device", expected: "a backing device", advice });
      continue;
    }
    const uuid = formatUuid(superblock.uuid);
    const twin = checked.find((other) => other.uuid === uuid);
    if (twin !== undefined) {
      const what = `is the same device as ${twin.name} (UUID ${uuid})`;
      fault("error", { what, advice: "use one of them; the other is a copy" });
    }
    const inode = known === undefined ? undefined : await compare(device, superblock, known, fault);
    checked.push({ name: device.name, uuid, state: backingState(superblock), inode });
  }
  return checked;
}

/** Compares one device with its slot; returns the slot. */
async function compare(
  device: Device,
  superblock: Superblock,
  known: KnownToCache,
  fault: Fault,
): Promise<number | undefined> {
  const { image, uuids } = known;
  const set = image.superblock.setUuid;
  const state = backingState(superblock);
  const attached = !isZeroUuid(superblock.setUuid);
  const slot = uuids === undefined ? undefined : slotOf(uuids, superblock.uuid);
  if (attached && !equalUuids(superblock.setUuid, set)) {
    fault(state === "dirty" || slot !== undefined ? "error" : "warning", {
      what: "belongs to another cache set",
      found: formatUuid(superblock.setUuid),
      expected: formatUuid(set),
      advice: "check it with its own cache",
    });
    return slot;
  }
  const small = smallBlocksFault(superblock.blockSectors, image.superblock.blockSectors);
  if (small !== undefined) fault("error", small);
  if (uuids !== undefined && slot === undefined && (attached || state === "dirty")) {
    reportUnknown(device, superblock, fault);
  }
  if (!known.started && state === "dirty") {
    fault("error", {
      what: "has dirty data in a cache, but the cache's superblock says that it never ran",
      advice: "give the cache that has the data; if it is this one, its superblock is an old " +
        "copy: restore it",
    });
  }
  if (slot === undefined) return undefined;
  const tally = known.devices?.get(slot);
  if (tally === undefined) return slot;
  reportExtents(superblock, tally, fault);
  const place = { sizeSectors: device.sizeSectors, offsetSectors: superblock.dataOffsetSectors };
  for (const misplaced of misplacedExtents(place, tally)) fault(misplaced.severity, misplaced);
  if (state === "clean" && tally.dirtySectors > 0) {
    await reportHidden({ device, index: known.index!, inode: slot }, tally, fault);
  }
  return slot;
}

/** The superblock says that the device is attached, but the cache has no slot for it. */
function reportUnknown(device: Device, superblock: Superblock, fault: Fault): void {
  const state = backingState(superblock);
  // Formatted together and never started: they will be attached then.
  if (state === "none" || state === "stale") return;
  fault("error", {
    what: `is attached and ${state}, but the cache's UUID table does not know it`,
    found: `UUID ${formatUuid(superblock.uuid)}`,
    advice: state === "dirty"
      ? "its dirty data is in no other place: restore the cache from a copy; if that data is " +
        `given up, go on with what the device has: ${makeAnew(device, superblock)}`
      : "the device itself is complete; detach it and attach it again",
  });
}

/** What formats a device again and leaves its data where it is. */
function makeAnew(device: Device, { dataOffsetSectors }: Superblock): string {
  const hasSidecar = (device as { hasSidecar?: boolean }).hasSidecar === true;
  const isUsual = dataOffsetSectors === DATA_OFFSET_SECTORS_DEFAULT;
  const how = hasSidecar ? " --sidecar" : isUsual ? "" : ` -o ${dataOffsetSectors}`;
  return `bcache-fuse make -B ${device.name}${how} --force`;
}

function reportExtents(superblock: Superblock, tally: DeviceTally, fault: Fault): void {
  const state = backingState(superblock);
  if (state === "none" || state === "stale") {
    const was = state === "stale" ? "was used without its cache" : "was detached";
    const isDirty = tally.dirtySectors > 0;
    fault(isDirty ? "error" : "warning", {
      what: `${was}, and the cache still holds data of it, which will not be used again`,
      found: `${tally.cachedSectors} sectors, ${tally.dirtySectors} of them dirty`,
      advice: isDirty
        ? "if that is so, the dirty data is older than the device: `forget` it; if it is not, " +
          "the superblock is damaged: restore it from a copy"
        : "attach it anew",
    });
  }
}

/** What the cache has of a device where the device has no data. */
export function misplacedExtents(
  device: { readonly sizeSectors: number; readonly offsetSectors: number },
  tally: DeviceTally,
): Array<Pick<Finding, "severity" | "what" | "found" | "expected" | "advice">> {
  const faults: ReturnType<typeof misplacedExtents> = [];
  if (tally.start < device.offsetSectors) {
    faults.push({
      severity: "error",
      what: BEFORE_DATA,
      found: `an extent from sector ${tally.start}`,
      expected: `from ${device.offsetSectors} on`,
      advice: "a program counted without the data offset; do not write back; restore both",
    });
  }
  if (tally.end > device.sizeSectors) {
    const isDirty = tally.dirtyEnd > device.sizeSectors;
    faults.push({
      severity: isDirty ? "error" : "warning",
      what: `the cache has ${isDirty ? "dirty" : "clean"} data behind the end of the device`,
      found: `up to sector ${isDirty ? tally.dirtyEnd : tally.end}`,
      expected: `at most ${device.sizeSectors}`,
      advice: "it was cut short; restore its length",
    });
  }
  return faults;
}

/**
 * Dirty keys behind a superblock that says clean. A power cut leaves such: keys are not journaled
 * as they become clean, so replay brings the dirty ones back, although their data was written
 * back. It must be on the device then.
 */
async function reportHidden(
  at: { device: Device; index: IndexView; inode: number },
  tally: DeviceTally,
  fault: Fault,
): Promise<void> {
  const sectors = await sectorsNotWrittenBack(at.index, at.inode, at.device);
  if (sectors === 0) return;
  fault("error", {
    what: `its superblock says clean, but ${tally.dirtySectors} sectors are dirty in the cache`,
    found: `${sectors} of them differ from what is on the device (${formatSize(sectors * 512)})`,
    expected: "state dirty",
    advice: "use it only with its cache; `writeback` brings both together",
  });
}
