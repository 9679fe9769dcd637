/**
 * Whose data the cache has: the UUID table with what the index holds of each entry, and giving up
 * the data of a device that will not return.
 */
import { BcacheError } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";
import type { KeySet } from "../../bset/key_set.ts";
import { keyInode, keyPointers, keySizeSectors, SLOT_WORDS } from "../../ondisk/bkey.ts";
import { equalUuids, formatUuid, isZeroUuid, parseUuid } from "../../ondisk/uuid.ts";
import { isInvalidated, UUID_FLASH_ONLY, uuidEntryLabel } from "../../ondisk/uuid_entry.ts";
import { dropKeys } from "./drop_keys.ts";
import type { Engine } from "../engine.ts";
import type { UuidStatus } from "../ports.ts";
import { invalidated } from "./slots.ts";

/** Leaves looked at between two turns of other work. */
const LEAVES_PER_TURN = 4;

/** The name a device is served under just now, by its number; undefined: it is not here. */
export type NameOf = (inode: number) => string | undefined;

/**
 * Sectors that the index has of every inode, or of `only` one (of others then some). Looks at every
 * leaf, with turns for other work.
 */
export async function cachedSectors(engine: Engine, only?: number): Promise<Float64Array> {
  const sectors = new Float64Array(engine.uuids.capacity);
  let leaves = 0;
  await engine.btree.walk(0, { inode: only ?? 0, offset: 0 }, (leaf) => {
    for (const set of [leaf.base, leaf.delta]) countCached(engine, set, sectors);
    if (only !== undefined && leaf.endInode > only) return false;
    if (++leaves % LEAVES_PER_TURN !== 0) return true;
    return engine.world.clock.turn().then(() => engine.faults.failed === undefined);
  });
  return sectors;
}

function countCached(engine: Engine, set: KeySet, sectors: Float64Array): void {
  for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
    const inode = keyInode(set.words, at);
    if (inode >= sectors.length || keyPointers(set.words, at) === 0) continue;
    if (!engine.btree.isBad(set.words, at, 0)) sectors[inode]! += keySizeSectors(set.words, at);
  }
}

/** Every device that the cache knows, in the order of the table. */
export async function listUuids(engine: Engine, nameOf: NameOf): Promise<UuidStatus[]> {
  const { uuids, dirty } = engine;
  const cached = await cachedSectors(engine);
  const list: UuidStatus[] = [];
  for (let inode = 0; inode < uuids.capacity; inode++) {
    const entry = uuids.entry(inode);
    if (isZeroUuid(entry.uuid) || isInvalidated(entry)) continue;
    list.push({
      uuid: formatUuid(entry.uuid),
      label: uuidEntryLabel(entry),
      kind: (entry.flags & UUID_FLASH_ONLY) === 0 ? "cached" : "volume",
      device: nameOf(inode) ?? null,
      dirtyBytes: dirty.of(inode) * 512,
      cachedBytes: cached[inode]! * 512,
      firstRegisteredSeconds: entry.firstRegistered,
      lastRegisteredSeconds: entry.lastRegistered,
    });
  }
  return list;
}

/**
 * Gives up all that the cache has of a device. The entry is invalidated durably first: were the
 * data dropped first, a crash could leave a device that believes that the cache has it.
 * @throws BcacheError when the device is here, or has dirty data and `force` is not given
 */
export async function forget(
  engine: Engine,
  text: string,
  options: { nameOf: NameOf; force: boolean },
): Promise<void> {
  const { uuids, dirty, world, allocator } = engine;
  const inode = findEntry(engine, text);
  const entry = uuids.entry(inode);
  const uuid = formatUuid(entry.uuid);
  const name = options.nameOf(inode);
  if (name !== undefined) {
    const remedy = (entry.flags & UUID_FLASH_ONLY) === 0
      ? `bcache-fuse detach MOUNTPOINT ${name}`
      : `bcache-fuse volume destroy MOUNTPOINT ${name}`;
    throw new BcacheError("Busy", `${uuid}: is here as ${name}; take it out with ${remedy}`);
  }
  const dirtyBytes = dirty.of(inode) * 512;
  if (dirtyBytes > 0 && !options.force) {
    throw new BcacheError(
      "HoldsData",
      `${uuid}: ${formatBytes(dirtyBytes)} of it are nowhere else; attach the device to write ` +
        "them back, or give them up by force (--force, over HTTP force=true)",
    );
  }
  const gone = invalidated(entry, world.clock.wallSeconds() >>> 0);
  await uuids.update([[inode, gone]], allocator, () => engine.commitMetadata());
  await dropKeys(engine, inode);
  const dirtyText = `${formatBytes(dirtyBytes)} were dirty`;
  world.log("info", `what was cached of ${uuid} was given up (${dirtyText})`);
}

function findEntry(engine: Engine, text: string): number {
  const uuid = parseUuid(text);
  if (uuid === undefined) {
    const found = JSON.stringify(text);
    throw new BcacheError("InvalidArgument", `${found} is not a UUID; expected 32 hex digits`);
  }
  const { uuids } = engine;
  for (let inode = 0; inode < uuids.capacity; inode++) {
    const entry = uuids.entry(inode);
    if (!isInvalidated(entry) && !isZeroUuid(uuid) && equalUuids(entry.uuid, uuid)) return inode;
  }
  throw new BcacheError(
    "NotFound",
    `the cache knows no device ${formatUuid(uuid)}; bcache-fuse uuids MOUNTPOINT lists them`,
  );
}
