/**
 * Checks every extent of the index, as recovery would leave it: whose it is, whether its pointer
 * is good, and that no sector of the cache device belongs to two of them. Sums up what each
 * device has in the cache. Answers to `bch_extent_invalid`, `bch_extent_bad` and the marking of
 * `bch_btree_gc`.
 */
import { formatBytes } from "../base/units.ts";
import type { KeySet } from "../bset/key_set.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keySizeSectors,
  keyStart,
  keyText,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { slotKind } from "../ondisk/uuid_table.ts";
import { GENERATION_LIMIT } from "../buckets/table.ts";
import { USE, USE_NAMES } from "./bucket_view.ts";
import { bucketOf } from "./cache_image.ts";
import { type Finding, type Report, RESTORE } from "./findings.ts";
import {
  type EffectiveLeaf,
  effectiveLeaves,
  type IndexView,
  type OnProgress,
  pointerState,
} from "./index_view.ts";

/** What the index holds of one device. */
export interface DeviceTally {
  extents: number;
  cachedSectors: number;
  dirtySectors: number;
  /** Where its data in the cache begins, and ends; dirty data ends. */
  start: number;
  end: number;
  dirtyEnd: number;
}

export interface ExtentTally {
  /** By inode. */
  readonly devices: ReadonlyMap<number, DeviceTally>;
  readonly extents: number;
  readonly stale: number;
  /** Of these, dirty ones in leaves: in a set that Linux never ran on, lost data. */
  readonly staleDirty: number;
}

const STALE_DIRTY_ADVICE = "after a power cut under Linux it was written back, and nothing is " +
  "lost; else the leaf is an older copy: compare with a backup";

/** Goes over all extents; what is wrong with them is reported, their buckets become doubtful. */
export async function checkExtents(
  index: IndexView,
  report: Report,
  progress: OnProgress | undefined,
): Promise<ExtentTally> {
  const checker = new ExtentChecker(index, report);
  let done = 0;
  const total = index.tree.leaves.length;
  for await (const leaf of effectiveLeaves(index)) {
    checker.onDisk(leaf.onDisk);
    checker.effective(leaf);
    progress?.({ stage: "extents", done: ++done, total });
  }
  checker.inodes();
  return checker;
}

/** Whether the journal brings the extent in slot `at` of a leaf's keys. */
export function isFromJournal({ keys, replayed }: EffectiveLeaf, at: number): boolean {
  const inode = keyInode(keys.words, at);
  const start = keyStart(keys.words, at);
  const covering = replayed.upperBound(inode, start) * SLOT_WORDS;
  return covering < replayed.count * SLOT_WORDS &&
    keyInode(replayed.words, covering) === inode && keyStart(replayed.words, covering) <= start;
}

class ExtentChecker implements ExtentTally {
  readonly devices: Map<number, DeviceTally> = new Map();
  extents = 0;
  stale = 0;
  staleDirty = 0;
  #index: IndexView;
  #report: Report;

  constructor(index: IndexView, report: Report) {
    this.#index = index;
    this.#report = report;
  }

