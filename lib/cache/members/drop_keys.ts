/**
 * Taking what an inode has cached out of the index: keys without a pointer are put over all that
 * lies in a range. For data whose owner is gone, and for what lies behind the end of a volume.
 */
import { BATCH_KEYS_MAX } from "../../btree/insert.ts";
import type { BtreeNode } from "../../btree/node.ts";
import type { KeySet } from "../../bset/key_set.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  OFFSET_MAX,
  SLOT_WORDS,
} from "../../ondisk/bkey.ts";
import type { Engine } from "../engine.ts";
import { BatchBuilder } from "../request_parts.ts";

/** Extents found in one walk, before their keys are put in. */
const EXTENTS_PER_WALK = 1024;

interface Extent {
  readonly start: number;
  readonly end: number;
}

/** What is dropped: all there is, when absent. */
interface Which {
  readonly from?: number;
  readonly to?: number;
  /** Only what is clean. */
  readonly keepDirty?: boolean;
}

/**
 * Drops what is cached of `inode` in [from, to), dirty or not. Nobody may write there meanwhile.
 * Durable with the next flush. Resolves with the number of sectors dropped.
 */
export async function dropKeys(engine: Engine, inode: number, which: Which = {}): Promise<number> {
  const { from = 0, to = OFFSET_MAX, keepDirty = false } = which;
  let dropped = 0;
  for (let at = from; at < to;) {
    const piece = await dropSomeKeys(engine, inode, { from: at, to, keepDirty });
    dropped += piece.sectors;
    at = piece.next;
  }
  return dropped;
}

/** How many sectors of `inode` are cached in [from, to). Nobody may write there meanwhile. */
export async function countKeys(engine: Engine, inode: number, which: Which): Promise<number> {
  const { from = 0, to = OFFSET_MAX, keepDirty = false } = which;
  let sectors = 0;
  for (let at = from; at < to;) {
    const { extents, next } = await findExtents(engine, inode, { from: at, to, keepDirty });
    sectors += sectorsOf(extents);
    at = next;
  }
  return sectors;
}

/** The first piece of what `dropKeys` does; `next` is where to go on, `to` when that was all. */
export async function dropSomeKeys(
  engine: Engine,
  inode: number,
  { from = 0, to = OFFSET_MAX, keepDirty = false }: Which,
): Promise<{ sectors: number; next: number }> {
  const { extents, next } = await findExtents(engine, inode, { from, to, keepDirty });
  await insertHoles(engine, inode, joined(extents));
  return { sectors: sectorsOf(extents), next };
}

function sectorsOf(extents: readonly Extent[]): number {
  return extents.reduce((sum, { start, end }) => sum + end - start, 0);
}

/** What is cached from `from` on, some of it; `next` is where to look for more. */
async function findExtents(
  engine: Engine,
  inode: number,
  { from, to, keepDirty }: Required<Which>,
): Promise<{ extents: Extent[]; next: number }> {
  const extents: Extent[] = [];
  let next = to;
  await engine.btree.walk(0, { inode, offset: from }, (leaf) => {
    collect(leaf, inode, { start: from, end: to, keepDirty }, extents);
    if (leaf.endInode > inode || leaf.endOffset >= to) return false;
    if (extents.length < EXTENTS_PER_WALK) return true;
    next = leaf.endOffset;
    return false;
  });
  return { extents: extents.sort((a, b) => a.start - b.start), next };
}

interface Sought extends Extent {
  readonly keepDirty: boolean;
}

function collect(leaf: BtreeNode, inode: number, range: Sought, found: Extent[]): void {
  collectFrom(leaf.base, inode, range, found);
  collectFrom(leaf.delta, inode, range, found);
}

function collectFrom(set: KeySet, inode: number, range: Sought, found: Extent[]): void {
  const { words } = set;
  for (let index = set.upperBound(inode, range.start); index < set.count; index++) {
    const at = index * SLOT_WORDS;
    if (keyInode(words, at) !== inode) return;
    const end = keyOffset(words, at);
    const start = end - keySizeSectors(words, at);
    if (start >= range.end) return;
    if (start === end || keyPointers(words, at) === 0) continue;
    if (range.keepDirty && keyDirty(words, at)) continue;
    found.push({ start: Math.max(start, range.start), end: Math.min(end, range.end) });
  }
}

/** Neighbours as one; in order. */
function joined(extents: readonly Extent[]): Extent[] {
  const ranges: Extent[] = [];
  for (const extent of extents) {
    const last = ranges.at(-1);
    if (last === undefined || last.end < extent.start) ranges.push(extent);
    else ranges[ranges.length - 1] = { start: last.start, end: Math.max(last.end, extent.end) };
  }
  return ranges;
}

async function insertHoles(engine: Engine, inode: number, ranges: Extent[]): Promise<void> {
  const { committer } = engine;
  const builder = new BatchBuilder();
  for (const { start, end } of ranges) {
    for (let at = start; at < end;) {
      builder.clear();
      while (at < end && builder.batch.count < BATCH_KEYS_MAX) {
        at = builder.addHole(inode, at, end);
      }
      while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
    }
  }
}
