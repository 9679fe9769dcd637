/** Dirty data that the index has where no lookup finds it: a drain says so, and ends. */
import { test } from "bun:test";
import { assert, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { Btree } from "../../../lib/btree/btree.ts";
import type { BtreeNode } from "../../../lib/btree/node.ts";
import { keyDirty, setOffset, setSize } from "../../../lib/ondisk/bkey.ts";
import { ManualClock } from "../../support/manual_clock.ts";
import { openSet, type SmallSet, smallSet } from "../../offline/world.ts";

const MINUTE_MS = 60_000;

/** Opens a set and leads to the leaves of its index, as they are in memory. */
async function openWithLeaves(parts: SmallSet, clock: ManualClock) {
  const indexes = new Set<Btree>();
  const walk = Reflect.get(Btree.prototype, "walk") as Btree["walk"];
  Btree.prototype.walk = function (level, from, visit) {
    indexes.add(this);
    return walk.call(this, level, from, visit);
  };
  try {
    const set = await openSet(parts, { seed: 9, clock });
    const leaves: BtreeNode[] = [];
    await [...indexes][0]!.walk(0, { inode: 0, offset: 0 }, (leaf) => leaves.push(leaf) > 0);
    return { set, leaves };
  } finally {
    Btree.prototype.walk = walk;
  }
}

test("a drain that gets nowhere ends, and says how much is left and what to do", async () => {
  const clock = new ManualClock();
  const { set, leaves } = await openWithLeaves(await smallSet({ writes: 900, seed: 41 }), clock);
  // A start refuses such a leaf; so it becomes one behind it.
  const { words } = leaves[1]!.base;
  assert(keyDirty(words, 0), "the key counts as dirty");
  setSize(words, 0, 3);
  setOffset(words, 0, 16);
  for (let attempt = 0; attempt < 2; attempt++) {
    let isDone = false;
    const drained = assertRejects(() => set.flushDirty(undefined), BcacheError).finally(() => {
      isDone = true;
    });
    for (let minute = 0; !isDone && minute < 60; minute++) await clock.advance(MINUTE_MS);
    assert(isDone, "a drain ends");
    const { message } = await drained;
    assertMatch(
      message,
      /^cache: b-tree: \S+ \S+ of bcache0 count as dirty, but no lookup finds/,
    );
    assertMatch(message, /see what is left with `check`, save it with `extract --rescue`/);
  }
  await set.close();
});
