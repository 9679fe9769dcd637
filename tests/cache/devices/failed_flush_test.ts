/**
 * A flush of one backing device fails: that device is disabled, nothing that its flush would have
 * made true becomes durable, what is dirty of it is kept, and no other device notices.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../../lib/cache/make.ts";
import type { BlockVolume, CacheMode } from "../../../lib/cache/ports.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { BUCKET_SECTORS, filled, UnreliableDevice } from "../set_world.ts";

const DATA_OFFSET = 16;
const BLOCK = 4096;

/** A set with two devices: `bcache0` is to fail, `bcache1` is not to notice. */
class TwoDevices {
  readonly clock = new SimClock();
  readonly log: string[] = [];
  readonly cache = new UnreliableDevice("cache", 600 * BUCKET_SECTORS, false);
  readonly backings = [2, 3].map((byte) =>
    new UnreliableDevice(`backing${byte - 2}`, DATA_OFFSET + 4096, false)
  );
  set!: CacheSet;

  static async make(mode: CacheMode): Promise<TwoDevices> {
    const world = new TwoDevices();
    const setUuid = new Uint8Array(16).fill(9);
    const common = { setUuid, blockSectors: 1, bucketSectors: BUCKET_SECTORS };
    await makeCache(world.cache.memory, { ...common, uuid: new Uint8Array(16).fill(1) });
    for (const [index, { memory }] of world.backings.entries()) {
      const uuid = new Uint8Array(16).fill(2 + index);
      await makeBacking(memory, { ...common, uuid, cacheMode: mode });
    }
    await world.start();
    return world;
  }

  async start(): Promise<void> {
    this.log.length = 0;
    const sources = this.backings.map(({ device }) => ({ device, path: device.name }));
    this.set = await this.run(CacheSet.open({
      cache: this.cache.device,
      backings: sources,
      clock: this.clock,
      random: new SimRandom(1),
      log: (level, message) => void this.log.push(`${level}: ${message}`),
      openBacking: (path) => Promise.resolve(sources.find((each) => each.path === path)!),
      settings: [["writeback_running", "0"], ["sequential_cutoff", "0"]],
    }));
  }

  async run<T>(work: Promise<T>): Promise<T> {
    return (await this.clock.run(work, { limitMs: 3_600_000 })) as T;
  }

  volume(index: number): BlockVolume {
    return this.set.volumes.find(({ name }) => name === `bcache${index}`)!;
  }

  async write(index: number, block: number, fill: number): Promise<void> {
    const from = filled(BLOCK, fill);
    const volume = this.volume(index);
    if (!volume.tryWrite(block * BLOCK, from)) await this.run(volume.write(block * BLOCK, from));
  }

  /** The first byte of a block. */
  async read(index: number, block: number): Promise<number> {
    const into = new Uint8Array(BLOCK);
    const volume = this.volume(index);
    if (!volume.tryRead(block * BLOCK, into)) await this.run(volume.read(block * BLOCK, into));
    return into[0]!;
  }

  flush(index: number): Promise<void> {
    return this.run(this.volume(index).flush());
  }

  failFlushes(): void {
    this.backings[0]!.failing = ({ kind }) => kind === "flush";
  }

  /** What Linux leaves of a failed flush: the write is forgotten, and flushes are good again. */
  async lose(block: number, older: number): Promise<void> {
    this.backings[0]!.failing = undefined;
    const at = DATA_OFFSET + block * BLOCK / 512;
    await this.backings[0]!.memory.write(at, filled(BLOCK, older));
  }

  /** Begins anew, after a stop or after a power cut. */
  async restart(how: "stopped" | "cut"): Promise<void> {
    await this.run(how === "cut" ? this.set.abandon() : this.set.close());
    await this.start();
  }

  /** Reads of a device's backing device so far: what was not found in the cache. */
  misses(index: number): number {
    const isData = ({ kind, atSector }: { kind: string; atSector: number }) =>
      kind === "read" && atSector >= DATA_OFFSET;
    return this.backings[index]!.trace.filter(isData).length;
  }

  async status(index: number) {
    return (await this.set.status()).devices[index]!;
  }

  /** `bcache1` does all it is there for. */
  async checkNeighbour(block: number, fill: number): Promise<void> {
    assertEquals((await this.set.status()).failed, undefined);
    await this.write(1, block, fill);
    await this.flush(1);
    const before = this.misses(1);
    assertEquals(await this.read(1, block), fill);
    assertEquals(this.misses(1), before, "it was read from the cache");
    const { ioErrors, lastError } = await this.status(1);
    assertEquals([ioErrors, lastError], [0, undefined]);
  }

