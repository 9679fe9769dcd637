/**
 * Clean keys are not journaled, so a restart brings the dirty ones back that they replaced, unless
 * all keys were settled in between: whatever else went on at that time.
 */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { Segment } from "../../lib/btree/btree.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { EXTENT_SECTORS, SmallIndex } from "./small_index.ts";

/** The index's device with slow writes of nodes; `cut` ends all that did not come that far. */
class SlowNodes {
  readonly device: Device;
  /** Writes to all buckets but the journal's take long. */
  slow = false;
  #isCut = false;

  constructor(index: SmallIndex) {
    const write = async (atSector: number, bytes: Uint8Array, options?: WriteOptions) => {
      const bucket = Math.floor(atSector / index.shape.bucketSectors);
      const { firstBucket, journalBucketCount } = index.engine.superblock;
      const isJournal = bucket < firstBucket + journalBucketCount;
      await index.clock.sleep(this.slow && !isJournal ? 40 : 1);
      if (this.#isCut) return;
      await index.device.write(atSector, bytes, options);
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

  cut(): void {
    this.#isCut = true;
  }
}

async function slowIndex(): Promise<{ index: SmallIndex; nodes: SlowNodes }> {
  const index = await SmallIndex.make();
  await index.run(index.put(0)); // So that the bucket of all data is in use.
  await index.run(index.engine.settleKeys());
  await index.close();
  const nodes = new SlowNodes(index);
  await index.start(nodes.device);
  return { index, nodes };
}

/** Says that an extent is clean, as writeback does: not in the journal. */
async function makeClean(index: SmallIndex, extent: number): Promise<void> {
  const batch = index.key(extent, { dirty: false });
  const { inserter } = index.engine;
  while (!inserter.canInsert(batch)) await inserter.prepare(batch);
  inserter.insert(batch, 0);
}

/** Whether an extent is dirty after a power cut now. */
async function dirtyAfterCut(index: SmallIndex, nodes: SlowNodes, extent: number) {
  nodes.cut();
  await index.cut();
  await index.start();
  await index.run(index.engine.btree.loadLeaf(0, extent * 2 * EXTENT_SECTORS));
  const at = extent * 2 * EXTENT_SECTORS;
  const segment = new Segment();
  index.engine.btree.lookup(index.leaf(extent), 0, at, at + EXTENT_SECTORS, segment);
  assert(segment.cached, "the extent is there");
  const { dirty } = segment;
  await index.close();
  return dirty;
}

test("keys that nobody settled come back dirty", async () => {
  const { index, nodes } = await slowIndex();
  await index.run(index.put(1));
  await index.run(makeClean(index, 1));
  await index.run(index.engine.commitMetadata());
  assertEquals(await dirtyAfterCut(index, nodes, 1), true);
});

test("keys in a node that is being written are settled when that is over", async () => {
  const { index, nodes } = await slowIndex();
  await index.run(index.put(1));
  await index.run(makeClean(index, 1));
  nodes.slow = true;
  const body = async () => {
    void index.engine.nodes.write(index.leaf(1)).catch(() => undefined);
    await index.clock.turn();
    await index.engine.settleKeys();
  };
  await index.run(body());
  assertEquals(await dirtyAfterCut(index, nodes, 1), false);
});

test("keys that come meanwhile hold back no older ones in the journal", async () => {
  const { index, nodes } = await slowIndex();
  await index.run(index.put(1));
  await index.run(makeClean(index, 1));
  nodes.slow = true;
  const others = async () => {
    for (let extent = 2; extent < 20; extent++) {
      await index.clock.sleep(5);
      await index.put(extent);
    }
  };
  await index.run(
    Promise.race([index.engine.settleKeys(), others().then(() => index.clock.sleep(500))]),
  );
  assertEquals(await dirtyAfterCut(index, nodes, 1), false);
});

test("keys of a node that is being replaced are settled when its replacement is", async () => {
  const { index, nodes } = await slowIndex();
  await index.run(index.putAll(0, 420));
  await index.run(index.engine.settleKeys());
  nodes.slow = true;
  let extent = 419;
  const body = async () => {
    const before = index.leaf(extent);
    while (before.replacement === undefined) {
      await index.put(++extent);
      await makeClean(index, extent);
    }
    await index.engine.settleKeys();
  };
  await index.run(body());
  assertEquals(await dirtyAfterCut(index, nodes, extent), false);
});

test("what comes in while a node is written anew takes nothing from its copy", async () => {
  const { index, nodes } = await slowIndex();
  await index.run(index.putAll(0, 420));
  await index.run(index.engine.settleKeys());
  const extent = 100;
  const body = async () => {
    const before = index.leaf(extent);
    assert(before !== index.engine.btree.root, "there is a parent");
    const rewritten = index.engine.replacer.rewrite(before);
    while (before.replacement === undefined) await index.clock.turn();
    // Not in the journal: after a power cut it never was.
    const hole = index.key(extent, { hole: true });
    const { inserter } = index.engine;
    while (!inserter.canInsert(hole)) await inserter.prepare(hole);
    assert(!before.freed, "it came in late");
    inserter.insert(hole, 0);
    assertEquals(await rewritten, true);
  };
  await index.run(body());
  assert(!index.has(extent));
  nodes.cut();
  await index.cut();
  await index.start();
  assertEquals(await index.run(index.count(0, 420)), 420);
  await index.close();
});
