/**
 * Deliberate breakages of the engine, each of which the simulator must catch: a test of the tests.
 * A mutation replaces one piece of source text; the text must be there exactly once, so a change
 * of the code that it breaks has to say here what breaks it now.
 *
 * Not here are breakages that cannot show, as something else holds the order too: the old root,
 * say, may be let go early, as its bucket is used again only after a journal entry that names the
 * new one.
 *
 * `hunts` says where it is looked for: a scenario, how many seeds, one cut or fault in how many.
 */
import { CHECKSUMS } from "./checksums.ts";
import { COLLECTION } from "./collection.ts";
import { MEMBERSHIP } from "./membership.ts";
import { faultHunt, hunt } from "./mutation.ts";
import type { Mutation } from "./mutation.ts";

/** What goes wrong when something is not durable before something else. */
const ORDER: readonly Mutation[] = [
  {
    name: "no flush before a journal entry is written",
    file: "lib/journal/writer.ts",
    text: "    await device.flush();\n    // But for what",
    becomes: "    // But for what",
    hunts: [hunt("writeback", 5, 2)],
    quick: true,
  },
  {
    name: "a journal entry counts as durable before it is",
    file: "lib/journal/writer.ts",
    text: "await device.write(sector, bytes, { fua: true });\n      this.#newest",
    becomes: "await device.write(sector, bytes);\n      this.#newest",
    hunts: [hunt("writeback", 5, 2)],
  },
  {
    name: "a flush is acknowledged before the journal has the keys",
    file: "lib/cache/commit.ts",
    text: "      await this.#journal.commit();",
    becomes: "      void this.#journal.commit().catch(() => undefined);\n" +
      "      await Promise.resolve();",
    hunts: [hunt("writeback", 5, 2)],
    quick: true,
  },
  {
    name: "backing writes count as stable without a flush of the backing device",
    file: "lib/cache/requests/cached_device.ts",
    text: "    await this.#flushDevice();\n    // Another one failed",
    becomes: "    await Promise.resolve();\n    // Another one failed",
    hunts: [hunt("writeback", 5, 2), hunt("change-settings", 5, 20)],
  },
  {
    name: "keys become durable before the backing writes that they speak of",
    file: "lib/cache/devices/ordered_device.ts",
    text: "if (dependent.wantsFlush) flushes.push(dependent.settleWrites());",
    becomes: "void dependent;",
    hunts: [hunt("writethrough", 10, 2)],
  },
  {
    name: "extents are marked clean before the backing device is flushed",
    file: "lib/cache/writeback/writeback_output.ts",
    text: "      await this.#dev.flushWrites();\n      const { failedFlushes }",
    becomes: "      const { failedFlushes }",
    hunts: [hunt("writeback", 10, 2), hunt("drain-often", 10, 5)],
    quick: true,
  },
  {
    name: "the superblock says clean before the clean keys are durable",
    file: "lib/cache/requests/cached_device.ts",
    text: "      await settle();\n",
    becomes: "      void settle;\n",
    hunts: [hunt("drain-often", 10, 5)],
  },
  {
    name: "the superblock says dirty only after the first dirty write",
    file: "lib/cache/requests/write.ts",
    text: "      if (!this.#dev.hasDirty) await this.#dev.ensureDirty();\n" +
      "      else if (committer.tryCommit(batch)) break;",
    becomes: "      if (committer.tryCommit(batch)) {\n" +
      "        void this.#dev.ensureDirty();\n        break;\n      }",
    hunts: [hunt("drain-often", 10, 5)],
    quick: true,
  },
  {
    name: "a node's set is written with its header, at once",
    file: "lib/btree/node_write.ts",
    text: "        await this.#device.write(atSector + 1, bytes.subarray(SECTOR_BYTES));\n",
    becomes: "        await this.#device.write(atSector, bytes);\n",
    hunts: [hunt("wrap-journal", 3, 8)],
  },
  {
    name: "a node's set is written without a flush of what its keys point to",
    file: "lib/btree/node_write.ts",
    text: "      await this.#device.flush();\n      // A backing device may",
    becomes: "      // A backing device may",
    hunts: [hunt("small-blocks", 10, 3), hunt("tiny-nodes", 3, 40)],
  },
  {
    name: "a parent names nodes that are not durable",
    file: "lib/btree/replace.ts",
    text: "    await allEnded(writes);\n",
    becomes: "    void writes;\n",
    hunts: [hunt("tiny-nodes", 3, 40), hunt("split-nodes", 2, 100)],
  },
  {
    name: "a replaced node is let go before its parent is durable",
    file: "lib/btree/replace.ts",
    text: "    try {\n      await durable;\n    } finally {",
    becomes: "    try {\n      durable.catch(() => undefined);\n    } finally {",
    hunts: [hunt("tiny-nodes", 3, 40)],
  },
  {
    name: "priorities are written but not journaled",
    file: "lib/cache/engine.ts",
    text: "        this.prioBucket = firstBucket;\n        await this.commitMetadata();",
    becomes: "        this.prioBucket = firstBucket;\n        await Promise.resolve();",
    hunts: [hunt("refill", 5, 40)],
    quick: true,
  },
  {
    name: "priorities are not written at all",
    file: "lib/cache/engine.ts",
    text: "persistPrios: () => this.prios.write(),",
    becomes: "persistPrios: () => Promise.resolve(true),",
    hunts: [hunt("refill", 5, 40)],
  },
];

