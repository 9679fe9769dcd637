/** Attributes of the cache set and of its cache device. */
import { BcacheError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import { type ReplacementPolicy, setReplacementPolicy } from "../../ondisk/superblock.ts";
import { writeCacheSuperblock } from "../recovery.ts";
import {
  type Attribute,
  choiceAttribute,
  numberAttribute,
  shown,
  triggerAttribute,
} from "./attribute.ts";
import { COLLECTION_ATTRIBUTES } from "./collection.ts";
import { statistics } from "./statistics.ts";
import type { SetTarget } from "./targets.ts";

export const SET_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  choiceAttribute<SetTarget, ReplacementPolicy>({
    name: "cache_replacement_policy",
    help: "which bucket is dropped first",
    choices: ["lru", "fifo", "random"],
    initial: "lru",
    kept: "cache superblock",
    get: (target) => target.engine.allocator.policy,
    set: async (target, value) => {
      target.engine.allocator.policy = value;
      setReplacementPolicy(target.engine.superblock, value);
      await writeCacheSuperblock(target.engine);
    },
  }),
  numberAttribute({
    name: "journal_delay_ms",
    unit: "milliseconds",
    help: "how long a key may wait for company before its journal entry is written",
    min: 0,
    max: 65535,
    initial: 100,
    get: (target) => target.engine.journal.delayMs,
    set: (target, value) => {
      target.engine.journal.delayMs = value;
    },
  }),
  numberAttribute({
    name: "cutoff_writeback",
    unit: "percent of buckets",
    help: "with more than this in use, writes go through to the backing device",
    min: 1,
    max: 70,
    initial: 40,
    get: (target) => target.tunables.cutoffWriteback,
    set: (target, value) => {
      if (value > target.tunables.cutoffWritebackSync) {
        throw new BcacheError(
          "OutOfRange",
          `cutoff_writeback: found ${value}, expected at most cutoff_writeback_sync ` +
            `(${target.tunables.cutoffWritebackSync})`,
        );
      }
      target.tunables.cutoffWriteback = value;
    },
  }),
  shown(
    "bucket_size",
    "unit of allocation",
    ({ engine }) => formatSize(engine.geometry.bucketBytes),
  ),
  shown("block_size", "unit of writes", ({ engine }) => formatSize(engine.geometry.blockBytes)),
  shown("nbuckets", "buckets of the cache device", ({ engine }) => engine.geometry.bucketCount),
  shown(
    "cache_available_percent",
    "buckets that can be reused at once",
    ({ engine }) => 100 - engine.buckets.inUsePercent(),
  ),
  shown(
    "tree_depth",
    "levels of the b-tree above its leaves",
    ({ engine }) => engine.btree.root.level,
  ),
  shown("btree_nodes", "b-tree nodes in memory", ({ engine }) => engine.btree.nodesResident),
  shown("btree_cache_size", "bytes of them", ({ engine }) => engine.btree.residentBytes),
  shown(
    "active_journal_entries",
    "entries a restart would replay",
    ({ engine }) => engine.journal.counters.activeEntries,
  ),
  ...COLLECTION_ATTRIBUTES,
  triggerAttribute<SetTarget>(
    "clear_stats",
    "sets the total statistics back to zero",
    (target) => target.stats.clear(),
  ),
  shown("io_errors", "errors of the cache device since start", (target) => target.cacheIoErrors()),
  ...statistics<SetTarget>((target) => target.stats),
];
