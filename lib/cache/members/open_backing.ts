/**
 * Opening a backing device by its path: either the file carries its superblock itself, or it is a
 * plain image whose superblock lies in `PATH.bcache` beside it. Not beside a link to it: an image
 * has one superblock, by whatever name it is asked for. (A disk's lies beside the name it is asked
 * for, since names in /dev come and go.) The two joined (the sidecar's sectors up to the data
 * offset, then the image) are a backing device, for Linux too.
 *
 * A sidecar goes before a superblock found inside the image: `make` refuses one for an image that
 * is a bcache device already, so that one is data, say of a guest that uses bcache itself.
 */
import { BcacheError } from "../../base/errors.ts";
import { type Device, SECTOR_BYTES } from "../../device/device.ts";
import { SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR } from "../../ondisk/superblock.ts";
import { decodeSuperblock } from "../../ondisk/superblock_verify.ts";
import { readsAsBcache } from "../make.ts";
import { type FileLike, openSidecar, type WhenChanged } from "./sidecar.ts";

/** Opens a file; rejects with NotFound where there is none. `openFileDevice` does. */
export type OpenDevice = (path: string) => Promise<FileLike>;

/** A backing device that may want to know when it is taken in; see `SidecarDevice`. */
export interface BackingDevice extends Device {
  /** Its superblock lies in a file beside it, and must never be written into the image itself. */
  readonly hasSidecar?: boolean;
  readonly dropCached?: boolean;
  admit?(): Promise<void>;
}

/** Where the superblock of a plain image is kept. `imagePath` is no link to a file. */
export function sidecarPath(imagePath: string): string {
  return `${imagePath}.bcache`;
}

/**
 * The backing device at `path`. Rejects with BadFormat when there is no superblock in either
 * place, or when an image was changed behind its sidecar (unless told what to do then), and with
 * what opening and reading reject with. Nothing stays open then.
 */
export async function openBacking(
  path: string,
  open: OpenDevice,
  whenChanged: WhenChanged = "refuse",
): Promise<BackingDevice> {
  const image = await open(path);
  let sidecar: Device | undefined;
  try {
    const filePath = image.filePath ?? path;
    const beside = sidecarPath(filePath);
    sidecar = await openIfThere(beside, open);
    if (sidecar) return await join(sidecar, image, whenChanged);
    if (filePath !== path) await refuseStrayed(path, filePath, open);
    if (await readsAsBcache(image)) return image;
    const found = `${path} has no bcache superblock, and there is no ${beside}`;
    const advice =
      "if it had one, bring that back: a cache may hold newer data of this image than " +
      `it has itself; else make one with: bcache-fuse make -B ${filePath} --sidecar`;
    throw new BcacheError("BadFormat", `${found}; ${advice}`);
  } catch (error) {
    await sidecar?.close();
    await image.close();
    throw error;
  }
}

/** A superblock beside a link, where nobody looks for it, is not to be made anew. */
async function refuseStrayed(path: string, filePath: string, open: OpenDevice): Promise<void> {
  const strayed = await openIfThere(sidecarPath(path), open);
  if (strayed === undefined) return;
  await strayed.close();
  throw strayedSidecar(path, filePath);
}

/** The refusal of a superblock that lies beside the link `path` to the image at `filePath`. */
export function strayedSidecar(path: string, filePath: string): BcacheError {
  const [here, there] = [sidecarPath(path), sidecarPath(filePath)];
  return new BcacheError(
    "WrongState",
    `${path} is a link to ${filePath}, but ${here} lies beside the link, expected beside the ` +
      `image; move it there: mv ${here} ${there}`,
  );
}

async function openIfThere(path: string, open: OpenDevice): Promise<Device | undefined> {
  try {
    return await open(path);
  } catch (error) {
    if (error instanceof BcacheError && error.code === "NotFound") return undefined;
    throw error;
  }
}

async function join(
  sidecar: Device,
  image: FileLike,
  whenChanged: WhenChanged,
): Promise<BackingDevice> {
  const end = SUPERBLOCK_SECTOR + SUPERBLOCK_BYTES / SECTOR_BYTES;
  if (sidecar.sizeSectors < end) {
    const found = `${sidecar.name}: ${sidecar.sizeSectors} sectors, a sidecar has ${end}`;
    throw new BcacheError("BadFormat", `${found}; restore it from a copy, or make it again`);
  }
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await sidecar.read(SUPERBLOCK_SECTOR, page);
  const superblock = decodeSuperblock(page, {
    name: sidecar.name,
    sizeSectors: sidecar.sizeSectors + image.sizeSectors,
    logicalBlockSectors: Math.max(sidecar.logicalBlockSectors, image.logicalBlockSectors),
  });
  if (superblock.kind !== "backing" || superblock.dataOffsetSectors > sidecar.sizeSectors) {
    const found = superblock.kind === "cache"
      ? "the superblock of a cache"
      : `data offset ${superblock.dataOffsetSectors}, beyond its own end`;
    throw new BcacheError("BadFormat", `${sidecar.name}: ${found}; this is not a sidecar`);
  }
  const imageBytes = image.sizeSectors * SECTOR_BYTES + (image.tailBytes ?? 0);
  const blockBytes = superblock.blockSectors * SECTOR_BYTES;
  if (imageBytes % blockBytes !== 0) {
    const found = `${image.name}: ${imageBytes} bytes are not whole blocks of ${blockBytes}`;
    const advice = `it was whole when its sidecar was made; truncate -s %${blockBytes} enlarges it`;
    throw new BcacheError("BadFormat", `${found}; ${advice}`);
  }
  return await openSidecar(sidecar, image, superblock, whenChanged);
}
