/** What is refused when a backing device comes back to its cache, and what is then left alone. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet, type CacheSetOptions } from "../../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../../lib/cache/make.ts";
import type { Device } from "../../../lib/device/device.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { RealClock } from "../../../lib/runtime/clock.ts";
import { indexOf, patch } from "../../offline/world.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { makeSet, valuesIn, write } from "../set_support.ts";

const BUCKET = 16;
const BACKING_SECTORS = 16 + 4096;

function options(cache: Device, backing: Device): CacheSetOptions {
  return {
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock: new RealClock(),
    random: new SimRandom(4),
    log: () => {},
    settings: [["writeback_running", "0"]],
  };
}

async function copyOf(device: Device, sectors: number): Promise<MemoryDevice> {
  const copy = new MemoryDevice(sectors);
  const bytes = new Uint8Array(Math.min(sectors, device.sizeSectors) * 512);
  await device.read(0, bytes);
  await copy.write(0, bytes);
  return copy;
}

async function dirtyAtTheEnd() {
  const cache = new MemoryDevice(600 * BUCKET);
  const backing = new MemoryDevice(BACKING_SECTORS);
  const common = { setUuid: new Uint8Array(16).fill(9), blockSectors: 1, bucketSectors: BUCKET };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  const uuid = new Uint8Array(16).fill(2);
  await makeBacking(backing, { ...common, uuid, cacheMode: "writeback" });
  const set = await CacheSet.open(options(cache, backing));
  await set.volumes[0]!.write(4096 * 512 - 4096, new Uint8Array(4096).fill(0x66));
  await set.close();
  return { cache, backing };
}

describe("a backing device that was cut short", () => {
  test("is refused while dirty data lies behind its end, and nothing changes", async () => {
    const { cache, backing } = await dirtyAtTheEnd();
    const short = await copyOf(backing, BACKING_SECTORS - 1);
    const superblock = await copyOf(short, 16);
    const error = await assertRejects(
      () => CacheSet.open(options(cache, short)),
      BcacheError,
      `has ${BACKING_SECTORS - 1} sectors, but the cache has dirty data up to sector ` +
        `${BACKING_SECTORS}`,
    );
    assertEquals(error.code, "BadFormat");
    const after = await copyOf(short, 16);
    const [before, now] = [new Uint8Array(8192), new Uint8Array(8192)];
    await superblock.read(0, before);
    await after.read(0, now);
    assertEquals(now, before);
  });

  test("is taken again at its full length, with the dirty data", async () => {
    const { cache, backing } = await dirtyAtTheEnd();
    await assertRejects(async () =>
      CacheSet.open(options(cache, await copyOf(backing, BACKING_SECTORS - 1)))
    );
    const whole = await copyOf(backing, BACKING_SECTORS);
    const set = await CacheSet.open(options(cache, whole));
    const into = new Uint8Array(4096);
    await set.volumes[0]!.read(4096 * 512 - 4096, into);
    assertEquals(into, new Uint8Array(4096).fill(0x66));
    await set.flushDirty(undefined);
    await set.close();
    await whole.read(BACKING_SECTORS - 8, into);
    assertEquals(into, new Uint8Array(4096).fill(0x66));
  });
});

describe("damage of one device's entry in the UUID table", () => {
  test("is not made to last by attaching the other device", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    for (const volume of set.volumes) await write(volume, 0, 65536, 7);
    await set.close();
    const { uuids } = await indexOf(made.cache);
    const flip = () =>
      patch(made.cache, uuids!.bucket * BUCKET, 1, (bytes) => void (bytes[128 + 3]! ^= 1));
    await flip();
    await assertRejects(() => made.open(), BcacheError, "/disk1: has dirty data in a cache");
    await flip();
    set = await made.open();
    assertEquals(await valuesIn(set.volumes[1]!, 0, 65536), [7]);
    await set.close();
  });
});

describe("a UUID table that was blanked", () => {
  test("gives no device what was cached of another", async () => {
    const made = await makeSet(2, { mode: "writethrough" });
    let set = await made.open();
    for (const volume of set.volumes) {
      await write(volume, 0, 65536, volume.name === "bcache0" ? 1 : 2);
    }
    await set.close();
    const { uuids } = await indexOf(made.cache);
    await made.cache.zero(uuids!.bucket * BUCKET, BUCKET);
    const other = [made.source(1), made.source(0)];
    set = await CacheSet.open(made.options(other));
    assertEquals(await valuesIn(set.volumes[0]!, 0, 65536), [2]);
    assertEquals(await valuesIn(set.volumes[1]!, 0, 65536), [1]);
    await set.close();
  });
});
