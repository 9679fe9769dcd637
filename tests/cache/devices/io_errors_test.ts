/** Errors of devices are counted, forgotten as they should be, and lead to what they must. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { IoErrors, isDeviceError } from "../../../lib/cache/devices/io_errors.ts";
import { filled, SetWorld } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

describe("the count of errors", () => {
  test("reaches its limit with the error that is one too many", () => {
    const errors = new IoErrors(3);
    assertEquals([errors.note(), errors.note(), errors.note()], [false, false, true]);
    assertEquals([errors.count, errors.text], [3, "error 3 of 3"]);
    assertEquals(new IoErrors(0).note(), true);
  });

  test("halves in a halflife of operations, and stays without one", () => {
    const errors = new IoErrors(1000);
    for (let index = 0; index < 400; index++) errors.note();
    for (let index = 0; index < 10_000; index++) errors.noteOperation();
    assertEquals(errors.count, 400);
    errors.halflifeOperations = 1000;
    assertEquals(errors.halflifeOperations, 968, "kept in steps of 88, as in the kernel");
    for (let index = 0; index < 968; index++) errors.noteOperation();
    // 127/128 to the power of 87 or 88 is a half, nearly.
    assert(errors.count >= 198 && errors.count <= 204, `${errors.count}`);
  });

  test("a lack of room and a refusal of the set are no errors of the device", () => {
    assertEquals(isDeviceError(new BcacheError("DeviceIo", "x")), true);
    assertEquals(isDeviceError(new Error("x")), true);
    assertEquals(isDeviceError(new BcacheError("NoSpace", "x")), false);
    assertEquals(isDeviceError(new BcacheError("SetFailed", "x")), false);
  });
});

describe("errors of the cache device", () => {
  test("below the limit are logged and survived, at it the set fails", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 65536, 1);
    await world.run(world.volume.flush());
    world.cache.failing = (operation) => operation.kind === "read";
    for (let count = 1; count < 8; count++) {
      assertEquals(await world.read(count * 4096, 4096), filled(4096, 1));
      const status = await world.set.status();
      assertEquals([status.failed, status.ioErrors], [undefined, count]);
      assert(world.log.at(-2)!.includes(`(error ${count} of 8)`), world.log.join("\n"));
    }
    assertEquals(await world.attribute("read_retries", "set"), "7");
    assertEquals(await world.read(0, 4096), filled(4096, 1), "the one too many is served, too");
    assert((await world.set.status()).failed?.includes("io_error_limit"));
    assertEquals(await world.read(0, 65536), filled(65536, 1));
    await world.close();
  });

  for (const asyncOnly of [false, true]) {
    test(`are forgotten with operations, if asked to (sync: ${!asyncOnly})`, async () => {
      const world = await SetWorld.make({ mode: "writethrough", settings: QUIET, asyncOnly });
      await world.write(0, 4096, 1);
      world.cache.failing = (operation) => operation.kind === "read";
      for (let count = 1; count <= 6; count++) await world.read(0, 4096);
      world.cache.failing = undefined;
      const errors = async () => Number(await world.attribute("io_errors", "set"));
      for (let count = 0; count < 200; count++) await world.read(0, 4096);
      assertEquals(await errors(), 6, "without a halflife none is");
      await world.run(world.set.setAttribute(undefined, "io_error_halflife", "88"));
      for (let count = 0; count < 90; count++) await world.read(0, 4096);
      assertEquals(await errors(), 2, "nearly 3, in whole ones");
      for (let count = 0; count < 200; count++) await world.read(0, 4096);
      assertEquals(await errors(), 0);
      await world.close();
    });
  }

  test("in writes below the limit the backing device takes the data", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET, asyncOnly: true });
    world.cache.failing = (operation) => operation.kind === "write" && operation.sectors === 8;
    await world.write(0, 4096, 3);
    assertEquals(await world.onBacking(0, 4096), filled(4096, 3));
    world.cache.failing = undefined;
    assertEquals(await world.read(0, 4096), filled(4096, 3));
    assertEquals(await world.attribute("io_errors", "set"), "1");
    await world.close();
  });

  test("for lack of room data goes to the backing device, and the set does not fail", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET, asyncOnly: true });
    world.cache.failing = (operation) =>
      operation.kind === "write" && operation.sectors === 8 &&
      new BcacheError("NoSpace", "cache: no space left");
    for (let index = 0; index < 20; index++) await world.write(index * 4096, 4096, index);
    world.cache.failing = undefined;
    for (let index = 0; index < 20; index++) {
      assertEquals(await world.onBacking(index * 4096, 4096), filled(4096, index));
    }
    const status = await world.set.status();
    assertEquals([status.failed, status.ioErrors], [undefined, 0]);
    await world.close();
  });

  test("spare a request that also hit dirty data, where only its clean part failed", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.set.flushDirty(undefined));
    await world.write(4096, 4096, 2);
    await world.run(world.volume.flush());
    let reads = 0;
    world.cache.failing = (operation) => operation.kind === "read" && ++reads <= 2;
    const whole = await world.read(0, 8192);
    assertEquals([whole.subarray(0, 4096), whole.subarray(4096)], [
      filled(4096, 1),
      filled(4096, 2),
    ]);
    await world.close();
  });
});

describe("errors of the backing device", () => {
  test("at the limit the device is disabled, until it is enabled again", async () => {
    const world = await SetWorld.make({ mode: "none", settings: QUIET });
    world.backing.failing = (operation) => operation.kind === "read" && operation.atSector > 15;
    for (let count = 1; count <= 64; count++) {
      assertEquals(await world.attribute("io_disable"), "0");
      await assertRejects(() => world.read(count * 512, 512), BcacheError, "planted read error");
    }
    assertEquals([await world.attribute("io_errors"), await world.attribute("io_disable")], [
      "64",
      "1",
    ]);
    world.backing.failing = undefined;
    await assertRejects(() => world.read(0, 512), BcacheError, "set io_disable to 0");
    await assertRejects(() => world.write(0, 512, 1), BcacheError, "set io_disable to 0");
    await assertRejects(() => world.run(world.volume.flush()), BcacheError, "io_disable");
    await world.run(world.set.setAttribute("bcache0", "io_disable", "0"));
    assertEquals(await world.read(0, 512), filled(512, 0));
    await world.close();
  });

  test("io_error_limit says how many", async () => {
    const settings = [...QUIET, ["cache_mode", "none"]] as [string, string][];
    const world = await SetWorld.make({ settings });
    await world.run(world.set.setAttribute("bcache0", "io_error_limit", "2"));
    world.backing.failing = (operation) => operation.kind === "write" && operation.atSector > 15;
    await assertRejects(() => world.write(0, 512, 1), BcacheError, "planted write error");
    await assertRejects(() => world.write(0, 512, 1), BcacheError, "planted write error");
    await assertRejects(() => world.write(0, 512, 1), BcacheError, "I/O is disabled after 2");
    await world.close();
  });

  test("a disabled device is not written back to, and a drain says why", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.set.setAttribute("bcache0", "io_disable", "1"));
    await assertRejects(
      () => world.run(world.set.flushDirty(undefined)),
      BcacheError,
      "I/O is disabled",
    );
    await world.run(world.set.setAttribute("bcache0", "io_disable", "0"));
    await world.run(world.set.flushDirty(undefined));
    assertEquals(await world.onBacking(0, 4096), filled(4096, 1));
    await world.close();
  });

  test("a flush reaches it after writes past the cache, and reports its failure", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.run(world.set.setAttribute("bcache0", "sequential_cutoff", "4k"));
    await world.write(0, 65536, 1); // Goes past the cache.
    assertEquals(await world.onBacking(0, 512), filled(512, 1));
    const flushes = () => world.backing.trace.filter(({ kind }) => kind === "flush").length;
    const before = flushes();
    await world.run(world.volume.flush());
    assert(flushes() > before, "the backing device was flushed");
    await world.write(65536, 65536, 2);
    world.backing.failing = (operation) => operation.kind === "flush";
    await assertRejects(() => world.run(world.volume.flush()), BcacheError, "planted flush error");
    world.backing.failing = undefined;
    await world.close();
  });
});
