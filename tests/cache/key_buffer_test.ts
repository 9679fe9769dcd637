import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { KeyBuffer } from "../../lib/cache/key_buffer.ts";
import { keyDirty, setDirty, setExtent, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { MARK } from "../../lib/buckets/table.ts";
import { freshWorld } from "./engine_world.ts";

function key(inode: number, start: number, end: number): Uint32Array {
  const words = new Uint32Array(SLOT_WORDS);
  setExtent(words, 0, inode, end, end - start);
  setPointer(words, 0, 4096 + start, 3);
  setDirty(words, 0, true);
  return words;
}

const starts = (buffer: KeyBuffer) => buffer.keys().map(({ start }) => start);

describe("a key buffer", () => {
  test("hands keys out in order of position, whatever order they came in", () => {
    const buffer = new KeyBuffer(8);
    for (const [inode, start] of [[1, 64], [0, 32], [1, 0], [0, 8]] as const) {
      assert(buffer.tryAdd(key(inode, start, start + 8), 0));
    }
    const taken = Array.from({ length: 4 }, () => buffer.takeNext()!);
    assertEquals(taken.map(({ inode, start }) => [inode, start]), [[0, 8], [0, 32], [1, 0], [
      1,
      64,
    ]]);
    assertEquals([taken[0]!.sector, taken[0]!.gen, taken[0]!.dirty], [4096 + 8, 3, true]);
    assertEquals([buffer.takeNext(), buffer.inFlight, buffer.size], [undefined, 4, 4]);
    taken.forEach((each) => buffer.finish(each));
    assertEquals([buffer.size, buffer.inFlight], [0, 0]);
  });

  test("skips a key that overlaps one it has, and one it has no slot for", () => {
    const buffer = new KeyBuffer(2);
    assert(buffer.tryAdd(key(0, 8, 16), 0));
    assert(!buffer.tryAdd(key(0, 15, 20), 0));
    assert(!buffer.tryAdd(key(0, 0, 9), 0));
    assert(buffer.tryAdd(key(0, 16, 20), 0), "touching is not overlapping");
    assert(!buffer.tryAdd(key(1, 0, 8), 0), "full");
    assertEquals(starts(buffer), [8, 16]);
  });

  test("a change drops what is pending there and tells of what is in flight", () => {
    const buffer = new KeyBuffer(8);
    for (const start of [0, 8, 16, 24, 32]) buffer.tryAdd(key(0, start, start + 8), 0);
    const first = buffer.takeNext()!;
    assert(!buffer.checkOverlapping(0, 12, 25));
    assertEquals(starts(buffer), [0, 32]);
    assert(buffer.checkOverlapping(0, 7, 8));
    assert(!buffer.checkOverlapping(1, 0, 100));
    assertEquals(starts(buffer), [0, 32]);
    assert(!buffer.checkOverlapping(0, 40, 48));
    buffer.finish(first);
    assertEquals(starts(buffer), [32]);
  });
});

describe("a refill", () => {
  test("goes on where the last one stopped, up to and including the end", async () => {
    const world = await freshWorld();
    for (let at = 0; at < 40; at++) await world.put(0, at * 64, 8, { dirty: at % 2 === 0 });
    await world.put(1, 0, 8, { dirty: true });
    const { btree } = world.engine;
    const buffer = new KeyBuffer(8);
    const end = { inode: 0, offset: 38 * 64 + 8 };
    const seen: number[] = [];
    for (let round = 0; round < 10 && buffer.lastScanned.offset < end.offset; round++) {
      await world.run(buffer.refill(btree, end, keyDirty));
      for (let taken = buffer.takeNext(); taken !== undefined; taken = buffer.takeNext()) {
        seen.push(taken.start / 64);
        buffer.finish(taken);
      }
    }
    assertEquals(seen, Array.from({ length: 20 }, (_, index) => index * 2));
    assertEquals(buffer.lastScanned, end);
    await world.stop();
  });

  test("takes nothing behind the end, and ends when the buffer is full", async () => {
    const world = await freshWorld();
    for (let at = 0; at < 10; at++) await world.put(0, at * 64, 8, { dirty: true });
    const buffer = new KeyBuffer(3);
    const { btree } = world.engine;
    assertEquals(await world.run(buffer.refill(btree, { inode: 0, offset: 71 }, keyDirty)), 1);
    buffer.lastScanned = { inode: 0, offset: 0 };
    buffer.clearPending();
    assertEquals(await world.run(buffer.refill(btree, { inode: 0, offset: 9999 }, keyDirty)), 3);
    assertEquals(buffer.lastScanned, { inode: 0, offset: 136 });
    await world.stop();
  });

  test("a guarded buffer's buckets are not free, whatever the index says meanwhile", async () => {
    const world = await freshWorld();
    await world.put(0, 0, 32, { dirty: true });
    const { btree, buckets, collector } = world.engine;
    const buffer = new KeyBuffer();
    await world.run(buffer.refill(btree, { inode: 0, offset: 32 }, keyDirty));
    const bucket = Math.floor(buffer.peekNext()!.sector / buckets.bucketSectors);
    collector.guard(buffer);
    await world.drop(0, 0, 32);
    await world.collect();
    assertEquals(buckets.mark[bucket], MARK.dirty);
    collector.unguard(buffer);
    await world.collect();
    assertEquals(buckets.mark[bucket], MARK.none);
    await world.stop();
  });
});
