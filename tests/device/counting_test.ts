import { test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CountingDevice } from "../../lib/device/counting.ts";
import type { Device } from "../../lib/device/device.ts";

/** A device whose operations end when the test says so. */
function heldDevice(sync: boolean) {
  let settle = Promise.withResolvers<void>();
  const operation = (): Promise<void> => settle.promise;
  const device: Device = {
    name: "held",
    sizeSectors: 64,
    logicalBlockSectors: 8,
    readOnly: true,
    read: operation,
    write: operation,
    flush: operation,
    discard: operation,
    zero: operation,
    close: operation,
    ...(sync && { sync: { read: () => {}, write: () => {} } }),
  };
  const end = (error?: Error): void => {
    const ended = settle;
    settle = Promise.withResolvers<void>();
    if (error === undefined) ended.resolve();
    else ended.reject(error);
  };
  return { device, end };
}

test("every operation counts from its call until it settles, also when it fails", async () => {
  const { device, end } = heldDevice(false);
  let underWay = 0;
  const counter = { begin: () => void underWay++, end: () => void underWay-- };
  const counting = new CountingDevice(device, counter);
  const bytes = new Uint8Array(512);
  const operations = [
    () => counting.read(0, bytes),
    () => counting.write(0, bytes),
    () => counting.flush(),
    () => counting.discard(0, 1),
    () => counting.zero(0, 1),
    () => counting.close(),
  ];
  for (const operation of operations) {
    const work = operation();
    assertEquals(underWay, 1);
    end();
    await work;
    assertEquals(underWay, 0);
    const failing = operation();
    end(new Error("planted"));
    await assertRejects(() => failing, Error, "planted");
    assertEquals(underWay, 0);
  }
});

test("it looks like the device it counts for", () => {
  const counter = { begin: () => {}, end: () => {} };
  const { device } = heldDevice(true);
  const counting = new CountingDevice(device, counter);
  const { name, sizeSectors, logicalBlockSectors, readOnly } = counting;
  assertEquals([name, sizeSectors, logicalBlockSectors, readOnly], ["held", 64, 8, true]);
  assert(counting.sync === device.sync);
  assertEquals("sync" in heldDevice(false).device, false);
  assertEquals(new CountingDevice(heldDevice(false).device, counter).sync, undefined);
});
