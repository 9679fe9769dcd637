/**
 * `make`, carried out: opens and creates the files, checks them all, then writes them all. Files
 * that were created are removed again when anything is refused.
 */
import { existsSync, realpathSync } from "node:fs";
import { dirname } from "node:path";
import { BcacheError } from "../../lib/base/errors.ts";
import { formatSize } from "../../lib/base/units.ts";
import {
  prepareBacking,
  prepareCache,
  type PreparedDevice,
  prepareSidecar,
  writePrepared,
} from "../../lib/cache/make.ts";
import { sidecarPath, strayedSidecar } from "../../lib/cache/members/open_backing.ts";
import { createSparseFile, nameExists, removeCreatedFile } from "../../lib/device/create.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { type FileDevice, openFileDevice } from "../../lib/device/file.ts";
import { refuseDanglingLink } from "../../lib/device/host.ts";
import { BLOCK_SECTORS_DEFAULT } from "../../lib/ondisk/format.ts";
import { DATA_OFFSET_SECTORS_DEFAULT } from "../../lib/ondisk/superblock.ts";
import {
  formatUuid,
  isZeroUuid,
  parseUuid,
  randomUuid,
  UUID_BYTES,
} from "../../lib/ondisk/uuid.ts";
import { type Libc, openLibc } from "../../lib/runtime/libc.ts";
import { SystemRandom } from "../../lib/runtime/random.ts";
import { loopDeviceOf } from "../control/mount_table.ts";
import { printable } from "./format.ts";
import type { MakeRequest } from "./program.ts";

/** Formats all that was asked for, or nothing. Returns what to tell: a line per device. */
export async function makeDevices(request: MakeRequest): Promise<string> {
  const files = new OpenFiles(await openLibc());
  try {
    const prepared = await prepareAll(files, request);
    await writePrepared(prepared);
    const told = prepared.map(lineAbout).join("") + files.otherSizes(request.sizeBytes);
    files.keepCreated();
    return told;
  } finally {
    await files.close();
  }
}

/** What is open, and what of it is new: gone again at `close` unless it is to be kept. */
class OpenFiles {
  #host: Libc;
  #open: FileDevice[] = [];
  #created: string[] = [];

  constructor(host: Libc) {
    this.#host = host;
  }

