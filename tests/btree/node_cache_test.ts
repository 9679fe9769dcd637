/** The cache of b-tree nodes: what is dropped, what never is, and that its memory is counted. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { BtreeNode } from "../../lib/btree/node.ts";
import { NodeCache } from "../../lib/btree/node_cache.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { setKey, setMaxKey, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { TestFaults } from "../journal/world.ts";

const BUCKET_SECTORS = 16;

function node(bucket: number, level = 0, keys = 10): BtreeNode {
  const key = new Uint32Array(SLOT_WORDS);
  setMaxKey(key, 0, BUCKET_SECTORS);
  setPointer(key, 0, bucket * BUCKET_SECTORS, 1);
  const made = new BtreeNode(key, 0, {
    level,
    bucketSectors: BUCKET_SECTORS,
    blocks: 16,
    blockBytes: 512,
  });
  made.base = new KeySet(keys);
  return made;
}

/** A cache with a root at level 1 and so many leaves, coldest first in buckets 100, 101, ... */
function filled(leaves: number, bytesMax = 0) {
  const cache = new NodeCache({ faults: new TestFaults(), bytesMax: Infinity });
  cache.setRoot(node(1, 1));
  const all = Array.from({ length: leaves }, (_, index) => node(100 + index));
  for (const leaf of all) cache.adopt(leaf);
  cache.bytesMax = bytesMax;
  return { cache, leaves: all };
}

const present = (cache: NodeCache, leaves: readonly BtreeNode[]) =>
  leaves.filter((leaf) => cache.get(leaf.bucket) === leaf).map((leaf) => leaf.bucket - 100);

const range = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, index) => from + index);

describe("the cache of b-tree nodes", () => {
  test("drops the coldest first, and a used one only after those not used", async () => {
    const { cache, leaves } = filled(40);
    for (const index of [0, 3, 5]) leaves[index]!.used = true;
    cache.bytesMax = cache.bytes - leaves[0]!.memoryBytes * 4;
    await cache.makeRoom();
    assertEquals(present(cache, leaves), [0, 3, 5, ...range(7, 40)]);
    assertEquals(cache.reaped, 4);
    cache.checkInvariants();
  });

  test("never drops the root, nor more than leaves its reserve", async () => {
    for (const [level, reserve] of [[0, 24], [1, 24], [2, 32]] as const) {
      const { cache, leaves } = filled(60);
      const root = node(2, level);
      cache.setRoot(root);
      await cache.makeRoom();
      assertEquals(cache.reserveNodes, reserve);
      assertEquals(cache.size, reserve);
      assert(cache.get(root.bucket) === root, "the root stays");
      assertEquals(cache.prune(100), 0, "not even when asked to");
      assertEquals(present(cache, leaves).includes(59), true);
      cache.checkInvariants();
    }
  });

  test("keeps what is dirty, held, being written or replaced", async () => {
    const { cache, leaves } = filled(60);
    leaves[0]!.dirty = true;
    leaves[1]!.holds = 1;
    leaves[2]!.writesPending = 1;
    leaves[3]!.writesHeldBy = Promise.resolve();
    leaves[4]!.delta.insertAt(0, leaves[4]!.key, 0);
    cache.resized(leaves[4]!);
    await cache.makeRoom();
    assertEquals(present(cache, leaves).slice(0, 5), [0, 1, 2, 3, 4]);
    cache.checkInvariants();
  });

  test("beyond the bound a load waits until a cold dirty node was written", async () => {
    const { cache, leaves } = filled(60);
    const written: number[] = [];
    let release = () => {};
    const gate = new Promise<void>((resolve) => release = resolve);
    cache.flusher = {
      write: async (leaf) => {
        written.push(leaf.bucket - 100);
        await gate;
        leaf.dirty = false;
      },
    };
    for (const leaf of leaves) leaf.dirty = true;
    let done = false;
    const room = cache.makeRoom().then(() => done = true);
    await Promise.resolve();
    assertEquals([done, cache.size, written], [false, 61, range(0, 8)]);
    release();
    await room;
    assertEquals(cache.size, cache.reserveNodes);
    assert(cache.flushed >= 61 - 24, "every node that went was written first");
    cache.checkInvariants();
  });

  test("a set that has failed writes nothing more, and serves on", async () => {
    const faults = new TestFaults();
    const cache = new NodeCache({ faults, bytesMax: 0 });
    cache.flusher = { write: () => Promise.reject(new Error("not to be asked")) };
    for (const bucket of range(1, 60)) {
      const leaf = node(bucket);
      leaf.dirty = true;
      cache.adopt(leaf);
    }
    faults.raise(new Error("failed"));
    await cache.makeRoom();
    assertEquals(cache.size, 59);
  });

  test("counts every byte as nodes grow, and tells when there are too many", () => {
    const { cache, leaves } = filled(40, 1_000_000);
    let pressed = 0;
    cache.onPressure = () => pressed++;
    const slot = new Uint32Array(SLOT_WORDS);
    const leaf = leaves[7]!;
    for (let key = 1; key <= 4000 && pressed === 0; key++) {
      setKey(slot, 0, { inode: 0, offset: key * 8, sizeSectors: 8 });
      leaf.delta.push(slot, 0);
      cache.resized(leaf);
      cache.checkInvariants();
    }
    assertEquals(pressed, 0);
    cache.bytesMax = cache.bytes;
    leaf.delta.reserve(10_000);
    cache.resized(leaf);
    assertEquals(pressed, 1);
    cache.shrinkingDisabled = true;
    leaf.delta.reserve(20_000);
    cache.resized(leaf);
    assertEquals(pressed, 1, "nobody is told when nothing may be dropped");
    cache.drop(leaf);
    cache.resized(leaf);
    cache.checkInvariants();
  });

  test("a node being read counts until it has arrived", async () => {
    const { cache } = filled(40);
    cache.bytesMax = cache.bytes + 1000;
    assert(cache.hasRoom(1000), "there is room");
    cache.expect(1000);
    assert(!cache.hasRoom(1), "it is spoken for");
    await cache.makeRoom();
    assertEquals(cache.size, 41);
    cache.expect(1);
    await cache.makeRoom();
    assertEquals(cache.size, 40);
    cache.arrived(1001);
  });
});
