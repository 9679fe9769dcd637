/** Devices that come and go while the set runs. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { makeBacking } from "../../../lib/cache/make.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import {
  backingState,
  encodeSuperblock,
  setBackingState,
  SUPERBLOCK_SECTOR,
} from "../../../lib/ondisk/superblock.ts";
import { isZeroUuid } from "../../../lib/ondisk/uuid.ts";
import {
  BACKING_SECTORS,
  makeSet,
  superblockOf,
  uuidOf,
  valuesIn,
  volumeNamed,
  write,
} from "../set_support.ts";

const names = (set: { volumes: readonly { name: string }[] }) => set.volumes.map((v) => v.name);

describe("attaching at run time", () => {
  test("serves the device under the lowest free name, and tells of it", async () => {
    const made = await makeSet(2);
    const set = await made.open({ backings: [made.source(1)] });
    assertEquals(names(set), ["bcache0"]);
    const status = await set.attach("/disk0");
    assertEquals([status.name, status.backingPath, status.attached], ["bcache1", "/disk0", true]);
    assertEquals(names(set), ["bcache0", "bcache1"]);
    assertEquals(made.changes, 1);
    await write(volumeNamed(set, "bcache1"), 0, 4096, 7);
    assertEquals(await valuesIn(volumeNamed(set, "bcache1"), 0, 4096), [7]);
    assertEquals((await set.status()).devices[1]!.dirtyBytes, 4096);
    await set.close();
  });

  test("aims at no more dirty data than cutoff_writeback lets there be", async () => {
    const made = await makeSet(2);
    const set = await made.open({ backings: [made.source(0)] });
    await set.setAttribute("bcache0", "writeback_percent", "0");
    await set.setAttribute(undefined, "cutoff_writeback", "5");
    const { writeback } = await set.attach("/disk1");
    assertEquals(writeback.percent, 5);
    await set.close();
  });

  test("takes up again what was dirty of a device that was away", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    await write(volumeNamed(set, "bcache1"), 8192, 4096, 0x5a);
    await set.close();
    set = await made.open({ backings: [made.source(0)] });
    await write(volumeNamed(set, "bcache0"), 0, 65536, 1);
    await set.setAttribute(undefined, "trigger_gc", "1");
    const status = await set.attach("/disk1");
    assertEquals([status.state, status.dirtyBytes], ["dirty", 4096]);
    assertEquals(await valuesIn(volumeNamed(set, "bcache1"), 8192, 4096), [0x5a]);
    await set.flushDirty("bcache1");
    const bytes = new Uint8Array(4096);
    await made.backings[1]!.device.read(16 + 16, bytes);
    assertEquals([...new Set(bytes)], [0x5a]);
    await set.close();
  });

  test("refuses what is served already, by path and by UUID, naming the device", async () => {
    const made = await makeSet(2);
    const set = await made.open();
    await assertRejects(() => set.attach("/disk0"), BcacheError, "attached as bcache0 already");
    const copy = new MemoryDevice(BACKING_SECTORS, { name: "/copy" });
    const bytes = new Uint8Array(BACKING_SECTORS * 512);
    await made.backings[1]!.device.read(0, bytes);
    await copy.write(0, bytes);
    await set.close();
    const third = await made.open({
      openBacking: (path) => Promise.resolve({ path, device: copy }),
    });
    await assertRejects(() => third.attach("/copy"), BcacheError, "same device as /disk1");
    await third.close();
  });

  test("refuses smaller blocks, naming both sizes and what to do", async () => {
    const made = await makeSet(0, { blockSectors: 8 });
    const device = new MemoryDevice(BACKING_SECTORS, { name: "/small" });
    await makeBacking(device, { setUuid: uuidOf(9), uuid: uuidOf(3), blockSectors: 1 });
    let released = 0;
    const set = await made.open({
      openBacking: (path) =>
        Promise.resolve({ path, device, release: () => Promise.resolve(void released++) }),
    });
    await assertRejects(
      () => set.attach("/small"),
      BcacheError,
      "/small: its blocks are smaller than the cache's, so it cannot be attached: found 512 " +
        "bytes, expected 4096 or more; make the cache with -w 512",
    );
    assertEquals(released, 1);
    assertEquals(set.volumes.length, 0);
    await set.close();
  });

  test("refuses a fresh device that was made for another set, unless told to take it", async () => {
    const made = await makeSet(0);
    const device = new MemoryDevice(BACKING_SECTORS, { name: "/other" });
    await makeBacking(device, { setUuid: uuidOf(0x77), uuid: uuidOf(3), blockSectors: 1 });
    const source = { path: "/other", device };
    await assertRejects(() => made.open({ backings: [source] }), BcacheError, "was made for cache");
    const set = await made.open({ openBacking: () => Promise.resolve(source) });
    await assertRejects(() => set.attach("/other"), BcacheError, "--force");
    const status = await set.attach("/other", { force: true });
    assertEquals(status.state, "clean");
    await set.close();
    assertEquals((await superblockOf(device)).setUuid, uuidOf(9));
  });

  test("refuses a device whose dirty data is in another cache", async () => {
    const made = await makeSet(1);
    const set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 512, 1);
    await set.close();
    const other = await makeSet(0, { setUuid: uuidOf(0x55) });
    const elsewhere = await other.open({ openBacking: () => Promise.resolve(made.source(0)) });
    await assertRejects(
      () => elsewhere.attach("/disk0", { force: true }),
      BcacheError,
      "is dirty, but this cache is set",
    );
    await elsewhere.close();
  });

  test("an inconsistent device whose dirty data the cache has is refused", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 512, 1);
    await set.close();
    const { device } = made.backings[0]!;
    const superblock = await superblockOf(device);
    setBackingState(superblock, "stale");
    await device.write(SUPERBLOCK_SECTOR, encodeSuperblock(superblock));
    set = await made.open({ backings: [] });
    await assertRejects(() => set.attach("/disk0"), BcacheError, "forget MOUNTPOINT 20202020");
    await set.close();
  });

  test("an inconsistent device whose data was clean is taken as a new one", async () => {
    const made = await makeSet(1, { mode: "writethrough" });
    let set = await made.open();
    await write(volumeNamed(set, "bcache0"), 0, 512, 1);
    await set.close();
    const { device } = made.backings[0]!;
    const superblock = await superblockOf(device);
    setBackingState(superblock, "stale");
    await device.write(SUPERBLOCK_SECTOR, encodeSuperblock(superblock));
    await device.write(16, new Uint8Array(512).fill(2));
    set = await made.open();
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 512), [2]);
    assert(made.log.some((line) => line.includes("was changed without its cache")));
    await set.close();
  });

  test("is refused while the set is stopped, read-only, or takes no devices", async () => {
    const made = await makeSet(1);
    const set = await made.open({ backings: [] });
    await set.close();
    await assertRejects(() => set.attach("/disk0"), BcacheError, "is being stopped");
    const closed = await CacheSet.open(made.options([]));
    await assertRejects(() => closed.attach("/disk0"), BcacheError, "takes no more devices");
    await closed.close();
    const openBacking = () => Promise.resolve(made.source(0));
    const readOnly = await CacheSet.open({ ...made.options([]), openBacking, readOnly: true });
    await assertRejects(() => readOnly.attach("/disk0"), BcacheError, "is read-only");
    await readOnly.close();
  });
});

describe("stopping a device", () => {
  test("its volume is gone, its dirty data stays for when it comes back", async () => {
    const made = await makeSet(2);
    const set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 0, 4096, 0x11);
    await set.stop("bcache0");
    assertEquals(names(set), ["bcache1"]);
    assertEquals(made.released, ["/disk0"]);
    assertEquals(volume.tryRead(0, new Uint8Array(512)), false);
    assertEquals(volume.tryWrite(0, new Uint8Array(512)), false);
    const error = await assertRejects(() => volume.read(0, new Uint8Array(512)), BcacheError);
    assertEquals(error.errno, 19);
    await assertRejects(() => volume.write(0, new Uint8Array(512)), BcacheError, "is stopped");
    await assertRejects(() => set.stop("bcache0"), BcacheError, "there are: bcache1");
    const status = await set.attach("/disk0");
    assertEquals([status.name, status.state, status.dirtyBytes], ["bcache0", "dirty", 4096]);
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 4096), [0x11]);
    await set.close();
  });

  test("waits for the requests that are under way", async () => {
    const made = await makeSet(1);
    const set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    const writes = Array.from(
      { length: 8 },
      (_, at) => volume.write(at * 512, new Uint8Array(700)),
    );
    await Promise.all([...writes, set.stop("bcache0")]);
    assertEquals(set.volumes.length, 0);
    await set.close();
  });
});

describe("detaching a device", () => {
  test("writes all back first; then it has no cache and goes on", async () => {
    const made = await makeSet(2);
    let set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 0, 65536, 0x33);
    await write(volumeNamed(set, "bcache1"), 0, 4096, 0x44);
    const status = await set.detach("bcache0");
    assertEquals([status.state, status.attached, status.dirtyBytes], ["no cache", false, 0]);
    const { device } = made.backings[0]!;
    const superblock = await superblockOf(device);
    assertEquals([backingState(superblock), isZeroUuid(superblock.setUuid)], ["none", true]);
    await write(volume, 512, 1024, 0x34);
    assertEquals(await valuesIn(volume, 0, 2048), [0x33, 0x34]);
    const bytes = new Uint8Array(1024);
    await device.read(17, bytes);
    assertEquals([...new Set(bytes)], [0x34]);
    const again = () => set.detach("bcache0");
    const twice = await assertRejects(again, BcacheError, "nothing to detach");
    assertEquals(twice.code, "WrongState");
    await assertRejects(() => set.attach("/disk0"), BcacheError, "stop bcache0");
    await volume.flush();
    await volume.zero(0, 512);
    assertEquals(await valuesIn(volume, 0, 512), [0]);
    await set.close();
    // Nothing of what the cache had of it is ever used again.
    set = await made.open();
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 2048), [0, 0x34, 0x33]);
    assertEquals(await valuesIn(volumeNamed(set, "bcache1"), 0, 4096), [0x44]);
    await set.close();
  });

  test("writers meanwhile go on, and lose nothing", async () => {
    const made = await makeSet(1);
    let set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    for (let at = 0; at < 64; at++) await write(volume, at * 4096, 4096, at);
    let detached = false;
    const detaching = set.detach("bcache0").then(() => detached = true);
    let round = 0;
    while (!detached || round < 3) {
      round++;
      await Promise.all(
        Array.from({ length: 16 }, (_, at) => write(volume, at * 4096, 4096, 100 + round)),
      );
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    await detaching;
    assertEquals(await valuesIn(volume, 0, 16 * 4096), [100 + round]);
    assertEquals(await valuesIn(volume, 16 * 4096, 4096), [16]);
    await set.close();
    set = await made.open();
    assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, 16 * 4096), [100 + round]);
    await set.close();
  });

  test("a device whose superblock cannot be written stays attached, with its data", async () => {
    const made = await makeSet(1);
    const set = await made.open();
    const volume = volumeNamed(set, "bcache0");
    await write(volume, 0, 4096, 5);
    await set.flushDirty("bcache0");
    const { device } = made.backings[0]!;
    const whole = device.write.bind(device);
    device.write = () => Promise.reject(new BcacheError("DeviceIo", "/disk0: broken"));
    await assertRejects(() => set.detach("bcache0"), BcacheError, "broken");
    device.write = whole;
    const [status] = (await set.status()).devices;
    assertEquals([status!.state, status!.attached], ["clean", true]);
    await write(volume, 0, 4096, 6);
    assertEquals((await set.status()).devices[0]!.state, "dirty");
    const superblock = await superblockOf(device);
    assertEquals([backingState(superblock), superblock.setUuid], ["dirty", uuidOf(9)]);
    await set.close();
  });
});
