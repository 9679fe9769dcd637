import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { OverlayDevice } from "../../lib/device/overlay.ts";
import { deviceContract } from "./contract.ts";

deviceContract("forwarding", (sizeSectors) => {
  return { device: new ForwardingDevice(new MemoryDevice(sizeSectors)) };
});

test("a wrapper has the inner device's synchronous calls, or its own, or none", () => {
  const memory = new MemoryDevice(8);
  assertEquals(new ForwardingDevice(memory).sync, memory.sync);
  const own = { read: () => {}, write: () => {} };
  assertEquals(new ForwardingDevice(memory, { sync: own }).sync, own);
  const asynchronous = new Proxy(memory, {
    get: (target, name) => name === "sync" ? undefined : Reflect.get(target, name, target),
  });
  assertEquals(new ForwardingDevice(asynchronous, { sync: own }).sync, undefined);
});

test("an overlay can be written where the device under it cannot", async () => {
  const overlay = new OverlayDevice(new MemoryDevice(8, { readOnly: true }));
  const bytes = new Uint8Array(512).fill(7);
  await overlay.write(3, bytes);
  const into = new Uint8Array(512);
  overlay.sync!.read(3, into);
  assertEquals([overlay.readOnly, into], [false, bytes]);
});
