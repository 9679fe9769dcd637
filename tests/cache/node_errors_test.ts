/** A b-tree node that cannot be read while the set runs. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { type EngineWorld, freshWorld } from "./engine_world.ts";

/** Several leaves, and one of them not in memory: where it lies, and a position in it. */
async function withColdLeaf(): Promise<{ world: EngineWorld; sector: number; start: number }> {
  const world = await freshWorld({ bucketCount: 1200 });
  for (let index = 0; index < 2000; index++) await world.put(0, index * 16, 8);
  await world.run(world.engine.settleKeys());
  const { btree } = world.engine;
  assert(btree.root.level > 0, "there are several leaves");
  const leaf = await world.run(btree.loadLeaf(0, 16_000));
  btree.cache.drop(leaf);
  assertEquals(btree.findLeaf(0, 16_000), undefined);
  return { world, sector: leaf.sector, start: 16_000 };
}

describe("a node that cannot be read", () => {
  test("because it is damaged fails its reader and the set, by bucket and cause", async () => {
    const { world, sector, start } = await withColdLeaf();
    const { btree, faults } = world.engine;
    const block = new Uint8Array(512);
    await world.device.read(sector, block);
    block[100]! ^= 1;
    await world.device.write(sector, block);
    const error = await assertRejects(() => world.run(btree.loadLeaf(0, start)), BcacheError);
    assertEquals(error.code, "BadChecksum");
    assertStringIncludes(error.message, `bucket ${sector / 32}`);
    assertEquals(faults.failed, error);
    await world.run(world.engine.stopTasks());
  });

  test("because its bucket was freed meanwhile fails nobody", async () => {
    const { world, sector, start } = await withColdLeaf();
    const { btree, buckets, faults } = world.engine;
    const block = new Uint8Array(512).fill(7);
    const loading = btree.loadLeaf(0, start);
    buckets.bumpGen(sector / 32);
    await world.device.write(sector, block);
    await world.run(loading.catch(() => undefined));
    const { failed } = faults;
    assert(failed === undefined || failed.message.includes("no child"), String(failed));
    await world.run(world.engine.stopTasks());
  });
});
