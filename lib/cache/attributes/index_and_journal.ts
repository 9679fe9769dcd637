/** Attributes of the index (its nodes in memory, its shape) and of the journal. */
import { formatSize, MIB } from "../../base/units.ts";
import { indexFigures, rootUsagePercent } from "../../btree/figures.ts";
import { BTREE_MEMORY_BYTES } from "../engine.ts";
import {
  type Attribute,
  booleanAttribute,
  fieldAttribute,
  numberAttribute,
  shown,
} from "./attribute.ts";
import type { SetTarget } from "./targets.ts";
import { timeStatistics } from "./time_statistics.ts";

const NODE_CACHE: readonly Attribute<SetTarget>[] = [
  shown("btree_nodes", "b-tree nodes in memory", ({ engine }) => engine.btree.cache.size),
  shown(
    "btree_cache_size",
    "bytes of memory that they take",
    ({ engine }) => formatSize(engine.btree.cache.bytes),
  ),
  numberAttribute({
    name: "btree_cache_max",
    unit: "bytes",
    help: "b-tree nodes beyond this are dropped from memory, dirty ones once they were written",
    min: MIB,
    max: 2 ** 40,
    initial: BTREE_MEMORY_BYTES,
    size: true,
    get: ({ engine }) => engine.btree.cache.bytesMax,
    set: async ({ engine }, value) => {
      engine.btree.cache.bytesMax = value;
      await engine.btree.cache.makeRoom();
    },
  }),
  booleanAttribute({
    name: "btree_shrinker_disabled",
    help: "whether nodes stay in memory whatever they take",
    initial: false,
    get: ({ engine }) => engine.btree.cache.shrinkingDisabled,
    set: ({ engine }, value) => {
      engine.btree.cache.shrinkingDisabled = value;
    },
  }),
  numberAttribute({
    name: "prune_cache",
    unit: "nodes",
    help: "drops so many clean nodes from memory, the coldest first",
    min: 0,
    max: 2 ** 31 - 1,
    initial: 0,
    get: () => 0,
    set: ({ engine }, value) => void engine.btree.cache.prune(value),
  }),
  shown(
    "btree_cache_max_chain",
    "nodes that share a place in the table of nodes: a bucket's number finds its one node",
    ({ engine }) => Math.min(engine.btree.cache.size, 1),
  ),
  shown(
    "btree_used_percent",
    "share of the resident nodes' size that keys take",
    ({ engine }) => indexFigures(engine.btree).usedPercent,
  ),
  shown("bset_tree_stats", "what the resident nodes hold", ({ engine }) => {
    const figures = indexFigures(engine.btree);
    return [
      `btree nodes: ${figures.nodes}`,
      `written sets: ${figures.writtenSets}`,
      `unwritten sets: ${figures.unwrittenSets}`,
      `written key bytes: ${figures.writtenKeyBytes}`,
      `unwritten key bytes: ${figures.unwrittenKeyBytes}`,
    ].join(", ");
  }),
];

const SHAPE: readonly Attribute<SetTarget>[] = [
  shown(
    "tree_depth",
    "levels of the b-tree above its leaves",
    ({ engine }) => engine.btree.root.level,
  ),
  shown(
    "root_usage_percent",
    "share of the root that is in use",
    ({ engine }) => rootUsagePercent(engine.btree),
  ),
  shown(
    "average_key_size",
    "bytes that a key of the index stands for, as of the last collection",
    ({ engine }) => formatSize(engine.collector.averageKeyBytes),
  ),
];

const TIMES: readonly Attribute<SetTarget>[] = [
  ...timeStatistics(
    "btree_split",
    "split of a node",
    { frequency: "sec", duration: "us" },
    ({ engine }) => engine.btree.splitTimes,
  ),
  ...timeStatistics(
    "btree_sort",
    "merge of a node's keys",
    { frequency: "ms", duration: "us" },
    ({ engine }) => engine.btree.sortTimes,
  ),
  ...timeStatistics(
    "btree_read",
    "read of a node",
    { frequency: "ms", duration: "us" },
    ({ engine }) => engine.btree.readTimes,
  ),
];

const JOURNAL: readonly Attribute<SetTarget>[] = [
  fieldAttribute((target) => target.engine.journal, "delayMs", {
    name: "journal_delay_ms",
    unit: "milliseconds",
    help: "how long a key may wait for company before its journal entry is written",
    min: 0,
    max: 65535,
    initial: 100,
  }),
  shown(
    "active_journal_entries",
    "entries a restart would replay",
    ({ engine }) => engine.journal.counters.activeEntries,
  ),
  shown(
    "reclaim",
    "times the journal ran short of room and had leaves written",
    ({ engine }) => engine.journal.counters.reclaimRounds,
  ),
  shown(
    "reclaimed_journal_buckets",
    "journal buckets begun since start",
    ({ engine }) => engine.journal.counters.bucketsOpened,
  ),
  shown(
    "flush_write",
    "leaves written to make room in the journal",
    ({ engine }) => engine.journal.counters.pressureFlushes,
  ),
];

export const INDEX_AND_JOURNAL_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  ...NODE_CACHE,
  ...SHAPE,
  ...TIMES,
  ...JOURNAL,
];
