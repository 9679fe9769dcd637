/**
 * Volumes that live on the cache alone: their entries in the UUID table, and what is done to them
 * while the set runs. Answers to `flash_dev_run`, `bch_flash_dev_create` and the flash half of
 * sysfs.c. They are named like cached devices, behind those that were there first.
 *
 * An entry is durable before the volume it names is served, and invalidated, or its size made
 * smaller, durably before data is given up: a crash leaves a whole volume, or none. What it leaves
 * of the data the next start gives up (leftovers.ts).
 */
import { BcacheError } from "../../base/errors.ts";
import type { TaskGroup } from "../../base/sync.ts";
import { encodeLabel } from "../../ondisk/label.ts";
import { randomUuid } from "../../ondisk/uuid.ts";
import { emptyUuidEntry, isInvalidated, UUID_FLASH_ONLY } from "../../ondisk/uuid_entry.ts";
import type { UuidEntry } from "../../ondisk/uuid_entry.ts";
import { isServable, VOLUME_SECTORS_MAX } from "../../ondisk/uuid_table.ts";
import { countKeys, dropKeys } from "./drop_keys.ts";
import type { Engine } from "../engine.ts";
import { FlashStore } from "./flash_store.ts";
import { formatBytes } from "../../base/units.ts";
import { RangeLocks } from "../ranges.ts";
import type { RequestParts } from "../request_parts.ts";
import { freeSlot, invalidated } from "./slots.ts";
import { Volume } from "../requests/volume.ts";

const SECTOR = 512;

export interface FlashMember {
  readonly name: string;
  /** The number of its keys, and of its entry in the UUID table. */
  readonly inode: number;
  readonly volume: Volume;
  readonly locks: RangeLocks;
}

export interface FlashVolumesOptions {
  readonly engine: Engine;
  readonly readOnly: boolean;
  readonly parts: (tasks: TaskGroup) => RequestParts;
  readonly freeName: () => string;
}

export class FlashVolumes {
  readonly list: FlashMember[] = [];
  #options: FlashVolumesOptions;

  constructor(options: FlashVolumesOptions) {
    this.#options = options;
  }

  /** Serves every volume of the UUID table. */
  openExisting(): void {
    const { engine } = this.#options;
    const { uuids } = engine;
    for (let inode = 0; inode < uuids.capacity; inode++) {
      const entry = uuids.entry(inode);
      if ((entry.flags & UUID_FLASH_ONLY) === 0 || isInvalidated(entry)) continue;
      const { sectors } = entry;
      if (isServable(entry)) this.#serve(inode, sectors);
      else {
        engine.world.log(
          "warning",
          `UUID table: volume ${inode} has ${sectors} sectors, expected 1 to ` +
            `${VOLUME_SECTORS_MAX}; it is not served`,
        );
      }
    }
  }

