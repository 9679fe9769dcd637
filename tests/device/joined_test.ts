import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { JoinedDevice } from "../../lib/device/joined.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { TracedDevice, type TracedOperation } from "../../lib/device/traced.ts";
import { deviceContract, pattern, readSectors } from "./contract.ts";

deviceContract("joined", (sizeSectors) => {
  const first = new MemoryDevice(300);
  return { device: new JoinedDevice(first, new MemoryDevice(sizeSectors - 300), 300) };
});

deviceContract("joined at 16 of a longer first device", (sizeSectors) => {
  const first = new MemoryDevice(24);
  return { device: new JoinedDevice(first, new MemoryDevice(sizeSectors - 16), 16) };
});

test("what is behind the split lies at the start of the second device", async () => {
  const first = new MemoryDevice(16);
  const second = new MemoryDevice(84, { name: "image" });
  const device = new JoinedDevice(first, second, 16);
  assertEquals([device.name, device.sizeSectors], ["image", 100]);
  await device.write(14, pattern(1, 6));
  assertEquals(await readSectors(first, 14, 2), pattern(1, 6).subarray(0, 1024));
  assertEquals(await readSectors(second, 0, 4), pattern(1, 6).subarray(1024));
});

test("a flush flushes both; a preflush reaches both before the write begins", async () => {
  const seen: string[] = [];
  const told = (name: string) => ({
    begin: (o: TracedOperation) => void seen.push(`${name} ${o.kind}${o.fua ? " fua" : ""}`),
  });
  const first = new TracedDevice(new MemoryDevice(16), told("first"));
  const second = new TracedDevice(new MemoryDevice(16), told("second"));
  const device = new JoinedDevice(first, second, 16);
  await device.flush();
  await device.write(16, pattern(1, 1), { preflush: true, fua: true });
  assertEquals(seen, [
    "first flush",
    "second flush",
    "first flush",
    "second flush",
    "second write fua",
  ]);
});

test("a failure on one side is the outcome, once both sides have ended", async () => {
  let ended = 0;
  const end = () => void ended++;
  const begin = () => {
    throw new Error("planted");
  };
  const bad = new TracedDevice(new MemoryDevice(16), { begin, end });
  const good = new TracedDevice(new MemoryDevice(16), { end });
  const device = new JoinedDevice(bad, good, 16);
  await assertRejects(() => device.write(15, pattern(1, 2)), Error, "planted");
  assertEquals(ended, 2);
  await assertRejects(() => device.flush(), Error, "planted");
  assertEquals(ended, 4);
});

test("there is no sync member unless both sides have one, and it is read-only if one is", () => {
  const plain = base(new MemoryDevice(16));
  const memory = new MemoryDevice(16, { readOnly: true });
  assertEquals(new JoinedDevice(memory, plain, 16).sync, undefined);
  assertEquals(new JoinedDevice(memory, new MemoryDevice(16), 16).readOnly, true);
});

/** A device without the sync member. */
function base(device: MemoryDevice) {
  return {
    name: device.name,
    sizeSectors: device.sizeSectors,
    logicalBlockSectors: 1,
    readOnly: false,
    read: device.read.bind(device),
    write: device.write.bind(device),
    flush: device.flush.bind(device),
    discard: device.discard.bind(device),
    zero: device.zero.bind(device),
    close: device.close.bind(device),
  };
}
