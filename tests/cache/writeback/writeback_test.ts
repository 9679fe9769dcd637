/** Writeback of one device: what is written, in which order, and what the superblock says then. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { DATA_OFFSET, KIB, STILL, writebackWorld } from "./writeback_world.ts";

/** Starts writing back by itself. */
const PROMPT = [["writeback_delay", "0"], ["writeback_percent", "0"]] as const;

describe("runs of dirty extents", () => {
  test("contiguous extents are written together, five at most, by ascending address", async () => {
    const world = await writebackWorld();
    await world.writeBlocks(100, 12, 3);
    await world.writeBlocks(10, 4, 4);
    await world.drain();
    assertEquals(
      world.backing.writes.map(({ atSector, sectors }) => [(atSector - DATA_OFFSET) / 8, sectors]),
      [[10, 4 * 8], [100, 5 * 8], [105, 5 * 8], [110, 2 * 8]],
    );
    assertEquals(await world.backingByte(111 * 4096), 3);
    assertEquals(await world.backingByte(13 * 4096), 4);
    assertEquals(await world.ofSet("writeback_keys_done"), "16");
    await world.close();
  });

  test("no further extent joins a run of 5000 sectors", async () => {
    const world = await writebackWorld({ bucketSectors: 8192, backingSectors: [131072] });
    const megabyte = 1024 * KIB;
    // Backwards, so that the keys cannot become one.
    for (let at = 5; at >= 0; at--) await world.write(at * megabyte, megabyte, at + 1);
    await world.drain();
    assertEquals(world.backing.writes.map(({ sectors }) => sectors / 2048), [3, 3]);
    for (let at = 0; at < 6; at++) assertEquals(await world.backingByte(at * megabyte), at + 1);
    await world.close();
  });

  test("several runs are under way at a time, as many as the attribute says", async () => {
    const world = await writebackWorld();
    world.backing.writeMs = 10;
    for (let at = 0; at < 40; at++) await world.write(at * 64 * KIB, 4096);
    await world.change("writeback_in_flight", "5");
    await world.drain();
    assertEquals(world.backing.writesAtOnce, 5);
    const addresses = world.backing.writes.map(({ atSector }) => atSector);
    assertEquals(addresses, addresses.toSorted((a, b) => a - b));
    await world.close();
  });

  test("a read that takes longer does not change the order of the writes", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 8; at++) await world.write(at * 64 * KIB, 4096);
    let reads = 0;
    const { cache } = world;
    const read = cache.read.bind(cache);
    cache.read = async (atSector, into) => {
      await world.clock.sleep(reads++ === 0 ? 50 : 1);
      await read(atSector, into);
    };
    await world.drain();
    const addresses = world.backing.writes.map(({ atSector }) => atSector);
    assertEquals(addresses, addresses.toSorted((a, b) => a - b));
    cache.read = read;
    await world.close();
  });

  test("a write past the cache does not overtake a run to the same place", async () => {
    const world = await writebackWorld();
    world.backing.writeMs = 20;
    await world.write(0, 16 * KIB, 1);
    const draining = world.set.flushDirty(undefined);
    await world.pass(0.01);
    assertEquals(world.backing.writesUnderWay, 1, "the run is being written");
    world.backing.writeMs = 1; // Overtakes, if it is let.
    await world.change("cache_mode", "writearound");
    await world.write(0, 4096, 9);
    await world.run(draining);
    assertEquals(await world.backingByte(0), 9);
    assertEquals(await world.backingByte(4096), 1);
    await world.close();
  });

  test("what is written again meanwhile stays dirty, and is written once more", async () => {
    const world = await writebackWorld({ sync: true });
    world.backing.writeMs = 20;
    await world.write(0, 8 * KIB, 1);
    const draining = world.set.flushDirty(undefined);
    await world.pass(0.01);
    assert(world.volume.tryWrite(0, new Uint8Array(4096).fill(2)), "to the cache alone: at once");
    assertEquals(await world.dirtyBytes(), 8 * KIB);
    await world.run(draining);
    assertEquals(await world.dirtyBytes(), 0);
    assertEquals(await world.backingByte(0), 2);
    assertEquals(await world.backingByte(4096), 1);
    assertGreater(Number(await world.ofSet("writeback_keys_failed")), 0);
    await world.close();
  });

  test("what is written again meanwhile keeps its old bucket until the run has ended", async () => {
    const world = await writebackWorld({ sync: true });
    const percentInUse = async () => {
      await world.changeSet("trigger_gc", "1");
      await world.pass(5);
      return 100 - Number(await world.ofSet("cache_available_percent"));
    };
    // As many buckets as are under way at once: 16 runs of 5, 13 percent of the cache.
    const starts = Array.from({ length: 80 }, (_, index) => index * 32 * KIB);
    for (const at of starts) await world.write(at, 32 * KIB, 1);
    world.backing.writeMs = 60_000;
    const draining = world.set.flushDirty(undefined);
    const before = await percentInUse();
    for (const at of starts) {
      await world.pass(0.1);
      assert(world.volume.tryWrite(at, new Uint8Array(32 * KIB).fill(2)));
    }
    assertEquals(world.backing.writesUnderWay, 16);
    // In a bucket that was used again something else could look like what was read.
    assertGreater(await percentInUse(), before + 12);
    world.backing.writeMs = 0;
    await world.run(draining);
    assertLess(await percentInUse(), 3);
    await world.close();
  });
});

