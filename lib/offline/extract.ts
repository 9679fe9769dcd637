/**
 * `extract`: the exported device as one image: the backing device's data with everything that is
 * in the cache over it, as reads through a mount would find it after recovery. Nothing is written
 * but the output. For a flash-only volume the cache is all there is.
 *
 * With `rescue` damage is no reason to stop: what can be read is taken, and every range of which
 * it cannot be said that it is right is listed. Where the index is lost the backing device's data
 * stands, which is complete but for what was dirty.
 */
import { BcacheError, messageOf } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyStart,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { checkExtents, isFromJournal } from "./check_extents.ts";
import { bucketOf, openCacheImage, wasStarted } from "./cache_image.ts";
import { type Finding, Findings, findingText } from "./findings.ts";
import {
  type EffectiveLeaf,
  effectiveLeaves,
  type IndexView,
  type OnProgress,
  openIndex,
  pointerState,
} from "./index_view.ts";
import {
  backingTarget,
  setOf,
  type Target,
  type VolumeName,
  volumeTarget,
} from "./extract_target.ts";
import { findByJournal } from "./lost_superblock.ts";
import { SparseWriter } from "./sparse_writer.ts";

export interface ExtractOptions {
  /** Only read, like `backing`; both stay the caller's. */
  readonly cache: Device;
  /** The backing device, or which flash-only volume of the cache. */
  readonly of: { readonly backing: Device } | { readonly volume: VolumeName };
  readonly rescue: boolean;
  readonly progress?: OnProgress;
}

/** A part of the image that may be wrong. */
export interface DoubtfulRange {
  readonly startByte: number;
  readonly endByte: number;
  readonly why: string;
}

export interface ExtractResult {
  readonly sizeBytes: number;
  /** Without holes. */
  readonly writtenBytes: number;
  readonly fromCacheBytes: number;
  readonly doubtful: readonly DoubtfulRange[];
  /** Ranges that are not listed. */
  readonly doubtfulOmitted: number;
}

/** A planned extraction: its size is known, all that can be refused was. */
export interface Extraction {
  readonly sizeSectors: number;
  /** What is damaged; empty unless this is a rescue. */
  readonly findings: readonly Finding[];
  /** Fills `output`, a device of `sizeSectors` that reads as zeroes. */
  copyTo(output: Device, signal?: AbortSignal): Promise<ExtractResult>;
}

const DOUBTFUL_MAX = 1000;

const LOST = "the cache has lost this dirty data";
const DOUBTFUL_BUCKET = "its bucket in the cache has errors: the data may be old or another's";

/**
 * Looks at the devices and prepares. Rejects when they do not belong together, and, unless this is
 * a rescue, when metadata is damaged.
 */
export async function planExtract(options: ExtractOptions): Promise<Extraction> {
  const { cache, of, rescue, progress } = options;
  const findings = new Findings();
  const { report } = findings;
  let image = await openCacheImage(cache, report);
  if (image === undefined && rescue) {
    const setUuid = "backing" in of ? await setOf(of.backing) : undefined;
    image = await findByJournal(cache, setUuid, report);
  }
  const index = image !== undefined && wasStarted(image)
    ? await openIndex(image, { report, rescue, ...(progress === undefined ? {} : { progress }) })
    : undefined;
  const tally = index === undefined ? undefined : await checkExtents(index, report, progress);
  if (findings.errors > 0 && !rescue) throw refusal(findings);
  const isLost = findings.errors > 0 && index === undefined;
  const target = "backing" in of
    ? await backingTarget(of.backing, { image, index, isLost, rescue, devices: tally?.devices })
    : volumeTarget(of.volume, isLost ? findings.kept[0] : index, {
      cacheName: cache.name,
      rescue,
      devices: tally?.devices,
    });
  return {
    sizeSectors: target.sizeSectors,
    findings: findings.kept,
    copyTo: (output, signal) => {
      const copier = new Copier(index, target, { output, rescue, progress, signal });
      return copier.run(isLost);
    },
  };
}

