/**
 * Goes over the whole index, node by node, and checks how nodes hang together: children cover
 * their parent's range without gap, keys lie inside their node, no bucket is met twice (so this
 * ends, whatever the bytes are). Leaves are remembered in key order, for the passes that follow;
 * so are ranges of which no leaf could be read. Answers to `bch_btree_check` of btree.c.
 *
 * Generations are taken over as at registration: parents first, freed-node keys too.
 */
import { assert } from "../base/assert.ts";
import type { KeySet } from "../bset/key_set.ts";
import {
  copySlot,
  INODE_MAX,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  OFFSET_MAX,
  pointerDevice,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { keyFault } from "../btree/node_read.ts";
import type { JournalHead } from "../journal/reader.ts";
import { type BucketView, USE, USE_NAMES } from "./bucket_view.ts";
import { bucketOf, type CacheImage, tryRead } from "./cache_image.ts";
import { type Finding, type Report, RESTORE } from "./findings.ts";
import {
  comparePositions,
  LAST_POSITION,
  type Position,
  positionOf,
  positionText,
  type ScannedNode,
  scanNode,
} from "./node_scan.ts";

/** Deeper than any index can be. */
const LEVEL_MAX = 32;
/** Keys of leaves that are kept between passes, so that these need not be read again. */
const KEPT_BYTES_MAX = 64 * 1024 * 1024;

/** A leaf, or a range of keys of which nothing could be read. */
export interface LeafRange {
  /** Keys of the range lie behind this... */
  readonly lower: Position;
  /** ... and end here at the latest. */
  readonly upper: Position;
  /** The slot that points to the leaf; undefined: there is none to read. */
  readonly key: Uint32Array | undefined;
  /** False: what is known of the range may be old, or all of it may be missing. */
  readonly sound: boolean;
  /** Its keys, if they are still in memory. */
  kept: KeySet | undefined;
}

/** One node as it was found, for who wants to see each. */
export interface VisitedNode {
  readonly key: Uint32Array;
  readonly level: number;
  readonly lower: Position;
  readonly scanned: ScannedNode;
}

export interface TreeScan {
  readonly leaves: readonly LeafRange[];
  readonly nodes: number;
  readonly levels: number;
  readonly keysOnDisk: number;
}

export interface TreeWalkOptions {
  readonly buckets: BucketView;
  readonly report: Report;
  /** Sees every node, parents before their children. */
  readonly visit?: (node: VisitedNode) => void | Promise<void>;
}

/** Walks the index whose root the journal names. Never rejects for what is on the device. */
export async function walkTree(
  image: CacheImage,
  head: JournalHead,
  options: TreeWalkOptions,
): Promise<TreeScan> {
  const walk = new TreeWalk(image, options);
  await walk.root(head);
  return {
    leaves: walk.leaves,
    nodes: walk.nodes,
    levels: head.rootLevel + 1,
    keysOnDisk: walk.keysOnDisk,
  };
}

const FIRST_POSITION: Position = { inode: 0, offset: 0 };

/** Whether a key of an interior node is one that only says that a node was freed. */
function isFreedNodeKey(words: Uint32Array, at: number): boolean {
  return keyInode(words, at) === 0 && keyOffset(words, at) === 0;
}

class TreeWalk {
  readonly leaves: LeafRange[] = [];
  nodes = 0;
  keysOnDisk = 0;
  #keptBytes = 0;
  #image: CacheImage;
  #options: TreeWalkOptions;
  /** Used again for every node: its keys are copied out of it. */
  #buffer = new Uint8Array(0);

  constructor(image: CacheImage, options: TreeWalkOptions) {
    this.#image = image;
    this.#options = options;
  }

  async root(head: JournalHead): Promise<void> {
    const key = head.rootKey.slice(0, SLOT_WORDS);
    const bad = this.#rootFault(key, head.rootLevel);
    if (bad === undefined) {
      await this.#node(key, head.rootLevel, FIRST_POSITION);
      return;
    }
    this.#fault(undefined, {
      what: `journal entry ${head.seq}: the root's key ${keyText(key, 0)} ${bad}`,
    });
    this.#missing(FIRST_POSITION, LAST_POSITION);
  }

  #rootFault(key: Uint32Array, level: number): string | undefined {
    if (level > LEVEL_MAX) return `is of level ${level}, expected at most ${LEVEL_MAX}`;
    if (keyPointers(key, 0) !== 1) return `has ${keyPointers(key, 0)} pointers, expected 1`;
    if (pointerDevice(key, 0) !== 0) return `points to cache device ${pointerDevice(key, 0)}`;
    const bad = keyFault(key, 0, level + 1, this.#image.geometry);
    if (bad !== undefined) return bad;
    const last = positionOf(key, 0);
    if (comparePositions(last, LAST_POSITION) !== 0) return "does not end at the last position";
    const bucket = bucketOf(this.#image, pointerSector(key, 0));
    const { buckets } = this.#options;
    if (buckets.staleness(bucket, pointerGen(key, 0)) === 0) return undefined;
    return `is stale: its bucket is at generation ${buckets.gen[bucket]}`;
  }

  #fault(key: Uint32Array | undefined, more: Pick<Finding, "what" | "found" | "expected">): void {
    const sector = key === undefined ? undefined : pointerSector(key, 0);
    const where = sector === undefined ? {} : { bucket: bucketOf(this.#image, sector), sector };
    const { name } = this.#image.device;
    this.#options.report({
      severity: "error",
      subject: "btree",
      device: name,
      ...where,
      advice: RESTORE,
      ...more,
    });
  }

  /** Ranges next to each other are one: there are no more than the device has leaves. */
  #missing(lower: Position, upper: Position): void {
    const last = this.leaves.at(-1);
    const joins = last?.key === undefined && last !== undefined &&
      comparePositions(last.upper, lower) === 0;
    if (joins) this.leaves.pop();
    const from = joins ? last.lower : lower;
    this.leaves.push({ lower: from, upper, key: undefined, sound: false, kept: undefined });
  }

  /** One node and all below it. Its keys lie behind `lower`. */
  async #node(key: Uint32Array, level: number, lower: Position): Promise<void> {
    const upper = positionOf(key, 0);
    const scanned = await this.#read(key, level);
    if (scanned === undefined) return this.#missing(lower, upper);
    this.nodes++;
    this.keysOnDisk += scanned.keysOnDisk;
    if (scanned.fault !== undefined) {
      const { what, block } = scanned.fault;
      this.#fault(key, { what: `node of level ${level}, block ${block}: ${what}` });
    }
    if (scanned.dirtFault !== undefined) {
      this.#fault(key, { what: `node of level ${level}: ${scanned.dirtFault}` });
    }
    this.#adopt(scanned.keys);
    await this.#options.visit?.({ key, level, lower, scanned });
    if (level > 0) return await this.#children(key, level, lower, scanned);
    const inside = this.#checkExtents(key, lower, scanned.keys);
    const kept = this.#keptBytes + scanned.keys.bytes <= KEPT_BYTES_MAX ? scanned.keys : undefined;
    if (kept !== undefined) this.#keptBytes += kept.bytes;
    const sound = scanned.fault === undefined && inside;
    this.leaves.push({ lower, upper, key, sound, kept });
  }

  /** Undefined: nothing of it can be used. */
  async #read(key: Uint32Array, level: number): Promise<ScannedNode | undefined> {
    const { geometry, device } = this.#image;
    const sector = pointerSector(key, 0);
    const bucket = bucketOf(this.#image, sector);
    if (sector % geometry.bucketSectors !== 0) {
      this.#fault(key, {
        what: `node of level ${level} does not begin at the start of its bucket`,
        found: `sector ${sector}`,
        expected: `sector ${bucket * geometry.bucketSectors}`,
      });
    }
    const before = this.#options.buckets.claim(bucket, USE.node);
    if (before !== USE.none) {
      this.#fault(key, {
        what: `the bucket of a node of level ${level} that ends at ` +
          `${positionText(positionOf(key, 0))} belongs to ${USE_NAMES[before]} already`,
      });
      return undefined;
    }
    const lengthBytes = keySizeSectors(key, 0) * 512;
    if (this.#buffer.length < lengthBytes) this.#buffer = new Uint8Array(lengthBytes);
    const bytes = this.#buffer.subarray(0, lengthBytes);
    const failure = await tryRead(device, sector, bytes);
    if (failure === undefined) return scanNode(this.#image, key, level, bytes);
    this.#fault(key, { what: `node of level ${level} cannot be read: ${failure}` });
    return undefined;
  }

  #adopt(keys: KeySet): void {
    const { buckets } = this.#options;
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (keyPointers(keys.words, at) === 0 || pointerDevice(keys.words, at) !== 0) continue;
      if (keySizeSectors(keys.words, at) === 0) continue;
      const bucket = bucketOf(this.#image, pointerSector(keys.words, at));
      buckets.adopt(bucket, pointerGen(keys.words, at));
    }
  }

  /** Every child that counts, in key order; then whether they reach the end of the node. */
  async #children(
    key: Uint32Array,
    level: number,
    lower: Position,
    { keys, fault }: ScannedNode,
  ): Promise<void> {
    const upper = positionOf(key, 0);
    let before = lower;
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (this.#isBadChild(keys.words, at)) continue;
      const end = positionOf(keys.words, at);
      const tooFar = comparePositions(end, upper) > 0;
      if (tooFar || comparePositions(end, before) <= 0) {
        this.#fault(key, {
          what: `node of level ${level}: child ${keyText(keys.words, at)} ` +
            (tooFar ? "lies behind the end of the node" : "overlaps what is before it"),
          found: positionText(end),
          expected: `behind ${positionText(before)}, up to ${positionText(upper)}`,
        });
        if (tooFar) break;
        continue;
      }
      const child = new Uint32Array(SLOT_WORDS);
      copySlot(keys.words, at, child, 0);
      await this.#node(child, level - 1, before);
      before = end;
    }
    if (comparePositions(before, upper) >= 0) return;
    if (fault === undefined) {
      this.#fault(key, {
        what: `node of level ${level}: its children leave a gap at its end`,
        found: `they reach to ${positionText(before)}`,
        expected: positionText(upper),
      });
    }
    this.#missing(before, upper);
  }

  #isBadChild(words: Uint32Array, at: number): boolean {
    if (isFreedNodeKey(words, at) || keyPointers(words, at) === 0) return true;
    if (pointerDevice(words, at) !== 0) return true;
    const bucket = bucketOf(this.#image, pointerSector(words, at));
    return this.#options.buckets.staleness(bucket, pointerGen(words, at)) > 0;
  }

  /** Whether all extents of a leaf lie inside its range. */
  #checkExtents(key: Uint32Array, lower: Position, keys: KeySet): boolean {
    if (keys.count === 0) return true;
    const { words } = keys;
    const last = (keys.count - 1) * SLOT_WORDS;
    const upper = positionOf(key, 0);
    const range = `behind ${positionText(lower)}, up to ${positionText(upper)}`;
    if (comparePositions(positionOf(words, last), upper) > 0) {
      this.#fault(key, {
        what: "leaf: short btree key: an extent lies behind the end of the node",
        found: keyText(words, last),
        expected: range,
      });
      return false;
    }
    // Extents are in order and do not overlap: only the first can begin too early.
    assert(keyOffset(words, 0) < OFFSET_MAX || keyInode(words, 0) <= INODE_MAX, "a key is a key");
    const inode = keyInode(words, 0);
    const early = inode < lower.inode ||
      (inode === lower.inode && keyStart(words, 0) < lower.offset);
    if (!early) return true;
    this.#fault(key, {
      what: "leaf: an extent begins before its node",
      found: keyText(words, 0),
      expected: range,
    });
    return false;
  }
}
