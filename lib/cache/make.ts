/**
 * Making devices: everything is checked before the first byte is written, so that a command which
 * formats several devices does all of it or nothing. What is written is what make-bcache writes:
 * zeroes over the first 4096 bytes, the superblock behind them, and a flush.
 *
 * One thing more: a cache made again for the set it had before (the set's UUID given) gets its
 * journal's buckets zeroed. Old entries would carry the same magic and could be replayed.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import {
  BLOCK_SECTORS_DEFAULT,
  formatBacking,
  type FormatBackingOptions,
  formatCache,
  type FormatCacheOptions,
} from "../ondisk/format.ts";
import { geometryOf } from "../ondisk/geometry.ts";
import {
  findSignatures,
  type FoundSignature,
  SIGNATURE_HEAD_BYTES,
  SIGNATURE_TAIL_BYTES,
} from "../ondisk/signatures.ts";
import {
  DATA_OFFSET_SECTORS_DEFAULT,
  hasSuperblockMagic,
  SUPERBLOCK,
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
} from "../ondisk/superblock.ts";
import { decodeSuperblock } from "../ondisk/superblock_verify.ts";
import { equalUuids, UUID_BYTES } from "../ondisk/uuid.ts";

/** What is replaced when a device is made: the zeroed start and the superblock. */
const AREA_BYTES = SUPERBLOCK_SECTOR * SECTOR_BYTES + SUPERBLOCK_BYTES;

type FromDevice = "name" | "sizeSectors" | "logicalBlockSectors";
interface Force {
  /** Overwrite what is recognised on the device. */
  readonly force?: boolean;
}
export type MakeCacheOptions = Omit<FormatCacheOptions, FromDevice> & Force;
export type MakeBackingOptions = Omit<FormatBackingOptions, FromDevice> & Force;
export type MakeSidecarOptions = Omit<MakeBackingOptions, "dataOffsetSectors">;

/** A device that can be made: all checks passed, nothing written yet. */
export interface PreparedDevice {
  readonly device: Device;
  /** As it will be on the device. */
  readonly superblock: Superblock;
  /** The range to zero first, in sectors; empty as a rule. */
  readonly staleJournal: { readonly atSector: number; readonly sectors: number };
  /** What the start of the device holds now, to put back if a later step fails. */
  readonly before: Uint8Array;
}

/**
 * Checks that `device` can become a cache. Rejects with InvalidArgument, Exists (something is on
 * it; `force` overwrites), ReadOnly or DeviceIo.
 */
export async function prepareCache(
  device: Device,
  options: MakeCacheOptions,
): Promise<PreparedDevice> {
  const page = formatCache({ ...options, ...describe(device) });
  return await prepare(device, page, options.force ?? false);
}

/** Checks that `device` can become a backing device; its first sectors are then overwritten. */
export async function prepareBacking(
  device: Device,
  options: MakeBackingOptions,
): Promise<PreparedDevice> {
  const page = formatBacking({ ...options, ...describe(device) });
  return await prepare(device, page, options.force ?? false);
}

/**
 * Checks that `sidecar` (a file of its own, 8 KiB) can carry the superblock of `image`, which stays
 * as it is. The image must be whole blocks long: what is served and cached is blocks, and a part
 * of one at the end could not be written. `imageTailBytes` lie behind its last whole sector.
 */
export async function prepareSidecar(
  sidecar: Device,
  image: Device & { readonly tailBytes?: number },
  options: MakeSidecarOptions,
): Promise<PreparedDevice> {
  const blockSectors = options.blockSectors ??
    Math.max(BLOCK_SECTORS_DEFAULT, image.logicalBlockSectors);
  const sizeBytes = image.sizeSectors * SECTOR_BYTES + (image.tailBytes ?? 0);
  const blockBytes = blockSectors * SECTOR_BYTES;
  if (sizeBytes === 0) {
    const advice = `give it its size first (truncate -s SIZE ${image.name}), or check the path`;
    throw new BcacheError("InvalidArgument", `${image.name}: the image is empty; ${advice}`);
  }
  if (sizeBytes % blockBytes !== 0) {
    const found = `${image.name}: ${sizeBytes} bytes are not a whole number of blocks`;
    const smaller = sizeBytes % SECTOR_BYTES === 0 ? ", or choose smaller blocks with -w" : "";
    const advice = `enlarge it (truncate -s %${blockBytes})${smaller}`;
    throw new BcacheError("InvalidArgument", `${found} of ${blockBytes}; ${advice}`);
  }
  if (await readsAsBcache(image)) {
    const found = `${image.name} carries a bcache superblock itself`;
    throw new BcacheError("Exists", `${found}; leave out --sidecar, or look at it with show`);
  }
  if (sidecar.sizeSectors < DATA_OFFSET_SECTORS_DEFAULT) {
    const found = `${sidecar.name}: ${sidecar.sizeSectors} sectors`;
    const expected = `a sidecar has ${DATA_OFFSET_SECTORS_DEFAULT}`;
    throw new BcacheError("InvalidArgument", `${found}, ${expected}; remove it and make it again`);
  }
  const page = formatBacking({
    ...options,
    blockSectors,
    name: image.name,
    sizeSectors: DATA_OFFSET_SECTORS_DEFAULT + image.sizeSectors,
    logicalBlockSectors: image.logicalBlockSectors,
  });
  return await prepare(sidecar, page, options.force ?? false, image.sizeSectors);
}

