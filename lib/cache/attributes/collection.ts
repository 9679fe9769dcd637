/** Attributes of garbage collection and of the buckets. */
import { type Attribute, booleanAttribute, shown, triggerAttribute } from "./attribute.ts";
import { discardsBuckets, setDiscardsBuckets } from "../../ondisk/superblock.ts";
import { priorityStatsText } from "../collection/priority_stats.ts";
import { changeCacheSuperblock } from "../recovery.ts";
import type { SetTarget } from "./targets.ts";
import { timeStatistics } from "./time_statistics.ts";

const DISCARD_WORDS = booleanAttribute<{ chosen: boolean }>({
  name: "discard",
  help: "whether the cache device is told of buckets before they are used again",
  initial: false,
  get: (target) => target.chosen,
  set: (target, value) => {
    target.chosen = value;
  },
});

const DISCARD: Attribute<SetTarget> = {
  name: DISCARD_WORDS.name,
  help: DISCARD_WORDS.help,
  range: "0 or 1",
  initial: "0",
  kept: "cache superblock",
  read: ({ engine }) => (discardsBuckets(engine.superblock) ? "1" : "0"),
  check: (_limits, text) => void DISCARD_WORDS.write!({ chosen: false }, text),
  write: async (target, text) => {
    const parsed = { chosen: false };
    await DISCARD_WORDS.write!(parsed, text);
    await changeCacheSuperblock(target.engine, {
      change: (superblock) => setDiscardsBuckets(superblock, parsed.chosen),
    });
  },
};

export const COLLECTION_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  DISCARD,
  shown(
    "priority_stats",
    "what the buckets hold in percent, how far data has aged, and 31 quantiles of that",
    ({ engine }) => priorityStatsText(engine.buckets),
  ),
  shown("gc_runs", "collections since start", ({ engine }) => engine.collector.collections),
  triggerAttribute<SetTarget>(
    "trigger_gc",
    "starts a garbage collection",
    (target) => target.engine.collector.wake(),
  ),
  shown(
    "gc_longest_slice_us",
    "the longest that a collection kept requests waiting since start, in microseconds",
    ({ engine }) => Math.round(engine.collector.slices.longestMs * 1000),
  ),
  shown(
    "gc_nodes_coalesced",
    "b-tree nodes saved since start by making neighbours one fewer",
    ({ engine }) => engine.collector.nodesCoalesced,
  ),
  shown(
    "gc_nodes_rewritten",
    "b-tree nodes that collections wrote anew since start",
    ({ engine }) => engine.collector.nodesRewritten,
  ),
  booleanAttribute({
    name: "gc_always_rewrite",
    help: "whether a collection writes every b-tree node anew",
    initial: false,
    get: ({ engine }) => engine.collector.alwaysRewrite,
    set: ({ engine }, value) => {
      engine.collector.alwaysRewrite = value;
    },
  }),
  booleanAttribute({
    name: "copy_gc_enabled",
    help: "whether every collection copies together what is left in sparsely used buckets; one " +
      "that somebody waits for, for want of room, does so in any case",
    initial: false,
    get: ({ engine }) => engine.moving.enabled,
    set: ({ engine }, value) => {
      engine.moving.enabled = value;
    },
  }),
  shown(
    "copy_gc_keys",
    "extents copied together since start",
    ({ engine }) => engine.moving.keysMoved,
  ),
  shown(
    "copy_gc_collisions",
    "extents that were overwritten while they were copied, since start",
    ({ engine }) => engine.moving.collisions,
  ),
  booleanAttribute({
    name: "gc_after_writeback",
    help:
      "whether a collection follows when everything is written back, with half the cache in use",
    initial: false,
    get: ({ engine }) => engine.collector.afterWriteback,
    set: ({ engine }, value) => {
      engine.collector.afterWriteback = value;
    },
  }),
  ...timeStatistics(
    "btree_gc",
    "collection",
    { frequency: "sec", duration: "ms" },
    ({ engine }) => engine.collector.times,
  ),
];