describe("durability", () => {
  test("the backing device is flushed before any key says clean", async () => {
    const world = await writebackWorld();
    await world.writeBlocks(0, 8);
    const dirtyAtFlush: number[] = [];
    let writesAtFlush = 0;
    world.backing.onFlush = () => {
      void world.set.status().then(({ devices }) => dirtyAtFlush.push(devices[0]!.dirtyBytes));
      writesAtFlush = Math.max(writesAtFlush, world.backing.writes.length);
    };
    await world.drain();
    assertEquals(dirtyAtFlush[0], 8 * 4096);
    assertEquals(writesAtFlush, 2);
    await world.close();
  });

  test("one flush serves many runs", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 200; at++) await world.write(at * 16 * KIB, 4096);
    world.backing.log.length = 0;
    await world.drain();
    const flushes = world.backing.log.filter(({ kind }) => kind === "flush").length;
    assertEquals(world.backing.writes.length, 200);
    // One for the data, and what the clean superblock needs.
    assertLess(flushes, 5);
    await world.close();
  });

  test("a flush that fails leaves everything dirty", async () => {
    const world = await writebackWorld();
    await world.writeBlocks(0, 8);
    world.backing.failFlush = true;
    await assertRejects(() => world.drain(), BcacheError, "cannot flush");
    assertEquals(await world.dirtyBytes(), 8 * 4096);
    assertEquals(await world.state(), "dirty");
    world.backing.failFlush = false;
    await assertRejects(() => world.drain(), BcacheError, "set io_disable to 0");
    await world.set.setAttribute("bcache0", "io_disable", "0");
    await world.drain();
    assertEquals([await world.dirtyBytes(), await world.state()], [0, "clean"]);
    await world.close();
  });

  test("what cannot be read from the cache is not written, and stays dirty", async () => {
    const world = await writebackWorld();
    await world.write(0, 4096, 5);
    await world.write(64 * KIB, 4096, 6);
    let failed = 0;
    world.cache.failRead = (_at, sectors) => sectors === 8 && failed++ === 0;
    await assertRejects(() => world.drain(), BcacheError, "cannot read");
    assertEquals(await world.dirtyBytes(), 4096);
    assertEquals(await world.backingByte(0), 0);
    assertEquals(await world.backingByte(64 * KIB), 6, "the other one went on");
    assertEquals(await world.ofSet("writeback_keys_failed"), "1");
    world.cache.failRead = () => false;
    await world.drain();
    assertEquals(await world.backingByte(0), 5);
    await world.close();
  });

  test("an extent that cannot be written does not keep the others from it", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 20; at++) await world.write(at * 64 * KIB, 4096, at + 1);
    const bad = DATA_OFFSET + 3 * 128;
    world.backing.failWrite = (atSector) => atSector === bad;
    await assertRejects(() => world.drain(), BcacheError, "cannot write");
    assertEquals(await world.dirtyBytes(), 4096);
    assertEquals(await world.backingByte(19 * 64 * KIB), 20);
    assertEquals(await world.state(), "dirty");
    world.backing.failWrite = () => false;
    await world.drain();
    assertEquals(await world.backingByte(3 * 64 * KIB), 4);
    await world.close();
  });

  test("a device on which everything fails is given up after a few runs", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 300; at++) await world.write(at * 16 * KIB, 4096);
    world.backing.failWrite = () => true;
    await assertRejects(() => world.drain(), BcacheError, "cannot write");
    assertLess(world.backing.writes.length, 60);
    assertEquals(await world.dirtyBytes(), 300 * 4096);
    world.backing.failWrite = () => false;
    await world.drain();
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });
});

