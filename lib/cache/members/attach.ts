/**
 * Bringing a backing device into a cache set. Answers to `bch_cached_dev_attach` of super.c.
 *
 * A device that knows the set gets its slot back, with whatever is dirty; one that belongs to no
 * set gets a new slot. Order for a new one: the UUID table (and the journal entry that names it)
 * is durable before the backing superblock names the set.
 */
import { BcacheError } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";
import { type Device, SECTOR_BYTES } from "../../device/device.ts";
import {
  backingState,
  setBackingState,
  type Superblock,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_SECTOR,
} from "../../ondisk/superblock.ts";
import { keyInode, keyStart, SLOT_WORDS } from "../../ondisk/bkey.ts";
import { BEFORE_DATA, decodeSuperblock, smallBlocksFault } from "../../ondisk/superblock_verify.ts";
import { equalUuids, formatUuid, isZeroUuid } from "../../ondisk/uuid.ts";
import { emptyUuidEntry, type UuidEntry } from "../../ondisk/uuid_entry.ts";
import { slotKind } from "../../ondisk/uuid_table.ts";
import { Bypass } from "../requests/bypass.ts";
import { CachedDevice } from "../requests/cached_device.ts";
import type { Engine } from "../engine.ts";
import { freeSlot, invalidated } from "./slots.ts";
import { mixtureAdvice } from "./sidecar.ts";
import { dropClean } from "./trust.ts";
import { cachedSectors } from "./uuid_list.ts";
import type { BackingDevice } from "./open_backing.ts";
import type { RequestStats } from "../stats.ts";

