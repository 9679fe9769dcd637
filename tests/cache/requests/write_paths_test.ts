/** What writes, zeroing and flushes do to the two devices, in every mode. */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { BatchBuilder } from "../../../lib/cache/request_parts.ts";
import { keyOffset, keyPointers, keySizeSectors, SLOT_WORDS } from "../../../lib/ondisk/bkey.ts";
import { oneDevice } from "../one_device.ts";

describe("a flush", () => {
  test("commits the journal for writes to the cache, and spares the other device", async () => {
    const one = await oneDevice({ mode: "writeback" });
    await one.write(0, 8, 1);
    await one.run(one.volume.flush());
    one.trace.length = 0;
    await one.write(8, 8, 2);
    await one.run(one.volume.flush());
    assertEquals(one.cacheDisk.unflushed, 0);
    assert(one.trace.some(({ on, kind, fua }) => on === "cache" && kind === "write" && fua));
    assertEquals(one.count("backing", "flush"), 0);
    await one.close();
  });

  test("reaches the backing device in writeback mode too, when it was written", async () => {
    const one = await oneDevice({ mode: "writeback", settings: [["sequential_cutoff", "512"]] });
    await one.write(0, 8, 1);
    assert(one.backingDisk.unflushed > 0, "the write went past the cache");
    await one.run(one.volume.flush());
    assertEquals([one.backingDisk.unflushed, one.cacheDisk.unflushed], [0, 0]);
    await one.close();
  });

  test("when nothing was written costs nothing", async () => {
    const one = await oneDevice({ mode: "writethrough" });
    await one.write(0, 8, 1);
    await one.run(one.volume.flush());
    one.trace.length = 0;
    await one.run(one.volume.flush());
    assertEquals(one.trace, []);
    await one.close();
  });
});

describe("zeroing", () => {
  for (const mode of ["writeback", "writethrough", "writearound", "none"] as const) {
    test(`leaves neither dirty nor stale data, in ${mode} mode`, async () => {
      const one = await oneDevice({ mode });
      await one.write(0, 64, 7);
      await one.read(0, 64);
      await one.settle();
      await one.run(one.volume.zero(8 * 512, 48 * 512));
      const { dirtyBytes } = await one.device();
      assertEquals(dirtyBytes, mode === "writeback" ? 16 * 512 : 0);
      const found = await one.read(0, 64);
      const expected = new Uint8Array(64 * 512).fill(7).fill(0, 8 * 512, 56 * 512);
      assertEquals(found, expected);
      await one.close();
    });
  }
});

describe("a write past the cache", () => {
  test("hides what the cache had, in keys of at most 32768 sectors", () => {
    const builder = new BatchBuilder();
    const ends: number[] = [];
    for (let at = 100; at < 100_100;) at = builder.addHole(3, at, 100_100);
    const { words, count } = builder.batch;
    for (let at = 0; at < count * SLOT_WORDS; at += SLOT_WORDS) {
      assertEquals(keyPointers(words, at), 0);
      assert(keySizeSectors(words, at) <= 32768);
      ends.push(keyOffset(words, at) - keySizeSectors(words, at), keyOffset(words, at));
    }
    assertEquals(ends, [100, 32868, 32868, 65636, 65636, 98404, 98404, 100_100]);
  });
});

describe("clean data that cannot be written to the cache", () => {
  for (const sync of [true, false]) {
    test(`is hidden there, and served from the backing device (sync: ${sync})`, async () => {
      const one = await oneDevice({ mode: "writethrough", sync });
      await one.write(0, 32, 1);
      await one.run(one.volume.flush());
      one.cacheDisk.faults.add({ operation: "write" });
      await one.write(8, 16, 2);
      one.trace.length = 0;
      const expected = new Uint8Array(32 * 512).fill(1).fill(2, 8 * 512, 24 * 512);
      assertEquals(await one.read(0, 32), expected);
      assertEquals(one.backingReads(), [[8, 16]]);
      // Gathered with others it is only written, and fails, when somebody wants it.
      assertEquals(one.cacheDisk.faults.injected, 1);
      await one.close();
    });

    test(`after a miss is not cached, and nobody notices (sync: ${sync})`, async () => {
      const one = await oneDevice({ mode: "writethrough", sync });
      await one.write(4096, 8, 1);
      one.cacheDisk.faults.add({ operation: "write" });
      await one.read(0, 16);
      await one.settle();
      assertEquals(one.cacheDisk.faults.injected, 1);
      one.trace.length = 0;
      await one.read(0, 16);
      assertEquals(one.backingReads(), [[0, 16]]);
      await one.close();
    });
  }
});