  /** Opens `path` for this process alone; a missing file is created if there is a size for it. */
  async open(path: string, sizeBytes: number | undefined): Promise<FileDevice> {
    if (!existsSync(path)) {
      refuseDanglingLink(path);
      refuseToCreate(path);
      if (sizeBytes === undefined) {
        throw new BcacheError(
          "NotFound",
          `${path} does not exist; check the path, or add --size SIZE to create it`,
        );
      }
      createSparseFile(path, sizeBytes);
      this.#created.push(path);
    }
    refuseLooped(path);
    const device = await openFileDevice(path, { host: this.#host });
    this.#open.push(device);
    return device;
  }

  /** Which files were there before with another size than was asked for: a line for each. */
  otherSizes(sizeBytes: number | undefined): string {
    if (sizeBytes === undefined) return "";
    return this.#open.filter(({ name, sizeSectors }) =>
      !this.#created.includes(name) && sizeSectors !== Math.floor(sizeBytes / SECTOR_BYTES)
    ).map(({ name, sizeSectors }) =>
      `${printable(name)}: was there before and keeps its size, ` +
      `${formatSize(sizeSectors * SECTOR_BYTES)}; --size is for files that are missing\n`
    ).join("");
  }

  keepCreated(): void {
    this.#created = [];
  }

  async close(): Promise<void> {
    await Promise.all(this.#open.splice(0).map((device) => device.close()));
    for (const path of this.#created.splice(0)) removeCreatedFile(path);
  }
}

/** A mistyped device must not become a file in /dev; /dev/shm is a folder for files. */
function refuseToCreate(path: string): void {
  const folder = dirname(path);
  if (!existsSync(folder)) {
    throw new BcacheError(
      "NotFound",
      `${path}: there is no folder ${folder}; make it with mkdir -p ${folder}, or check the path`,
    );
  }
  const real = `${realpathSync(folder)}/`;
  if (!real.startsWith("/dev/") || real.startsWith("/dev/shm/")) return;
  throw new BcacheError(
    "NotFound",
    `${path}: no such device; lsblk lists those there are, and files are not created in /dev`,
  );
}

/** Not even with --force: whoever uses the loop device would go on writing to the file. */
function refuseLooped(path: string): void {
  const holder = loopDeviceOf(realpathSync(path));
  if (holder === undefined) return;
  throw new BcacheError(
    "Busy",
    `${path} is in use by ${holder.description}; first: ${holder.remedy}`,
  );
}

async function prepareAll(files: OpenFiles, request: MakeRequest): Promise<PreparedDevice[]> {
  const { cachePath, sizeBytes, force } = request;
  const cache = cachePath === undefined ? undefined : await files.open(cachePath, sizeBytes);
  if (cache) refuseCachedImage(cache);
  const backings: FileDevice[] = [];
  for (const path of request.backingPaths) backings.push(await files.open(path, sizeBytes));
  const random = new SystemRandom();
  // A backing device made alone belongs to no set yet: any may take it.
  const fresh = () => cache ? randomUuid(random) : new Uint8Array(UUID_BYTES);
  const setUuid = (request.setUuid === undefined ? undefined : parseUuid(request.setUuid)) ??
    fresh();
  // One block size for the set: a backing device with another could not be attached.
  const devices = cache ? [cache, ...backings] : backings;
  const largest = Math.max(...devices.map((device) => device.logicalBlockSectors));
  const blockSectors = request.blockSizeBytes === undefined
    ? Math.max(BLOCK_SECTORS_DEFAULT, largest)
    : request.blockSizeBytes / SECTOR_BYTES;
  const common = () => ({
    uuid: randomUuid(random),
    setUuid,
    blockSectors,
    force,
    ...(request.bucketSizeBytes !== undefined &&
      { bucketSectors: request.bucketSizeBytes / SECTOR_BYTES }),
  });
  const prepared: PreparedDevice[] = [];
  if (cache) {
    prepared.push(
      await prepareCache(cache, {
        ...common(),
        discard: request.discard,
        replacement: request.replacementPolicy ?? "lru",
      }),
    );
  }
  for (const device of backings) {
    const options = {
      ...common(),
      cacheMode: request.writeback ? "writeback" as const : "writethrough" as const,
      ...(request.label !== undefined && { label: request.label }),
    };
    if (!request.sidecar) {
      refuseCachedImage(device);
      const { dataOffsetSectors } = request;
      const more = dataOffsetSectors === undefined ? {} : { dataOffsetSectors };
      prepared.push(await prepareBacking(device, { ...options, ...more }));
      continue;
    }
    const sidecarBytes = DATA_OFFSET_SECTORS_DEFAULT * SECTOR_BYTES;
    refuseStrayed(device);
    const sidecar = await files.open(sidecarPath(device.filePath), sidecarBytes);
    prepared.push(await prepareSidecar(sidecar, device, options));
  }
  return prepared;
}

/** A plain image would get a superblock inside it, while the one beside it still counts. */
function refuseCachedImage(device: FileDevice): void {
  refuseStrayed(device);
  const beside = sidecarPath(device.filePath);
  if (!nameExists(beside)) return;
  throw new BcacheError(
    "Exists",
    `${device.name}: is a plain image whose superblock is in ${beside}; make that one anew with ` +
      "--sidecar --force, which leaves the image as it is, or remove it first if the image " +
      "itself is to be formatted",
  );
}

function refuseStrayed({ name, filePath }: FileDevice): void {
  if (filePath !== name && nameExists(sidecarPath(name))) throw strayedSidecar(name, filePath);
}

function lineAbout({ device, superblock }: PreparedDevice): string {
  const kind = superblock.kind === "cache"
    ? `cache device, buckets of ${formatSize(superblock.bucketSectors * SECTOR_BYTES)}`
    : "backing device";
  const block = formatSize(superblock.blockSectors * SECTOR_BYTES);
  return `${printable(device.name)}: ${kind}, blocks of ${block}, ` +
    `UUID ${formatUuid(superblock.uuid)}, ` +
    `${isZeroUuid(superblock.setUuid) ? "no set yet" : `set ${formatUuid(superblock.setUuid)}`}\n`;
}
