import { test } from "bun:test";
import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { AssertionError } from "../../lib/base/assert.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Device } from "../../lib/device/device.ts";
import { deviceContract } from "../device/contract.ts";
import { imageAfterCut } from "./power_cut.ts";
import type { CutPolicy } from "./power_cut.ts";
import { SimClock } from "./sim_clock.ts";
import { SimDisk } from "./sim_disk.ts";
import type { SimDiskOptions } from "./sim_disk.ts";
import { SimRandom } from "./sim_random.ts";

function newDisk(options: Partial<SimDiskOptions> = {}): { clock: SimClock; disk: SimDisk } {
  const clock = new SimClock();
  const random = new SimRandom(5);
  const disk = new SimDisk({ name: "disk", sizeSectors: 64, clock, random, ...options });
  return { clock, disk };
}

/** The disk as a device whose time moves by itself while somebody waits. */
function selfMoving(sync: boolean): Device {
  const { clock, disk } = newDisk({ sizeSectors: 1000, sync });
  const run = async (work: Promise<void>) => {
    await clock.run(work);
  };
  return {
    name: disk.name,
    sizeSectors: disk.sizeSectors,
    logicalBlockSectors: 1,
    readOnly: false,
    read: (at, into) => run(disk.read(at, into)),
    write: (at, from, options) => run(disk.write(at, from, options)),
    flush: () => run(disk.flush()),
    discard: (at, sectors) => run(disk.discard(at, sectors)),
    zero: (at, sectors) => run(disk.zero(at, sectors)),
    close: () => run(disk.close()),
    ...(disk.sync === undefined ? {} : { sync: disk.sync }),
  };
}

deviceContract("simulated disk", () => ({ device: selfMoving(false) }));
deviceContract("simulated disk with synchronous calls", () => ({ device: selfMoving(true) }));

function filled(sectors: number, value: number): Uint8Array {
  return new Uint8Array(sectors * 512).fill(value);
}

/** The first byte of each sector as the next boot finds it. */
function bootBytes(disk: SimDisk, policy: CutPolicy, sectors: number, seed = 1): number[] {
  const image = imageAfterCut(disk.snapshot(), policy, new SimRandom(seed));
  const bytes = new Uint8Array(sectors * 512);
  image.read(0, bytes);
  return Array.from({ length: sectors }, (_, sector) => bytes[sector * 512]!);
}

test("a completed write is read back, and only a flush makes it survive a power cut", async () => {
  const { clock, disk } = newDisk();
  const before = bootBytes(disk, "none", 2);
  await clock.run(disk.write(0, filled(2, 7)));
  assertEquals(disk.peek(0, 2), filled(2, 7));
  assertEquals(bootBytes(disk, "none", 2), before);
  assertEquals(bootBytes(disk, "all", 2), [7, 7]);
  await clock.run(disk.flush());
  assertEquals(bootBytes(disk, "none", 2), [7, 7]);
});

test("a flush covers only writes that completed before it was asked for", async () => {
  const { clock, disk } = newDisk({ latency: { read: [1, 1], write: [10, 10], flush: [50, 50] } });
  const before = bootBytes(disk, "none", 1);
  const write = disk.write(0, filled(1, 7));
  await clock.run(Promise.all([write, disk.flush()]));
  assertEquals(bootBytes(disk, "none", 1), before);
});

test("fua makes this write stable, no other; preflush makes the earlier ones stable", async () => {
  const { clock, disk } = newDisk();
  const before = bootBytes(disk, "none", 3);
  await clock.run(disk.write(0, filled(1, 1)));
  await clock.run(disk.write(1, filled(1, 2), { fua: true }));
  assertEquals(bootBytes(disk, "none", 3), [before[0]!, 2, before[2]!]);
  await clock.run(disk.write(2, filled(1, 3), { preflush: true }));
  assertEquals(bootBytes(disk, "none", 3), [1, 2, before[2]!]);
});

test("a stable write is not undone by an older one that was never flushed", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(4, 1)));
  await clock.run(disk.write(1, filled(2, 2), { fua: true }));
  assertEquals(bootBytes(disk, "all", 4), [1, 2, 2, 1]);
});

test("a power cut may keep any of several versions of a sector", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(8, 1), { fua: true }));
  for (const value of [2, 3]) await clock.run(disk.write(0, filled(8, value)));
  const seen = new Set<number>();
  for (let seed = 0; seed < 40; seed++) {
    for (const value of bootBytes(disk, "sectors", 8, seed)) seen.add(value);
  }
  assertEquals([...seen].sort((a, b) => a - b), [1, 2, 3]);
});

test("a write under way at the power cut may have happened in any part", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.zero(0, 8));
  await clock.run(disk.flush());
  void disk.write(0, filled(8, 9));
  assertEquals(bootBytes(disk, "none", 8), [0, 0, 0, 0, 0, 0, 0, 0]);
  const torn = [1, 2, 3, 4].flatMap((seed) => bootBytes(disk, "sectors", 8, seed));
  assert(torn.includes(9) && torn.includes(0), `torn: ${torn.join()}`);
});

