/** What becomes of a device when its cache set fails: nothing old is ever served. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import type { CachedDevice } from "../../../lib/cache/requests/cached_device.ts";
import { FailedService } from "../../../lib/cache/requests/failed_service.ts";
import type { RequestParts } from "../../../lib/cache/request_parts.ts";
import { SUPERBLOCK_SECTOR } from "../../../lib/ondisk/superblock.ts";
import { filled, SetWorld } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

describe("a set without room for its metadata", () => {
  test("a clean device passes through: reads, writes and flushes go on", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 8192, 1);
    await world.run(world.volume.flush());
    await world.failForLackOfRoom();
    assertMatch((await world.set.status()).failed ?? "", /no space left/);
    assertEquals((await world.set.status()).devices[0]!.service, "pass through");
    assertEquals(await world.read(0, 8192), filled(8192, 1));
    await world.write(4096, 4096, 2);
    await world.run(world.volume.zero(0, 512));
    await world.run(world.volume.flush());
    assertEquals(await world.read(0, 512), filled(512, 0));
    assertEquals(await world.onBacking(4096, 4096), filled(4096, 2));
    assertEquals(await world.stateOnDisk(), "stale");
    assert(world.log.some((line) => line.includes("it goes on without its cache")));
    await world.close();
  });

  test("after writes past it the cache never serves its old data again", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.volume.flush());
    await world.failForLackOfRoom();
    await world.write(0, 4096, 2);
    await world.close();
    world.cache.failing = undefined;
    await world.start();
    assertEquals(await world.read(0, 4096), filled(4096, 2));
    assertEquals((await world.set.status()).devices[0]!.state, "clean");
    assertEquals(world.set.volumes[0]!.tryRead(8192, new Uint8Array(512)), false, "a new slot");
    await world.close();
    await world.start();
    assertEquals(await world.read(0, 4096), filled(4096, 2));
    await world.close();
  });

  test("the superblock says so durably before the first write reaches the device", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    world.backing.failing = (o) => o.kind === "write" && o.atSector === SUPERBLOCK_SECTOR;
    await world.failForLackOfRoom();
    await assertRejects(() => world.write(0, 512, 3), BcacheError, "cannot be told so");
    await assertRejects(() => world.run(world.volume.zero(0, 512)), BcacheError, "cannot be told");
    assertEquals([await world.stateOnDisk(), await world.onBacking(0, 512)], [
      "clean",
      filled(512, 0),
    ]);
    world.backing.failing = undefined;
    await world.write(0, 512, 3);
    assertEquals(await world.stateOnDisk(), "stale");
    await world.close();
  });

  test("what was written and not flushed before the failure is seen after it", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.volume.flush());
    await world.write(0, 4096, 2); // Its key is in the open journal entry only.
    await world.failForLackOfRoom();
    assertEquals(await world.read(0, 4096), filled(4096, 2));
    await world.close(); // Nobody flushed.
    world.cache.failing = undefined;
    await world.start();
    assertEquals(await world.read(0, 4096), filled(4096, 2));
    await world.close();
  });

  test("a set that fails idle leaves the association: nothing has to be dropped", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.volume.flush());
    await world.run(world.set.setAttribute(undefined, "io_error_limit", "1"));
    world.cache.failing = (operation) => operation.kind === "read";
    assertEquals(await world.read(0, 4096), filled(4096, 1));
    assertMatch((await world.set.status()).failed ?? "", /too many I\/O errors \(error 1 of 1/);
    assertEquals(await world.read(0, 4096), filled(4096, 1));
    await world.close();
    assertEquals(await world.stateOnDisk(), "clean");
  });
});

describe("a set that fails with dirty data", () => {
  async function dirtyWorld(): Promise<SetWorld> {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.write(65536, 4096, 1); // Old data on both.
    await world.run(world.set.flushDirty(undefined));
    await world.write(65536, 4096, 2); // New data in the cache alone.
    await world.run(world.volume.flush());
    await world.failForLackOfRoom();
    return world;
  }

  test("never serves the old version of dirty ranges, and takes no writes", async () => {
    const world = await dirtyWorld();
    assertEquals((await world.set.status()).devices[0]!.service, "clean ranges only");
    assertEquals(await world.onBacking(65536, 512), filled(512, 1));
    for (const [offset, length] of [[65536, 4096], [65536 + 512, 512], [61440, 8192]] as const) {
      const error = await assertRejects(() => world.read(offset, length), BcacheError);
      assertEquals([error.code, error.errno], ["SetFailed", 5]);
      assertMatch(error.message, /sectors \d+-\d+ are only there: .*no space left.*mount again/);
    }
    await assertRejects(() => world.write(0, 4096, 3), BcacheError, "8.0 KiB of it are only");
    await assertRejects(() => world.run(world.volume.zero(65536, 512)), BcacheError, "failed");
    assertEquals(await world.read(0, 4096), filled(4096, 0), "what is clean is served");
    assertEquals(await world.stateOnDisk(), "dirty");
    await world.close();
  });

  test("what is clean in memory only takes no writes: it would come back dirty", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.volume.flush());
    // Written back and marked clean, but that can no longer be stored.
    let isWrittenBack = false;
    world.backing.failing = (operation) => {
      isWrittenBack ||= operation.kind === "flush";
      return false;
    };
    world.cache.failing = (operation) => isWrittenBack && operation.kind === "write";
    await assertRejects(() => world.run(world.set.flushDirty(undefined)), BcacheError);
    const [device] = (await world.set.status()).devices;
    assertEquals([device!.dirtyBytes, device!.service], [0, "clean ranges only"]);
    assertEquals(await world.read(0, 4096), filled(4096, 1));
    await assertRejects(() => world.write(0, 4096, 2), BcacheError, "failed");
    assertEquals(await world.stateOnDisk(), "dirty");
    await world.close();
    world.cache.failing = undefined;
    await world.start();
    assertEquals(await world.read(0, 4096), filled(4096, 1));
    await world.run(world.set.flushDirty(undefined));
    await world.close();
  });

  test("flushes name the cause", async () => {
    const world = await dirtyWorld();
    await assertRejects(() => world.run(world.volume.flush()), BcacheError, "no space left");
    await assertRejects(
      () => world.run(world.set.flushDirty("bcache0")),
      BcacheError,
      "no space left",
    );
    await world.close();
  });

  test("takes its dirty data up again when the cache is back", async () => {
    const world = await dirtyWorld();
    await world.close();
    world.cache.failing = undefined;
    await world.start();
    assertEquals(await world.read(65536, 4096), filled(4096, 2));
    await world.run(world.set.flushDirty(undefined));
    assertEquals(await world.onBacking(65536, 4096), filled(4096, 2));
    await world.close();
  });

  test("a range whose index node is not in memory counts as dirty", async () => {
    const dev = { name: "bcache0", inode: 0, dirtySectors: 8, stopWhenFailed: "auto" };
    const parts = {
      btree: { findLeaf: () => undefined },
      tunables: { errors: "unregister" },
      faults: { failed: new Error("planted") },
    };
    const service = new FailedService(dev as CachedDevice, parts as unknown as RequestParts);
    await assertRejects(
      () => service.read(16, new Uint8Array(512)),
      BcacheError,
      "the cache set has failed, and sector 16 may be only there: planted",
    );
  });

  test("writeback that was draining is told the cause", async () => {
    const world = await SetWorld.make({ mode: "writeback", settings: QUIET });
    await world.write(0, 4096, 1);
    await world.run(world.volume.flush());
    await world.run(world.set.setAttribute(undefined, "io_error_limit", "1"));
    world.cache.failing = (operation) => operation.kind === "read";
    const draining = world.set.flushDirty(undefined);
    const error = await assertRejects(() => world.run(draining), BcacheError);
    assertMatch(error.message, /4.0 KiB stay dirty in it: .*too many I\/O errors/);
    await world.close();
  });
});

describe("policies", () => {
  test("stop_when_cache_set_failed=always refuses everything, clean or not", async () => {
    const settings = [...QUIET, ["stop_when_cache_set_failed", "always"]] as [string, string][];
    const world = await SetWorld.make({ mode: "writethrough", settings });
    await world.failForLackOfRoom();
    assertEquals((await world.set.status()).devices[0]!.service, "refused");
    await assertRejects(() => world.read(0, 512), BcacheError, "the cache set has failed");
    await assertRejects(() => world.write(0, 512, 1), BcacheError, "the cache set has failed");
    await world.close();
  });

  test("errors=panic refuses everything, and closing says failed", async () => {
    const settings = [...QUIET, ["errors", "panic"]] as [string, string][];
    const world = await SetWorld.make({ mode: "writethrough", settings });
    await world.failForLackOfRoom();
    await assertRejects(() => world.read(0, 512), BcacheError, "the cache set has failed");
    await assertRejects(() => world.run(world.volume.flush()), BcacheError, "no space left");
    assert(world.log.some((line) => line.includes("errors is panic")), world.log.join("\n"));
    const error = await assertRejects(() => world.close(), BcacheError, "no space left");
    assertEquals(error.code, "SetFailed");
  });

  test("io_disable of the set refuses every request until it is set back", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    await world.write(0, 512, 5);
    await world.run(world.set.setAttribute(undefined, "io_disable", "1"));
    assertEquals(world.volume.tryRead(0, new Uint8Array(512)), false);
    await assertRejects(() => world.read(0, 512), BcacheError, "set its io_disable to 0");
    await assertRejects(() => world.run(world.volume.flush()), BcacheError, "io_disable");
    await world.run(world.set.setAttribute(undefined, "io_disable", "0"));
    assertEquals(await world.read(0, 512), filled(512, 5));
    await world.failForLackOfRoom();
    assertEquals(await world.attribute("io_disable", "set"), "1");
    await assertRejects(
      () => world.run(world.set.setAttribute(undefined, "io_disable", "0")),
      BcacheError,
      "mount it again",
    );
    await world.close();
  });
});