  /** `bcache0` refuses everything, and that was told once. */
  async checkDisabled(): Promise<void> {
    for (const request of [() => this.read(0, 0), () => this.write(0, 0, 9), () => this.flush(0)]) {
      const error = await assertRejects(request, BcacheError, "after a failed flush of backing0");
      assertEquals(error.code, "DeviceIo");
    }
    const { ioErrors, lastError } = await this.status(0);
    assertEquals([ioErrors, lastError], [1, "backing0: planted flush error"]);
    const told = this.log.filter((line) => line.includes("bcache0"));
    assertEquals(told.length, 2, told.join("\n"));
    assertStringIncludes(told[0]!, "backing0: planted flush error (error 1 of 64)");
    assertStringIncludes(told[1]!, "a flush of backing0 failed");
  }
}

for (const mode of ["writethrough", "writearound", "none", "writeback"] as const) {
  for (const first of [0, 1]) {
    const who = first === 0 ? "its own" : "the other device's";
    test(`${mode}: what ${who} flush meets concerns one device alone`, async () => {
      const world = await TwoDevices.make("writeback");
      await world.write(1, 40, 41);
      await world.run(world.set.setAttribute("bcache0", "cache_mode", mode));
      const writesPast = mode !== "writeback";
      await world.write(0, 0, 1);
      await world.flush(0);
      await world.write(0, 0, 2);
      world.failFlushes();
      if (first === 0) {
        if (writesPast) await assertRejects(() => world.flush(0), BcacheError, "planted flush");
        else await world.flush(0);
      } else {
        await world.write(1, 1, 7);
        await world.flush(1);
      }
      if (writesPast) await world.checkDisabled();
      await world.checkNeighbour(2, 8);
      assertEquals(world.log.filter((line) => line.startsWith("error")).length, writesPast ? 1 : 0);
      const dirty = (await world.status(1)).dirtyBytes;
      assert(dirty >= 2 * BLOCK, "what is dirty of the neighbour stays dirty");
      await world.restart("stopped");
      assertEquals(await world.read(1, 40), 41);
      assertEquals((await world.status(1)).dirtyBytes, dirty);
      await world.lose(0, 2);
      assertEquals(await world.read(0, 0), 2);
      await world.run(world.set.close());
    });
  }
}

