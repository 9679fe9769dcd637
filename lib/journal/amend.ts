/**
 * The way out of a ring without room, for recovery only: the newest entry is rewritten in place
 * with present metadata and a larger `last_seq`. Its number and its keys stay.
 *
 * All that changes lies in the header, in the first sector of the entry, and a sector is written
 * whole or not at all: after a power cut the entry is the old one or the new one, both valid.
 * Where a device could tear a sector this would be a risk, so it is done only when nothing else
 * is left. Linux has no such way: a journal without a free bucket stops it at registration
 * (engine fault 14). Answers to nothing in the kernel.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { SECTOR_BYTES } from "../device/device.ts";
import { JSET_HEADER_BYTES, JSET_VERSION, readJsetHeader, sealJset } from "../ondisk/jset.ts";
import type { JsetStamper } from "./entry.ts";
import { BucketReader, type JournalPlace } from "./parse.ts";

/** Where an entry is: the index of its bucket, and the block in it. */
export interface EntrySpot {
  readonly index: number;
  readonly block: number;
}

export interface AmendOptions {
  readonly place: JournalPlace;
  readonly spot: EntrySpot;
  readonly stamper: JsetStamper;
  /** Called together with the stamper: the `last_seq` for the entry of this number. */
  readonly lastSeqFor: (seq: number) => number;
}

/** Rewrites the newest entry; returns its new `last_seq`, which is durable then. */
export async function amendEntry(options: AmendOptions): Promise<number> {
  const { place, spot, stamper } = options;
  const reader = new BucketReader(place);
  const entry = await reader.entryAt(spot.index, spot.block, true);
  if (typeof entry !== "object") {
    throw new BcacheError(
      "DeviceIo",
      `${place.device.name}: the newest journal entry, in bucket ${place.buckets[spot.index]}, ` +
        `cannot be read again: ${entry ?? "no entry"}`,
    );
  }
  assert(JSET_HEADER_BYTES <= SECTOR_BYTES, "the header of an entry lies in one sector");
  const bytes = entry.bytes.slice();
  stamper.stamp(new Uint32Array(bytes.buffer));
  const lastSequence = options.lastSeqFor(entry.header.sequence);
  assert(lastSequence >= entry.header.lastSequence, "last_seq never goes back");
  const stamped = readJsetHeader(bytes);
  sealJset(bytes, { ...entry.header, ...pick(stamped), lastSequence }, place.magic);
  const block = new Uint8Array(place.blockSectors * SECTOR_BYTES);
  block.set(bytes.subarray(0, block.length));
  // Durable before: what the new header relies on. Durable after: the header.
  await place.device.flush();
  await place.device.write(reader.sector(spot.index, spot.block), block, { fua: true });
  return lastSequence;
}

function pick(stamped: { btreeLevel: number; prioBucket: number }) {
  const { btreeLevel, prioBucket } = stamped;
  return { btreeLevel, prioBucket, version: JSET_VERSION };
}
