/**
 * `show`: the superblock of a device or image, also while it is mounted: nothing is locked, and
 * nothing but the page is read.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { constants } from "node:fs";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import { sidecarPath } from "../../lib/cache/members/open_backing.ts";
import { nameExists } from "../../lib/device/create.ts";
import { followLink, refuseDanglingLink } from "../../lib/device/host.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { showSuperblock, superblockToJson } from "../../lib/ondisk/show.ts";
import { SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR } from "../../lib/ondisk/superblock.ts";
import { hasSuperblockMagic } from "../../lib/ondisk/superblock_verify.ts";
import type { Program } from "./program.ts";

/** `show DEV [--json]`. Prints what can be told, then throws BadFormat if that is not all well. */
export async function runShow(
  program: Program,
  options: { path: string; json: boolean },
): Promise<void> {
  const { path, page } = await pageOf(options.path);
  const shown = showSuperblock(page);
  program.out(options.json ? `${JSON.stringify(superblockToJson(page), null, 2)}\n` : shown.text);
  if (shown.error === undefined) return;
  const advice = hasSuperblockMagic(page)
    ? "the superblock is damaged; restore it from a copy"
    : "this is no bcache device, or its superblock was overwritten: then restore bytes 4096-8191 " +
      "from a copy of it (bcache keeps no second one), or save what a cache's journal leads to " +
      "with `extract --rescue`; do not make it anew";
  throw new BcacheError("BadFormat", `${path}: ${shown.error}; ${advice}`);
}

/** The page that counts: a sidecar goes before what the image itself holds, as in mount. */
async function pageOf(path: string): Promise<{ path: string; page: Uint8Array }> {
  const page = readPage(path);
  const beside = sidecarPath(await followLink(path));
  return nameExists(beside) ? { path: beside, page: readPage(beside) } : { path, page };
}

function readPage(path: string): Uint8Array {
  let descriptor: number;
  try {
    // O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw openError(path, error);
  }
  try {
    const stat = fstatSync(descriptor);
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new BcacheError(
        "InvalidArgument",
        `${path} is neither a file nor a block device; name the device or image to show`,
      );
    }
    const page = new Uint8Array(SUPERBLOCK_BYTES);
    const at = SUPERBLOCK_SECTOR * SECTOR_BYTES;
    const count = readSync(descriptor, page, 0, page.length, at);
    if (count === page.length) return page;
    throw new BcacheError(
      "BadFormat",
      `${path} ends before byte ${at + page.length}, where a superblock would end; ` +
        "this is no bcache device",
    );
  } catch (error) {
    if (error instanceof BcacheError) throw error;
    throw new BcacheError("DeviceIo", `${path}: reading the superblock: ${messageOf(error)}`, {
      cause: error,
    });
  } finally {
    closeSync(descriptor);
  }
}

function openError(path: string, error: unknown): BcacheError {
  const code = typeof error === "object" && error !== null && "code" in error ? error.code : "";
  if (code === "ENOENT") {
    refuseDanglingLink(path);
    return new BcacheError("NotFound", `${path} does not exist; check the path`, { cause: error });
  }
  return new BcacheError(
    "Permission",
    `${path} cannot be opened (${messageOf(error)}); check its permissions, or try as root`,
    { cause: error },
  );
}
