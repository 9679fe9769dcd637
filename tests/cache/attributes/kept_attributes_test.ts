/** Attributes that are kept on a device: what cannot be stored is refused, and stays as it was. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { SUPERBLOCK_SECTOR } from "../../../lib/ondisk/superblock.ts";
import { SetWorld, type UnreliableDevice } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

type Owner = "bcache0" | "set";

/** What is kept on the backing device: its name, the value of a fresh set, and another. */
const ON_BACKING = [["cache_mode", "writethrough", "writeback"], ["label", "", "photos"]] as const;
/** The same on the cache device. */
const ON_CACHE = [["cache_replacement_policy", "lru", "fifo"], ["discard", "0", "1"]] as const;

async function setTo(world: SetWorld, of: Owner, name: string, value: string): Promise<void> {
  await world.run(world.set.setAttribute(of === "set" ? undefined : of, name, value));
}

/** The next so many operations of that kind that begin at `atSector`, or anywhere, fail. */
function failNext(
  device: UnreliableDevice,
  kind: "write" | "flush",
  { atSector, count = 1 }: { atSector?: number; count?: number } = {},
): void {
  let left = count;
  device.failing = (operation) =>
    operation.kind === kind && (atSector ?? operation.atSector) === operation.atSector &&
    left-- > 0;
}

async function restart(world: SetWorld): Promise<void> {
  await world.close();
  // Settings are given once: what is kept must be there without them.
  await world.start({ settings: [] });
}

async function labels(world: SetWorld): Promise<string[]> {
  return [await world.attribute("label"), (await world.run(world.set.uuids()))[0]!.label];
}

/** A set whose backing device refuses the next write of its superblock. */
async function refusing(): Promise<SetWorld> {
  const world = await SetWorld.make({ settings: QUIET });
  failNext(world.backing, "write", { atSector: SUPERBLOCK_SECTOR });
  return world;
}

describe("an attribute that is kept on the backing device", () => {
  for (const [name, before, after] of ON_BACKING) {
    const assertIs = async (world: SetWorld, value: string): Promise<void> => {
      assertEquals(await world.attribute(name), value);
      if (name === "label") assertEquals(await labels(world), [value, value]);
    };

    test(`${name} that cannot be stored stays as it was, also after a restart`, async () => {
      const world = await refusing();
      const change = () => setTo(world, "bcache0", name, after);
      await assertRejects(change, BcacheError, "planted write error");
      await assertIs(world, before);
      await restart(world);
      await assertIs(world, before);
      await world.close();
    });

    test(`${name} that was refused is stored when it is set again`, async () => {
      const world = await refusing();
      const change = () => setTo(world, "bcache0", name, after);
      await assertRejects(change, BcacheError, "planted write error");
      await change();
      await assertIs(world, after);
      await restart(world);
      await assertIs(world, after);
      await world.close();
    });

    test(`${name}, set twice at once with the first refused, is the second`, async () => {
      const world = await refusing();
      const change = () => setTo(world, "bcache0", name, after);
      const results = await Promise.allSettled([change(), change()]);
      assertEquals(results.map(({ status }) => status), ["rejected", "fulfilled"]);
      await assertIs(world, after);
      await restart(world);
      await assertIs(world, after);
      await world.close();
    });
  }
});

describe("an attribute that is kept on the cache device", () => {
  for (const [name, before, after] of ON_CACHE) {
    test(`${name} that cannot be stored stays as it was, also after a restart`, async () => {
      const world = await SetWorld.make({ settings: QUIET });
      failNext(world.cache, "write", { atSector: SUPERBLOCK_SECTOR });
      // Nothing becomes stable on a cache device that failed once, so the second is refused, too.
      for (let tries = 0; tries < 2; tries++) {
        const change = () => setTo(world, "set", name, after);
        await assertRejects(change, BcacheError, "planted write error");
        assertEquals(await world.attribute(name, "set"), before);
      }
      await world.run(world.set.abandon());
      await world.start({ settings: [] });
      assertEquals(await world.attribute(name, "set"), before);
      await world.close();
    });
  }
});

