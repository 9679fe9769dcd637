/**
 * What the resident b-tree nodes hold, for statistics: goes over all of them when asked. Answers
 * to `bch_bset_tree_stats`, `bch_btree_used` and `bch_root_usage` of sysfs.c and btree.c.
 */
import type { KeySet } from "../bset/key_set.ts";
import { SLOT_WORDS } from "../ondisk/bkey.ts";
import type { Btree } from "./btree.ts";

export interface IndexFigures {
  readonly nodes: number;
  /** Sets that are on disk, merged to one a node, and sets that wait to be appended. */
  readonly writtenSets: number;
  readonly unwrittenSets: number;
  readonly writtenKeyBytes: number;
  readonly unwrittenKeyBytes: number;
  /** Percent of the resident nodes' size on disk that their keys take. */
  readonly usedPercent: number;
}

export function indexFigures(btree: Btree): IndexFigures {
  let unwrittenSets = 0;
  let writtenKeyBytes = 0;
  let unwrittenKeyBytes = 0;
  let sizeBytes = 0;
  for (const { base, delta, blocks, blockBytes } of btree.cache.nodes()) {
    if (delta.count > 0) unwrittenSets++;
    writtenKeyBytes += base.diskWords() * 4;
    unwrittenKeyBytes += delta.diskWords() * 4;
    sizeBytes += blocks * blockBytes;
  }
  const usedBytes = writtenKeyBytes + unwrittenKeyBytes;
  return {
    nodes: btree.cache.size,
    writtenSets: btree.cache.size,
    unwrittenSets,
    writtenKeyBytes,
    unwrittenKeyBytes,
    usedPercent: Math.floor((usedBytes * 100) / Math.max(sizeBytes, 1)),
  };
}

/** Percent of the root's size that its good keys take: full, it splits and the tree grows. */
export function rootUsagePercent(btree: Btree): number {
  const { base, delta, blocks, blockBytes, level } = btree.root;
  const good = (set: KeySet): number => {
    let keys = 0;
    for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (!btree.isBad(set.words, at, level)) keys++;
    }
    return keys;
  };
  const bytes = (good(base) + good(delta)) * SLOT_WORDS * 4;
  return Math.floor((bytes * 100) / (blocks * blockBytes));
}
