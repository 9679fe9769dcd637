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
