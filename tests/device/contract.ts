/**
 * The contract of lib/device/device.ts as a suite. Every device runs it: `make` builds one of the
 * size asked for, writable, with nothing written yet.
 */
import { test } from "bun:test";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { AssertionError } from "../../lib/base/assert.ts";
import { type Device, SECTOR_BYTES } from "../../lib/device/device.ts";

export interface DeviceUnderTest {
  readonly device: Device;
  /** After the device was closed. */
  readonly cleanUp?: () => void;
}

export type MakeDevice = (sizeSectors: number) => Promise<DeviceUnderTest> | DeviceUnderTest;

/** Bytes that differ from sector to sector and from seed to seed. */
export function pattern(seed: number, sectors: number): Uint8Array {
  const bytes = new Uint8Array(sectors * SECTOR_BYTES);
  for (let i = 0; i < bytes.length; i++) bytes[i] = (seed * 31 + i * 7 + (i >> 9) * 13) & 0xff;
  return bytes;
}

/** Reads sectors of a device. */
export async function readSectors(
  device: Device,
  atSector: number,
  sectors: number,
): Promise<Uint8Array> {
  const into = new Uint8Array(sectors * SECTOR_BYTES).fill(0xd1);
  await device.read(atSector, into);
  return into;
}

const SIZE_SECTORS = 1000;

/** Runs the suite; `name` begins the name of each test. */
export function deviceContract(name: string, make: MakeDevice): void {
  const contract = (sentence: string, body: (device: Device) => Promise<void>) => {
    test(`${name}: ${sentence}`, async () => {
      const { device, cleanUp } = await make(SIZE_SECTORS);
      try {
        await body(device);
        await device.close();
      } finally {
        cleanUp?.();
      }
    });
  };
  transfers(contract);
  durability(contract);
  giveBack(contract);
  misuse(contract);
}

type Contract = (sentence: string, body: (device: Device) => Promise<void>) => void;

function transfers(contract: Contract): void {
  contract("reads back what was written, to the first and the last sector", async (device) => {
    assertEquals(device.sizeSectors, SIZE_SECTORS);
    const all = pattern(1, SIZE_SECTORS);
    await device.write(0, all);
    assertEquals(await readSectors(device, 0, SIZE_SECTORS), all);
    await device.write(SIZE_SECTORS - 1, pattern(2, 1));
    assertEquals(await readSectors(device, SIZE_SECTORS - 1, 1), pattern(2, 1));
    await device.write(0, pattern(3, 1));
    assertEquals(await readSectors(device, 0, 1), pattern(3, 1));
    const middle = all.subarray(SECTOR_BYTES, (SIZE_SECTORS - 1) * SECTOR_BYTES);
    assertEquals(await readSectors(device, 1, SIZE_SECTORS - 2), middle);
  });

  contract("behaves as an array of sectors under any mixture of calls", async (device) => {
    const model = new Uint8Array(SIZE_SECTORS * SECTOR_BYTES);
    await device.write(0, model);
    const at = fc.nat(SIZE_SECTORS - 1);
    const step = fc.tuple(fc.constantFrom("write", "sync", "zero"), at, fc.nat(40), fc.nat(255));
    const steps = fc.array(step, { minLength: 1, maxLength: 12 });
    const mixture = fc.asyncProperty(steps, at, async (list, from) => {
      for (const [kind, atSector, length, seed] of list) {
        const sectors = Math.min(length, SIZE_SECTORS - atSector);
        const range = [atSector * SECTOR_BYTES, (atSector + sectors) * SECTOR_BYTES] as const;
        if (kind === "zero") {
          await device.zero(atSector, sectors);
          model.fill(0, ...range);
          continue;
        }
        const bytes = pattern(seed, sectors);
        if (kind === "sync" && device.sync) device.sync.write(atSector, bytes);
        else await device.write(atSector, bytes);
        model.set(bytes, range[0]);
      }
      const expected = model.subarray(from * SECTOR_BYTES);
      assertEquals(await readSectors(device, from, SIZE_SECTORS - from), expected);
      if (!device.sync) return;
      const into = new Uint8Array(expected.length);
      device.sync.read(from, into);
      assertEquals(into, expected);
    });
    await fc.assert(mixture, { numRuns: 25 });
  });

  contract("writes many ranges at the same time, each to its place", async (device) => {
    const pieces = Array.from({ length: 50 }, (_, i) => pattern(i, 20));
    await Promise.all(pieces.map((bytes, i) => device.write(i * 20, bytes)));
    const read = await Promise.all(pieces.map((_, i) => readSectors(device, i * 20, 20)));
    assertEquals(read, pieces);
  });

  contract("takes empty transfers", async (device) => {
    await device.write(SIZE_SECTORS, new Uint8Array(0));
    await device.read(0, new Uint8Array(0));
    await device.zero(5, 0);
    await device.discard(5, 0);
  });

  contract("transfers the part of a buffer that it is given and no more", async (device) => {
    const buffer = pattern(4, 10);
    await device.write(7, buffer.subarray(SECTOR_BYTES, 3 * SECTOR_BYTES));
    const into = new Uint8Array(10 * SECTOR_BYTES).fill(0xee);
    await device.read(7, into.subarray(2 * SECTOR_BYTES, 4 * SECTOR_BYTES));
    const expected = new Uint8Array(10 * SECTOR_BYTES).fill(0xee);
    expected.set(buffer.subarray(SECTOR_BYTES, 3 * SECTOR_BYTES), 2 * SECTOR_BYTES);
    assertEquals(into, expected);
  });
}

