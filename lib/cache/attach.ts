/**
 * Bringing a backing device into a cache set. Answers to `bch_cached_dev_attach` of super.c.
 *
 * A device that knows the set gets its slot back, with whatever is dirty; one that belongs to no
 * set gets a new slot. Order for a new one: the UUID table (and the journal entry that names it)
 * is durable before the backing superblock names the set.
 */
import { BcacheError } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import {
  backingState,
  setBackingState,
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
} from "../ondisk/superblock.ts";
import { decodeSuperblock } from "../ondisk/superblock_verify.ts";
import { equalUuids, formatUuid, isZeroUuid } from "../ondisk/uuid.ts";
import { emptyUuidEntry, INVALID_UUID } from "../ondisk/uuid_entry.ts";
import { CachedDevice } from "./cached_device.ts";
import type { Engine } from "./engine.ts";
import type { RequestStats } from "./stats.ts";

export interface BackingSource {
  readonly device: Device;
  readonly path: string;
}

/** Reads and verifies the superblock of a device. @throws BcacheError */
export async function readSuperblock(device: Device): Promise<Superblock> {
  if (device.sizeSectors < SUPERBLOCK_SECTOR + SUPERBLOCK_BYTES / 512) {
    throw new BcacheError(
      "BadFormat",
      `${device.name}: superblock: found a device of ${device.sizeSectors} sectors, too small to ` +
        "hold one; format it with `make`",
    );
  }
  const page = new Uint8Array(SUPERBLOCK_BYTES);
  await device.read(SUPERBLOCK_SECTOR, page);
  return decodeSuperblock(page, device);
}

/** Everything that can be refused is, before anything is changed. */
export function refuseBacking(
  superblock: Superblock,
  source: BackingSource,
  set: {
    uuid: Uint8Array;
    blockSectors: number;
    others: ReadonlyArray<{ path: string; uuid: Uint8Array }>;
  },
): void {
  const { path } = source;
  const refuse = (code: "InvalidArgument" | "BadFormat" | "Busy", why: string): never => {
    throw new BcacheError(code, `${path}: ${why}`);
  };
  if (superblock.kind !== "backing") {
    refuse("InvalidArgument", "this is a cache device, not a backing device; give it with --cache");
  }
  if (source.device.sizeSectors <= superblock.dataOffsetSectors) {
    refuse(
      "BadFormat",
      `superblock: data begins at sector ${superblock.dataOffsetSectors}, but the device has ` +
        `only ${source.device.sizeSectors} sectors`,
    );
  }
  if (superblock.blockSectors < set.blockSectors) {
    refuse(
      "InvalidArgument",
      `block size ${superblock.blockSectors * 512} is smaller than the cache's ` +
        `${set.blockSectors * 512}; make the cache with -w ${superblock.blockSectors * 512}`,
    );
  }
  for (const other of set.others) {
    if (!equalUuids(other.uuid, superblock.uuid)) continue;
    refuse("Busy", `is the same device as ${other.path} (UUID ${formatUuid(superblock.uuid)})`);
  }
  const state = backingState(superblock);
  const foreign = !equalUuids(superblock.setUuid, set.uuid);
  if (foreign && !isZeroUuid(superblock.setUuid) && state !== "none" && state !== "stale") {
    refuse(
      "InvalidArgument",
      `belongs to cache set ${formatUuid(superblock.setUuid)} and is ${state}, but this cache is ` +
        `set ${formatUuid(set.uuid)}; mount it with its own cache`,
    );
  }
}

/**
 * The device's slot in the UUID table, its own or a new one. Changes the table in memory only.
 * @throws BcacheError when its dirty data is not here, or does not fit it, or no slot is left
 */
function takeSlot(
  engine: Engine,
  source: BackingSource,
  superblock: Superblock,
): { inode: number; isNew: boolean } {
  const { uuids, world, dirty } = engine;
  const { path } = source;
  const now = world.clock.wallSeconds() >>> 0;
  const state = backingState(superblock);
  const known = uuids.find(superblock.uuid);
  const usable = state !== "stale" && state !== "none";
  if (known >= 0 && usable) {
    const end = dirty.endOf(known);
    if (end > source.device.sizeSectors) {
      throw new BcacheError(
        "BadFormat",
        `${path}: has ${source.device.sizeSectors} sectors, but the cache has dirty data up to ` +
          `sector ${end}: it was cut short; restore its length and mount again`,
      );
    }
    uuids.set(known, { ...uuids.entry(known), lastRegistered: now });
    return { inode: known, isNew: false };
  }
  if (state === "dirty") {
    throw new BcacheError(
      "InvalidArgument",
      `${path}: has dirty data in a cache, but this cache set does not know it ` +
        `(UUID ${formatUuid(superblock.uuid)}); mount it with the cache that has its data`,
    );
  }
  const inode = uuids.findFree();
  if (inode < 0) {
    throw new BcacheError(
      "NoSpace",
      `${path}: all ${uuids.capacity} places for backing devices of this cache set have been ` +
        "used; make a new cache",
    );
  }
  if (known >= 0) {
    // It was changed without the cache, or detached: what is cached of it must never be used.
    const uuid = Uint8Array.from(INVALID_UUID);
    uuids.set(known, { ...uuids.entry(known), uuid, invalidated: now });
  }
  uuids.set(inode, {
    ...emptyUuidEntry(),
    uuid: superblock.uuid.slice(),
    label: superblock.label.slice(),
    firstRegistered: now,
    lastRegistered: now,
  });
  return { inode, isNew: true };
}

/** Attaches a device that `refuseBacking` let pass. */
export async function attach(
  engine: Engine,
  source: BackingSource,
  superblock: Superblock,
  options: { name: string; setStats: RequestStats },
): Promise<CachedDevice> {
  const { inode, isNew } = takeSlot(engine, source, superblock);
  if (isNew) await engine.uuids.write(engine.allocator, () => engine.commitMetadata());
  const dev = new CachedDevice({
    ...options,
    path: source.path,
    device: source.device,
    superblock,
    inode,
    clock: engine.world.clock,
    dirty: engine.dirty,
    blockSectors: engine.geometry.blockSectors,
  });
  if (isNew) {
    superblock.setUuid = engine.superblock.setUuid.slice();
    setBackingState(superblock, "clean");
    await dev.writeSuperblock();
  }
  engine.cache.add(dev);
  return dev;
}