describe("when the cache set fails", () => {
  test("writeback ends with nothing under way, all stays dirty, and a drain says why", async () => {
    const world = await writebackWorld();
    for (let at = 0; at < 40; at++) await world.write(at * 64 * KIB, 4096);
    world.backing.writeMs = 50;
    const draining = world.set.flushDirty(undefined).catch((error: unknown) => error);
    await world.pass(0.01);
    assertGreater(world.backing.writesUnderWay, 0);
    world.cache.failWrite = () => true;
    world.cache.failFlush = true;
    await world.run(world.volume.flush().catch(() => undefined));
    const error = await world.run(draining);
    assert(
      error instanceof BcacheError && /set has failed.*cannot/.test(error.message),
      String(error),
    );
    assertEquals(await world.dirtyBytes(), 40 * 4096);
    world.cache.failWrite = () => false;
    world.cache.failFlush = false;
    await world.run(world.set.close().catch(() => undefined));
    assertEquals(world.backing.writesUnderWay, 0, "the device may be closed");
    await world.open(STILL);
    assertEquals(await world.dirtyBytes(), 40 * 4096);
    await world.drain();
    assertEquals([await world.dirtyBytes(), await world.state()], [0, "clean"]);
    await world.close();
  });
});

describe("the statistics", () => {
  test("clearing them sets the totals back and stops nothing", async () => {
    const world = await writebackWorld();
    const hits = (period: string) => world.get(`stats_${period}/cache_hits`);
    await world.write(0, 4096);
    await world.run(world.volume.read(0, new Uint8Array(4096)));
    await world.pass(14);
    assertEquals([await hits("total"), await hits("hour")], ["1", "1"]);
    await world.changeSet("clear_stats", "1");
    assertEquals(await world.ofSet("stats_total/cache_hits"), "0");
    assertEquals(await world.ofSet("stats_hour/cache_hits"), "1");
    // The tick behind them goes on, and so does writeback.
    await world.run(world.volume.read(0, new Uint8Array(4096)));
    await world.pass(14);
    assertEquals(await world.ofSet("stats_total/cache_hits"), "1");
    await world.change("writeback_running", "1");
    await world.pass(5);
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });
});

