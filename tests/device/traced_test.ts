import { test } from "bun:test";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { TracedDevice } from "../../lib/device/traced.ts";
import { deviceContract } from "./contract.ts";

deviceContract("traced", (sizeSectors) => {
  return { device: new TracedDevice(new MemoryDevice(sizeSectors), {}) };
});

test("a traced device tells of each operation, in order, and of its end", async () => {
  const seen: string[] = [];
  const device = new TracedDevice(new MemoryDevice(100), {
    begin: (o) => {
      const marks = `${o.preflush ? " preflush" : ""}${o.fua ? " fua" : ""}`;
      seen.push(`${o.isSync ? "sync " : ""}${o.kind} ${o.atSector}+${o.sectors}${marks}`);
    },
    end: (o, error) => seen.push(`${o.kind} ${error === undefined ? "ended" : "failed"}`),
  });
  const two = new Uint8Array(1024);
  await device.write(5, two, { fua: true });
  device.sync!.read(6, two);
  await device.flush();
  await device.discard(1, 2);
  await assertRejects(() => device.zero(99, 2));
  await device.close();
  assertEquals(seen, [
    "write 5+2 fua",
    "write ended",
    "sync read 6+2",
    "read ended",
    "flush 0+0",
    "flush ended",
    "discard 1+2",
    "discard ended",
    "zero 99+2",
    "zero failed",
    "close 0+0",
    "close ended",
  ]);
});

test("what a listener throws becomes the outcome, and the device is not reached", async () => {
  const inner = new MemoryDevice(8);
  const device = new TracedDevice(inner, {
    begin: (operation) => {
      if (operation.kind === "write") throw new Error("planted");
    },
  });
  const one = new Uint8Array(512).fill(7);
  await assertRejects(() => device.write(0, one), Error, "planted");
  assertThrows(() => device.sync!.write(0, one), Error, "planted");
  assertEquals(inner.allocatedBytes, 0);
  assertEquals(device.inFlight, 0);
});

test("operations under way are counted", async () => {
  const device = new TracedDevice(new MemoryDevice(8), {});
  const write = device.write(0, new Uint8Array(512));
  assertEquals(device.inFlight, 1);
  await write;
  assertEquals(device.inFlight, 0);
});
