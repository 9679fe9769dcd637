/** What a read takes from where, what it puts into the cache, and what it counts as. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { oneDevice } from "../one_device.ts";

describe("a read", () => {
  test("of which a part is missing counts as one miss, and only the hole is read", async () => {
    const one = await oneDevice({ mode: "writethrough" });
    await one.write(8, 8, 5);
    one.trace.length = 0;
    await one.read(0, 32);
    assertEquals(one.backingReads(), [[0, 8], [16, 16]]);
    const { stats } = await one.device();
    assertEquals([stats.cacheHits, stats.cacheMisses], [0, 1]);
    await one.close();
  });

  test("fills every hole of its range, in pieces of at most 2048 sectors", async () => {
    const one = await oneDevice({ mode: "writethrough", bucketSectors: 256 });
    await one.write(8, 8, 5);
    one.trace.length = 0;
    await one.read(0, 4096);
    assertEquals(one.backingReads(), [[0, 8], [16, 2048], [2064, 2032]]);
    await one.settle();
    one.trace.length = 0;
    await one.read(0, 4096);
    assertEquals(one.backingReads(), []);
    const { stats } = await one.device();
    assertEquals([stats.cacheHits, stats.cacheMisses], [1, 1]);
    await one.close();
  });

  test("whose fill finds no bucket is answered all the same, and caches nothing", async () => {
    const one = await oneDevice({ mode: "writeback", settings: [["cutoff_writeback", "70"]] });
    // Everything that can be is dirty: no bucket can be had for clean data.
    for (let at = 0; at < 8192; at += 64) await one.write(at, 64, 1 + at % 250);
    for (let at = 0; at < 8192; at += 64) {
      assertEquals((await one.read(at, 64))[0], 1 + at % 250);
    }
    await one.settle(2000);
    assertEquals(one.log.filter((line) => line.startsWith("error")), []);
    await one.close();
  });

  test("that a write overtakes puts nothing old into the cache", async () => {
    for (const mode of ["writeback", "writethrough", "writearound"] as const) {
      const one = await oneDevice({ mode, sync: false });
      await one.write(8000, 8, 1);
      for (let at = 0; at < 1024; at += 16) {
        const into = new Uint8Array(8 * 512);
        await one.run(Promise.all([
          one.volume.read(at * 512, into),
          one.volume.write((at + 4) * 512, new Uint8Array(512).fill(9)),
        ]));
        await one.settle();
        assertEquals((await one.read(at + 4, 1))[0], 9, `${mode}, sector ${at + 4}`);
      }
      const { stats } = await one.device();
      assertGreater(stats.cacheMissCollisions, 0, mode);
      await one.close();
    }
  });

  test("of the cache keeps its bucket from being used again until it is done", async () => {
    const one = await oneDevice({ mode: "writethrough", sync: false, bucketCount: 520 });
    await one.write(0, 8, 5);
    for (let round = 0; round < 40; round++) {
      const into = new Uint8Array(8 * 512);
      const reading = one.volume.read(0, into);
      const writes: Array<Promise<void>> = [];
      for (let at = 64; at < 8192; at += 128) {
        writes.push(one.volume.write(at * 512, new Uint8Array(64 * 512).fill(round + 100)));
      }
      await one.run(Promise.all([reading, ...writes]));
      assert(into.every((byte) => byte === 5), `round ${round}`);
    }
    await one.close();
  });

  for (const isHotPath of [true, false]) {
    test(`makes what it hits recent: it outlives the rest (tryRead: ${isHotPath})`, async () => {
      const one = await oneDevice({
        mode: "writethrough",
        replacement: "lru",
        volumeSectors: 131072,
      });
      await one.write(0, 16, 1);
      await one.write(16, 16, 2);
      one.trace.length = 0;
      const into = new Uint8Array(16 * 512);
      // Eight times the cache goes through it, and every so often the first extent is read.
      for (let at = 1024; at < 1024 + 8 * 9600; at += 128) {
        await one.write(at, 128, 3);
        if (!isHotPath || !one.volume.tryRead(0, into)) await one.read(0, 16);
        await one.settle(20);
      }
      // While a collection runs nobody knows what a bucket holds, so a hot one may go now and then.
      assertLess(one.backingReads().length, 4);
      one.trace.length = 0;
      await one.read(16, 16);
      assertEquals(one.backingReads(), [[16, 16]], "what was never read is gone");
      await one.close();
    });
  }
});