describe("several devices", () => {
  test("keys done and failed are counted for the whole set", async () => {
    const world = await writebackWorld({ backingSectors: [65536, 65536] });
    await world.write(0, 4096, 1, 0);
    for (let at = 0; at < 3; at++) await world.write(at * 64 * KIB, 4096, 2, 1);
    world.backings[1]!.failWrite = (atSector) => atSector === DATA_OFFSET;
    await assertRejects(() => world.drain(), BcacheError, "cannot write");
    await world.pass(1);
    const counts = async () => [
      await world.ofSet("writeback_keys_done"),
      await world.ofSet("writeback_keys_failed"),
    ];
    assertEquals(await counts(), ["3", "1"]);
    world.backings[1]!.failWrite = () => false;
    await world.drain();
    assertEquals(await counts(), ["4", "1"]);
    await world.close();
  });

  test("one that is stopped leaves no timer behind, and its share to the others", async () => {
    const world = await writebackWorld({ backingSectors: [65536, 65536] });
    const target = async () => (await world.get("writeback_rate_debug")).split("\n")[2];
    for (const name of ["bcache0", "bcache1"]) {
      await world.change("writeback_percent", "10", name);
      await world.change("writeback_rate_update_seconds", "60", name);
    }
    await world.changeSet("idle_max_writeback_rate", "0");
    await world.write(0, 4096, 1, 0);
    await world.write(0, 4096, 1, 1);
    await world.pass(66);
    assertEquals(await target(), "target:\t\t960.0k"); // Half of 10 % of 600 buckets of 32 KiB.
    const began = world.clock.nowMs();
    await world.run(world.set.stop("bcache1"));
    assertLess(world.clock.nowMs() - began, 1000, "nobody waits for the controller's step");
    await world.pass(61);
    assertEquals(await target(), "target:\t\t1.8M");
    assertEquals(await world.dirtyBytes(0), 4096);
    await world.close();
  });
});

