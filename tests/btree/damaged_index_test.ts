/**
 * Indexes that no sound machine writes: keys that name a node twice, lead in a circle, or to where
 * metadata is. They are refused, not walked for ever, and nothing is served from them.
 */
import { test } from "bun:test";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import type { BtreeNode } from "../../lib/btree/node.ts";
import { keyOffset, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { EXTENT_SECTORS, SmallIndex } from "./small_index.ts";

const EXTENTS = 900;

/** Makes the root's key of `child` name the bucket of another node. */
function misname(index: SmallIndex, child: BtreeNode, other: BtreeNode): void {
  const { root } = index.engine.btree;
  for (const set of [root.base, root.delta]) {
    for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (keyOffset(set.words, at) !== child.endOffset) continue;
      const gen = index.engine.buckets.gen[other.bucket]!;
      setPointer(set.words, at, other.bucket * index.shape.bucketSectors, gen);
      return;
    }
  }
  throw new Error("the root names the child");
}

async function refusal(index: SmallIndex, extent: number): Promise<string> {
  const error = await index.run(assertRejects(
    () => index.engine.btree.walk(0, { inode: 0, offset: 0 }, () => true),
    BcacheError,
  ));
  assertEquals(error.code, "BadFormat");
  const at = extent * 2 * EXTENT_SECTORS;
  assertThrows(() => index.engine.btree.findLeaf(0, at), BcacheError, "names bucket");
  await index.cut();
  return error.message;
}

async function twoLevels(): Promise<{ index: SmallIndex; leaves: BtreeNode[] }> {
  const index = await SmallIndex.make();
  await index.run(index.putAll(0, EXTENTS));
  const leaves = await index.run(index.level(0));
  assert(leaves.length > 1 && index.engine.btree.root.level === 1, "leaves below one root");
  return { index, leaves };
}

test("two keys that name one leaf are refused", async () => {
  const { index, leaves } = await twoLevels();
  const [first, second] = leaves as [BtreeNode, BtreeNode];
  misname(index, second, first);
  const extent = Math.ceil(first.endOffset / (2 * EXTENT_SECTORS));
  const message = await refusal(index, extent);
  assert(message.includes(`names bucket ${first.bucket}, which is a node of level 0`), message);
});

test("a key that leads back to the root is refused", async () => {
  const { index, leaves } = await twoLevels();
  const { root } = index.engine.btree;
  misname(index, leaves[0]!, root);
  const message = await refusal(index, 0);
  assert(message.includes(`names bucket ${root.bucket}, which is a node of level 1`), message);
});

test("an index that has data where the journal or the UUID table is is refused", async () => {
  for (const owner of ["journal", "UUID table"]) {
    const index = await SmallIndex.make();
    const { superblock, uuids } = index.engine;
    const bucket = owner === "journal" ? superblock.firstBucket + 1 : uuids.bucket;
    assert(bucket > 0, owner);
    index.bucket = bucket;
    await index.run(index.put(1));
    await index.run(index.engine.settleKeys());
    await index.cut();
    index.bucket = -1;
    const words = `bucket ${bucket} has the ${owner}, and the index has something else there`;
    await assertRejects(() => index.start(), BcacheError, words);
  }
});