function refusal(findings: Findings): BcacheError {
  const first = findings.kept.find((finding) => finding.severity === "error")!;
  const more = findings.errors > 1 ? ` (and ${findings.errors - 1} more errors)` : "";
  const text = findingText(first).replace(/^error: /, "").split("; ")[0];
  const advice = "`check` lists all; --rescue extracts what can be read";
  return new BcacheError("BadFormat", `${text}${more}; ${advice}`);
}

/** Why what the image has in the range of an extent with a pointer may be wrong. */
function doubtOfExtent(index: IndexView, leaf: EffectiveLeaf, at: number): string | undefined {
  const { words } = leaf.keys;
  const { image, buckets } = index;
  const state = pointerState(index, words, at);
  if (state === "none" || state === "elsewhere") return keyDirty(words, at) ? LOST : undefined;
  if (buckets.isDoubtful(bucketOf(image, pointerSector(words, at)))) return DOUBTFUL_BUCKET;
  // The journal may bring back what was written back long ago.
  const isLost = state === "stale" && keyDirty(words, at) && !isFromJournal(leaf, at);
  return isLost ? LOST : undefined;
}

class Copier {
  #index: IndexView | undefined;
  #target: Target;
  #writer: SparseWriter;
  #rescue: boolean;
  #progress: OnProgress | undefined;
  #signal: AbortSignal | undefined;
  #doubtful: DoubtfulRange[] = [];
  #doubtfulCount = 0;
  #fromCacheBytes = 0;

  constructor(
    index: IndexView | undefined,
    target: Target,
    options: {
      output: Device;
      rescue: boolean;
      progress: OnProgress | undefined;
      signal: AbortSignal | undefined;
    },
  ) {
    this.#index = index;
    this.#target = target;
    this.#writer = new SparseWriter(options.output);
    this.#rescue = options.rescue;
    this.#progress = options.progress;
    this.#signal = options.signal;
  }

