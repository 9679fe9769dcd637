/** Attributes of garbage collection and of the buckets. */
import { type Attribute, booleanAttribute, shown, triggerAttribute } from "./attribute.ts";
import type { SetTarget } from "./targets.ts";
import { timeStatistics } from "./time_statistics.ts";

export const COLLECTION_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
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
    help: "whether a collection copies together what is left in sparsely used buckets",
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
