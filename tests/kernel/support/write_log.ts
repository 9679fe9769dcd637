/**
 * The log that QEMU's blklogwrites keeps of all that a guest does to a disk, in the format of
 * Linux's dm-log-writes: what was written, and flushed, in which order. From it follows what the
 * disk may hold after a power cut at any moment, were its write cache volatile.
 */
import { assert } from "../../../lib/base/assert.ts";
import type { DiskImage } from "../../simulation/disk_image.ts";
import type { Pending } from "../../simulation/power_cut.ts";

const SECTOR = 512;
const MAGIC = 0x6a_736677736872n;
/** Of an entry's flags. A flush entry makes stable what was logged before it. */
const FLUSH = 1n;
const FUA = 2n;
const DISCARD = 4n;

export interface LoggedWrite {
  /** Where in the log it stands, counted in operations. */
  readonly number: number;
  readonly atSector: number;
  /** What was written; empty for an operation that only flushes. */
  readonly bytes: Uint8Array;
  readonly flushes: boolean;
  readonly fua: boolean;
}

/** @throws when it is no such log. What a killed emulator left half written ends it. */
export function readWriteLog(log: Uint8Array): LoggedWrite[] {
  const view = new DataView(log.buffer, log.byteOffset, log.byteLength);
  const word = (at: number) => view.getBigUint64(at, true);
  assert(word(0) === MAGIC, "a log of writes begins with its magic");
  const sectorBytes = view.getUint32(24, true);
  assert(sectorBytes === SECTOR, "the log counts in sectors of 512 bytes");
  const writes: LoggedWrite[] = [];
  for (let at = sectorBytes; at + sectorBytes <= log.length;) {
    const [sector, sectors, flags] = [Number(word(at)), Number(word(at + 8)), word(at + 16)];
    if (sectors === 0 && flags === 0n) break;
    const isDiscard = (flags & DISCARD) !== 0n;
    const length = isDiscard ? 0 : sectors * SECTOR;
    const start = at + sectorBytes;
    if (start + length > log.length) break;
    const flushes = (flags & FLUSH) !== 0n;
    const fua = (flags & FUA) !== 0n;
    const bytes = log.subarray(start, start + length);
    if (!isDiscard) writes.push({ number: writes.length, atSector: sector, bytes, flushes, fua });
    at = start + length;
  }
  return writes;
}

/** What a disk has at a moment of its log: `stable` gets what is certain, the result is not. */
export function pendingAt(writes: readonly LoggedWrite[], end: number, stable: DiskImage) {
  let from = 0;
  for (let at = 0; at < end; at++) if (writes[at]!.flushes) from = at;
  const pending: Pending[] = [];
  for (const { number, atSector, bytes, fua } of writes.slice(0, end)) {
    if (bytes.length === 0) continue;
    if (number < from || fua) stable.write(atSector, bytes);
    else pending.push({ sequence: number, atSector, bytes });
  }
  return pending;
}
