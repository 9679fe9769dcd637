/**
 * What must be on stable media before what, when nodes are replaced: seen at the device, with every
 * write taking its time.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { MARK } from "../../lib/buckets/table.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { pointerSector } from "../../lib/ondisk/bkey.ts";
import { JSET } from "../../lib/ondisk/jset.ts";
import { PRIO_BTREE } from "../../lib/ondisk/prio_set.ts";
import { SmallIndex } from "./small_index.ts";

interface Operation {
  readonly bucket: number;
  readonly bytes: Uint8Array;
  readonly fua: boolean;
  readonly begun: number;
  ended: number;
}

/** Everything written to a device, in the order of beginnings and ends. */
class Trace {
  readonly device: Device;
  operations: Operation[] = [];
  /** Told as a write begins; what it throws fails the write. */
  onBegin: (operation: Operation) => void = () => {};
  #time = 0;

  constructor(index: SmallIndex) {
    const { bucketSectors } = index.shape;
    const write = async (atSector: number, bytes: Uint8Array, options?: WriteOptions) => {
      const operation = {
        bucket: Math.floor(atSector / bucketSectors),
        bytes: bytes.slice(),
        fua: options?.fua ?? false,
        begun: ++this.#time,
        ended: Infinity,
      };
      this.operations.push(operation);
      this.onBegin(operation);
      await index.clock.sleep(3);
      await index.device.write(atSector, bytes, options);
      operation.ended = ++this.#time;
    };
    this.device = new Proxy<Device>(index.device, {
      get(target, name) {
        if (name === "sync") return undefined;
        if (name === "write") return write;
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  to(bucket: number): Operation[] {
    return this.operations.filter((operation) => operation.bucket === bucket);
  }
}

/** Starts anew on a traced device, with extents [0, keys) in leaves that are written. */
async function traced(keys: number): Promise<{ index: SmallIndex; trace: Trace }> {
  const index = await SmallIndex.make();
  await index.run(index.putAll(0, keys));
  await index.run(index.engine.settleKeys());
  await index.close();
  const trace = new Trace(index);
  await index.start(trace.device);
  await index.run(index.engine.settleKeys());
  trace.operations = [];
  return { index, trace };
}

async function putUntil(index: SmallIndex, from: number, done: () => boolean): Promise<void> {
  for (let next = from; !done(); next++) {
    assert(next < from + 2000, "it comes about");
    await index.put(next);
    await index.clock.turn();
  }
}

describe("a split below a parent", () => {
  test("writes the new nodes, then the parent; then the old bucket is let go", async () => {
    const { index, trace } = await traced(420);
    const { btree, replacer, buckets } = index.engine;
    const old = index.leaf(419);
    const { root } = btree;
    const before = await index.run(index.level(0));
    const marks: number[] = [];
    trace.onBegin = ({ bucket }) => {
      if (bucket === root.bucket) marks.push(buckets.mark[old.bucket]!);
    };
    await index.run(putUntil(index, 420, () => replacer.splits === 1));
    const made = (await index.run(index.level(0))).filter((leaf) => !before.includes(leaf));
    assertEquals(made.length, 2);
    assertEquals(btree.root, root);
    const parent = trace.to(root.bucket);
    assertGreater(parent.length, 0);
    for (const leaf of made) {
      const writes = trace.to(leaf.bucket).filter(({ begun }) => begun < parent[0]!.begun);
      assertGreater(writes.length, 0);
      for (const { ended } of writes) assert(ended < parent[0]!.begun, "children come first");
    }
    assert(marks.length > 0 && marks.every((mark) => mark === MARK.metadata), "kept until then");
    assertEquals([old.freed, buckets.mark[old.bucket]], [true, MARK.none]);
    assertEquals(buckets.pins[old.bucket], 0);
    await index.close();
  });

  test("makes every set of every node stable by itself, one at a time for each node", async () => {
    const { index, trace } = await traced(420);
    await index.run(putUntil(index, 420, () => index.engine.replacer.splits === 2));
    await index.run(index.engine.settleKeys());
    const nodes = [...await index.run(index.level(1)), ...await index.run(index.level(0))];
    let sets = 0;
    for (const { bucket } of nodes) {
      const writes = trace.to(bucket);
      for (const [at, { bytes, fua }] of writes.entries()) {
        // A set is its first sector, last and stable; what is behind it comes before.
        const isHeader = bytes.length === 512;
        assertEquals(fua, isHeader);
        if (isHeader) sets++;
        if (at > 0) assert(writes[at - 1]!.ended < writes[at]!.begun, "one write at a time");
      }
    }
    assertGreater(sets, 4);
    await index.close();
  });

  test("that cannot be written leaves the old node, whole and where it was", async () => {
    const { index, trace } = await traced(420);
    const { btree, faults } = index.engine;
    const old = index.leaf(419);
    const known = new Set((await index.run(index.level(0))).map(({ bucket }) => bucket));
    known.add(btree.root.bucket);
    const { firstBucket, journalBucketCount } = index.engine.superblock;
    trace.onBegin = ({ bucket }) => {
      if (known.has(bucket) || bucket < firstBucket + journalBucketCount) return;
      throw new BcacheError("DeviceIo", "memory: planted");
    };
    await assertRejects(
      () => index.run(putUntil(index, 420, () => faults.failed !== undefined)),
      BcacheError,
    ).catch(() => undefined);
    assert(faults.failed !== undefined, "the set has failed");
    assertEquals(old.freed, false);
    assertEquals(index.engine.buckets.mark[old.bucket], MARK.metadata);
    assert(index.has(0) && index.has(419), "what is in memory is still found");
    await index.cut();
    await index.start();
    assertEquals(await index.run(index.count(0, 420)), 420);
    await index.close();
  });
});

describe("a new root", () => {
  test("whose old one cannot be written before lets go of all who wait for room", async () => {
    const { index, trace } = await traced(200);
    const { btree, faults } = index.engine;
    const { root } = btree;
    trace.onBegin = ({ bucket }) => {
      // What the only leaf took is written before its replacement begins.
      if (bucket !== root.bucket || root.replacingKeysMax !== 0) return;
      throw new BcacheError("DeviceIo", "memory: planted");
    };
    const lanes = [300, 3300, 6300].map((from) => putUntil(index, from, () => btree.root !== root));
    const ends = await index.run(Promise.allSettled(lanes));
    assertEquals(ends.map(({ status }) => status), ["rejected", "rejected", "rejected"]);
    assert(faults.failed !== undefined, "the set has failed");
    assertEquals([root.replacement, root.replacingKeysMax], [undefined, undefined]);
    await index.cut();
  });

  test("is stable before the journal names it, which is before the old one is let go", async () => {
    const { index, trace } = await traced(200);
    const { btree, buckets, superblock } = index.engine;
    const old = btree.root;
    const journalEnd = superblock.firstBucket + superblock.journalBucketCount;
    const names = ({ bucket, bytes }: Operation): number => {
      if (bucket >= journalEnd) return -1;
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      return pointerSector(words, JSET.btree_root / 4) / index.shape.bucketSectors;
    };
    let markThen = -1;
    trace.onBegin = (operation) => {
      const named = names(operation);
      if (named === btree.root.bucket && btree.root !== old && markThen < 0) {
        markThen = buckets.mark[old.bucket]!;
      }
    };
    await index.run(putUntil(index, 200, () => index.engine.replacer.splits === 1));
    const { root } = btree;
    assertEquals([root.level, buckets.priority[root.bucket]], [1, PRIO_BTREE]);
    const entry = trace.operations.find((operation) => names(operation) === root.bucket)!;
    const leaves = await index.run(index.level(0));
    for (const node of [root, ...leaves]) {
      const [first] = trace.to(node.bucket).filter(({ fua }) => fua);
      assert(first!.ended < entry.begun, `level ${node.level} comes before the entry`);
    }
    assertEquals(markThen, MARK.metadata);
    assertEquals(buckets.mark[old.bucket], MARK.none);
    await index.close();
  });
});

describe("a leaf that the journal wants written", () => {
  test("and that is replaced meanwhile lets go once its replacement is in place", async () => {
    const { index } = await traced(420);
    const { nodes, replacer, journal } = index.engine;
    const leaf = index.leaf(419);
    await index.run(index.putAll(420, 440));
    const rewriting = replacer.rewrite(leaf);
    await index.run(index.clock.turn());
    assert(leaf.replacement !== undefined && !leaf.freed, "it is being replaced");
    await index.run(nodes.write(leaf));
    assert(leaf.freed && index.leaf(419) !== leaf, "its keys are durable in the new node");
    await index.run(rewriting);
    await index.run(journal.commit());
    await index.run(journal.commit());
    assert(journal.counters.activeEntries <= 2, "nothing holds the old entries");
    assertEquals(await index.run(index.count(0, 440)), 440);
    await index.close();
  });

  test("is not rewritten for the collector while there are no buckets for it", async () => {
    const { index } = await traced(100);
    const { allocator, btree, replacer } = index.engine;
    const { root } = btree;
    allocator.setFailed();
    const taken: number[] = [];
    while (allocator.available(0) > 2) taken.push(allocator.tryTake(0));
    assertEquals(await index.run(replacer.rewrite(root)), false);
    assertEquals([btree.root, root.freed], [root, false]);
    for (const bucket of taken) allocator.giveBack(bucket, 0);
    assertEquals(await index.run(replacer.rewrite(root)), true);
    await index.close();
  });
});