  #serve(inode: number, sizeSectors: number): FlashMember {
    const { engine, readOnly, parts, freeName } = this.#options;
    const name = freeName();
    const locks = new RangeLocks();
    const store = new FlashStore({ name, inode, locks }, parts(engine.tasks));
    const { blockSectors } = engine.geometry;
    const volume = new Volume({
      name,
      blockSectors,
      offsetSectors: 0,
      sizeSectors,
      locks,
      readOnly,
      store,
    });
    const member = { name, inode, volume, locks };
    this.list.push(member);
    return member;
  }

  /**
   * Makes a volume. Space is taken as it is written; what was not, reads as zeroes.
   * @throws BcacheError OutOfRange for a size that the cache could never hold, or NoSpace when the
   * UUID table is full
   */
  async create(options: { sizeBytes: number; label: string }): Promise<FlashMember> {
    const { engine } = this.#options;
    const sectors = this.#checkedSectors(options.sizeBytes);
    const label = encodeLabel(options.label);
    const inode = await freeSlot(engine, "a new volume");
    const now = engine.world.clock.wallSeconds() >>> 0;
    await this.#update(inode, {
      ...emptyUuidEntry(),
      uuid: randomUuid(engine.world.random),
      label,
      firstRegistered: now,
      lastRegistered: now,
      flags: UUID_FLASH_ONLY,
      sectors,
    });
    return this.#serve(inode, sectors);
  }

  /** The sectors of a size that can be asked for: whole blocks, no more than the cache has. */
  #checkedSectors(sizeBytes: number): number {
    const { geometry } = this.#options.engine;
    const most = geometry.bucketCount * geometry.bucketBytes;
    const { blockBytes } = geometry;
    if (sizeBytes >= blockBytes && sizeBytes <= most && sizeBytes % blockBytes === 0) {
      return sizeBytes / SECTOR;
    }
    throw new BcacheError(
      "OutOfRange",
      `volume size: found ${sizeBytes} bytes, expected whole blocks of ${blockBytes} bytes up to ` +
        `the size of the cache, ${most}`,
    );
  }

  /**
   * Changes the size. What lies behind the new end of a smaller volume is given up; what a larger
   * one gains reads as zeroes. The data goes first: after a crash a volume that has its old size
   * may read as zeroes behind the new end, but nothing is left that nobody can reach. (It could be
   * dropped at the next start; then a damaged size, in a table without checksum, would cost data.)
   * @throws BcacheError OutOfRange as `create`, or HoldsData when data is behind the new end,
   * unless `force`
   */
  async resize(
    member: FlashMember,
    sizeBytes: number,
    { force }: { force: boolean },
  ): Promise<void> {
    const { engine } = this.#options;
    const { inode, volume, locks } = member;
    const sectors = this.#checkedSectors(sizeBytes);
    const entry = { ...engine.uuids.entry(inode), sectors };
    const everything = await locks.acquireAll();
    try {
      const before = volume.sizeBytes / SECTOR;
      if (!force) await this.#refuseCut(member, sectors, before);
      // Nothing from before an earlier end may show up again, whoever left it there.
      await dropKeys(engine, inode, { from: Math.min(sectors, before) });
      await this.#update(inode, entry);
      volume.resize(sectors);
    } finally {
      locks.release(everything);
    }
  }

  /** Nobody may write there meanwhile. */
  async #refuseCut({ name, inode }: FlashMember, from: number, to: number): Promise<void> {
    const sectors = await countKeys(this.#options.engine, inode, { from, to });
    if (sectors === 0) return;
    throw new BcacheError(
      "HoldsData",
      `${name}: holds ${formatBytes(sectors * SECTOR)} behind the new end of ` +
        `${formatBytes(from * SECTOR)} that are nowhere else; they are given up by force only ` +
        '(bcache-fuse volume resize --force, over HTTP "force":true)',
    );
  }

  async setLabel(member: FlashMember, text: string): Promise<void> {
    const entry = this.#options.engine.uuids.entry(member.inode);
    await this.#update(member.inode, { ...entry, label: encodeLabel(text.replace(/\n$/, "")) });
  }

  /** Stops serving the volume; the next start serves it again. `onGone`: it is not in the list. */
  async stop(member: FlashMember, onGone: () => void): Promise<void> {
    this.list.splice(this.list.indexOf(member), 1);
    onGone();
    await member.volume.stop();
  }

  /** Stops serving the volume and gives up all that is in it. */
  async destroy(member: FlashMember, onGone: () => void): Promise<void> {
    const { engine } = this.#options;
    const { inode } = member;
    await this.stop(member, onGone);
    const now = engine.world.clock.wallSeconds() >>> 0;
    await this.#update(inode, invalidated(engine.uuids.entry(inode), now));
    await dropKeys(engine, inode);
  }

  #update(inode: number, entry: UuidEntry): Promise<void> {
    const { uuids, allocator } = this.#options.engine;
    return uuids.update([[inode, entry]], allocator, () => this.#options.engine.commitMetadata());
  }

  /** Sectors in the cache, all of them dirty. */
  usedSectors(member: FlashMember): number {
    return this.#options.engine.dirty.of(member.inode);
  }
}