/** What goes wrong when something is forgotten. */
const FORGOTTEN: readonly Mutation[] = [
  {
    name: "the pins of journaled keys are forgotten",
    file: "lib/btree/node_write.ts",
    text: "if (seq > 0 && node.pinSeq === 0) {",
    becomes: "if (seq > 0 && node.pinSeq < 0) {",
    hunts: [hunt("writeback", 5, 2), hunt("wrap-journal", 3, 30)],
    quick: true,
  },
  {
    name: "the range lock of writeback is dropped",
    file: "lib/cache/writeback/writeback_output.ts",
    text: "const range = await locks.acquire(run.start, run.end, true);",
    becomes: "const range = await locks.acquire(run.start, run.start, true);",
    hunts: [hunt("writeback", 10, 5), hunt("change-settings", 10, 50)],
  },
  {
    name: "a fill is not cancelled by a write",
    file: "lib/cache/ranges.ts",
    text: "        fill.valid = false;\n        cancelled = true;",
    becomes: "        cancelled = true;",
    hunts: [hunt("small-blocks", 10, 20), hunt("fill-holes", 10, 50)],
    quick: true,
  },
  {
    name: "a read caches what it saw of a write that is under way",
    file: "lib/cache/requests/read.ts",
    text: "      !this.#dev.locks.isChanging(at, end);",
    becomes: "      true;",
    hunts: [faultHunt("writearound", 10, "backing:write")],
  },
  {
    name: "clean keys of a device whose flush failed become durable",
    file: "lib/bset/distrusted.ts",
    text: "    if (this.#inodes.size === 0 || after === this.additions) return false;",
    becomes: "    if (this.additions >= after) return false;",
    hunts: [faultHunt("writethrough", 10, "backing:flush")],
    quick: true,
  },
  {
    name: "a flush of the cache device is trusted after one that failed",
    file: "lib/cache/devices/ordered_device.ts",
    text: "      this.#firstFailure ??= { error };\n",
    becomes: "",
    hunts: [faultHunt("reuse-buckets", 1, "cache:flush"), faultHunt("writeback", 5, "cache:flush")],
  },
  {
    name: "a bypassed write leaves its old key in the index",
    file: "lib/cache/requests/write.ts",
    text: "await this.#mayHide(start, start + from.length / 512);\n    await this.commitHoles(",
    becomes: "void ((_a: number, _b: number) => 0)(",
    hunts: [hunt("change-settings", 5, 100)],
  },
  {
    name: "a write-through key does not wait for the backing device",
    file: "lib/cache/requests/write.ts",
    text: "      await writing;\n      await this.#mayHide",
    becomes: "      await this.#mayHide",
    hunts: [hunt("writethrough", 10, 2)],
  },
  {
    name: "keys of the journal are not replayed",
    file: "lib/cache/recovery.ts",
    text: "    inserter.insert(batch, seq);\n    return undefined;",
    becomes: "    return undefined;",
    hunts: [hunt("writeback", 5, 5)],
  },
  {
    name: "the newest data does not win when a node's sets are merged",
    file: "lib/btree/node_read.ts",
    text: "mergeAll(sets, (a, b) => mergeExtents(a, b, { bucketSectors }))",
    becomes: "mergeAll(sets, (a, b) => mergeExtents(b, a, { bucketSectors }))",
    hunts: [hunt("small-blocks", 5, 5), hunt("split-nodes", 3, 50)],
  },
];

export const MUTATIONS: readonly Mutation[] = [
  ...ORDER,
  ...FORGOTTEN,
  ...CHECKSUMS,
  ...COLLECTION,
  ...MEMBERSHIP,
];
