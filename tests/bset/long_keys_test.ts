/** What a key's 16-bit size means for merging. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { insertExtent, InsertScratch } from "../../lib/bset/extents.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { keyOffset, keySizeSectors, setExtent, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";

test("keys that together are longer than 65535 sectors stay two, and say the same", () => {
  const leaf = { base: new KeySet(), delta: new KeySet() };
  const context = {
    ledger: { add: () => {} },
    scratch: new InsertScratch(),
    bucketSectors: 1024,
  };
  const slot = new Uint32Array(SLOT_WORDS);
  for (let end = 32768; end <= 5 * 32768; end += 32768) {
    setExtent(slot, 0, 1, end, 32768);
    insertExtent(leaf, slot, 0, context);
  }
  let covered = 0;
  for (let at = 0; at < leaf.delta.count * SLOT_WORDS; at += SLOT_WORDS) {
    const size = keySizeSectors(leaf.delta.words, at);
    assertEquals(keyOffset(leaf.delta.words, at) - size, covered, "no gap, no overlap");
    covered += size;
  }
  assertEquals(covered, 5 * 32768);
});