describe("after a failed flush", () => {
  for (const how of ["stopped", "cut"] as const) {
    test(`clean keys since the last good one are not durable; ${how}`, async () => {
      const world = await TwoDevices.make("writethrough");
      await world.write(0, 0, 1);
      await world.write(0, 1, 1);
      await world.write(1, 0, 5);
      await world.flush(0);
      await world.write(0, 0, 2);
      world.failFlushes();
      await world.write(1, 1, 6);
      await world.flush(1); // The journal has the key of block 0.
      await world.lose(0, 1);
      await world.restart(how);
      const before = [world.misses(0), world.misses(1)];
      assertEquals([await world.read(0, 0), await world.read(0, 0)], [1, 1]);
      assertEquals(world.misses(0), before[0]! + 1, "read from the backing device, then cached");
      assertEquals([await world.read(1, 0), await world.read(1, 1)], [5, 6]);
      assertEquals(world.misses(1), before[1], "all of the neighbour is still cached");
      await world.flush(0);
      await world.run(world.set.close());
    });

    test(`what was dirty under a write past the cache is kept; ${how}`, async () => {
      const world = await TwoDevices.make("writeback");
      await world.write(0, 0, 1);
      await world.write(0, 1, 1);
      await world.write(0, 2, 1);
      await world.flush(0);
      await world.run(world.set.setAttribute("bcache0", "cache_mode", "none"));
      world.failFlushes();
      await assertRejects(() => world.write(0, 0, 2), BcacheError, "planted flush error");
      await world.lose(0, 0);
      await world.checkNeighbour(0, 3);
      assertEquals((await world.status(0)).dirtyBytes, 3 * BLOCK);
      await world.restart(how);
      assertEquals((await world.status(0)).dirtyBytes, 3 * BLOCK);
      assertEquals([await world.read(0, 0), await world.read(0, 1)], [1, 1]);
      await world.run(world.set.flushDirty("bcache0"));
      await world.run(world.set.close());
    });
  }

  for (const mode of ["writethrough", "none"] as const) {
    test(`${mode}: zeroes and writes hide dirty data only after a good flush`, async () => {
      const world = await TwoDevices.make("writeback");
      await world.write(0, 0, 1);
      await world.write(0, 1, 1);
      await world.run(world.set.setAttribute("bcache0", "cache_mode", mode));
      const flushes = () => world.backings[0]!.trace.filter(({ kind }) => kind === "flush").length;
      const before = flushes();
      await world.write(0, 0, 2);
      await world.run(world.volume(0).zero(BLOCK, BLOCK));
      assertEquals(flushes(), before + 2);
      await world.write(0, 0, 3);
      await world.write(0, 5, 3);
      assertEquals(flushes(), before + 2, "nothing dirty is hidden");
      assertEquals((await world.status(0)).dirtyBytes, 0);
      await world.run(world.set.close());
    });
  }

  test("the device is enabled when a flush is good, without what was clean of it", async () => {
    const world = await TwoDevices.make("writeback");
    await world.write(0, 3, 4);
    await world.run(world.set.setAttribute("bcache0", "cache_mode", "writethrough"));
    await world.write(0, 0, 1);
    await world.flush(0);
    await world.write(0, 0, 2);
    world.failFlushes();
    await assertRejects(() => world.flush(0), BcacheError, "planted flush error");
    const enable = () => world.run(world.set.setAttribute("bcache0", "io_disable", "0"));
    await assertRejects(enable, BcacheError, "a flush of backing0 fails still");
    await assertRejects(() => world.read(0, 0), BcacheError, "failed flush");
    await world.lose(0, 1);
    await enable();
    assertEquals([await world.read(0, 0), await world.read(0, 3)], [1, 4]);
    assertEquals((await world.status(0)).dirtyBytes, BLOCK);
    // What was acknowledged before and is lost was not confirmed by any flush, nor is it now.
    await assertRejects(() => world.flush(0), BcacheError, "may be lost");
    await world.flush(0);
    await world.write(0, 1, 6);
    await world.flush(0);
    await world.restart("cut");
    const before = world.misses(0);
    assertEquals([await world.read(0, 1), await world.read(0, 3)], [6, 4]);
    assertEquals(world.misses(0), before, "what came later is cached as ever");
    await world.run(world.set.close());
  });

  test("a superblock that cannot be flushed is such a failure", async () => {
    const world = await TwoDevices.make("writethrough");
    await world.write(0, 0, 1);
    world.failFlushes();
    const setting = () => world.run(world.set.setAttribute("bcache0", "cache_mode", "none"));
    await assertRejects(setting, BcacheError, "planted flush error");
    await world.checkDisabled();
    await world.checkNeighbour(0, 2);
    await world.run(world.set.close());
  });

  test("stopped and attached anew, the device has nothing clean in the cache either", async () => {
    const world = await TwoDevices.make("writethrough");
    await world.write(0, 0, 1);
    await world.flush(0);
    await world.write(0, 0, 2);
    world.failFlushes();
    await world.flush(1);
    await world.write(1, 0, 5);
    await world.flush(1);
    await assertRejects(() => world.run(world.set.stop("bcache0")), BcacheError, "force");
    await world.run(world.set.stop("bcache0", { force: true }));
    await world.lose(0, 1);
    await world.run(world.set.attach("backing0"));
    assertEquals(await world.read(0, 0), 1);
    await world.write(0, 0, 3);
    await world.flush(0);
    await world.checkNeighbour(1, 6);
    await world.run(world.set.close());
  });

  test("what was being written back stays dirty when the device is enabled", async () => {
    const world = await TwoDevices.make("writeback");
    for (let block = 0; block < 8; block++) await world.write(0, block, 1);
    await world.flush(0);
    world.failFlushes();
    const draining = world.run(world.set.flushDirty("bcache0"));
    await assertRejects(() => draining, BcacheError, "planted flush error");
    assertEquals((await world.status(0)).dirtyBytes, 8 * BLOCK);
    for (let block = 0; block < 8; block++) await world.lose(block, 0);
    await world.checkNeighbour(0, 2);
    await world.run(world.set.setAttribute("bcache0", "io_disable", "0"));
    assertEquals(await world.read(0, 7), 1);
    await world.run(world.set.flushDirty("bcache0"));
    assertEquals((await world.status(0)).dirtyBytes, 0);
    const into = new Uint8Array(BLOCK);
    await world.backings[0]!.memory.read(DATA_OFFSET + 7 * BLOCK / 512, into);
    assertEquals(into, filled(BLOCK, 1));
    await world.run(world.set.close());
  });
});
