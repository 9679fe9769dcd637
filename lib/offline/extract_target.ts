/** What is to be extracted: which device of the index it is, and where its data begins. */
import { BcacheError } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { keyDirty, keyInode, SLOT_WORDS } from "../ondisk/bkey.ts";
import { decodeLabel } from "../ondisk/label.ts";
import { superblockToJson } from "../ondisk/show.ts";
import {
  backingState,
  DATA_OFFSET_SECTORS_DEFAULT,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
} from "../ondisk/superblock.ts";
import { smallBlocksFault } from "../ondisk/superblock_verify.ts";
import { equalUuids, formatUuid, isZeroUuid, parseUuid } from "../ondisk/uuid.ts";
import type { UuidEntry } from "../ondisk/uuid_entry.ts";
import { isServable, slotKind, VOLUME_SECTORS_MAX } from "../ondisk/uuid_table.ts";
import { type CacheImage, readSuperblockOf, tryRead } from "./cache_image.ts";
import { misplacedExtents, slotOf } from "./check_backing.ts";
import type { DeviceTally } from "./check_extents.ts";
import { type Finding, Findings, findingText } from "./findings.ts";
import { effectiveLeaves, type IndexView } from "./index_view.ts";

export interface Target {
  /** Undefined: a flash-only volume. */
  readonly backing: Device | undefined;
  /** Where the volume's data begins on the backing device, and in the index. */
  readonly baseSectors: number;
  readonly sizeSectors: number;
  /** Its number in the index; undefined: nothing in the cache is to be used. */
  readonly inode: number | undefined;
  /** Why all of it is in doubt. */
  readonly doubt?: string;
}

interface Context {
  readonly image: CacheImage | undefined;
  readonly index: IndexView | undefined;
  /** There is an index, and nothing of it can be read. */
  readonly isLost: boolean;
  readonly rescue: boolean;
  /** What the index has, by inode. */
  readonly devices: ReadonlyMap<number, DeviceTally> | undefined;
}

/** What a backing device's superblock says. */
interface Identity {
  readonly uuid: Uint8Array;
  readonly setUuid: Uint8Array;
  readonly state: "none" | "clean" | "dirty" | "stale";
  readonly dataOffsetSectors: number;
  /** Undefined: of a damaged superblock. */
  readonly blockSectors?: number;
  readonly isDamaged: boolean;
}

/** The target of a backing device. Rejects when it does not belong to the cache. */
export async function backingTarget(device: Device, context: Context): Promise<Target> {
  const found = await identify(device, context.rescue);
  const target = {
    backing: device,
    baseSectors: found.dataOffsetSectors,
    sizeSectors: device.sizeSectors - found.dataOffsetSectors,
  };
  const damaged = found.isDamaged ? { doubt: "the backing device's superblock is damaged" } : {};
  const { image, index } = context;
  if (!found.isDamaged && (found.state === "none" || found.state === "stale")) {
    return { ...target, inode: undefined, ...await doubtOfState(device, found, context) };
  }
  if (image !== undefined && !equalUuids(found.setUuid, image.superblock.setUuid)) {
    throw new BcacheError(
      "InvalidArgument",
      `${device.name}: belongs to cache set ${formatUuid(found.setUuid)}, but ` +
        `${image.device.name} is set ${formatUuid(image.superblock.setUuid)}; give its own cache`,
    );
  }
  const slot = index?.uuids === undefined ? undefined : slotOf(index.uuids, found.uuid);
  const small = doubtOfBlocks(device, found, context);
  if (slot !== undefined) {
    const misplaced = doubtOfPlaces(device, found, context, slot);
    return { ...target, inode: slot, ...misplaced, ...small, ...damaged };
  }
  if (context.isLost) return { ...target, inode: undefined, ...damaged };
  if (!context.rescue) {
    throw new BcacheError(
      "InvalidArgument",
      `${device.name}: is attached and ${found.state}, but the cache's UUID table does not know ` +
        `it (UUID ${formatUuid(found.uuid)}); --rescue takes the only device that has data there`,
    );
  }
  const only = index === undefined ? undefined : onlyInode(index, context.devices);
  const doubt = only === undefined
    ? "the cache's UUID table does not know the device: nothing of the cache was used"
    : `the cache's UUID table does not know the device: took number ${only}, the only one`;
  return { ...target, inode: only, doubt };
}

/**
 * A device that says that it has no cache is complete, and what the cache has of it is not used any
 * more. But if that is dirty, one of the two is wrong, or was changed behind the other's back.
 */
async function doubtOfState(
  device: Device,
  { uuid, state }: Identity,
  { index, rescue }: Context,
): Promise<{ doubt?: string }> {
  const slot = index?.uuids === undefined ? undefined : slotOf(index.uuids, uuid);
  if (slot === undefined || !await hasDirty(index!, slot)) return {};
  const what = `its superblock says that it ${
    state === "none" ? "has no cache" : "was changed without its cache"
  }, but the cache has dirty data of it`;
  if (rescue) return { doubt: `${what}, which was not used` };
  throw new BcacheError(
    "InvalidArgument",
    `${device.name}: ${what}; if the superblock is damaged, restore it from a copy; --rescue ` +
      "takes what the device itself has",
  );
}

