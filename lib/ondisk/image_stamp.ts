/**
 * What a sidecar keeps of its image between two sessions: how long the image was, and when it was
 * last modified, after the last write that came through the cache. One sector, with a magic and a
 * checksum of its own.
 *
 * It lies in sector 0 of the sidecar. bcache uses nothing there: of a backing device the kernel
 * reads and writes the superblock, sectors 8 to 15, and data from the data offset on, which is 16
 * at least; make-bcache writes zeroes over sectors 0 to 7. So the kernel never sees a stamp, and a
 * sidecar that is made anew has none.
 *
 * A stamp belongs to one superblock, by that one's checksum: when Linux wrote another since, what
 * the stamp says is of no account.
 */
import { crc64 } from "../base/crc64.ts";
import { viewOf } from "./layout.ts";
import { SUPERBLOCK } from "./superblock.ts";

export const STAMP_SECTOR = 0;
export const STAMP_BYTES = 512;

/** Drawn by lot. */
const MAGIC = 0x9e4f_51c8_2b7d_a063n;
/** Byte offsets; the checksum is over all that follows it. */
const AT = { csum: 0, magic: 8, sizeBytes: 16, modifiedNs: 24, superblock: 32 } as const;

/** The state of an image. */
export interface ImageState {
  readonly sizeBytes: number;
  /** Nanoseconds since 1970. */
  readonly modifiedNs: bigint;
}

/** @param superblock the page of the sidecar's superblock */
export function encodeStamp(state: ImageState, superblock: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(STAMP_BYTES);
  const view = viewOf(bytes);
  view.setBigUint64(AT.magic, MAGIC, true);
  view.setBigUint64(AT.sizeBytes, BigInt(state.sizeBytes), true);
  view.setBigInt64(AT.modifiedNs, state.modifiedNs, true);
  view.setBigUint64(AT.superblock, checksumOf(superblock), true);
  const [low, high] = checksum(bytes);
  view.setUint32(AT.csum, low, true);
  view.setUint32(AT.csum + 4, high, true);
  return bytes;
}

/** The stamp; undefined where there is none, or none of this superblock. */
export function decodeStamp(bytes: Uint8Array, superblock: Uint8Array): ImageState | undefined {
  const view = viewOf(bytes);
  if (view.getBigUint64(AT.magic, true) !== MAGIC) return undefined;
  const [low, high] = checksum(bytes);
  if (view.getUint32(AT.csum, true) !== low) return undefined;
  if (view.getUint32(AT.csum + 4, true) !== high) return undefined;
  if (view.getBigUint64(AT.superblock, true) !== checksumOf(superblock)) return undefined;
  return {
    sizeBytes: Number(view.getBigUint64(AT.sizeBytes, true)),
    modifiedNs: view.getBigInt64(AT.modifiedNs, true),
  };
}

function checksum(bytes: Uint8Array): [low: number, high: number] {
  const sum = new Uint32Array(2);
  crc64(bytes, AT.magic, STAMP_BYTES, sum);
  return [sum[0]!, sum[1]!];
}

function checksumOf(superblock: Uint8Array): bigint {
  return viewOf(superblock).getBigUint64(SUPERBLOCK.csum, true);
}
