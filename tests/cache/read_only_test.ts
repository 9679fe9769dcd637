/** A set that is opened read-only serves everything, dirty data too, and changes nothing. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { CacheSet, type CacheSetOptions } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const CACHE_SECTORS = 600 * 16;
const BACKING_SECTORS = 16 + 4096;

async function contents(device: MemoryDevice): Promise<Uint8Array> {
  const bytes = new Uint8Array(device.sizeSectors * 512);
  await device.read(0, bytes);
  return bytes;
}

async function dirtySet() {
  const cache = new MemoryDevice(CACHE_SECTORS);
  const backing = new MemoryDevice(BACKING_SECTORS);
  const common = { setUuid: new Uint8Array(16).fill(9), blockSectors: 1, bucketSectors: 16 };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  const uuid = new Uint8Array(16).fill(2);
  await makeBacking(backing, { ...common, uuid, cacheMode: "writeback" });
  const options: CacheSetOptions = {
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock: new RealClock(),
    random: new SimRandom(3),
    log: () => {},
  };
  const set = await CacheSet.open({ ...options, settings: [["writeback_running", "0"]] });
  await set.volumes[0]!.write(4096, new Uint8Array(4096).fill(0x77));
  await set.close();
  return { cache, backing, options: { ...options, readOnly: true } };
}

describe("a read-only set", () => {
  test("serves dirty data and leaves every byte of both devices as it was", async () => {
    const { cache, backing, options } = await dirtySet();
    const before = [await contents(cache), await contents(backing)];
    const set = await CacheSet.open(options);
    const volume = set.volumes[0]!;
    const into = new Uint8Array(8192);
    await volume.read(0, into);
    assertEquals([into[0], into[4096], into[8191]], [0, 0x77, 0x77]);
    assertEquals(volume.readOnly, true);
    assertEquals(volume.tryWrite(0, into), false);
    await assertRejects(() => volume.write(0, into), BcacheError, "read-only");
    await assertRejects(() => volume.zero(0, 4096), BcacheError, "read-only");
    await set.close();
    assertEquals([await contents(cache), await contents(backing)], before);
  });

  test("refuses to flush and to be set, at once and in words", async () => {
    const { options } = await dirtySet();
    const set = await CacheSet.open(options);
    await assertRejects(() => set.flushDirty(undefined), BcacheError, "4.0 KiB are dirty");
    await assertRejects(
      () => set.setAttribute("bcache0", "label", "x"),
      BcacheError,
      "nothing was changed",
    );
    await set.close();
    await assertRejects(
      () => CacheSet.open({ ...options, cacheMode: "none" }),
      BcacheError,
      "takes no settings",
    );
  });
});
