/**
 * `check`: whether a cache set is consistent, found out without writing anything and without the
 * engine. Every structure is looked at, and what recovery would make of it; findings say what,
 * where, found, expected, what to do. Never rejects for what is on the devices, ends for any
 * bytes, and memory is bounded: eleven bytes a bucket, 64 MiB of leaves, and the extents that the
 * journal speaks of (twice while they are put in order: 768 MiB for the largest journal).
 *
 * Answers to `bch_btree_check` and the checks that Linux spreads over registration.
 */
import { BcacheError } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { IMPOSSIBLE, ImpossibleEntry } from "../journal/parse.ts";
import { findLaterEntry } from "../journal/reader.ts";
import { decodeLabel } from "../ondisk/label.ts";
import { formatUuid } from "../ondisk/uuid.ts";
import { slotKind } from "../ondisk/uuid_table.ts";
import { USE } from "./bucket_view.ts";
import { type CacheImage, openCacheImage, wasStarted } from "./cache_image.ts";
import { checkBackings, type CheckedBacking } from "./check_backing.ts";
import { checkExtents, type ExtentTally } from "./check_extents.ts";
import { type Finding, Findings, type Report, RESTORE } from "./findings.ts";
import { journalPlace } from "./journal_scan.ts";
import { type IndexView, type OnProgress, openIndex } from "./index_view.ts";

export interface CheckOptions {
  /** The cache device; only read. The caller's to close. */
  readonly cache: Device;
  /** Backing devices to compare with it (a plain image joined with its sidecar). */
  readonly backings?: readonly Device[];
  /** What is wrong with backing devices that could not even be opened, given what is cached. */
  readonly refused?: (devices: readonly CheckedDevice[]) => readonly Finding[];
  readonly progress?: OnProgress;
  /** Findings kept in full; default 1000. */
  readonly findingsMax?: number;
}

/** What the cache holds of one device of its UUID table. */
export interface CheckedDevice {
  readonly inode: number;
  readonly uuid: string;
  readonly label: string;
  readonly kind: "cached device" | "flash-only volume" | "invalidated";
  readonly cachedBytes: number;
  readonly dirtyBytes: number;
}

export interface CheckReport {
  /** No errors; there may be warnings. */
  readonly clean: boolean;
  readonly errors: number;
  readonly warnings: number;
  readonly findings: readonly Finding[];
  /** Findings counted but not kept. */
  readonly omitted: number;
  readonly setUuid?: string;
  /** False: the set never ran; nothing is on the cache but the superblock. */
  readonly started?: boolean;
  readonly journal?: {
    readonly newestSeq: number;
    /** Entries that recovery replays, and the keys in them. */
    readonly entries: number;
    readonly keys: number;
  };
  readonly btree?: {
    readonly levels: number;
    readonly nodes: number;
    readonly leaves: number;
    /** After replay. */
    readonly extents: number;
    readonly staleExtents: number;
    /** Of these, dirty ones in leaves: after a power cut under Linux, or of an older copy. */
    readonly staleDirtyExtents: number;
  };
  readonly buckets?: {
    readonly total: number;
    readonly data: number;
    readonly metadata: number;
    /** Pointers ahead of the generation on disk, as a power cut may leave them. */
    readonly pointersAhead: number;
  };
  readonly devices: readonly CheckedDevice[];
  readonly backings: readonly CheckedBacking[];
}

/** Checks a cache set. See the file's header. */
export async function checkCache(options: CheckOptions): Promise<CheckReport> {
  const findings = new Findings(options.findingsMax);
  const { report } = findings;
  const image = await openCacheImage(options.cache, report);
  const started = image !== undefined && wasStarted(image);
  const index = started
    ? await openIndex(image, {
      report,
      ...(options.progress === undefined ? {} : { progress: options.progress }),
    })
    : undefined;
  if (image !== undefined && !started) await reportOldSuperblock(image, report);
  const tally = index === undefined
    ? undefined
    : await checkExtents(index, report, options.progress);
  const known = image === undefined ? undefined : {
    image,
    started,
    uuids: index?.uuids,
    index,
    devices: tally?.devices,
  };
  const devices = index === undefined ? [] : devicesOf(index, tally);
  for (const finding of options.refused?.(devices) ?? []) report(finding);
  const backings = await checkBackings(options.backings ?? [], known, report);
  return {
    clean: findings.errors === 0,
    errors: findings.errors,
    warnings: findings.warnings,
    findings: findings.kept,
    omitted: findings.omitted,
    ...aboutSet(image, started),
    ...(index === undefined || tally === undefined ? {} : aboutIndex(index, tally)),
    devices,
    backings,
  };
}

/** The superblock says that the set never ran; its journal may know better. */
async function reportOldSuperblock(image: CacheImage, report: Report): Promise<void> {
  const { device, geometry, superblock } = image;
  const { firstBucket } = superblock;
  const length = geometry.newJournalBucketCount;
  const buckets = Array.from({ length }, (_, index) => firstBucket + index);
  try {
    const found = await findLaterEntry({ ...journalPlace(image), buckets });
    if (found === undefined) return;
    report({
      severity: "error",
      subject: "superblock",
      device: device.name,
      bucket: found.bucket,
      what: "says that the set never ran, but its journal tells of more",
      found: `journal entry ${found.seq}`,
      advice: "the superblock is an old copy: restore sector 8 from a newer one",
    });
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    if (!(error instanceof ImpossibleEntry)) return; // What cannot be read tells nothing.
    const what = IMPOSSIBLE;
    const { detail: found } = error;
    const about = { subject: "journal", device: device.name } as const;
    report({ severity: "error", ...about, what, found, advice: RESTORE });
  }
}

function aboutSet(image: CacheImage | undefined, started: boolean): Partial<CheckReport> {
  return image === undefined ? {} : { setUuid: formatUuid(image.superblock.setUuid), started };
}

function aboutIndex(index: IndexView, tally: ExtentTally): Partial<CheckReport> {
  const { journal, overlay, tree, buckets } = index;
  let data = 0;
  let metadata = 0;
  for (let bucket = 0; bucket < buckets.bucketCount; bucket++) {
    const use = buckets.use[bucket]!;
    if (use === USE.data) data++;
    else if (use !== USE.none) metadata++;
  }
  return {
    journal: {
      newestSeq: journal.head.seq,
      entries: journal.needed.length,
      keys: overlay.keys,
    },
    btree: {
      levels: tree.levels,
      nodes: tree.nodes,
      leaves: tree.leaves.filter((leaf) => leaf.key !== undefined).length,
      extents: tally.extents,
      staleExtents: tally.stale,
      staleDirtyExtents: tally.staleDirty,
    },
    buckets: { total: buckets.bucketCount, data, metadata, pointersAhead: buckets.adopted },
  };
}

function devicesOf(index: IndexView, tally: ExtentTally | undefined): CheckedDevice[] {
  const devices: CheckedDevice[] = [];
  index.uuids?.entries.forEach((entry, inode) => {
    const kind = slotKind(entry);
    if (kind === "free") return;
    const found = tally?.devices.get(inode);
    devices.push({
      inode,
      uuid: formatUuid(entry.uuid),
      label: decodeLabel(entry.label),
      kind,
      cachedBytes: (found?.cachedSectors ?? 0) * 512,
      dirtyBytes: (found?.dirtySectors ?? 0) * 512,
    });
  });
  return devices;
}
