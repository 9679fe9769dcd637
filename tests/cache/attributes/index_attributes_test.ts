/** The attributes of index and journal say what is so, and change what they say they change. */
import { test } from "bun:test";
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { findAttribute, writeAttribute } from "../../../lib/cache/attributes/attribute.ts";
import { INDEX_AND_JOURNAL_ATTRIBUTES } from "../../../lib/cache/attributes/index_and_journal.ts";
import type { SetTarget } from "../../../lib/cache/attributes/targets.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { IndexModel } from "../../btree/index_model.ts";

async function filledModel(): Promise<IndexModel> {
  const device = new MemoryDevice(4000 * 16);
  const shape = { bucketSectors: 16, blockSectors: 1, spanSectors: 400_000, seed: 11 };
  const model = new IndexModel({ device, ...shape });
  await model.make();
  await model.run((async () => {
    for (let batch = 0; batch < 2500; batch++) {
      await model.insert(Array.from({ length: 8 }, () => model.randomPiece()));
      if (batch % 50 === 0) await model.clock.sleep(200);
    }
  })());
  return model;
}

test("index and journal can be looked into, and the node cache set", async () => {
  const model = await filledModel();
  const { engine } = model;
  const target = { engine } as SetTarget;
  const attribute = (name: string) =>
    findAttribute(INDEX_AND_JOURNAL_ATTRIBUTES, name, "the cache set");
  const read = (name: string) => attribute(name).read(target);
  const set = async (name: string, text: string) =>
    await model.run(writeAttribute(attribute(name), target, text));

  const { cache } = engine.btree;
  assertEquals(read("btree_nodes"), `${cache.size}`);
  assert(/^\d+\.\dk$/.test(read("btree_cache_size")), read("btree_cache_size"));
  assertEquals(read("btree_cache_max_chain"), "1");
  assertEquals(read("tree_depth"), "1");
  for (const name of ["btree_used_percent", "root_usage_percent"]) {
    const percent = Number(read(name));
    assert(percent > 0 && percent <= 100, `${name} ${percent}`);
  }
  assert(
    /^btree nodes: \d+, written sets: \d+, unwritten sets: [1-9]\d*, written key bytes: [1-9]\d+/
      .test(read("bset_tree_stats")),
    read("bset_tree_stats"),
  );

  assertEquals(read("average_key_size"), "0.0k");
  await model.run(engine.collector.collect(new AbortController().signal));
  // Pieces of up to 12 sectors, many of them cut.
  assert(/^[234]\.\dk$/.test(read("average_key_size")), read("average_key_size"));

  assertGreater(engine.btree.splitTimes.count, 10);
  assertGreater(engine.btree.sortTimes.count, engine.btree.splitTimes.count);
  assertEquals(read("btree_read_last_ms"), "-1", "a new index was never read");
  assertGreater(Number(read("btree_split_average_frequency_sec")) + 1, 0);

  assertGreater(Number(read("active_journal_entries")), 0);
  assertGreater(Number(read("reclaimed_journal_buckets")), 3);
  assertGreater(Number(read("reclaim")), 0);
  assert(Number(read("flush_write")) >= Number(read("reclaim")), "rounds flush leaves");

  const before = cache.size;
  await set("prune_cache", "5");
  assertEquals(cache.size, Math.max(before - 5, cache.reserveNodes));
  await set("prune_cache", "1000000");
  assert(cache.size >= cache.reserveNodes, "the reserve stays");

  await set("btree_shrinker_disabled", "1");
  await set("btree_cache_max", "1M");
  assertEquals(read("btree_cache_max"), `${1 << 20}`);
  const low = await assertRejects(
    () => writeAttribute(attribute("btree_cache_max"), target, "4k"),
    BcacheError,
    "expected a whole number of bytes from 1048576 to",
  );
  assertEquals(low.code, "OutOfRange");
  await model.run(model.checkAll());
  assertGreater(engine.btree.readTimes.count, 0);
  await model.close();
});
