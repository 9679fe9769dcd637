/**
 * A plain image behind its sidecar as one backing device, which notices when somebody wrote to the
 * image without the cache: the sidecar keeps a stamp of the image (lib/ondisk/image_stamp.ts) from
 * the end of one session to the start of the next.
 *
 *   admit   the stamp is cleared, durably: before the first write to the image
 *   close   the image is durable with its time of modification, then the stamp is written, after
 *           everything else
 *
 * So a stamp that is there tells of an image that nobody of ours was writing to. After a crash
 * there is none, and the image is taken as it is; so it is where a file system tells no times.
 */
import { BcacheError } from "../../base/errors.ts";
import { isoTime } from "../../base/units.ts";
import { type Device, SECTOR_BYTES } from "../../device/device.ts";
import type { FileState } from "../../device/host.ts";
import { JoinedDevice } from "../../device/joined.ts";
import { decodeStamp, encodeStamp, STAMP_BYTES, STAMP_SECTOR } from "../../ondisk/image_stamp.ts";
import { backingState, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR } from "../../ondisk/superblock.ts";
import type { Superblock } from "../../ondisk/superblock.ts";
import { formatUuid } from "../../ondisk/uuid.ts";

/** A file, as far as `openFileDevice` tells more of it than of a device. */
export interface FileLike extends Device {
  /** Bytes behind the last whole sector. */
  readonly tailBytes?: number;
  /**
   * Where a link leads that the file was named by; undefined: its name. Not optional: whoever wraps
   * a file and forgets it would look for the sidecar beside the link.
   */
  readonly filePath: string | undefined;
  /**
   * Its size and time of modification; undefined: it is a block device, or cannot be told.
   * `settled` makes both durable first, with all that was written.
   */
  fileState?(options: { settled: boolean }): Promise<FileState | undefined>;
}

const NS_PER_SECOND = 1_000_000_000n;

/** What to do with an image that was changed: the cache may hold older data of it. */
export type WhenChanged = "refuse" | "trust" | "drop";

export class SidecarDevice extends JoinedDevice {
  /** The image was changed, and nothing that is cached of it may be used. */
  readonly dropCached: boolean;
  readonly hasSidecar = true;
  readonly #sidecar: Device;
  readonly #image: FileLike;
  #isAdmitted = false;

  /** Use `openSidecar`. */
  constructor(parts: { sidecar: Device; image: FileLike; splitSectors: number; drop: boolean }) {
    super(parts.sidecar, parts.image, parts.splitSectors, parts.image.name);
    this.#sidecar = parts.sidecar;
    this.#image = parts.image;
    this.dropCached = parts.drop;
  }

  /** To be called, and awaited, before anything is written to the image. */
  async admit(): Promise<void> {
    if (this.readOnly || this.#isAdmitted) return;
    await this.#sidecar.write(STAMP_SECTOR, new Uint8Array(STAMP_BYTES), { fua: true });
    this.#isAdmitted = true;
  }

  override async close(): Promise<void> {
    try {
      if (this.#isAdmitted) await this.#stamp();
    } catch {
      // Without a stamp the next start does what it does after a crash; all else is closed.
    }
    await super.close();
  }

  async #stamp(): Promise<void> {
    const state = await this.#image.fileState?.({ settled: true });
    if (state === undefined) return;
    const page = new Uint8Array(SUPERBLOCK_BYTES);
    await this.#sidecar.read(SUPERBLOCK_SECTOR, page);
    // Before: the superblock and the image; after: nothing.
    const bytes = encodeStamp(state, page);
    await this.#sidecar.write(STAMP_SECTOR, bytes, { preflush: true, fua: true });
  }
}

/** Joins the two. Rejects with BadFormat when the image was changed, unless told otherwise. */
export async function openSidecar(
  sidecar: Device,
  image: FileLike,
  superblock: Superblock,
  whenChanged: WhenChanged,
): Promise<SidecarDevice> {
  const state = backingState(superblock);
  // Nothing is cached of one that has no cache: it may change as it likes.
  const hasCache = state === "clean" || state === "dirty";
  const change = hasCache ? await changeOf(sidecar, image, superblock.page) : undefined;
  if (change !== undefined && whenChanged === "refuse") {
    const found = `${image.name}: was changed without its cache: ${change}`;
    const advice = state === "dirty"
      ? `the cache has newer data of it, too: ${mixtureAdvice(image.name, superblock.uuid)}`
      : "what is cached of it may be older: mount it with --changed-image drop, which forgets " +
        "that, or with --changed-image trust if it was written through this very cache (by " +
        "Linux, say)";
    throw new BcacheError("BadFormat", `${found}; ${advice}`);
  }
  return new SidecarDevice({
    sidecar,
    image,
    splitSectors: superblock.dataOffsetSectors,
    drop: change !== undefined && whenChanged === "drop",
  });
}

/** What to do about an image that was changed while its cache has dirty data of it. */
export function mixtureAdvice(path: string, uuid: Uint8Array): string {
  return "to keep both, mount it with --changed-image trust and flush; to give the dirty data " +
    `up, make its sidecar anew with bcache-fuse make -B ${path} --sidecar --force, mount, and ` +
    `then bcache-fuse forget MOUNTPOINT ${formatUuid(uuid)} --force`;
}

/** How the image differs from its stamp, in words; undefined: it does not, or nobody can tell. */
async function changeOf(
  sidecar: Device,
  image: FileLike,
  page: Uint8Array,
): Promise<string | undefined> {
  const bytes = new Uint8Array(Math.max(STAMP_BYTES, SECTOR_BYTES));
  await sidecar.read(STAMP_SECTOR, bytes);
  const stamp = decodeStamp(bytes, page);
  if (stamp === undefined) return undefined;
  const now = await image.fileState?.({ settled: false });
  if (now === undefined) return undefined;
  if (now.sizeBytes !== stamp.sizeBytes) {
    return `found ${now.sizeBytes} bytes, expected the ${stamp.sizeBytes} it was left with`;
  }
  if (now.modifiedNs === stamp.modifiedNs) return undefined;
  const [found, expected] = [now.modifiedNs, stamp.modifiedNs].map(timeText);
  return `found modification time ${found}, expected ${expected}`;
}

/** To the nanosecond: two times that differ are to look different. */
function timeText(nanoseconds: bigint): string {
  const part = ((nanoseconds % NS_PER_SECOND) + NS_PER_SECOND) % NS_PER_SECOND;
  const second = isoTime(Number((nanoseconds - part) / NS_PER_SECOND));
  return second.replace("Z", `.${String(part).padStart(9, "0")}Z`);
}
