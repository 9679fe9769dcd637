/**
 * A cache device as it lies on disk, opened to be looked at: superblock, geometry, and reads that
 * answer instead of rejecting. Nothing here writes. Answers to `read_super` of super.c.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import { type Geometry, geometryOf } from "../ondisk/geometry.ts";
import { magicsOf, type SetMagics } from "../ondisk/magic.ts";
import {
  isSynchronous,
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
} from "../ondisk/superblock.ts";
import {
  decodeSuperblock,
  hasSuperblockMagic,
  severalCachesFault,
  verifySuperblock,
} from "../ondisk/superblock_verify.ts";
import { type Report, RESTORE } from "./findings.ts";
import { ShortDevice } from "./short_device.ts";

/** Eleven bytes are kept per bucket: this many need 704 MiB. */
const BUCKETS_MAX = 2 ** 26;

export interface CacheImage {
  readonly device: Device;
  /** What of it is there: fewer sectors than it should have when it was cut short. */
  readonly presentSectors: number;
  readonly superblock: Superblock;
  readonly geometry: Geometry;
  readonly magics: SetMagics;
}

/** Fills `into`; a string says why that failed. Never rejects for what the device does. */
export async function tryRead(
  device: Device,
  atSector: number,
  into: Uint8Array,
): Promise<string | undefined> {
  if (atSector + into.length / SECTOR_BYTES > device.sizeSectors) {
    return `the device ends at sector ${device.sizeSectors}`;
  }
  try {
    await device.read(atSector, into);
    return undefined;
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    return messageOf(error);
  }
}

/**
 * The superblock of a device; what is wrong with it is reported. One of a cache is taken also when
 * the device is shorter than it says: that is for the caller to find.
 */
export async function readSuperblockOf(
  device: Device,
  subject: "superblock" | "backing",
  report: Report,
): Promise<Superblock | undefined> {
  const finding = { severity: "error", subject, device: device.name } as const;
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  const failure = await tryRead(device, SUPERBLOCK_SECTOR, page);
  if (failure !== undefined) {
    report({
      ...finding,
      sector: SUPERBLOCK_SECTOR,
      what: `the superblock cannot be read: ${failure}`,
      advice: "check the path, the device and its kernel log",
    });
    return undefined;
  }
  if (!hasSuperblockMagic(page)) {
    report({ ...finding, sector: SUPERBLOCK_SECTOR, ...noMagic(subject) });
    return undefined;
  }
  try {
    return decodeAtAnyLength(page, device) ?? decodeSuperblock(page, device);
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    report({ ...finding, sector: SUPERBLOCK_SECTOR, ...inTwo(error, device) });
    return undefined;
  }
}

/** What to say of a device without a superblock: what may have been one must not be made anew. */
function noMagic(subject: "superblock" | "backing"): { what: string; advice: string } {
  const kind = subject === "backing" ? "backing device" : "cache";
  const last = subject === "backing"
    ? " (an image's is in IMAGE.bcache)"
    : "; or save what its journal leads to with `extract --rescue`; `make` would give it up";
  const advice = `check the path; if it was a ${kind}, its superblock was overwritten: restore ` +
    `bytes 4096-8191 from a copy of it, bcache keeps no second one${last}`;
  return { what: "no bcache magic at byte 4120: this is no bcache device, or was one", advice };
}

/** A cache's superblock, if nothing is wrong with it but that the device may be too short. */
function decodeAtAnyLength(page: Uint8Array, device: Device): Superblock | undefined {
  const { name, logicalBlockSectors } = device;
  const place = { name, logicalBlockSectors, sizeSectors: Infinity };
  if (verifySuperblock(page, place) !== undefined) return undefined;
  const superblock = decodeSuperblock(page, place);
  return superblock.kind === "cache" ? superblock : undefined;
}

/** The device at the length it should have; that it is shorter is reported. */
function atFullLength(device: Device, geometry: Geometry, report: Report): Device {
  const wholeSectors = geometry.bucketCount * geometry.bucketSectors;
  if (device.sizeSectors >= wholeSectors) return device;
  report({
    severity: "error",
    subject: "superblock",
    device: device.name,
    sector: SUPERBLOCK_SECTOR,
    what: "the device was cut short: what lay behind its end is lost",
    found: `${device.sizeSectors} sectors (${formatSize(device.sizeSectors * SECTOR_BYTES)})`,
    expected: `${wholeSectors} (${formatSize(wholeSectors * SECTOR_BYTES)})`,
    advice: RESTORE,
  });
  return new ShortDevice(device, wholeSectors);
}

/** A refusal, taken apart: what is wrong, and what to do. */
function inTwo(error: BcacheError, device: Device): { what: string; advice: string } {
  const text = error.message.replace(`${device.name}: `, "").replace("superblock: ", "");
  const [what = text, ...rest] = text.split("; ");
  const advice = rest.length > 0 ? rest.join("; ") : "nothing can be found without a superblock";
  return { what, advice };
}

/** Opens a cache device's image; undefined when it has no superblock that could be used. */
export async function openCacheImage(
  device: Device,
  report: Report,
): Promise<CacheImage | undefined> {
  const superblock = await readSuperblockOf(device, "superblock", report);
  if (superblock === undefined) return undefined;
  const finding = {
    severity: "error",
    subject: "superblock",
    device: device.name,
    sector: SUPERBLOCK_SECTOR,
  } as const;
  if (superblock.kind !== "cache") {
    report({
      ...finding,
      what: "this is a backing device",
      expected: "a cache device",
      advice: "name the cache device that it is attached to (`show` names its cache set)",
    });
    return undefined;
  }
  const several = severalCachesFault(superblock);
  // What it has is looked at all the same, as that of the only one.
  if (several !== undefined) report({ ...finding, ...several });
  if (superblock.bucketCount > BUCKETS_MAX) {
    report({
      ...finding,
      what: "more buckets than can be looked at in memory",
      found: `${superblock.bucketCount} buckets`,
      expected: `at most ${BUCKETS_MAX}`,
      advice: "make caches of this size with larger buckets (-b)",
    });
    return undefined;
  }
  try {
    const geometry = geometryOf(superblock, device.name);
    return {
      device: atFullLength(device, geometry, report),
      presentSectors: device.sizeSectors,
      superblock,
      geometry,
      magics: magicsOf(superblock.setUuid),
    };
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    report({ ...finding, ...inTwo(error, device) });
    return undefined;
  }
}

/** Whether the set ever ran; if not there is nothing on the device but the superblock. */
export function wasStarted(image: CacheImage): boolean {
  return isSynchronous(image.superblock);
}

/** The bucket a sector of the cache device lies in. */
export function bucketOf(image: CacheImage, sector: number): number {
  return Math.floor(sector / image.geometry.bucketSectors);
}

/** Whether a bucket can hold anything but the superblock. */
export function isBucket(image: CacheImage, bucket: number): boolean {
  const { firstBucket, bucketCount } = image.geometry;
  return bucket >= firstBucket && bucket < bucketCount;
}

/** For findings: the range of buckets that pointers may name. */
export function bucketRange(image: CacheImage): string {
  return `${image.geometry.firstBucket}-${image.geometry.bucketCount - 1}`;
}
