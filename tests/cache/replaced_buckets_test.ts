/**
 * A collection that ends while something is being replaced: what is still named by the disk must
 * not be taken, though nothing in memory names it any more.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { BUCKET_SECTORS, type EngineWorld, freshWorld } from "./engine_world.ts";

/** Memory whose writes to one bucket wait, when asked to. */
class Gate {
  bucket = -1;
  readonly reached: PromiseWithResolvers<void> = Promise.withResolvers<void>();
  readonly open: PromiseWithResolvers<void> = Promise.withResolvers<void>();
  readonly device: Device;

  constructor(bucketCount: number) {
    const memory = new MemoryDevice(bucketCount * BUCKET_SECTORS);
    const write: Device["write"] = async (atSector, from, options) => {
      if (Math.floor(atSector / BUCKET_SECTORS) === this.bucket) {
        this.reached.resolve();
        await this.open.promise;
      }
      await memory.write(atSector, from, options);
    };
    this.device = new Proxy<Device>(memory, {
      get(target, name) {
        if (name === "sync") return undefined;
        if (name === "write") return write;
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }
}

/** A collection in one step: nothing that is under way gets any further meanwhile. */
async function collectAtOnce(world: EngineWorld): Promise<void> {
  const { btree, buckets, collector } = world.engine;
  assert(buckets.beginGc());
  const { root } = btree;
  collector.marker.markKey(root.key, 0, root.level + 1);
  for (let level = root.level; level >= 0; level--) {
    await world.run(btree.walk(level, { inode: 0, offset: 0 }, (node) => {
      collector.markNode(node);
      return true;
    }));
  }
  world.engine.markMetadata();
  assert(buckets.finishGc());
}

describe("a collection that ends meanwhile does not free", () => {
  test("the bucket of a node whose parent is not durable yet", async () => {
    const gate = new Gate(1200);
    const world = await freshWorld({ device: gate.device });
    for (let index = 0; index < 900; index++) await world.put(0, index * 16, 8);
    const { btree, buckets, replacer } = world.engine;
    assertEquals(btree.root.level, 1);
    const leaf = await world.run(btree.loadLeaf(0, 0));
    gate.bucket = btree.root.bucket;
    const rewriting = replacer.rewrite(leaf);
    await world.run(gate.reached.promise);
    assert(leaf.freed, "in memory it is replaced");
    await collectAtOnce(world);
    assert(!buckets.canInvalidate(leaf.bucket), "on disk the parent still names it");
    gate.open.resolve();
    assert(await world.run(rewriting));
    assertEquals(buckets.pins[leaf.bucket], 0);
    assert(buckets.canInvalidate(leaf.bucket));
    await world.stop();
  });

  test("the bucket of a UUID table whose successor is not journaled yet", async () => {
    const world = await freshWorld();
    const { allocator, buckets, uuids } = world.engine;
    const old = uuids.bucket;
    await world.run(uuids.write(allocator, async () => {
      assert(uuids.bucket !== old, "in memory it is replaced");
      await Promise.resolve();
      assert(buckets.beginGc() && buckets.finishGc());
      assert(!buckets.canInvalidate(old), "the journal on disk still names it");
    }));
    assert(buckets.canInvalidate(old));
    await world.collect();
    await world.stop();
  });
});
