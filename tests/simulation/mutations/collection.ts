/**
 * Breakages of what decides which buckets are used again: generations, marks, moving collection,
 * the journal's own reclaim, and what races with all these.
 */
import { hunt } from "./mutation.ts";
import type { Mutation } from "./mutation.ts";

/** What still points to a bucket, and what no longer does. */
const BUCKETS: readonly Mutation[] = [
  {
    name: "a bucket that is used again keeps its generation",
    file: "lib/buckets/table.ts",
    text: "    this.bumpGen(bucket);\n    this.priority[bucket] = PRIO_INITIAL;",
    becomes: "    this.priority[bucket] = PRIO_INITIAL;",
    hunts: [hunt("fill-and-reuse", 3, 500)],
  },
  {
    name: "a stale pointer is followed",
    file: "lib/btree/btree.ts",
    text: "      if (this.buckets.staleness(bucket, gen) > 0) continue;",
    becomes: "",
    hunts: [hunt("fill-and-reuse", 3, 500)],
    quick: true,
  },
  {
    name: "a recovery does not take over the generations of the index",
    file: "lib/cache/recovery.ts",
    text: "      if (adoptNode(buckets, node)) moved = true;",
    becomes: "      void adoptNode;",
    hunts: [hunt("tiny-nodes", 3, 40), hunt("reuse-buckets", 3, 100)],
  },
  {
    name: "a collection does not mark the nodes of the lowest level",
    file: "lib/cache/collection/marking.ts",
    text: "const mark = level > 0 ? MARK.metadata",
    becomes: "const mark = level > 1 ? MARK.metadata",
    hunts: [hunt("tiny-nodes", 3, 40), hunt("reuse-buckets", 3, 300)],
  },
  {
    name: "a collection takes dirty data for clean",
    file: "lib/cache/collection/marking.ts",
    text: ": keyDirty(words, at) ? MARK.dirty : MARK.reclaimable;",
    becomes: ": MARK.reclaimable;",
    hunts: [hunt("move-and-coalesce", 3, 200), hunt("reuse-buckets", 3, 300)],
  },
  {
    name: "a collection does not look at keys that are not in a node's sets on disk",
    file: "lib/cache/collection/marking.ts",
    text: "    this.#markKeys(delta, 0, delta.count, level);\n",
    becomes: "",
    hunts: [hunt("move-and-coalesce", 4, 60), hunt("reuse-buckets", 3, 300)],
  },
  {
    name: "the UUID table's bucket counts as free",
    file: "lib/cache/uuids.ts",
    text: "    this.#buckets.setMark(this.#bucket, MARK.metadata);\n",
    becomes: "",
    hunts: [hunt("reuse-buckets", 3, 300), hunt("move-and-coalesce", 3, 100)],
  },
  {
    name: "buckets of journaled keys may be used again before these are replayed",
    file: "lib/cache/recovery.ts",
    text: "    if (btree.isBad(slot, 0, 0)) return;\n    collector.marker.markKey(slot, 0, 0);",
    becomes: "    return;",
    hunts: [hunt("reuse-buckets", 5, 30), hunt("wrap-journal", 5, 20)],
  },
  {
    name: "buckets are discarded before it is durable that they are free",
    file: "lib/buckets/allocator.ts",
    text: "    const written = await this.#options.persistPrios();\n",
    becomes:
      "    if (this.#options.discard) await this.#options.discard(this.#pendingBuckets());\n" +
      "    const written = await this.#options.persistPrios();\n",
    hunts: [hunt("discard-buckets", 4, 20)],
  },
];

/** What is copied or written back while it changes. */
const RACES: readonly Mutation[] = [
  {
    name: "moving collection puts its copy over what was written meanwhile",
    file: "lib/cache/collection/moving_gc.ts",
    text: "      if (!this.#isStill(segment, at, key)) {\n        at = stop;",
    becomes: "      if (!segment.cached) {\n        at = stop;",
    hunts: [hunt("move-and-coalesce", 40, 20000)],
  },
  {
    name: "moving collection points to its copy before that is written",
    file: "lib/cache/collection/moving_gc.ts",
    text: "      await cache.write(grant.sector, bytes);\n",
    becomes: "      void cache.write(grant.sector, bytes).catch(() => undefined);\n",
    hunts: [hunt("move-and-coalesce", 6, 20)],
    quick: true,
  },
  {
    name: "writeback calls clean what was written meanwhile",
    file: "lib/cache/writeback/writeback_output.ts",
    text: "      const same = segment.cached && segment.dirty && segment.gen === piece.gen &&\n" +
      "        segment.sector === piece.sector + (at - piece.start);",
    becomes: "      const same = segment.cached && segment.dirty;",
    hunts: [hunt("writeback", 5, 5), hunt("writeback-runs", 3, 40)],
    quick: true,
  },
  {
    name: "a fill goes into the index although a write came in between",
    file: "lib/cache/requests/read.ts",
    text: "insertVolatile(batch, () => fill.valid)",
    becomes: "insertVolatile(batch, () => true)",
    hunts: [hunt("fill-holes", 500, 20000)],
  },
  {
    name: "an extent that is cut keeps pointing to where it began",
    file: "lib/ondisk/bkey.ts",
    text: "setPointerWords(words, at, pointerSector(words, at) + dropped, pointerGen(words, at));",
    becomes: "setPointerWords(words, at, pointerSector(words, at), pointerGen(words, at));",
    hunts: [hunt("small-blocks", 3, 20)],
  },
];

/** The journal: what it may overwrite, and in which order it is read. */
const JOURNAL: readonly Mutation[] = [
  {
    name: "a leaf lets go of its journal entry before it is durable",
    file: "lib/btree/node_write.ts",
    text: "    await this.#append(node, atSector, bytes);\n" +
      "    if (pinSeq > 0) this.#pins.unpin(pinSeq, holder!);",
    becomes: "    if (pinSeq > 0) this.#pins.unpin(pinSeq, holder!);\n" +
      "    await this.#append(node, atSector, bytes);",
    hunts: [hunt("wrap-journal", 4, 10), hunt("tiny-nodes", 3, 40)],
  },
];

export const COLLECTION: readonly Mutation[] = [...BUCKETS, ...RACES, ...JOURNAL];
