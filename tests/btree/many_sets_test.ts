/** A node whose log has a set in every block. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { decodeNode, newNode } from "../../lib/btree/node_read.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import {
  keyOffset,
  pointerSector,
  setKey,
  setMaxKey,
  setPointer,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { encodeBset } from "../../lib/ondisk/bset.ts";

test("a node with as many sets on disk as it has blocks is read, the newest winning", () => {
  const blocks = 256;
  const geometry = {
    blockSectors: 1,
    bucketSectors: blocks,
    bucketCount: 1024,
    firstBucket: 1,
    nodeSectors: blocks,
  };
  const magic = { low: 1, high: 2 };
  const pointer = new Uint32Array(SLOT_WORDS);
  setMaxKey(pointer, 0, blocks);
  setPointer(pointer, 0, 7 * blocks, 3);
  const node = newNode({ key: pointer, at: 0, level: 0 }, geometry);
  const bytes = new Uint8Array(blocks * 512);
  const slot = new Uint32Array(SLOT_WORDS);
  for (let block = 0; block < blocks; block++) {
    // Each set moves the same extent on by one sector, and adds one of its own far behind.
    const keys = new KeySet(2);
    for (const [offset, at] of [[16, block % 200], [1000 + 16 * block, 40]] as const) {
      setKey(slot, 0, {
        inode: 0,
        offset,
        sizeSectors: 8,
        dirty: false,
        pointer: { sector: 9 * blocks + at, gen: 1 },
      });
      keys.push(slot, 0);
    }
    const set = new Uint8Array(512);
    encodeBset(set, {
      identity: node.identity(magic),
      seqLow: 5,
      seqHigh: 0,
      slots: keys.words,
      slotWords: SLOT_WORDS,
      count: keys.count,
    });
    bytes.set(set, block * 512);
  }
  decodeNode(node, bytes, { geometry, magic });
  assertEquals(node.writtenBlocks, blocks);
  assertEquals(node.base.count, blocks + 1);
  assertEquals(keyOffset(node.base.words, 0), 16);
  assertEquals(pointerSector(node.base.words, 0), 9 * blocks + (blocks - 1) % 200);
});
