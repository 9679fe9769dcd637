/** When a leaf is written, and what is found of it when the write is cut short. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater } from "@std/assert";
import { readNode } from "../../lib/btree/node_read.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { SmallIndex } from "./small_index.ts";

describe("a dirty leaf", () => {
  test("is written after 30 seconds at the latest, and lets go of the journal", async () => {
    const index = await SmallIndex.make();
    const { btree, nodes, journal } = index.engine;
    const began = index.clock.nowMs();
    await index.run(index.put(0));
    const written = btree.root.writtenBlocks;
    await index.run(index.clock.sleep(29_900));
    assertEquals([btree.root.dirty, btree.root.writtenBlocks], [true, written]);
    await index.run(index.clock.sleep(200));
    assertEquals([btree.root.dirty, btree.root.writtenBlocks], [false, written + 1]);
    assertGreater(index.clock.nowMs() - began, 30_000);
    assertEquals([nodes.dirtyCount, btree.root.delta.count], [0, 0]);
    await index.run(journal.commit());
    await index.run(journal.commit());
    assert(journal.counters.activeEntries <= 2, "the leaf holds no entry any more");
    await index.close();
  });

  test("changed while it is written is written again 30 seconds later", async () => {
    const index = await SmallIndex.make();
    const { nodes, btree } = index.engine;
    await index.run(index.put(0));
    const writing = nodes.write(btree.root);
    await Promise.resolve();
    await index.run(index.put(1));
    await index.run(writing);
    assertEquals([btree.root.dirty, btree.root.delta.count], [true, 1]);
    await index.run(index.clock.sleep(30_200));
    assertEquals([btree.root.dirty, btree.root.delta.count], [false, 0]);
    await index.close();
  });

  test("is written at once when its keys fill a page", async () => {
    const index = await SmallIndex.make();
    const { btree } = index.engine;
    const written = btree.root.writtenBlocks;
    await index.run(index.putAll(0, 166));
    await index.run(index.clock.turn());
    assertEquals(btree.root.writtenBlocks, written, "4048 bytes: the header and 167 keys");
    await index.run(index.putAll(166, 168));
    await index.run(index.clock.turn());
    assertGreater(btree.root.writtenBlocks, written);
    assert(index.clock.nowMs() < 1000, "nobody waited for that");
    await index.close();
  });

  test("that is being written holds up whoever wants all of the index durable", async () => {
    const index = await SmallIndex.make();
    const { root } = index.engine.btree;
    const gate = Promise.withResolvers<void>();
    let held = 0;
    await index.close();
    await index.start(holding(index.device, gate.promise, (atSector) => {
      const isNode = atSector >= root.sector && atSector < root.sector + index.shape.bucketSectors;
      held += isNode ? 1 : 0;
      return isNode;
    }));
    const { nodes, btree } = index.engine;
    assertEquals(btree.root.sector, root.sector);
    await index.run(index.put(0));
    const writing = nodes.write(btree.root);
    await index.run(index.clock.sleep(10));
    assertEquals([btree.root.dirty, nodes.dirtyCount, held], [false, 0, 1]);
    let durable = false;
    const all = index.engine.settleKeys().then(() => durable = true);
    await index.run(index.clock.sleep(1000));
    assertEquals(durable, false, "the journal alone has the key still");
    gate.resolve();
    await index.run(Promise.all([writing, all]));
    await index.close();
  });

  test("changed while the index is settled keeps no older key in the journal", async () => {
    const index = await SmallIndex.make();
    const { root } = index.engine.btree;
    const gate = Promise.withResolvers<void>();
    await index.close();
    await index.start(
      holding(
        index.device,
        gate.promise,
        (atSector) => atSector >= root.sector && atSector < root.sector + index.shape.bucketSectors,
      ),
    );
    const { engine } = index;
    await index.run(index.put(0));
    const settled = engine.journal.sequence;
    const settling = engine.settleKeys();
    await index.run(index.clock.sleep(10));
    await index.run(index.put(1));
    gate.resolve();
    await index.run(settling);
    assertGreater(engine.journal.pins.oldest(), settled, "what came later is in a later entry");
    await index.close();
  });

  test("is not written by a set that has failed", async () => {
    const index = await SmallIndex.make();
    await index.run(index.put(0));
    const written = index.engine.nodes.writtenSectors;
    await index.cut();
    await index.run(index.clock.sleep(60_000));
    assertEquals(index.engine.nodes.writtenSectors, written);
  });
});

/** The device, which keeps some of the writes waiting. */
function holding(
  inner: Device,
  gate: Promise<void>,
  holds: (atSector: number) => boolean,
): Device {
  return new Proxy(inner, {
    get(target, name) {
      if (name === "sync") return undefined;
      if (name === "write") {
        return async (atSector: number, bytes: Uint8Array, options?: WriteOptions) => {
          if (holds(atSector)) await gate;
          await target.write(atSector, bytes, options);
        };
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** The device, which loses some of the writes to one range. */
function losing(inner: Device, loses: (atSector: number, bytes: Uint8Array) => boolean): Device {
  return new Proxy(inner, {
    get(target, name) {
      if (name === "sync") return undefined;
      if (name === "write") {
        return async (atSector: number, bytes: Uint8Array, options?: WriteOptions) => {
          if (!loses(atSector, bytes)) await target.write(atSector, bytes, options);
        };
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

describe("an append that is cut short", () => {
  for (const lost of ["the header's sector", "everything behind it"] as const) {
    test(`by ${lost} leaves the sets before it, or fails its own checksum`, async () => {
      const index = await SmallIndex.make();
      await index.run(index.putAll(0, 30));
      await index.close();
      let bucket = -1;
      const device = losing(index.device, (atSector, bytes) => {
        const inRoot = Math.floor(atSector / 16) === bucket;
        const header = bytes.length === 512 && inRoot;
        return inRoot && (lost === "the header's sector" ? header : !header);
      });
      await index.start(device);
      bucket = index.engine.btree.root.bucket;
      await index.run(index.putAll(30, 90));
      await index.run(index.engine.nodes.write(index.engine.btree.root));
      const { btree } = index.engine;
      const read = readNode(index.device, { key: btree.root.key, at: 0, level: 0 }, btree);
      if (lost === "the header's sector") {
        const node = await read;
        assertEquals(node.base.count, 30);
        // A restart brings the lost keys back from the journal.
        await index.run(index.engine.journal.commit());
        await index.cut();
        await index.start();
        assertEquals(await index.run(index.count(0, 90)), 90);
        await index.close();
      } else {
        const error = await read.catch((reason) => reason);
        assert(String(error).includes("bad checksum"), "the header comes last, so this cannot be");
        await index.cut();
      }
    });
  }
});