  #fault(
    severity: "error" | "warning",
    sector: number | undefined,
    more: Pick<Finding, "what" | "found" | "expected"> & { advice?: string },
  ): void {
    const { image, buckets } = this.#index;
    const where = sector === undefined ? {} : { bucket: bucketOf(image, sector), sector };
    if (where.bucket !== undefined && severity === "error") buckets.doubt(where.bucket);
    this.#report({
      severity,
      subject: "btree",
      device: image.device.name,
      ...where,
      advice: RESTORE,
      ...more,
    });
  }

  /** What gives a leaf away as damaged even where the journal hides it. */
  onDisk(keys: KeySet): void {
    const { words } = keys;
    const { buckets, image } = this.#index;
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      const state = pointerState(this.#index, words, at);
      if (state === "none" || state === "elsewhere") continue;
      const sector = pointerSector(words, at);
      const bucket = bucketOf(image, sector);
      if (state === "stale") {
        const stale = buckets.staleness(bucket, pointerGen(words, at));
        if (stale <= GENERATION_LIMIT) continue;
        this.#fault("error", sector, {
          what: `extent ${keyText(words, at)} is too stale to be told from a good one`,
          found: `${stale} generations behind`,
          expected: `at most ${GENERATION_LIMIT}`,
        });
        continue;
      }
      const use = buckets.use[bucket]!;
      if (use === USE.none || use === USE.data) continue;
      this.#fault("error", sector, {
        what: `extent ${keyText(words, at)} points into a bucket that belongs to ${USE_NAMES[use]}`,
      });
    }
  }

  effective(leaf: EffectiveLeaf): void {
    const { words, count } = leaf.keys;
    this.extents += count;
    for (let at = 0; at < count * SLOT_WORDS; at += SLOT_WORDS) {
      const state = pointerState(this.#index, words, at);
      if (state === "good") this.#good(leaf, at);
      else if (state === "stale") this.#stale(leaf, at);
    }
  }

  #good(leaf: EffectiveLeaf, at: number): void {
    const { words } = leaf.keys;
    const { buckets, image } = this.#index;
    const size = keySizeSectors(words, at);
    const sector = pointerSector(words, at);
    const bucket = bucketOf(image, sector);
    const use = buckets.use[bucket]!;
    if (pointerGen(words, at) !== buckets.gen[bucket]) {
      this.#fault("error", sector, {
        what: `extent ${keyText(words, at)} contradicts others about the generation of its bucket`,
        found: `generation ${pointerGen(words, at)}`,
        expected: String(buckets.gen[bucket]),
      });
    }
    if (use === USE.none) buckets.use[bucket] = USE.data;
    if (use > USE.data && isFromJournal(leaf, at)) {
      this.#fault("error", sector, {
        what: `the journal's extent ${keyText(words, at)} points into a bucket that belongs to ` +
          USE_NAMES[use],
      });
    }
    if (use <= USE.data && !buckets.refer(bucket, sector % image.geometry.bucketSectors, size)) {
      this.#fault("error", sector, {
        what: `extent ${keyText(words, at)} names sectors that another extent names as well`,
        found: `${buckets.sectors[bucket]} sectors of the bucket in use`,
        expected: `each once, ${buckets.bucketSectors} at most`,
      });
    }
    const tally = this.#tallyOf(keyInode(words, at));
    tally.extents++;
    tally.cachedSectors += size;
    const end = keyOffset(words, at);
    tally.start = Math.min(tally.start, keyStart(words, at));
    tally.end = Math.max(tally.end, end);
    if (!keyDirty(words, at)) return;
    tally.dirtySectors += size;
    tally.dirtyEnd = Math.max(tally.dirtyEnd, end);
  }

  #tallyOf(inode: number): DeviceTally {
    let tally = this.devices.get(inode);
    if (tally === undefined) {
      tally = {
        extents: 0,
        cachedSectors: 0,
        dirtySectors: 0,
        start: Infinity,
        end: 0,
        dirtyEnd: 0,
      };
      this.devices.set(inode, tally);
    }
    return tally;
  }

  /**
   * A dirty extent whose bucket was given to something else. The journal may bring such a key
   * back after its data was written back and the bucket reused. A leaf holds one when Linux lost
   * its power: it does not journal that data was written back, and reuses the bucket before the
   * leaf is on disk. This engine never leaves one, so in a set of its own the leaf is too old.
   */
  #stale(leaf: EffectiveLeaf, at: number): void {
    const { words } = leaf.keys;
    this.stale++;
    if (!keyDirty(words, at) || isFromJournal(leaf, at)) return;
    this.staleDirty++;
    const sector = pointerSector(words, at);
    this.#fault("warning", sector, {
      advice: STALE_DIRTY_ADVICE,
      what: `dirty extent ${keyText(words, at)} is stale: its bucket was used again`,
      found: `generation ${pointerGen(words, at)}`,
      expected: String(this.#index.buckets.gen[bucketOf(this.#index.image, sector)]),
    });
  }

  /** Whether all who have data are in the UUID table. */
  inodes(): void {
    const { uuids } = this.#index;
    if (uuids === undefined) return;
    for (const [inode, tally] of this.devices) {
      const entry = uuids.entries[inode];
      if (entry !== undefined && slotKind(entry) !== "free") continue;
      const what =
        `${tally.extents} extents (${formatBytes(tally.dirtySectors * 512)} dirty) belong to ` +
        `device number ${inode}, which the UUID table does not know`;
      this.#fault("error", undefined, {
        what,
        expected: entry === undefined ? `a number below ${uuids.entries.length}` : "a used slot",
      });
    }
  }
}
