/** The engine behind a mount, opened on files without mounting anything. */
import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openEngine } from "../../fuse/cache_engine.ts";
import type { EngineWorld } from "../../fuse/engine.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import { openFileDevice } from "../../lib/device/file.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const libc = await openLibc();

async function makeFiles(folder: string): Promise<{ cachePath: string; backingPath: string }> {
  const cachePath = join(folder, "cache.img");
  const backingPath = join(folder, "backing.img");
  for (const path of [cachePath, backingPath]) {
    fs.writeFileSync(path, "");
    fs.truncateSync(path, 600 * 32 * 512);
  }
  const common = { setUuid: new Uint8Array(16).fill(9), blockSectors: 8, bucketSectors: 32 };
  const cache = await openFileDevice(cachePath, {});
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  await cache.close();
  const backing = await openFileDevice(backingPath, {});
  await makeBacking(backing, { ...common, uuid: new Uint8Array(16).fill(2) });
  await backing.close();
  return { cachePath, backingPath };
}

interface Place {
  readonly folder: string;
  readonly cachePath: string;
  readonly world: (readOnly: boolean, mountPoint?: string) => EngineWorld;
}

async function madePlace(): Promise<Place> {
  const folder = fs.mkdtempSync(join(tmpdir(), "bcache-fuse-engine-"));
  const { cachePath, backingPath } = await makeFiles(folder);
  const world = (readOnly: boolean, mountPoint = join(folder, "mnt")): EngineWorld => ({
    config: {
      cachePath,
      backingPaths: [backingPath],
      mountPoint,
      readOnly,
      allowOther: false,
      settings: [],
    },
    libc,
    clock: new RealClock(),
    random: new SimRandom(1),
    log: () => {},
    onVolumesChanged: () => {},
    operations: { begin: () => {}, end: () => {} },
  });
  return { folder, cachePath, world };
}

test("closing tells what is left: what stays dirty, and a detach that it broke off", async () => {
  const { folder, world } = await madePlace();
  const first = await openEngine(world(false));
  await first.setAttribute("bcache0", "cache_mode", "writeback");
  await first.setAttribute("bcache0", "writeback_running", "0");
  await first.setAttribute("bcache0", "sequential_cutoff", "0");
  for (let at = 0; at < 100; at++) {
    await first.volumes[0]!.write(at * 16384, new Uint8Array(4096).fill(7));
  }
  await first.setAttribute("bcache0", "writeback_rate_maximum", "100");
  const detached = first.detach("bcache0").then(() => "done", () => "broken off");
  const dirtyNow = async () => (await first.status()).devices[0]!.dirtyBytes;
  const before = await dirtyNow();
  assertEquals((await first.status()).devices[0]!.detaching, true);
  while (await dirtyNow() === before) await new Promise((resolve) => setTimeout(resolve, 5));
  const remains = await first.close();
  assertEquals([await detached, remains?.detachesBrokenOff], ["broken off", ["bcache0"]]);
  const second = await openEngine(world(false));
  const device = (await second.status()).devices[0]!;
  assertEquals([device.attached, device.detaching, device.state], [true, undefined, "dirty"]);
  assertEquals(device.dirtyBytes, remains?.dirtyBytes);
  await second.flushDirty(undefined);
  assertEquals(await second.close(), { dirtyBytes: 0, detachesBrokenOff: [] });
  fs.rmSync(folder, { recursive: true });
});

test("a read-only engine has its files alone, even against other readers", async () => {
  const { folder, cachePath, world } = await madePlace();
  await (await openEngine(world(false))).close(); // A set that was never started is not read-only.
  const first = await openEngine(world(true));
  for (const readOnly of [true, false]) {
    const error = await assertRejects(() => openEngine(world(readOnly)), BcacheError, cachePath);
    assertEquals(error.code, "Busy");
  }
  await first.close();
  await (await openEngine(world(true))).close(); // And they are free again.
  // Files of the mount itself: whoever serves them would wait for itself.
  const own = await assertRejects(() => openEngine(world(true, folder)), BcacheError);
  assertEquals(own.message.includes("is served by this mount itself"), true);
  fs.rmSync(folder, { recursive: true });
});
