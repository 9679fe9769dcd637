/** A flush of the cache device is one of every backing device whose writes keys may speak about. */
import { describe, test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { OrderedDevice } from "../../../lib/cache/devices/ordered_device.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { TracedDevice } from "../../../lib/device/traced.ts";

class Backing {
  wantsFlush = false;
  flushes = 0;
  gate: Promise<void> | undefined;

  async settleWrites(): Promise<void> {
    this.flushes++;
    await this.gate;
    this.wantsFlush = false;
  }
}

function setUp() {
  const done: string[] = [];
  const traced = new TracedDevice(new MemoryDevice(64), {
    end: ({ kind, fua, preflush }) => {
      done.push(`${kind}${preflush ? " preflush" : ""}${fua ? " fua" : ""}`);
    },
  });
  const device = new OrderedDevice(traced);
  const backing = new Backing();
  device.add(backing);
  return { device, backing, done };
}

describe("the cache device with its backing devices", () => {
  test("a flush reaches the backing devices that were written, and no other", async () => {
    const { device, backing, done } = setUp();
    await device.flush();
    assertEquals([done, backing.flushes], [["flush"], 0]);
    backing.wantsFlush = true;
    await device.flush();
    assertEquals(backing.flushes, 1);
    device.remove(backing);
    backing.wantsFlush = true;
    await device.flush();
    assertEquals(backing.flushes, 1);
  });

  test("a preflush is such a flush, and ends before the write begins", async () => {
    const { device, backing, done } = setUp();
    backing.wantsFlush = true;
    await device.write(0, new Uint8Array(512), { preflush: true, fua: true });
    assertEquals([done, backing.flushes], [["flush", "write fua"], 1]);
  });

  test("a flush that fails ends when nothing of it is under way any more", async () => {
    const { device: working, backing } = setUp();
    const inner = new MemoryDevice(64);
    inner.flush = () => Promise.reject(new BcacheError("DeviceIo", "cache: cannot flush"));
    const device = new OrderedDevice(inner);
    device.add(backing);
    working.remove(backing);
    backing.wantsFlush = true;
    const gate = Promise.withResolvers<void>();
    backing.gate = gate.promise;
    let ended = false;
    const flush = device.flush().finally(() => void (ended = true));
    for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    assertEquals(ended, false);
    gate.resolve();
    await assertRejects(() => flush, BcacheError, "cannot flush");
  });

  for (const failing of ["flush", "write with FUA"] as const) {
    test(`after a ${failing} that failed none succeeds any more`, async () => {
      const inner = new MemoryDevice(64);
      const device = new OrderedDevice(inner);
      const sector = new Uint8Array(512);
      const fail = () => Promise.reject(new BcacheError("DeviceIo", "cache: planted"));
      const [name, first] = failing === "flush"
        ? ["flush" as const, () => device.flush()]
        : ["write" as const, () => device.write(0, sector, { fua: true })];
      Object.assign(inner, { [name]: fail });
      await assertRejects(first, BcacheError, "planted");
      Reflect.deleteProperty(inner, name);
      await assertRejects(() => device.flush(), BcacheError, "planted");
      await assertRejects(() => device.write(0, sector, { fua: true }), BcacheError, "planted");
      await device.write(0, sector);
    });
  }

  test("a flush that ends while a write with FUA has failed fails, too", async () => {
    const inner = new MemoryDevice(64);
    const device = new OrderedDevice(inner);
    const gate = Promise.withResolvers<void>();
    inner.flush = () => gate.promise;
    inner.write = () => Promise.reject(new BcacheError("DeviceIo", "cache: planted"));
    const flush = device.flush();
    await assertRejects(() => device.write(0, new Uint8Array(512), { fua: true }), BcacheError);
    gate.resolve();
    await assertRejects(() => flush, BcacheError, "planted");
  });

  test("what the cache device cannot flush fails the flush, and no write is begun", async () => {
    const done: string[] = [];
    const inner = new MemoryDevice(64);
    inner.flush = () => Promise.reject(new BcacheError("DeviceIo", "cache: cannot flush"));
    inner.write = () => {
      done.push("write");
      return Promise.resolve();
    };
    const device = new OrderedDevice(inner);
    await assertRejects(
      () => device.write(0, new Uint8Array(512), { preflush: true }),
      BcacheError,
      "cannot flush",
    );
    assertEquals(done, []);
  });
});