function durability(contract: Contract): void {
  contract("flushes, alone and many at once, and with writes", async (device) => {
    await device.write(3, pattern(5, 4), { preflush: true, fua: true });
    await device.write(5, pattern(6, 1), { fua: true });
    await device.write(6, pattern(7, 1), { preflush: true });
    await Promise.all([device.flush(), device.flush(), device.flush()]);
    await device.flush();
    const expected = pattern(5, 4);
    expected.set(pattern(6, 1), 2 * SECTOR_BYTES);
    expected.set(pattern(7, 1), 3 * SECTOR_BYTES);
    assertEquals(await readSectors(device, 3, 4), expected);
  });
}

function giveBack(contract: Contract): void {
  contract("reads zeroes where it was zeroed, and nothing else changes", async (device) => {
    const all = pattern(8, SIZE_SECTORS);
    await device.write(0, all);
    await device.zero(13, 701);
    all.fill(0, 13 * SECTOR_BYTES, 714 * SECTOR_BYTES);
    assertEquals(await readSectors(device, 0, SIZE_SECTORS), all);
    await device.zero(0, SIZE_SECTORS);
    assertEquals(await readSectors(device, 0, SIZE_SECTORS), new Uint8Array(all.length));
  });

  contract("changes nothing outside a discarded range", async (device) => {
    const all = pattern(9, SIZE_SECTORS);
    await device.write(0, all);
    await device.discard(100, 50);
    const read = await readSectors(device, 0, SIZE_SECTORS);
    const range = [100 * SECTOR_BYTES, 150 * SECTOR_BYTES] as const;
    read.fill(0, ...range);
    all.fill(0, ...range);
    assertEquals(read, all);
    await device.write(100, pattern(10, 50));
    assertEquals(await readSectors(device, 100, 50), pattern(10, 50));
  });
}

function misuse(contract: Contract): void {
  contract("asserts that ranges are whole sectors inside the device", async (device) => {
    const one = new Uint8Array(SECTOR_BYTES);
    const wrong: Array<() => Promise<void>> = [
      () => device.read(SIZE_SECTORS, one),
      () => device.write(SIZE_SECTORS, one),
      () => device.read(-1, one),
      () => device.write(0.5, one),
      () => device.read(0, new Uint8Array(100)),
      () => device.write(SIZE_SECTORS - 1, new Uint8Array(2 * SECTOR_BYTES)),
      () => device.zero(SIZE_SECTORS - 1, 2),
      () => device.discard(SIZE_SECTORS, 1),
      () => device.discard(0, -1),
    ];
    for (const call of wrong) await assertRejects(call, AssertionError);
    const { sync } = device;
    if (!sync) return;
    assertThrows(() => sync.read(SIZE_SECTORS, one), AssertionError);
    assertThrows(() => sync.write(0, new Uint8Array(100)), AssertionError);
  });

  contract("is not used after it was closed", async (device) => {
    const closed = bound(device);
    await device.close();
    device.close = () => Promise.resolve(); // The suite closes every device.
    const one = new Uint8Array(SECTOR_BYTES);
    await assertRejects(() => closed.read(0, one), AssertionError);
    await assertRejects(() => closed.write(0, one), AssertionError);
    await assertRejects(() => closed.flush(), AssertionError);
    await assertRejects(() => closed.zero(0, 1), AssertionError);
    await assertRejects(() => closed.discard(0, 1), AssertionError);
    await assertRejects(() => closed.close(), AssertionError);
    const { sync } = device;
    if (!sync) return;
    assertThrows(() => sync.read(0, one), AssertionError);
    assertThrows(() => sync.write(0, one), AssertionError);
  });
}

function bound(device: Device) {
  return {
    read: device.read.bind(device),
    write: device.write.bind(device),
    flush: device.flush.bind(device),
    zero: device.zero.bind(device),
    discard: device.discard.bind(device),
    close: device.close.bind(device),
  };
}
