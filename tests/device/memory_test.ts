import { test } from "bun:test";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { deviceContract, pattern, readSectors } from "./contract.ts";

deviceContract("memory", (sizeSectors) => ({ device: new MemoryDevice(sizeSectors) }));

test("memory that was never written reads as zeroes and takes no room", async () => {
  const device = new MemoryDevice(2 ** 40);
  assertEquals(await readSectors(device, 2 ** 39 + 3, 4), new Uint8Array(2048));
  assertEquals(device.allocatedBytes, 0);
  await device.write(2 ** 39, pattern(1, 1));
  assertEquals(device.allocatedBytes, 65536);
  await device.zero(2 ** 39, 128);
  assertEquals(device.allocatedBytes, 0);
});

test("memory opened for reading refuses changes", async () => {
  const device = new MemoryDevice(8, { readOnly: true, name: "m" });
  const one = new Uint8Array(512);
  const error = await assertRejects(() => device.write(0, one), BcacheError, "m is open for read");
  assertEquals(error.code, "ReadOnly");
  await assertRejects(() => device.zero(0, 1), BcacheError);
  assertThrows(() => device.sync.write(0, one), BcacheError);
});
