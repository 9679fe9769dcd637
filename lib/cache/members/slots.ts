/**
 * Places in the UUID table. The number of a place is in every key of its device, so one that was
 * used is taken again only when nothing of its old device can come back: not from the index, and
 * not from a journal that is replayed.
 */
import { BcacheError } from "../../base/errors.ts";
import { isZeroUuid } from "../../ondisk/uuid.ts";
import { INVALID_UUID, isInvalidated, type UuidEntry } from "../../ondisk/uuid_entry.ts";
import { dropKeys } from "./drop_keys.ts";
import type { Engine } from "../engine.ts";

/** The entry of a device that will not come back under it: what is cached of it is given up. */
export function invalidated(entry: UuidEntry, nowSeconds: number): UuidEntry {
  const uuid = Uint8Array.from(INVALID_UUID);
  return { ...entry, uuid, flags: 0, sectors: 0, invalidated: nowSeconds };
}

/**
 * A place that may be used: one that never was, else the one given up longest ago, emptied before
 * it is returned. @param what needs it, for the message. @throws BcacheError NoSpace
 *
 * The table has no checksum, so one that was damaged may call a place unused that has keys in the
 * index: another device's data. What of it is clean is dropped; where some is dirty, the place is
 * left alone.
 */
export async function freeSlot(engine: Engine, what: string): Promise<number> {
  const { uuids, dirty } = engine;
  for (let index = 0; index < uuids.capacity; index++) {
    if (!isZeroUuid(uuids.entry(index).uuid) || dirty.of(index) > 0) continue;
    if (await dropKeys(engine, index) > 0) await engine.settleKeys();
    return index;
  }
  let oldest = -1;
  for (let index = 0; index < uuids.capacity; index++) {
    const entry = uuids.entry(index);
    if (!isInvalidated(entry)) continue;
    if (oldest < 0 || entry.invalidated < uuids.entry(oldest).invalidated) oldest = index;
  }
  if (oldest < 0) {
    throw new BcacheError(
      "NoSpace",
      `${what}: all ${uuids.capacity} places for devices of this cache set are in use; ` +
        "list them with bcache-fuse uuids MOUNTPOINT, and forget one that will not return",
    );
  }
  await dropKeys(engine, oldest);
  await engine.settleKeys();
  // Keys that a collection dropped when they were stale were not counted off.
  engine.dirty.add(oldest, 0, -engine.dirty.of(oldest));
  return oldest;
}
