import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import {
  makeBacking,
  makeCache,
  prepareBacking,
  prepareCache,
  prepareSidecar,
  writePrepared,
} from "../../lib/cache/make.ts";
import type { Device } from "../../lib/device/device.ts";
import { JoinedDevice } from "../../lib/device/joined.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { TracedDevice } from "../../lib/device/traced.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { parseUuid } from "../../lib/ondisk/uuid.ts";

const uuid = parseUuid("c730f6ac-bdd4-489d-ad24-86ed66eecbf3")!;
const setUuid = parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!;
const otherSet = parseUuid("474f34a2-8c09-668f-0000-000000000001")!;
const ids = { uuid, setUuid };
const CACHE_SECTORS = 600 * 32;
const small = { ...ids, bucketSectors: 32 };

async function bytesOf(device: Device, atSector = 0, sectors = device.sizeSectors) {
  const into = new Uint8Array(sectors * 512);
  await device.read(atSector, into);
  return into;
}

async function filled(sizeSectors: number, name: string): Promise<MemoryDevice> {
  const device = new MemoryDevice(sizeSectors, { name });
  await device.write(0, new Uint8Array(sizeSectors * 512).fill(0x77));
  return device;
}

test("making writes zeroes, the superblock and nothing else, and makes it durable", async () => {
  const inner = await filled(CACHE_SECTORS, "c");
  const operations: string[] = [];
  const device = new TracedDevice(inner, {
    begin: ({ kind, atSector, sectors, fua }) => {
      if (kind !== "read") operations.push(`${kind} ${atSector}+${sectors}${fua ? " fua" : ""}`);
    },
  });
  const superblock = await makeCache(device, small);
  assertEquals([superblock.kind, superblock.bucketCount], ["cache", 600]);
  assertEquals(operations, ["write 0+16 fua"]);
  const bytes = await bytesOf(inner);
  assertEquals(bytes.subarray(0, 4096).every((byte) => byte === 0), true);
  const place = { name: "c", sizeSectors: CACHE_SECTORS, logicalBlockSectors: 1 };
  assertEquals(decodeSuperblock(bytes.slice(4096, 8192), place), superblock);
  assertEquals(bytes.subarray(8192).every((byte) => byte === 0x77), true);
});

test("what is recognised on a device is named and kept, unless it is forced", async () => {
  const device = await filled(CACHE_SECTORS, "d");
  const magic = new Uint8Array(512);
  magic.set([0x58, 0x46, 0x53, 0x42]);
  await device.write(0, magic);
  const before = await bytesOf(device);
  const words = "d holds: xfs file system at byte 0; --force overwrites it";
  const error = await assertRejects(() => makeBacking(device, ids), BcacheError, words);
  assertEquals(error.code, "Exists");
  await assertRejects(() => makeCache(device, small), BcacheError, words);
  assertEquals(await bytesOf(device), before);
  await makeBacking(device, { ...ids, force: true });
  await assertRejects(() => makeBacking(device, ids), BcacheError, "bcache device at byte 4120");
});

test("a device that is too small or cannot be written is refused untouched", async () => {
  const device = await filled(512 * 32, "d");
  const before = await bytesOf(device);
  await assertRejects(() => makeCache(device, small), BcacheError, "a cache needs 513");
  await assertRejects(() => makeBacking(device, { ...ids, dataOffsetSectors: 8 }), BcacheError);
  assertEquals(await bytesOf(device), before);
  const readOnly = new MemoryDevice(CACHE_SECTORS, { readOnly: true });
  const error = await assertRejects(() => makeCache(readOnly, small), BcacheError);
  assertEquals(error.code, "ReadOnly");
  await assertRejects(() => makeBacking(new MemoryDevice(0), ids), BcacheError, "larger device");
});

test("when one of several devices cannot be written, the others are put back", async () => {
  const cache = await filled(CACHE_SECTORS, "c");
  const inner = await filled(1000, "b");
  const backing = new TracedDevice(inner, {
    begin: ({ kind }) => {
      if (kind === "write") throw new BcacheError("DeviceIo", "b: planted");
    },
  });
  const before = [await bytesOf(cache), await bytesOf(inner)];
  const prepared = [await prepareCache(cache, small), await prepareBacking(backing, ids)];
  await assertRejects(() => writePrepared(prepared), BcacheError, "b: planted");
  assertEquals([await bytesOf(cache), await bytesOf(inner)], before);
});