/**
 * Writes what was prepared, in order. When one fails, what was changed is put back, and the error
 * of the one that failed is thrown.
 */
export async function writePrepared(prepared: readonly PreparedDevice[]): Promise<void> {
  const touched: PreparedDevice[] = [];
  try {
    for (const one of prepared) {
      touched.push(one);
      await writeOne(one);
    }
  } catch (error) {
    const lost: string[] = [];
    for (const one of touched.reverse()) {
      await putBack(one).catch(() => lost.push(one.device.name));
    }
    if (lost.length === 0) throw error;
    const also = `what was there before could not be put back on ${lost.join(", ")}`;
    throw new BcacheError("DeviceIo", `${messageOf(error)}; ${also}`, { cause: error });
  }
}

/** Checks and writes one cache device. */
export async function makeCache(device: Device, options: MakeCacheOptions): Promise<Superblock> {
  const prepared = await prepareCache(device, options);
  await writePrepared([prepared]);
  return prepared.superblock;
}

/** Checks and writes one backing device. */
export async function makeBacking(
  device: Device,
  options: MakeBackingOptions,
): Promise<Superblock> {
  const prepared = await prepareBacking(device, options);
  await writePrepared([prepared]);
  return prepared.superblock;
}

/** Whether the page where a superblock would be carries bcache's magic. */
export async function readsAsBcache(device: Device): Promise<boolean> {
  if (device.sizeSectors < AREA_BYTES / SECTOR_BYTES) return false;
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await device.read(SUPERBLOCK_SECTOR, page);
  return hasSuperblockMagic(page);
}

function describe(device: Device): Pick<FormatCacheOptions, FromDevice> {
  const { name, sizeSectors, logicalBlockSectors } = device;
  return { name, sizeSectors, logicalBlockSectors };
}

/** @param sectorsBehind what follows the device when it is only the first part of one. */
async function prepare(
  device: Device,
  page: Uint8Array,
  force: boolean,
  sectorsBehind: number = 0,
): Promise<PreparedDevice> {
  const { name, logicalBlockSectors } = device;
  if (device.readOnly) {
    throw new BcacheError("ReadOnly", `${name} is open for reading only; nothing was written`);
  }
  const sizeSectors = device.sizeSectors + sectorsBehind;
  // What was composed must be accepted when it is read: the same checks, before anything is lost.
  const superblock = decodeSuperblock(page, { name, sizeSectors, logicalBlockSectors });
  const head = await readEnd(device, 0, SIGNATURE_HEAD_BYTES);
  const tailSectors = Math.min(device.sizeSectors, SIGNATURE_TAIL_BYTES / SECTOR_BYTES);
  const tail = await readEnd(device, device.sizeSectors - tailSectors, SIGNATURE_TAIL_BYTES);
  const found = findSignatures({ sizeBytes: device.sizeSectors * SECTOR_BYTES, head, tail });
  if (found.length > 0 && !force) {
    throw new BcacheError("Exists", `${name} holds: ${listed(found)}; --force overwrites it`);
  }
  const before = head.slice(0, AREA_BYTES);
  return { device, superblock, staleJournal: staleJournal(superblock, before, name), before };
}

async function readEnd(device: Device, atSector: number, bytes: number): Promise<Uint8Array> {
  const sectors = Math.min(device.sizeSectors - atSector, bytes / SECTOR_BYTES);
  const into = new Uint8Array(sectors * SECTOR_BYTES);
  await device.read(atSector, into);
  return into;
}

function listed(found: readonly FoundSignature[]): string {
  return found.map((one) => `${one.name} at byte ${one.offsetBytes}`).join(", ");
}

function staleJournal(superblock: Superblock, before: Uint8Array, name: string) {
  const old = before.subarray(SUPERBLOCK_SECTOR * SECTOR_BYTES);
  const oldSet = old.subarray(SUPERBLOCK.set_uuid, SUPERBLOCK.set_uuid + UUID_BYTES);
  const isSameSet = hasSuperblockMagic(old) && equalUuids(oldSet, superblock.setUuid);
  if (superblock.kind === "backing" || !isSameSet) return { atSector: 0, sectors: 0 };
  const geometry = geometryOf(superblock, name);
  const { firstBucket, bucketSectors, newJournalBucketCount } = geometry;
  return {
    atSector: firstBucket * bucketSectors,
    sectors: newJournalBucketCount * bucketSectors,
  };
}

async function writeOne({ device, superblock, staleJournal }: PreparedDevice): Promise<void> {
  const area = new Uint8Array(AREA_BYTES);
  if (staleJournal.sectors > 0) {
    // The old superblock goes first, durably: it must never meet a journal that is half gone.
    await device.write(0, area, { fua: true });
    await device.zero(staleJournal.atSector, staleJournal.sectors);
  }
  area.set(superblock.page, SUPERBLOCK_SECTOR * SECTOR_BYTES);
  await device.write(0, area, { preflush: true, fua: true });
}

/** Puts back the start of the device, unless it never changed. A zeroed journal stays zeroed. */
async function putBack({ device, before }: PreparedDevice): Promise<void> {
  const now = await readEnd(device, 0, before.length);
  if (now.every((byte, i) => byte === before[i])) return;
  await device.write(0, before, { fua: true });
}
