/**
 * Where a device is dirty: by stripe, for a RAID, and by region, for the age of what is dirty.
 * Kept up with every change of the index.
 */
import type { Clock } from "../../base/runtime.ts";
import type { Btree } from "../../btree/btree.ts";
import type { Device } from "../../device/device.ts";
import { DirtyRegions } from "./dirty_regions.ts";
import type { DirtySectors, DirtyWatcher } from "./dirty_sectors.ts";
import { Stripes, stripeSectorsOf } from "./stripes.ts";

export class DirtyMap implements DirtyWatcher {
  readonly regions: DirtyRegions;
  /** Writing a part of a stripe costs the device more than writing all of it. */
  partialStripesExpensive: boolean;
  /** How often it became another one. */
  changes = 0;
  #stripes: Stripes;
  #deviceSectors: number;
  #btree: Btree | undefined;
  #inode = 0;

  constructor(device: Device, clock: Clock) {
    const optimalSectors = device.optimalIoSectors ?? 0;
    this.#deviceSectors = device.sizeSectors;
    this.regions = new DirtyRegions(device.sizeSectors, clock);
    this.#stripes = new Stripes(
      stripeSectorsOf(optimalSectors, device.sizeSectors),
      device.sizeSectors,
    );
    this.partialStripesExpensive = optimalSectors > 0 && (device.partialStripesExpensive ?? false);
  }

  get stripes(): Stripes {
    return this.#stripes;
  }

  add(start: number, sectors: number): void {
    this.changes++;
    this.#stripes.add(start, sectors);
    this.regions.add(start, sectors);
  }

  /** Counts what is dirty in the index, and follows its changes from now on. */
  async follow(dirty: DirtySectors, btree: Btree, inode: number): Promise<void> {
    this.#btree = btree;
    this.#inode = inode;
    dirty.watch(inode, this);
    if (dirty.of(inode) === 0) {
      this.#stripes.countNothing();
      this.regions.countNothing();
      return;
    }
    await Promise.all([
      this.#stripes.countDirtyKeys(btree, inode),
      this.regions.countDirtyKeys(btree, inode),
    ]);
  }

  /** @param optimalSectors what stripes are a multiple of; 0: there are none */
  async setStripes(optimalSectors: number): Promise<void> {
    const unitSectors = stripeSectorsOf(optimalSectors, this.#deviceSectors);
    if (unitSectors === this.#stripes.unitSectors) return;
    const stripes = new Stripes(unitSectors, this.#deviceSectors);
    this.#stripes = stripes;
    if (this.#btree !== undefined) await stripes.countDirtyKeys(this.#btree, this.#inode);
  }

  /**
   * Whether a write of [start, start + sectors) should stay in the cache, so that a stripe that is
   * dirty already is written as a whole later. Answers to `bcache_dev_stripe_dirty`. The hit path.
   */
  keepsStripeTogether(start: number, sectors: number): boolean {
    return this.partialStripesExpensive && this.#stripes.touchesDirty(start, sectors);
  }
}