test("what cannot be put back is named", async () => {
  let isBroken = false;
  const cache = new TracedDevice(await filled(CACHE_SECTORS, "c"), {
    begin: ({ kind }) => {
      if (kind === "write" && isBroken) throw new BcacheError("DeviceIo", "c: planted");
      if (kind === "write") isBroken = true;
    },
  });
  const backing = new TracedDevice(await filled(1000, "b"), {
    begin: ({ kind }) => {
      if (kind === "write") throw new BcacheError("DeviceIo", "b: planted");
    },
  });
  const prepared = [await prepareCache(cache, small), await prepareBacking(backing, ids)];
  const words = "b: planted; what was there before could not be put back on c";
  await assertRejects(() => writePrepared(prepared), BcacheError, words);
});

test("a cache made again loses its journal, if for the set it had before", async () => {
  const device = await filled(CACHE_SECTORS, "c");
  await makeCache(device, small);
  await makeCache(device, { ...small, setUuid: otherSet, force: true });
  const journal = () => bytesOf(device, 32, 4 * 32); // Buckets 1 to 4 of 600.
  assertEquals((await journal()).every((byte) => byte === 0x77), true);
  await makeCache(device, { ...small, setUuid: otherSet, force: true });
  assertEquals((await journal()).every((byte) => byte === 0), true);
  const behind = await bytesOf(device, 5 * 32, 595 * 32);
  assertEquals(behind.every((byte) => byte === 0x77), true);
});

test("a sidecar carries the superblock and the image stays as it is", async () => {
  const sidecar = new MemoryDevice(16, { name: "i.bcache" });
  const image = await filled(800, "i");
  const prepared = await prepareSidecar(sidecar, image, { ...ids, cacheMode: "writeback" });
  await writePrepared([prepared]);
  assertEquals((await bytesOf(image)).every((byte) => byte === 0x77), true);
  const joined = new JoinedDevice(sidecar, image, 16);
  const page = (await bytesOf(joined, 8, 8)).slice();
  const place = { name: "i", sizeSectors: joined.sizeSectors, logicalBlockSectors: 1 };
  const superblock = decodeSuperblock(page, place);
  assertEquals([superblock.version, superblock.dataOffsetSectors], [1, 16]);
});

test("an image that is no whole number of blocks is refused with the way out", async () => {
  const sidecar = new MemoryDevice(16);
  const odd = new MemoryDevice(801, { name: "i" });
  const words = "enlarge it (truncate -s %4096), or choose smaller blocks with -w";
  await assertRejects(() => prepareSidecar(sidecar, odd, ids), BcacheError, words);
  await prepareSidecar(sidecar, odd, { ...ids, blockSectors: 1 });
  const ragged = Object.assign(new MemoryDevice(801, { name: "i" }), { tailBytes: 3 });
  const advice = "410115 bytes are not a whole number of blocks of 512; enlarge it";
  const make = () => prepareSidecar(sidecar, ragged, { ...ids, blockSectors: 1 });
  await assertRejects(make, BcacheError, advice);
});

test("an image without a byte is refused as that", async () => {
  const make = () => prepareSidecar(new MemoryDevice(16), new MemoryDevice(0, { name: "i" }), ids);
  await assertRejects(make, BcacheError, "i: the image is empty; give it its size first");
});

test("an image that is a backing device already gets no sidecar", async () => {
  const image = new MemoryDevice(800, { name: "i" });
  await makeBacking(image, ids);
  const make = () => prepareSidecar(new MemoryDevice(16), image, { ...ids, force: true });
  await assertRejects(make, BcacheError, "i carries a bcache superblock itself");
});

test("a sidecar in use by another image is not overwritten by chance", async () => {
  const sidecar = new MemoryDevice(16, { name: "s" });
  const image = new MemoryDevice(800);
  await writePrepared([await prepareSidecar(sidecar, image, ids)]);
  await assertRejects(() => prepareSidecar(sidecar, image, ids), BcacheError, "s holds: bcache");
  await prepareSidecar(sidecar, image, { ...ids, force: true });
  const tiny = new MemoryDevice(8, { name: "s" });
  await assertRejects(() => prepareSidecar(tiny, image, ids), BcacheError, "a sidecar has 16");
});