export interface BackingSource {
  readonly device: BackingDevice;
  readonly path: string;
  /** Nothing that is cached of it may be used: it was changed without its cache. */
  readonly dropCached?: boolean;
  /** Called when the device was stopped and the set goes on without it. */
  release?(): Promise<void>;
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

/** What a backing device is held against. */
export interface AttachRules {
  readonly uuid: Uint8Array;
  readonly blockSectors: number;
  /** The devices that the set has. */
  readonly others: ReadonlyArray<{ path: string; uuid: Uint8Array; name?: string }>;
  /** Takes a device that was made for another set and never had a cache. */
  readonly adopt: boolean;
}

/** Everything that can be refused is, before anything is changed. */
export function refuseBacking(
  superblock: Superblock,
  source: BackingSource,
  set: AttachRules,
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
  const small = smallBlocksFault(superblock.blockSectors, set.blockSectors);
  if (small !== undefined) {
    const { what, found, expected, advice } = small;
    refuse("InvalidArgument", `${what}: found ${found}, expected ${expected}; ${advice}`);
  }
  for (const other of set.others) {
    if (!equalUuids(other.uuid, superblock.uuid)) continue;
    const as = other.name === undefined ? "" : `, attached as ${other.name}`;
    refuse(
      "Busy",
      `is the same device as ${other.path}${as} (UUID ${formatUuid(superblock.uuid)})`,
    );
  }
  refuseForeign(superblock, source, set, refuse);
}

/** What formats a device again; in an image with a sidecar not a byte may change. */
function makeAnew({ device, path }: BackingSource): string {
  return `bcache-fuse make -B ${path}${device.hasSidecar ? " --sidecar" : ""} --force`;
}

function refuseForeign(
  superblock: Superblock,
  source: BackingSource,
  set: AttachRules,
  refuse: (code: "InvalidArgument", why: string) => never,
): void {
  if (equalUuids(superblock.setUuid, set.uuid) || isZeroUuid(superblock.setUuid)) return;
  const state = backingState(superblock);
  const theirs = formatUuid(superblock.setUuid);
  const ours = `this cache is set ${formatUuid(set.uuid)}`;
  if ((state === "none" || state === "stale") && !set.adopt) {
    refuse(
      "InvalidArgument",
      `was made for cache set ${theirs}, but ${ours}; mount it with its own cache, or let it ` +
        "change sets: mount without it, then bcache-fuse attach MOUNTPOINT BACKING --force",
    );
  }
  if (state === "clean" || state === "dirty") {
    refuse(
      "InvalidArgument",
      `belongs to cache set ${theirs} and is ${state}, but ${ours}; mount it with its own cache, ` +
        `or, if that is gone for good, begin anew with ${makeAnew(source)}`,
    );
  }
}

interface Slot {
  readonly inode: number;
  readonly isNew: boolean;
  /** What becomes of the UUID table. */
  readonly changes: ReadonlyArray<readonly [index: number, entry: UuidEntry]>;
}

/**
 * Refuses a device whose dirty data is not here, or does not fit it. Changes nothing: asked of all
 * devices of a set before the first is attached, since each may write the UUID table anew, and so
 * make damage of another's entry last.
 */
export async function refuseSlot(
  engine: Engine,
  source: BackingSource,
  superblock: Superblock,
): Promise<void> {
  const { uuids, dirty } = engine;
  const { path } = source;
  const state = backingState(superblock);
  const known = uuids.find(superblock.uuid);
  const uuid = formatUuid(superblock.uuid);
  if (known >= 0) refuseVolume(engine, path, known);
  if (known >= 0 && source.dropCached) return refuseMixture(dirty.of(known), path, superblock.uuid);
  if (known >= 0 && state !== "stale" && state !== "none") {
    return await refuseMisplaced(engine, known, { ...source, superblock });
  }
  if (state === "dirty") {
    throw new BcacheError(
      "InvalidArgument",
      `${path}: has dirty data in a cache, but this cache set does not know it ` +
        `(UUID ${uuid}); mount it with the cache that has its data; if that is gone for good, ` +
        `${makeAnew(source)} begins anew with what the device itself has`,
    );
  }
  // It was changed without the cache, or detached: what is cached of it must never be used.
  if (known >= 0) refuseOrphan(dirty.of(known), { path, uuid, state });
}

/** Nothing of a volume may be written to a backing device. */
function refuseVolume({ uuids, cache }: Engine, path: string, slot: number): void {
  if (slotKind(uuids.entry(slot)) !== "flash-only volume") return;
  throw new BcacheError(
    "BadFormat",
    `${path}: slot ${slot} of the UUID table of ${cache.name} has its UUID, and says that it is ` +
      "a volume of the cache itself; the table is damaged: see check, restore it from a copy",
  );
}

/** Refuses a device where the cache's data of it cannot lie: it would be written over others. */
async function refuseMisplaced(
  engine: Engine,
  inode: number,
  { path, device, superblock }: BackingSource & { superblock: Superblock },
): Promise<void> {
  const end = engine.dirty.endOf(inode);
  if (end > device.sizeSectors) {
    throw new BcacheError(
      "BadFormat",
      `${path}: has ${device.sizeSectors} sectors, but the cache has dirty data up to ` +
        `sector ${end}: it was cut short; restore its length and attach it again`,
    );
  }
  const offset = superblock.dataOffsetSectors;
  const start = await firstCached(engine, inode);
  if (start >= offset) return;
  throw new BcacheError(
    "BadFormat",
    `${path}: ${BEFORE_DATA}: found an extent from sector ${start}, expected from ${offset} on; ` +
      "its superblock or the cache's UUID table is damaged: run check, restore what it names",
  );
}

/** The first sector that the cache has data of; Infinity: it has none. */
async function firstCached({ btree }: Engine, inode: number): Promise<number> {
  let start = Infinity;
  await btree.walk(0, { inode, offset: 0 }, (leaf) => {
    for (const { words, count } of [leaf.base, leaf.delta]) {
      for (let at = 0; at < count * SLOT_WORDS; at += SLOT_WORDS) {
        if (keyInode(words, at) !== inode || btree.isBad(words, at, 0)) continue;
        start = Math.min(start, keyStart(words, at));
      }
    }
    return start === Infinity && leaf.endInode <= inode;
  });
  return start;
}

/**
 * The device's slot in the UUID table, its own or a free one. Changes nothing but what was given
 * up already.
 * @throws BcacheError when its dirty data is not here, or does not fit it, or no slot is left
 */
async function findSlot(
  engine: Engine,
  source: BackingSource,
  superblock: Superblock,
): Promise<Slot> {
  await refuseSlot(engine, source, superblock);
  const { uuids, world } = engine;
  const now = world.clock.wallSeconds() >>> 0;
  const state = backingState(superblock);
  const known = uuids.find(superblock.uuid);
  if (known >= 0 && state !== "stale" && state !== "none" && !source.dropCached) {
    const entry = { ...uuids.entry(known), lastRegistered: now };
    return { inode: known, isNew: false, changes: [[known, entry]] };
  }
  const changes: Array<readonly [number, UuidEntry]> = [];
  if (known >= 0) changes.push([known, invalidated(uuids.entry(known), now)]);
  const inode = await freeSlot(engine, source.path);
  changes.push([inode, {
    ...emptyUuidEntry(),
    uuid: superblock.uuid.slice(),
    label: superblock.label.slice(),
    firstRegistered: now,
    lastRegistered: now,
  }]);
  return { inode, isNew: true, changes };
}

/** Dirty data that no longer fits what is on the device is dropped only by who says so. */
function refuseOrphan(
  dirtySectors: number,
  device: { path: string; uuid: string; state: string },
): void {
  if (dirtySectors === 0) return;
  const { path, uuid } = device;
  const found = device.state === "stale"
    ? "is inconsistent: it was changed without its cache"
    : "says that it has no cache";
  throw new BcacheError(
    "InvalidArgument",
    `${path}: ${found}, which still has ${formatBytes(dirtySectors * 512)} of it that are ` +
      "dirty; leave it as it is to rescue them, or give them up with " +
      `bcache-fuse forget MOUNTPOINT ${uuid} --force and attach it again`,
  );
}

/** Dirty data may not be dropped unasked, nor be written over what came to the image since. */
function refuseMixture(dirtySectors: number, path: string, uuid: Uint8Array): void {
  if (dirtySectors === 0) return;
  throw new BcacheError(
    "InvalidArgument",
    `${path}: was changed without its cache, which has ${formatBytes(dirtySectors * 512)} of ` +
      `it that are dirty; ${mixtureAdvice(path, uuid)}`,
  );
}

/** What the cache has of a device that is not attached. */
async function cachedBytes(engine: Engine, { uuid }: Superblock): Promise<number> {
  const known = engine.uuids.find(uuid);
  if (known < 0) return 0;
  return (await cachedSectors(engine, known))[known]! * SECTOR_BYTES;
}

/**
 * Attaches a device that `refuseBacking` let pass. A crash in between leaves the table with an
 * entry that the device does not know of; it then gets another one.
 */
export async function attach(
  engine: Engine,
  source: BackingSource,
  superblock: Superblock,
  options: { name: string; setStats: RequestStats },
): Promise<CachedDevice> {
  const { inode, isNew, changes } = await findSlot(engine, source, superblock);
  if (backingState(superblock) === "stale" || (isNew && source.dropCached)) {
    const dropped = await cachedBytes(engine, superblock);
    const what = dropped === 0
      ? "nothing was cached of it"
      : `what was cached of it is dropped: ${formatBytes(dropped)}`;
    engine.world.log("warning", `${source.path}: was changed without its cache; ${what}`);
  }
  if (isNew || engine.allocator.stocked) {
    await engine.uuids.update(changes, engine.allocator, () => engine.commitMetadata());
  } else {
    // Only the time is new: not worth dropping cached data for. The next table carries it.
    for (const [index, entry] of changes) engine.uuids.set(index, entry);
  }
  // It was let go of after a failed flush. A new slot has nothing of it.
  if (isNew) engine.distrusted.delete(inode);
  else if (engine.distrusted.has(inode)) await dropClean(engine, inode);
  const dev = new CachedDevice({
    ...options,
    path: source.path,
    device: source.device,
    superblock,
    inode,
    clock: engine.world.clock,
    log: engine.world.log,
    dirty: engine.dirty,
    distrusted: engine.distrusted,
    bypass: new Bypass({
      clock: engine.world.clock,
      random: engine.world.random,
      congestion: engine.congestion,
      blockSectors: engine.geometry.blockSectors,
    }),
  });
  if (isNew) {
    superblock.setUuid = engine.superblock.setUuid.slice();
    setBackingState(superblock, "clean");
    await dev.writeSuperblock();
  }
  // What may not be used is gone durably; from here on the device may be written.
  await source.device.admit?.();
  engine.cache.add(dev);
  await dev.map.follow(engine.dirty, engine.btree, inode);
  return dev;
}
