/** Attributes of the cache set and of its cache device. */
import { formatSize } from "../../base/units.ts";
import {
  incompatibleFeatures,
  type ReplacementPolicy,
  setReplacementPolicy,
} from "../../ondisk/superblock.ts";
import { OPEN_BUCKETS_DEFAULT, OPEN_BUCKETS_MAX } from "../open_buckets.ts";
import { changeCacheSuperblock } from "../recovery.ts";
import {
  type Attribute,
  choiceAttribute,
  fieldAttribute,
  shown,
  triggerAttribute,
} from "./attribute.ts";
import { COLLECTION_ATTRIBUTES } from "./collection.ts";
import { INDEX_AND_JOURNAL_ATTRIBUTES } from "./index_and_journal.ts";
import { SET_FAILURE_ATTRIBUTES } from "./failure.ts";
import { SET_MEMBERSHIP_ATTRIBUTES } from "./membership.ts";
import { SET_REQUEST_ATTRIBUTES } from "./requests.ts";
import { statistics } from "./statistics.ts";
import type { SetTarget } from "./targets.ts";
import { SET_WRITEBACK_ATTRIBUTES } from "./writeback.ts";

export const SET_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  choiceAttribute<SetTarget, ReplacementPolicy>({
    name: "cache_replacement_policy",
    help: "which bucket is dropped first",
    choices: ["lru", "fifo", "random"],
    initial: "lru",
    kept: "cache superblock",
    get: (target) => target.engine.allocator.policy,
    set: async (target, value) => {
      const { engine } = target;
      await changeCacheSuperblock(engine, {
        change: (superblock) => setReplacementPolicy(superblock, value),
        whenStored: () => {
          engine.allocator.policy = value;
        },
      });
    },
  }),
  ...SET_REQUEST_ATTRIBUTES,
  fieldAttribute(({ engine }) => engine.open, "countMax", {
    name: "open_data_buckets",
    unit: "buckets",
    help: "buckets filled at a time with dirty data, and as many with clean: one for each stream",
    min: 1,
    max: OPEN_BUCKETS_MAX,
    initial: OPEN_BUCKETS_DEFAULT,
  }),
  shown(
    "bucket_size",
    "unit of allocation",
    ({ engine }) => formatSize(engine.geometry.bucketBytes),
  ),
  shown("block_size", "unit of writes", ({ engine }) => formatSize(engine.geometry.blockBytes)),
  shown("nbuckets", "buckets of the cache device", ({ engine }) => engine.geometry.bucketCount),
  shown(
    "written",
    "bytes of data written to the cache device",
    ({ engine }) => engine.written.data,
  ),
  shown("btree_written", "bytes of b-tree nodes written", ({ engine }) => engine.written.btree),
  shown(
    "metadata_written",
    "bytes of all metadata written: b-tree, journal, priorities, UUIDs",
    ({ engine }) => engine.written.metadata,
  ),
  shown("feature_compat", "compatible features; there are none", () => ""),
  shown("feature_ro_compat", "read-only compatible features; there are none", () => ""),
  shown(
    "feature_incompat",
    "incompatible features there are; those in use in brackets",
    ({ engine }) => incompatibleFeatures(engine.superblock),
  ),
  shown(
    "cache_available_percent",
    "buckets that can be reused at once",
    ({ engine }) => 100 - engine.buckets.inUsePercent(),
  ),
  ...INDEX_AND_JOURNAL_ATTRIBUTES,
  ...COLLECTION_ATTRIBUTES,
  ...SET_WRITEBACK_ATTRIBUTES,
  ...SET_MEMBERSHIP_ATTRIBUTES,
  triggerAttribute<SetTarget>(
    "clear_stats",
    "sets the total statistics back to zero",
    (target) => target.stats.clear(),
  ),
  ...SET_FAILURE_ATTRIBUTES,
  ...statistics<SetTarget>((target) => target.stats),
];