describe("a write through the cache", () => {
  for (const sync of [true, false]) {
    test(`refused by the backing device leaves what is dirty (sync: ${sync})`, async () => {
      const held = [["writeback_running", "0"]] as const;
      const one = await oneDevice({ mode: "writeback", sync, settings: held });
      await one.write(4, 8, 1);
      await one.run(one.set.setAttribute("bcache0", "cache_mode", "writethrough"));
      await one.write(0, 4, 1);
      await one.write(12, 4, 1);
      one.backingDisk.faults.add({ operation: "write" });
      const failed = await one.write(0, 16, 2).then(() => false, () => true);
      assertEquals(failed, true);
      one.trace.length = 0;
      assertEquals(await one.read(4, 8), new Uint8Array(8 * 512).fill(1));
      assertEquals(one.backingReads(), []);
      await one.read(0, 16);
      assertEquals(one.backingReads().length, 2, "what was clean is read anew, on either side");
      await one.close();
    });
  }
});

describe("what goes past the cache", () => {
  test("brings no collection nearer; what goes into it does", async () => {
    for (const [mode, collections] of [["none", 0], ["writethrough", 1]] as const) {
      const one = await oneDevice({ mode });
      const runs = async () =>
        Number((await one.run(one.set.attributes(undefined, "gc_runs")))[0]!.value);
      const before = await runs();
      // A sixteenth of the cache is 600 sectors.
      for (let at = 0; at < 720; at += 16) await one.write(at, 16, 1);
      await one.settle(1000);
      assertEquals(await runs() - before, collections, mode);
      await one.close();
    }
  });
});

describe("a cache without a bucket to spare", () => {
  test("takes no clean data: the write goes past it, and what it had is hidden", async () => {
    const one = await oneDevice({ mode: "writeback", settings: [["cutoff_writeback", "70"]] });
    await one.write(8000, 8, 4);
    for (let at = 0; at < 8000; at += 64) await one.write(at, 64, 1);
    await one.run(one.set.setAttribute("bcache0", "cache_mode", "writethrough"));
    for (let at = 0; at < 8000; at += 64) await one.write(at, 64, 2);
    await one.write(8000, 8, 5);
    for (let at = 0; at < 8000; at += 64) {
      assert((await one.read(at, 64)).every((byte) => byte === 2), `sector ${at}`);
    }
    assertEquals((await one.read(8000, 8))[0], 5);
    await one.close();
  });

  test("makes dirty data wait for writeback, and loses nothing of it", async () => {
    const one = await oneDevice({
      mode: "writeback",
      volumeSectors: 65536,
      settings: [["cutoff_writeback", "70"], ["writeback_running", "1"], [
        "writeback_percent",
        "0",
      ], ["writeback_delay", "0"]],
    });
    for (let at = 0; at < 30_000; at += 64) await one.write(at, 64, 1 + at % 250);
    for (let at = 0; at < 30_000; at += 64) {
      const bytes = await one.read(at, 64);
      assert(bytes.every((byte) => byte === 1 + at % 250), `sector ${at}`);
    }
    await one.close();
  });
});

describe("writes of one range at once", () => {
  test("reach the backing device and the index in one order", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const one = await oneDevice({
        mode: seed % 2 === 0 ? "writethrough" : "writearound",
        sync: false,
      });
      await one.write(0, 16, 99);
      await one.run(
        Promise.all(
          [1, 2, 3, 4].map((value) =>
            one.volume.write(value % 3 * 512, new Uint8Array(8 * 512).fill(value))
          ),
        ),
      );
      const served = await one.read(0, 16);
      await one.run(one.volume.flush());
      await one.close();
      assertEquals(one.backingDisk.peek(16, 16), served, `seed ${seed}`);
    }
  });
});
