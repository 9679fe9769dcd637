/**
 * The whole index against a naive copy: thousands of random overwrites in batches, holes that
 * span leaves, splits and compactions, restarts with and without a journal to replay, and a node
 * cache that holds a fraction of the nodes.
 */
import { describe, test } from "bun:test";
import { assert, assertGreater } from "@std/assert";
import { BATCH_KEYS_MAX } from "../../lib/btree/insert.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { IndexModel } from "./index_model.ts";

interface Shape {
  readonly bucketSectors: number;
  readonly blockSectors: number;
  readonly spanSectors: number;
  readonly batches: number;
  /** The bound of the node cache; Infinity for none. */
  readonly bytesMax: number;
}

async function life(model: IndexModel, shape: Shape): Promise<void> {
  const { random } = model;
  for (let batch = 0; batch < shape.batches; batch++) {
    const pieces = Array.from(
      { length: random.between(1, BATCH_KEYS_MAX) },
      () => model.randomPiece(),
    );
    await model.insert(pieces);
    // The collector goes over all nodes, rewrites some, and drives others out of memory.
    if (batch % 300 === 299) {
      await model.engine.collector.collect(new AbortController().signal);
    }
    // Requests come in bursts; in between, others have a turn.
    if (batch % 8 === 0) await model.clock.turn();
    if (batch % 16 !== 0) continue;
    const { inode, start, sectors } = pieces[0]!;
    const end = Math.min(start + sectors + 200, shape.spanSectors);
    await model.check(inode, Math.max(start - 200, 0), end);
    const { cache } = model.engine.btree;
    // The leaves of a batch may exceed the bound together.
    const slack = (cache.reserveNodes + 4 * BATCH_KEYS_MAX) * shape.bucketSectors * 512 * 2;
    assert(cache.bytes <= shape.bytesMax + slack, `${cache.bytes} bytes of nodes are in memory`);
  }
}

async function lives(seed: number, shape: Shape): Promise<IndexModel> {
  const device = new MemoryDevice(4000 * shape.bucketSectors);
  const model = new IndexModel({ ...shape, device, seed });
  await model.make();
  for (let turn = 0; turn < 4; turn++) {
    model.engine.btree.cache.bytesMax = shape.bytesMax;
    await model.run(life(model, shape));
    await model.run(model.checkAll());
    if (turn === 3) break;
    if (turn % 2 === 0) await model.cut();
    else await model.close();
    await model.start();
    await model.run(model.checkAll());
  }
  return model;
}

describe("the index and a naive copy say the same of every sector", () => {
  test("through overwrites, splits, growth of the root and restarts", async () => {
    for (const [seed, blockSectors] of [[1, 1], [2, 2]] as const) {
      const model = await lives(seed, {
        bucketSectors: 16,
        blockSectors,
        spanSectors: 120_000,
        batches: 900,
        bytesMax: Infinity,
      });
      assert(model.engine.btree.root.level >= 1, "the root has grown");
      assertGreater(model.engine.replacer.splits, 0);
      assertGreater(model.engine.replacer.compactions, 0);
      await model.close();
    }
  }, 60_000);

  test("while nodes, dirty ones too, are driven out of memory", async () => {
    const model = await lives(3, {
      bucketSectors: 8,
      blockSectors: 1,
      spanSectors: 120_000,
      batches: 2500,
      bytesMax: 40 << 10,
    });
    const { cache, nodesRead } = model.engine.btree;
    // Everything was just looked up: reading alone keeps to the bound as well.
    assert(cache.size <= cache.reserveNodes + 8, `${cache.size} nodes are in memory`);
    assertGreater(cache.reaped, 100);
    assertGreater(cache.flushed, 10);
    assertGreater(nodesRead, 100);
    await model.close();
  }, 60_000);

  test("with many writers at once, and memory for none of their leaves", async () => {
    const shape = { bucketSectors: 8, blockSectors: 1, spanSectors: 150_000 };
    const device = new MemoryDevice(4000 * shape.bucketSectors);
    const model = new IndexModel({ ...shape, device, seed: 8 });
    await model.make();
    model.engine.btree.cache.bytesMax = 0;
    const writer = async (): Promise<void> => {
      for (let batch = 0; batch < 40; batch++) {
        await model.insert(Array.from({ length: BATCH_KEYS_MAX }, () => model.randomPiece()));
        await model.clock.turn();
      }
    };
    await model.run(Promise.all(Array.from({ length: 200 }, writer)));
    await model.run(model.checkAll());
    const { cache } = model.engine.btree;
    assert(cache.size <= cache.reserveNodes + 8, `${cache.size} nodes are in memory`);
    await model.close();
  }, 60_000);

  test("in nodes of two blocks, the smallest there are", async () => {
    for (const [bucketSectors, blockSectors] of [[16, 8], [8, 4]] as const) {
      const model = await lives(6, {
        bucketSectors,
        blockSectors,
        spanSectors: 100_000,
        batches: 600,
        bytesMax: 60 << 10,
      });
      assertGreater(model.engine.replacer.compactions + model.engine.replacer.splits, 0);
      await model.close();
    }
  }, 60_000);

  test("in nodes of many blocks that fill up with sets", async () => {
    const model = await lives(4, {
      bucketSectors: 128,
      blockSectors: 1,
      spanSectors: 200_000,
      batches: 1200,
      bytesMax: Infinity,
    });
    await model.close();
  }, 60_000);
});