test("a snapshot sees nothing that happens later, nor the disk what it does", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(1, 1), { fua: true }));
  const snapshot = disk.snapshot();
  await clock.run(disk.write(0, filled(1, 2), { fua: true }));
  const image = imageAfterCut(snapshot, "all", new SimRandom(1));
  image.write(1, filled(1, 5));
  const bytes = new Uint8Array(512);
  image.read(0, bytes);
  assertEquals(bytes, filled(1, 1));
  assertEquals(disk.peek(0, 1), filled(1, 2));
  assertNotEquals(disk.peek(1, 1), filled(1, 5));
});

test("sectors nobody wrote read as garbage that does not change", async () => {
  const { clock, disk } = newDisk();
  const [once, again] = [filled(4, 0), filled(4, 0)];
  await clock.run(disk.read(3, once));
  await clock.run(disk.write(5, filled(1, 1)));
  await clock.run(disk.read(3, again));
  assertNotEquals(once, filled(4, 0));
  assertEquals(again.subarray(0, 1024), once.subarray(0, 1024));
});

test("a read beside a write returns old and new sectors mixed", async () => {
  const { clock, disk } = newDisk({ latency: { read: [1, 1], write: [9, 9], flush: [1, 1] } });
  await clock.run(disk.zero(0, 32));
  const into = filled(32, 1);
  await clock.run(Promise.all([disk.write(0, filled(32, 8)), disk.read(0, into)]));
  assert(into.includes(8) && into.includes(0), "both were seen");
});

test("a buffer that changes while the disk has it is a violation", async () => {
  const { clock, disk } = newDisk();
  const buffer = filled(1, 1);
  const write = disk.write(0, buffer);
  buffer[3] = 4;
  await clock.run(write);
  assertEquals(disk.violations.length, 1);
  const into = filled(1, 1);
  const read = disk.read(0, into);
  into[0] = 9;
  await clock.run(read);
  assertEquals(disk.violations.length, 2);
});

test("faults fail the operations they name, so many times, and can be taken away", async () => {
  const { clock, disk } = newDisk();
  disk.faults.add({ operation: "read", fromSector: 4, toSector: 4, after: 1, times: 1 });
  const read = (at: number) => clock.run(disk.read(at, filled(2, 0)));
  await read(0);
  await read(4);
  await assertRejects(() => read(3), BcacheError, "sectors 3+2 failed");
  await read(3);
  const remove = disk.faults.add({ operation: "write", times: Infinity, errno: "ENOSPC" });
  const error = await assertRejects(() => clock.run(disk.write(0, filled(1, 1))), BcacheError);
  assertEquals(error.errno, 28);
  await assertRejects(() => clock.run(disk.write(0, filled(1, 1))), BcacheError);
  remove();
  await clock.run(disk.write(0, filled(1, 1)));
  disk.faults.add({ operation: "flush" });
  await assertRejects(() => clock.run(disk.flush()), BcacheError);
  assertEquals(disk.faults.injected, 4);
});

test("a failed flush makes nothing stable", async () => {
  const { clock, disk } = newDisk();
  const before = bootBytes(disk, "none", 1);
  await clock.run(disk.write(0, filled(1, 1)));
  disk.faults.add({ operation: "flush" });
  await assertRejects(() => clock.run(disk.flush()), BcacheError);
  assertEquals(bootBytes(disk, "none", 1), before);
});

test("after the power cut nothing settles, and the synchronous calls throw", async () => {
  const { clock, disk } = newDisk({ sync: true });
  let settled = false;
  const write = disk.write(0, filled(1, 1)).finally(() => {
    settled = true;
  });
  disk.cutPower();
  await assertRejects(() => clock.run(write), Error, "deadlock");
  assertEquals(settled, false);
  assertThrows(() => disk.sync!.read(0, filled(1, 0)), BcacheError, "power is off");
});

test("the synchronous calls see and make the same bytes, and are lost the same way", async () => {
  const { clock, disk } = newDisk({ sync: true });
  const before = bootBytes(disk, "none", 1);
  disk.sync!.write(0, filled(1, 6));
  const into = filled(1, 0);
  disk.sync!.read(0, into);
  assertEquals(into, filled(1, 6));
  assertEquals(bootBytes(disk, "none", 1), before);
  await clock.run(disk.flush());
  assertEquals(bootBytes(disk, "none", 1), [6]);
  assertEquals(newDisk().disk.sync, undefined);
});

test("every moment at which a cut can differ is told, with the state of that moment", async () => {
  const told: string[] = [];
  const { clock, disk } = newDisk({
    onMoment: ({ operation, phase }) => {
      told.push(`${operation} ${phase} ${disk.inFlight} ${disk.unflushed}`);
    },
  });
  await clock.run(disk.write(0, filled(1, 1)));
  await clock.run(disk.flush());
  assertEquals(told, [
    "write submitted 1 0",
    "write completed 0 1",
    "flush submitted 1 1",
    "flush completed 0 0",
  ]);
});

test("closing with operations under way, and using a closed disk, are violations", async () => {
  const { clock, disk } = newDisk();
  const flush = disk.flush();
  await disk.close();
  await clock.run(flush);
  await assertRejects(() => disk.read(0, filled(1, 0)), AssertionError);
  assertEquals(disk.violations.length, 2);
});
