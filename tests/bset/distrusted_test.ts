/** Clean keys of devices that are not trusted become stale on their way to the disk, no others. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { DistrustedInodes } from "../../lib/bset/distrusted.ts";
import { keyDiskWords, keyText, setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import type { KeyFields } from "../../lib/ondisk/bkey.ts";

const KEYS: readonly KeyFields[] = [
  { inode: 1, offset: 8, sizeSectors: 8, pointer: { sector: 64, gen: 0 } },
  { inode: 1, offset: 16, sizeSectors: 8, dirty: true, pointer: { sector: 72, gen: 3 } },
  { inode: 1, offset: 24, sizeSectors: 8 },
  { inode: 2, offset: 8, sizeSectors: 8, pointer: { sector: 80, gen: 5 } },
];

/** The keys as they lie on disk, behind two words of something else. */
function onDisk(): { words: Uint32Array; texts: () => string[] } {
  const slot = new Uint32Array(SLOT_WORDS);
  const all = [7, 7];
  for (const key of KEYS) {
    setKey(slot, 0, key);
    all.push(...slot.subarray(0, keyDiskWords(slot, 0)));
  }
  const words = Uint32Array.from(all);
  const texts = () => {
    const found: string[] = [];
    for (let at = 2; at < words.length; at += keyDiskWords(words, at)) {
      found.push(keyText(words, at));
    }
    return found;
  };
  return { words, texts };
}

test("only clean keys of a device that is not trusted become stale", () => {
  const distrusted = new DistrustedInodes();
  const { words, texts } = onDisk();
  const before = texts();
  assertEquals(distrusted.makeStale(words, 2, words.length), false);
  distrusted.add(1);
  assertEquals(distrusted.makeStale(words, 2, words.length), true);
  assertEquals(texts(), ["1:0 len 8 -> [0:64 gen 255]", ...before.slice(1)]);
  distrusted.delete(1);
  assertEquals(distrusted.makeStale(words, 2, words.length), false);
});

test("devices added before are left alone when only later ones are asked for", () => {
  const distrusted = new DistrustedInodes();
  const { words, texts } = onDisk();
  const before = texts();
  distrusted.add(1);
  const { additions } = distrusted;
  assertEquals(distrusted.makeStale(words, 2, words.length, additions), false);
  distrusted.add(2);
  assertEquals(distrusted.makeStale(words, 2, words.length, additions), true);
  assertEquals(texts(), [...before.slice(0, 3), "2:0 len 8 -> [0:80 gen 4]"]);
  assertEquals([distrusted.has(1), distrusted.has(2), distrusted.has(3)], [true, true, false]);
});