/** A mount refuses a device whose blocks are smaller than the cache's. */
function doubtOfBlocks(
  device: Device,
  { blockSectors }: Identity,
  { image, rescue }: Context,
): { doubt?: string } {
  if (image === undefined || blockSectors === undefined) return {};
  const fault = smallBlocksFault(blockSectors, image.superblock.blockSectors);
  if (fault === undefined) return {};
  const { what, found, expected, advice } = fault;
  const text = `${what}: found ${found}, expected ${expected}`;
  if (rescue) return { doubt: text };
  throw new BcacheError(
    "InvalidArgument",
    `${device.name}: ${text}; ${advice}; --rescue takes what there is`,
  );
}

/** The cache may have another device's data under this one's number. */
function doubtOfPlaces(
  device: Device,
  { dataOffsetSectors: offsetSectors }: Identity,
  { devices, rescue }: Context,
  slot: number,
): { doubt?: string } {
  const tally = devices?.get(slot);
  if (tally === undefined) return {};
  const { sizeSectors } = device;
  const fault = misplacedExtents({ sizeSectors, offsetSectors }, tally)
    .find(({ severity }) => severity === "error");
  if (fault === undefined) return {};
  const { what, found, expected, advice } = fault;
  if (rescue) return { doubt: what };
  throw new BcacheError(
    "BadFormat",
    `${device.name}: ${what}: found ${found}, expected ${expected}; ${advice}; --rescue takes ` +
      "what there is",
  );
}

async function hasDirty(index: IndexView, inode: number): Promise<boolean> {
  for await (const { keys } of effectiveLeaves(index, inode)) {
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (keyInode(keys.words, at) === inode && keyDirty(keys.words, at)) return true;
    }
  }
  return false;
}

/** The set that a backing device belongs to, as its superblock has it, damaged or not. */
export async function setOf(backing: Device): Promise<Uint8Array | undefined> {
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await tryRead(backing, SUPERBLOCK_SECTOR, page);
  return parseUuid(superblockToJson(page).setUuid);
}

/** Reads a backing device's superblock; in a rescue a damaged one too, if it makes sense. */
async function identify(device: Device, rescue: boolean): Promise<Identity> {
  const findings = new Findings();
  const superblock = await readSuperblockOf(device, "backing", findings.report);
  if (superblock !== undefined) {
    if (superblock.kind === "cache") {
      const what = "this is a cache device, not a backing device";
      throw new BcacheError("InvalidArgument", `${device.name}: ${what}; give it with --cache`);
    }
    const { uuid, setUuid, dataOffsetSectors, blockSectors } = superblock;
    const state = backingState(superblock);
    return { uuid, setUuid, dataOffsetSectors, blockSectors, state, isDamaged: false };
  }
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await tryRead(device, SUPERBLOCK_SECTOR, page);
  const shown = superblockToJson(page);
  const dataOffsetSectors = shown.backing?.dataOffsetSectors ?? 0;
  const uuid = parseUuid(shown.uuid)!;
  const isPossible = dataOffsetSectors >= DATA_OFFSET_SECTORS_DEFAULT &&
    dataOffsetSectors < device.sizeSectors && !isZeroUuid(uuid);
  if (!rescue || !isPossible) {
    const text = findingText(findings.kept[0]!).replace(/^error: /, "");
    const more = isPossible ? "; --rescue takes it as it is" : "";
    throw new BcacheError("BadFormat", `${text}${more}`);
  }
  const setUuid = parseUuid(shown.setUuid)!;
  return { uuid, setUuid, dataOffsetSectors, state: "dirty", isDamaged: true };
}

/**
 * The one device that it may be: of those with keys in the index the one that the UUID table does
 * not know, else the only one that is no volume. Undefined: there is none, or several.
 */
function onlyInode(index: IndexView, devices: Context["devices"]): number | undefined {
  const kindOf = (inode: number) => {
    const entry = index.uuids?.entries[inode];
    return entry === undefined ? "free" : slotKind(entry);
  };
  const all = [...devices?.keys() ?? []];
  const unknown = all.filter((inode) => kindOf(inode) === "free");
  const possible = unknown.length > 0
    ? unknown
    : all.filter((inode) => kindOf(inode) === "cached device");
  return possible.length === 1 ? possible[0] : undefined;
}

/**
 * What a flash-only volume may be called: its number in the UUID table, its UUID, its label, or
 * `bcacheN`, the name that a mount with all the devices of the set gives it.
 */
export type VolumeName = number | Uint8Array | string;

/**
 * The target of a flash-only volume. Throws NotFound when there is none of that name, and BadFormat
 * when there is only a finding, why no index could be read.
 */
