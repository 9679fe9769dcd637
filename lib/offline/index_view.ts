/**
 * The index of a cache device as it would be after recovery: what lies in the leaves, with the
 * journal laid over it. Put together once by `openIndex`, then gone through leaf by leaf, as often
 * as wanted; memory does not grow with the number of leaves that do not fit into it.
 */
import { assert } from "../base/assert.ts";
import { mergeExtents } from "../bset/merge.ts";
import { KeySet } from "../bset/key_set.ts";
import {
  keyPointers,
  keySizeSectors,
  pointerDevice,
  pointerGen,
  pointerSector,
} from "../ondisk/bkey.ts";
import { BucketView, USE, USE_NAMES } from "./bucket_view.ts";
import { bucketOf, type CacheImage, tryRead } from "./cache_image.ts";
import { type Report, RESTORE } from "./findings.ts";
import { rescueJournal } from "./journal_rescue.ts";
import { type JournalScan, scanJournal } from "./journal_scan.ts";
import { scanNode } from "./node_scan.ts";
import { loadGenerations } from "./prio_scan.ts";
import { type Overlay, readOverlay, sliceOf } from "./replay.ts";
import { type LeafRange, type TreeScan, type VisitedNode, walkTree } from "./tree_walk.ts";
import { scanUuids, type UuidScan } from "./uuid_scan.ts";

export interface IndexView {
  readonly image: CacheImage;
  readonly journal: JournalScan;
  readonly overlay: Overlay;
  readonly buckets: BucketView;
  readonly priorities: { readonly complete: boolean; readonly sequence: number; inUse: number };
  readonly uuids: UuidScan | undefined;
  readonly tree: TreeScan;
}

/** How far a long look has come. */
export interface OfflineProgress {
  readonly stage: "journal" | "b-tree" | "extents" | "copy";
  readonly done: number;
  /** 0: not known. */
  readonly total: number;
}
export type OnProgress = (progress: OfflineProgress) => void;

export interface OpenIndexOptions {
  readonly report: Report;
  readonly visit?: (node: VisitedNode) => void | Promise<void>;
  readonly progress?: OnProgress;
  /** Takes the intact entries of a damaged journal too that recovery does not see. */
  readonly rescue?: boolean;
}

/** Reads all metadata; undefined when the journal names no index. Reports what is wrong. */
export async function openIndex(
  image: CacheImage,
  options: OpenIndexOptions,
): Promise<IndexView | undefined> {
  const { report, progress } = options;
  const { geometry } = image;
  progress?.({ stage: "journal", done: 0, total: 0 });
  if (!hasJournal(image, report)) return undefined;
  const journal = options.rescue === true
    ? await rescueJournal(image, report)
    : await scanJournal(image, report);
  if (journal === undefined) return undefined;
  const buckets = new BucketView(geometry.bucketCount, geometry.bucketSectors);
  const priorities = await loadGenerations(image, journal.head.prioBucket, { buckets, report });
  const uuids = await scanUuids(image, journal.head, report);
  claimMetadata(image, { buckets, report, chain: priorities.chain, uuids });
  const overlay = await readOverlay(image, journal, { buckets, report });
  let nodes = 0;
  const tree = await walkTree(image, journal.head, {
    buckets,
    report,
    visit: async (node) => {
      progress?.({ stage: "b-tree", done: ++nodes, total: 0 });
      await options.visit?.(node);
    },
  });
  return { image, journal, overlay, buckets, priorities, uuids, tree };
}

function hasJournal(image: CacheImage, report: Report): boolean {
  if (image.superblock.journalBucketCount > 0) return true;
  report({
    severity: "error",
    subject: "superblock",
    device: image.device.name,
    what: "says that an index exists, but names no journal",
    found: "0 journal buckets",
    expected: "2 or more",
    advice: RESTORE,
  });
  return false;
}

/** Gives journal, priorities and UUID table their buckets, and tells of what is used twice. */
function claimMetadata(
  image: CacheImage,
  parts: { buckets: BucketView; report: Report; chain: number[]; uuids: UuidScan | undefined },
): void {
  const { buckets, uuids } = parts;
  const { firstBucket, journalBucketCount } = image.superblock;
  const fault = (bucket: number, what: string, found?: string) =>
    parts.report({
      severity: "error",
      subject: "btree",
      device: image.device.name,
      bucket,
      sector: bucket * image.geometry.bucketSectors,
      what,
      ...(found === undefined ? {} : { found }),
      advice: RESTORE,
    });
  for (let index = 0; index < journalBucketCount; index++) {
    buckets.claim(firstBucket + index, USE.journal);
  }
  for (const bucket of parts.chain) {
    const before = buckets.claim(bucket, USE.priorities);
    if (before !== USE.none) fault(bucket, `a prio_set's bucket belongs to ${USE_NAMES[before]}`);
  }
  if (uuids === undefined) return;
  const before = buckets.claim(uuids.bucket, USE.uuids);
  if (before !== USE.none) {
    fault(uuids.bucket, `the UUID table's bucket belongs to ${USE_NAMES[before]}`);
  }
  const stale = buckets.staleness(uuids.bucket, uuids.gen);
  if (stale > 0) {
    const gen = buckets.gen[uuids.bucket]!;
    fault(
      uuids.bucket,
      `the pointer to the UUID table is stale: the bucket is at generation ${gen}`,
      `generation ${uuids.gen}`,
    );
  }
}

/** The extents of one range of the index. */
export interface EffectiveLeaf {
  readonly range: LeafRange;
  /** As the leaf lies on disk. */
  readonly onDisk: KeySet;
  /** What the journal puts over it. */
  readonly replayed: KeySet;
  /** Both, the journal winning: what lookups would find. */
  readonly keys: KeySet;
}

/** Every leaf in key order, the journal laid over it; with `inode` only those that may hold it. */
export async function* effectiveLeaves(
  index: IndexView,
  inode?: number,
): AsyncGenerator<EffectiveLeaf, void, undefined> {
  const { image, overlay, tree } = index;
  const { bucketSectors } = image.geometry;
  for (const range of tree.leaves) {
    const isOutside = inode !== undefined &&
      (range.upper.inode < inode || range.lower.inode > inode);
    if (isOutside) continue;
    const onDisk = await leafKeys(image, range);
    const replayed = sliceOf(overlay.extents, range.lower, range.upper);
    const keys = replayed.count === 0 ? onDisk : mergeExtents(onDisk, replayed, { bucketSectors });
    yield { range, onDisk, replayed, keys };
  }
}

async function leafKeys(image: CacheImage, range: LeafRange): Promise<KeySet> {
  if (range.kept !== undefined) return range.kept;
  if (range.key === undefined) return new KeySet(1);
  const sector = pointerSector(range.key, 0);
  assert(sector % 1 === 0, "a pointer names a whole sector");
  const bytes = new Uint8Array(keySizeSectors(range.key, 0) * 512);
  // Read before, in the walk: if it fails now, it is as if nothing were there.
  if (await tryRead(image.device, sector, bytes) !== undefined) return new KeySet(1);
  return scanNode(image, range.key, 0, bytes).keys;
}

/** How the pointer of an extent counts. */
export type PointerState = "none" | "elsewhere" | "stale" | "good";

export function pointerState(index: IndexView, words: Uint32Array, at: number): PointerState {
  if (keyPointers(words, at) === 0) return "none";
  if (pointerDevice(words, at) !== 0) return "elsewhere";
  const bucket = bucketOf(index.image, pointerSector(words, at));
  return index.buckets.staleness(bucket, pointerGen(words, at)) > 0 ? "stale" : "good";
}
