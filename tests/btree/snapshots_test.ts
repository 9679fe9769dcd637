/** Neighbours become fewer while keys come in: what is copied is what the nodes hold then. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import type { BtreeNode } from "../../lib/btree/node.ts";
import type { WorkMeter } from "../../lib/base/work_meter.ts";
import { SmallIndex } from "./small_index.ts";

const KEYS = 1500;

/** Leaves that lost most of their keys; every tenth is left. */
async function sparse(): Promise<{ index: SmallIndex; leaves: BtreeNode[] }> {
  const index = await SmallIndex.make();
  for (let key = 0; key < KEYS; key++) await index.run(index.put(key));
  for (let key = 0; key < KEYS; key++) {
    if (key % 10 > 0) await index.run(index.put(key, { hole: true }));
  }
  await index.run(index.engine.nodes.writeAllDirty());
  const leaves = await index.run(index.level(0));
  assertGreater(leaves.length, 3);
  return { index, leaves };
}

/** The first neighbours of one parent. */
function some(index: SmallIndex, leaves: readonly BtreeNode[]): BtreeNode[] {
  const { btree } = index.engine;
  const parent = btree.findNode(1, 0, 0)!;
  return leaves.slice(0, 3).filter((leaf) => parent.covers(leaf.endInode, leaf.endOffset));
}

/** Others have their turn after every few keys. */
const OFTEN: WorkMeter = { stepUnits: 8, begin: () => {}, spend: () => true, end: () => {} };

describe("a leaf gathered in pieces", () => {
  const inTheMiddle = async (work: (index: SmallIndex, nodes: BtreeNode[]) => Promise<boolean>) => {
    const { index, leaves } = await sparse();
    const nodes = some(index, leaves);
    assertGreater(nodes[0]!.base.count, 3 * OFTEN.stepUnits);
    const turn = index.clock.turn.bind(index.clock);
    let turns = 0;
    index.clock.turn = async () => {
      await turn();
      // The leaf is half gathered: a key behind what was looked at, and one before it.
      if (++turns !== 2) return;
      await index.put(1);
      await index.put(0, { hole: true });
    };
    assertEquals(await index.run(work(index, nodes)), true);
    assertGreater(turns, 2);
    index.clock.turn = turn;
    for (const restart of [false, true]) {
      if (restart) await index.start();
      assertEquals([index.has(0), index.has(1)], [false, true]);
      assertEquals(await index.run(index.count(0, KEYS)), KEYS / 10);
      await index.close();
    }
    return nodes;
  };

  test("is gathered anew when keys came in, and neighbours still become fewer", async () => {
    const nodes = await inTheMiddle((index, nodes) => index.engine.replacer.coalesce(nodes, OFTEN));
    assertEquals(nodes.map((node) => node.freed), nodes.map(() => true));
  });

  test("is written anew with the keys that came in", async () => {
    const nodes = await inTheMiddle(({ engine }, [first]) =>
      engine.replacer.rewrite(first!, OFTEN)
    );
    assertEquals(nodes[0]!.freed, true);
  });
});

describe("coalescing while keys come in", () => {
  test("keys that come in between two looks are not lost", async () => {
    const { index, leaves } = await sparse();
    const { replacer, btree } = index.engine;
    const nodes = some(index, leaves);
    const turn = index.clock.turn.bind(index.clock);
    let turns = 0;
    // After the first leaf was looked at, and only then, its keys change.
    index.clock.turn = async () => {
      await turn();
      if (++turns === 1) await index.put(1);
    };
    assertEquals(await index.run(replacer.coalesce(nodes)), true);
    assertEquals(nodes.map((node) => node.freed), nodes.map(() => true));
    const after = await index.run(index.level(0));
    assertLess(after.length, leaves.length);
    assert(index.has(1), "the key that came in");
    assertEquals(await index.run(index.count(0, KEYS)), KEYS / 10 + 1);
    btree.cache.checkInvariants();
    await index.close();

    await index.start();
    assertEquals(await index.run(index.count(0, KEYS)), KEYS / 10 + 1);
    await index.close();
  });

  test("is left alone, with no effect, while they come in all the time", async () => {
    const { index, leaves } = await sparse();
    const { replacer, allocator } = index.engine;
    const nodes = some(index, leaves);
    const available = allocator.available(0);
    const turn = index.clock.turn.bind(index.clock);
    let came = 0;
    index.clock.turn = async () => {
      await turn();
      await index.put(1 + (came++ % 2));
    };
    assertEquals(await index.run(replacer.coalesce(nodes)), false);
    index.clock.turn = turn;
    assertGreater(came, 2);
    assertEquals(nodes.map((node) => [node.freed, node.holds]), nodes.map(() => [false, 0]));
    assertEquals(nodes.map((node) => node.replacement), nodes.map(() => undefined));
    assertEquals(allocator.available(0), available);
    assertEquals(await index.run(index.count(0, KEYS)), KEYS / 10 + 2);
    await index.close();
  });
});