describe("the task", () => {
  test("the first dirty write of a clean device wakes it", async () => {
    const world = await writebackWorld({ settings: PROMPT });
    await world.pass(100);
    assertEquals(await world.state(), "clean");
    await world.write(0, 4096, 7);
    await world.pass(5);
    assertEquals([await world.dirtyBytes(), await world.state()], [0, "clean"]);
    assertEquals(await world.backingByte(0), 7);
    await world.close();
  });

  test("a scan goes round: both ends of the device, and more than a buffer holds", async () => {
    const blocks = 1300;
    const world = await writebackWorld({ backingSectors: [blocks * 16] });
    for (let at = 0; at < blocks; at++) await world.write(at * 8 * KIB, 4096, 1);
    await world.write(blocks * 8 * KIB - 512, 512, 8);
    await world.change("writeback_running", "1");
    await world.pass(1);
    // Behind the scan while it goes on.
    await world.write(0, 4096, 9);
    await world.pass(30);
    assertEquals([await world.dirtyBytes(), await world.state()], [0, "clean"]);
    assertEquals(await world.backingByte(0), 9);
    assertEquals(await world.backingByte(blocks * 8 * KIB - 512), 8);
    await world.close();
  });

  test("pauses for writeback_delay after each scan", async () => {
    const world = await writebackWorld();
    await world.change("writeback_delay", "40");
    await world.write(0, 4096);
    await world.change("writeback_running", "1");
    await world.pass(1);
    assertEquals(world.backing.writes.length, 1);
    assertEquals(await world.dirtyBytes(), 0);
    await world.write(64 * KIB, 4096);
    await world.pass(35);
    assertEquals(world.backing.writes.length, 1, "the pause is not over");
    await world.pass(10);
    assertEquals(world.backing.writes.length, 2);
    await world.close();
  });

  test("writes nothing while it is off, but for a drain", async () => {
    const world = await writebackWorld({ settings: STILL });
    await world.write(0, 4096);
    await world.pass(3600);
    assertEquals([await world.dirtyBytes(), world.backing.writes.length], [4096, 0]);
    assertEquals(await world.get("writeback_rate"), "0");
    await world.drain();
    assertEquals(await world.dirtyBytes(), 0);
    await world.close();
  });

  test("the status has the rate that the attribute has, on and off", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    const rates = async () => {
      const { writeback } = (await world.run(world.set.status())).devices[0]!;
      return [writeback.rateBytesPerSecond / 512, Number(await world.get("writeback_rate"))];
    };
    await world.change("writeback_rate", "16");
    assertEquals(await rates(), [16, 16]);
    await world.change("writeback_running", "0");
    assertEquals(await rates(), [0, 0]);
    await world.close();
  });

  test("zeroing never becomes dirty data, not even in a dirty stripe", async () => {
    const world = await writebackWorld();
    await world.change("stripe_size", "4M");
    await world.change("partial_stripes_expensive", "1");
    await world.write(0, 64 * KIB, 3);
    await world.run(world.volume.zero(4096, 16 * KIB));
    assertEquals(await world.dirtyBytes(), 48 * KIB);
    assertEquals(await world.backingByte(4096), 0);
    const into = new Uint8Array(64 * KIB);
    await world.run(world.volume.read(0, into));
    assertEquals([into[0], into[4096], into[20 * KIB - 1], into[20 * KIB]], [3, 0, 0, 3]);
    await world.drain();
    assertEquals([await world.backingByte(8192), await world.backingByte(20 * KIB)], [0, 3]);
    await world.close();
  });

  test("a collection follows when it was asked for and the cache is half full", async () => {
    const world = await writebackWorld({ settings: [["sequential_cutoff", "0"]] });
    await world.change("writeback_running", "0");
    await world.changeSet("cutoff_writeback", "70");
    await world.change("writeback_percent", "1");
    for (let at = 0; at < 320; at++) await world.write(at * 32 * KIB, 32 * KIB);
    const collections = async () => Number(await world.ofSet("gc_runs"));
    await world.changeSet("gc_after_writeback", "1");
    await world.pass(6); // The controller sees how full it is.
    const before = await collections();
    await world.drain();
    await world.pass(1);
    assertEquals(await collections(), before + 1);
    await world.changeSet("gc_after_writeback", "0");
    await world.write(0, 4096);
    await world.pass(6);
    await world.drain();
    await world.pass(1);
    assertEquals(await collections(), before + 1);
    await world.close();
  });

  test("cannot be switched on when it has ended", async () => {
    const world = await writebackWorld({ settings: STILL });
    await world.run(world.set.detach("bcache0"));
    const error = await assertRejects(
      () => world.run(world.set.setAttribute("bcache0", "writeback_running", "1")),
      BcacheError,
      "written back any more",
    );
    assertEquals(error.code, "InvalidArgument");
    await world.close();
  });

  test("says clean only when it is, and dirty before a write is answered", async () => {
    const world = await writebackWorld({ settings: STILL });
    assertEquals(await world.state(), "clean");
    await world.write(0, 4096);
    const superblock = new Uint8Array(512);
    await world.run(world.backing.read(8, superblock));
    assertEquals((superblock[0x68 + 7]! >> 5) & 3, 2, "dirty on disk");
    await world.drain();
    await world.run(world.backing.read(8, superblock));
    assertEquals((superblock[0x68 + 7]! >> 5) & 3, 1, "clean on disk");
    await world.close();
  });

  test("takes up after a restart what was dirty, and counts it exactly", async () => {
    const world = await writebackWorld({ backingSectors: [65536, 65536], settings: STILL });
    await world.writeBlocks(0, 30, 3);
    await world.write(1 << 20, 4096, 4, 1);
    await world.close();
    await world.open(STILL);
    assertEquals([await world.dirtyBytes(0), await world.dirtyBytes(1)], [30 * 4096, 4096]);
    await world.drain();
    assertEquals([await world.dirtyBytes(0), await world.dirtyBytes(1)], [0, 0]);
    assertEquals(await world.backingByte(29 * 4096), 3);
    assertEquals(await world.backingByte(1 << 20, 1), 4);
    assert(world.log.every((line) => !line.startsWith("error")), world.log.join("\n"));
    await world.close();
  });
});