describe("a cache mode", () => {
  test("that was refused leaves no write dirty, not even one before the answer", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    let letGo = (): void => {};
    const held = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    world.backing.gate = (kind, atSector) =>
      kind === "write" && atSector === SUPERBLOCK_SECTOR ? held : undefined;
    failNext(world.backing, "write", { atSector: SUPERBLOCK_SECTOR });
    const setting = world.set.setAttribute("bcache0", "cache_mode", "writeback");
    setting.catch(() => {});
    assertEquals(await world.attribute("cache_mode"), "writethrough");
    await world.write(0, 4096, 1);
    letGo();
    await assertRejects(() => world.run(setting), BcacheError, "planted write error");
    await world.write(4096, 4096, 1);
    assertEquals((await world.set.status()).devices[0]!.dirtyBytes, 0);
    await world.close();
  });

  test("that was refused and came to the disk all the same is replaced", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    failNext(world.backing, "flush");
    const refused = () => setTo(world, "bcache0", "cache_mode", "writeback");
    await assertRejects(refused, BcacheError, "planted flush error");
    await setTo(world, "bcache0", "io_disable", "0");
    await setTo(world, "bcache0", "cache_mode", "writethrough");
    await restart(world);
    assertEquals(await world.attribute("cache_mode"), "writethrough");
    await world.close();
  });

  test("that is in force already costs no write", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET });
    world.backing.trace.length = 0;
    await setTo(world, "bcache0", "cache_mode", "writethrough");
    assertEquals(world.backing.trace, []);
    await world.close();
  });
});

describe("a label", () => {
  test("that the UUID table cannot take is not in the superblock either", async () => {
    const world = await SetWorld.make({ settings: QUIET });
    await setTo(world, "bcache0", "label", "photos");
    failNext(world.cache, "write");
    const refused = () => setTo(world, "bcache0", "label", "films");
    await assertRejects(refused, BcacheError, "planted write error");
    assertEquals(await labels(world), ["photos", "photos"]);
    await restart(world);
    assertEquals(await labels(world), ["photos", "photos"]);
    await world.close();
  });

  test("that was refused is not shown, even where the old one cannot be put back", async () => {
    const world = await SetWorld.make({ settings: QUIET });
    await setTo(world, "bcache0", "label", "photos");
    failNext(world.cache, "write");
    let writes = 0;
    world.backing.failing = (operation) => operation.kind === "write" && ++writes === 2;
    const refused = () => setTo(world, "bcache0", "label", "films");
    await assertRejects(refused, BcacheError, "planted write error");
    assertEquals([await labels(world), writes], [["photos", "photos"], 2]);
    // The next write of the superblock carries it.
    await setTo(world, "bcache0", "cache_mode", "writeback");
    await restart(world);
    assertEquals(await labels(world), ["photos", "photos"]);
    await world.close();
  });
});

describe("a volume on the cache alone", () => {
  for (const [name, before, after] of [["label", "own", "other"], ["size", "65536", "131072"]]) {
    test(`whose ${name} cannot be stored keeps the one it had`, async () => {
      const world = await SetWorld.make({ settings: QUIET });
      await world.run(world.set.createVolume({ sizeBytes: 65536, label: "own" }));
      const shown = async () => (await world.set.attributes("bcache1", name))[0]!.value;
      failNext(world.cache, "write");
      const change = () => world.run(world.set.setAttribute("bcache1", name!, after!));
      await assertRejects(change, BcacheError, "planted write error");
      assertEquals(await shown(), before!);
      await restart(world);
      assertEquals(await shown(), before!);
      await change();
      await restart(world);
      assertEquals(await shown(), after!);
      await world.close();
    });
  }
});