  async run(isLost: boolean): Promise<ExtractResult> {
    const { sizeSectors, inode } = this.#target;
    const doubt = this.#target.doubt ?? (isLost ? "nothing of the cache can be read" : undefined) ??
      this.#doubtOfAll();
    if (doubt !== undefined) this.#doubt(0, sizeSectors, doubt);
    if (this.#index !== undefined && inode !== undefined) {
      for await (const leaf of effectiveLeaves(this.#index, inode)) await this.#leaf(leaf, inode);
    }
    await this.#backingUpTo(sizeSectors);
    await this.#writer.flush();
    return {
      sizeBytes: sizeSectors * 512,
      writtenBytes: this.#writer.writtenBytes,
      fromCacheBytes: this.#fromCacheBytes,
      doubtful: this.#doubtful,
      doubtfulOmitted: this.#doubtfulCount - this.#doubtful.length,
    };
  }

  /** Damage that may be about any part. */
  #doubtOfAll(): string | undefined {
    const index = this.#index;
    if (index === undefined || this.#target.inode === undefined) return undefined;
    if (!index.overlay.complete) return "a part of the journal is missing: data may be old";
    if (!index.priorities.complete) return "no generations: data in the cache may be old";
    return undefined;
  }

  /** Notes a range of the volume, in its sectors; neighbours with one reason become one. */
  #doubt(start: number, end: number, why: string): void {
    const from = Math.max(start, 0) * 512;
    const to = Math.min(end, this.#target.sizeSectors) * 512;
    if (from >= to) return;
    const last = this.#doubtful.at(-1);
    if (last !== undefined && last.endByte === from && last.why === why) {
      this.#doubtful[this.#doubtful.length - 1] = { ...last, endByte: to };
      return;
    }
    this.#doubtfulCount++;
    if (this.#doubtful.length === DOUBTFUL_MAX) return;
    this.#doubtful.push({ startByte: from, endByte: to, why });
  }

  async #leaf(leaf: EffectiveLeaf, inode: number): Promise<void> {
    const { range, keys } = leaf;
    const { baseSectors, sizeSectors } = this.#target;
    if (!range.sound) {
      const from = range.lower.inode === inode ? range.lower.offset - baseSectors : 0;
      const to = range.upper.inode === inode ? range.upper.offset - baseSectors : sizeSectors;
      this.#doubt(from, to, "a b-tree node is damaged: data in the cache may be missing or old");
    }
    for (let at = keys.upperBound(inode, 0) * SLOT_WORDS; at < keys.count * SLOT_WORDS;) {
      if (keyInode(keys.words, at) !== inode) break;
      await this.#extent(leaf, at);
      at += SLOT_WORDS;
    }
  }

  async #extent(leaf: EffectiveLeaf, at: number): Promise<void> {
    const { words } = leaf.keys;
    const index = this.#index!;
    const { baseSectors, sizeSectors } = this.#target;
    const start = Math.max(keyStart(words, at) - baseSectors, this.#writer.position);
    const end = Math.min(keyOffset(words, at) - baseSectors, sizeSectors);
    if (start >= end) return;
    const state = pointerState(index, words, at);
    const dirty = keyDirty(words, at);
    if (state === "none" && !dirty) return;
    const doubt = doubtOfExtent(index, leaf, at);
    if (doubt !== undefined) this.#doubt(start, end, doubt);
    if (state !== "good") return;
    // Without generations a clean extent may be long gone, and the backing device has the data.
    if (!dirty && !index.priorities.complete && this.#target.backing !== undefined) return;
    await this.#backingUpTo(start);
    const sector = pointerSector(words, at) + (start + baseSectors - keyStart(words, at));
    await this.#fromCache({ sector, start, end, dirty });
  }

  async #fromCache(piece: {
    sector: number;
    start: number;
    end: number;
    dirty: boolean;
  }): Promise<void> {
    const { device, presentSectors } = this.#index!.image;
    for (let at = piece.start; at < piece.end;) {
      // Of a device that was cut short, all that is there: no read goes across its end.
      const left = presentSectors - (piece.sector + (at - piece.start));
      const into = await this.#next(left > 0 ? Math.min(piece.end - at, left) : piece.end - at);
      const sectors = into.length / 512;
      try {
        await device.read(piece.sector + (at - piece.start), into);
        this.#fromCacheBytes += into.length;
      } catch (error) {
        // Clean data is on the backing device as well.
        if (piece.dirty || this.#target.backing === undefined) {
          const instead = this.#target.backing === undefined ? "zeroes" : "older data";
          this.#failed(error, at, sectors, `the cache device cannot be read: ${instead}`);
        }
        await this.#readBacking(at, into);
      }
      at += sectors;
    }
  }

  /** Copies what the cache does not have, up to a sector of the volume. */
  async #backingUpTo(end: number): Promise<void> {
    if (this.#target.backing === undefined) {
      if (end > this.#writer.position) await this.#writer.skipTo(end);
      return;
    }
    while (this.#writer.position < end) {
      const at = this.#writer.position;
      await this.#readBacking(at, await this.#next(end - at));
    }
  }

  async #readBacking(at: number, into: Uint8Array): Promise<void> {
    into.fill(0);
    const { backing, baseSectors } = this.#target;
    if (backing === undefined) return;
    try {
      await backing.read(at + baseSectors, into);
    } catch (error) {
      into.fill(0);
      const why = "the backing device cannot be read: zeroes";
      this.#failed(error, at, into.length / 512, why);
    }
  }

  /** In a rescue the range is noted; else this is the end. */
  #failed(error: unknown, at: number, sectors: number, why: string): void {
    if (!(error instanceof BcacheError)) throw error;
    if (!this.#rescue) {
      const advice = "--rescue goes on and lists what is lost";
      throw new BcacheError("DeviceIo", `${messageOf(error)}; ${advice}`, { cause: error });
    }
    this.#doubt(at, at + sectors, why);
  }

  async #next(sectors: number): Promise<Uint8Array> {
    if (this.#signal?.aborted) throw new BcacheError("Shutdown", "interrupted; nothing was kept");
    const done = this.#writer.position;
    this.#progress?.({ stage: "copy", done, total: this.#target.sizeSectors });
    return await this.#writer.take(sectors);
  }
}