export function volumeTarget(
  volume: VolumeName,
  index: IndexView | Finding | undefined,
  context: { cacheName: string; rescue: boolean; devices: Context["devices"] },
): Target {
  const { cacheName } = context;
  if (index !== undefined && "severity" in index) {
    const why = findingText(index).replace(/^error: /, "");
    throw new BcacheError("BadFormat", `nothing of the cache can be read: ${why}`);
  }
  const volumes = volumesOf(index?.uuids?.entries ?? []);
  const found = volumes.filter(isCalled(volume));
  const [first] = found;
  const nameless = first === undefined && context.rescue && typeof volume === "number"
    ? namelessVolume(volume, index, context.devices)
    : undefined;
  if (nameless !== undefined) return nameless;
  const list = (some: readonly VolumeEntry[]): string => some.map(described).join(", ");
  if (first === undefined) {
    const none = index !== undefined && index.uuids === undefined
      ? "its UUID table, which lists them, cannot be read"
      : "there is none";
    const there = volumes.length === 0 ? none : `there are: ${list(volumes)}`;
    const name = nameText(volume);
    throw new BcacheError("NotFound", `${cacheName}: no flash-only volume ${name}; ${there}`);
  }
  if (found.length > 1) {
    throw new BcacheError(
      "InvalidArgument",
      `${cacheName}: ${found.length} flash-only volumes are called ${nameText(volume)}: ` +
        `${list(found)}; name it by its UUID`,
    );
  }
  const { inode, entry } = first;
  if (!isServable(entry)) return sizelessVolume(first, index, context);
  return { backing: undefined, baseSectors: 0, sizeSectors: entry.sectors, inode };
}

/** The data of a number that the UUID table does not know, as a volume of that length. */
function namelessVolume(
  inode: number,
  index: IndexView | undefined,
  devices: Context["devices"],
): Target | undefined {
  const tally = devices?.get(inode);
  const entry = index?.uuids?.entries[inode];
  const isKnown = entry !== undefined && slotKind(entry) !== "free";
  if (index === undefined || tally === undefined || isKnown) return undefined;
  const sizeSectors = endOfData(index, tally);
  const doubt = `the cache's UUID table does not know the volume: ${ENDS_WITH_DATA}`;
  return { backing: undefined, baseSectors: 0, sizeSectors, inode, doubt };
}

/** A volume whose entry has no possible size: in a rescue it is as long as its data. */
function sizelessVolume(
  { inode, entry: { sectors } }: VolumeEntry,
  index: IndexView | undefined,
  { cacheName, rescue, devices }: {
    cacheName: string;
    rescue: boolean;
    devices: Context["devices"];
  },
): Target {
  const what = `volume ${inode} has ${sectors} sectors in the UUID table`;
  const tally = devices?.get(inode);
  if (!rescue || index === undefined || tally === undefined) {
    throw new BcacheError(
      "BadFormat",
      `${cacheName}: ${what}, expected 1 to ${VOLUME_SECTORS_MAX}; --rescue takes its data`,
    );
  }
  const sizeSectors = endOfData(index, tally);
  const doubt = `${what}: ${ENDS_WITH_DATA}`;
  return { backing: undefined, baseSectors: 0, sizeSectors, inode, doubt };
}

const ENDS_WITH_DATA = "it ends where its last data does";

function endOfData({ image }: IndexView, { end }: DeviceTally): number {
  const { blockSectors } = image.geometry;
  return Math.ceil(end / blockSectors) * blockSectors;
}

interface VolumeEntry {
  readonly inode: number;
  readonly entry: UuidEntry;
  readonly label: string;
  /** `bcacheN`. */
  readonly served: string;
}

/** A mount names its cached devices first, then the volumes in the order of the table. */
function volumesOf(entries: readonly UuidEntry[]): VolumeEntry[] {
  let number = entries.filter((entry) => slotKind(entry) === "cached device").length;
  return entries.flatMap((entry, inode) => {
    if (slotKind(entry) !== "flash-only volume") return [];
    return [{ inode, entry, label: decodeLabel(entry.label), served: `bcache${number++}` }];
  });
}

function isCalled(volume: VolumeName): (each: VolumeEntry) => boolean {
  if (typeof volume === "number") return ({ inode }) => inode === volume;
  if (typeof volume !== "string") return ({ entry }) => equalUuids(entry.uuid, volume);
  return ({ label, served }) => label === volume || served === volume;
}

function nameText(volume: VolumeName): string {
  if (typeof volume === "number") return `number ${volume}`;
  return typeof volume === "string" ? JSON.stringify(volume) : `UUID ${formatUuid(volume)}`;
}

function described({ inode, entry, label, served }: VolumeEntry): string {
  const names = [formatUuid(entry.uuid), served, ...(label === "" ? [] : [JSON.stringify(label)])];
  return `${inode} (${names.join(", ")})`;
}
