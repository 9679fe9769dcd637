/** What each kind of fault does to a simulated disk, and what it leaves alone. */
import { test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { imageAfterCut } from "./power_cut.ts";
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

function filled(sectors: number, value: number): Uint8Array {
  return new Uint8Array(sectors * 512).fill(value);
}

/** The first byte of each of the first sectors when nothing unflushed survives. */
function stableBytes(disk: SimDisk, sectors: number): number[] {
  const bytes = new Uint8Array(sectors * 512);
  imageAfterCut(disk.snapshot(), "none", new SimRandom(1)).read(0, bytes);
  return Array.from({ length: sectors }, (_, sector) => bytes[sector * 512]!);
}

function bitsThatDiffer(a: Uint8Array, b: Uint8Array): number {
  let bits = 0;
  a.forEach((byte, at) => {
    for (let rest = byte ^ b[at]!; rest !== 0; rest >>= 1) bits += rest & 1;
  });
  return bits;
}

test("a slow operation takes seconds and comes to the same; others overtake it", async () => {
  const { clock, disk } = newDisk();
  disk.faults.add({ operation: "write", kind: "slow", toSector: 7 });
  const order: string[] = [];
  const slow = disk.write(0, filled(2, 1)).then(() => order.push("slow"));
  const quick = disk.write(8, filled(2, 2)).then(() => order.push("quick"));
  await clock.run(Promise.all([slow, quick]));
  assertEquals(order, ["quick", "slow"]);
  assertGreater(clock.nowMs(), 999);
  assertEquals([disk.peek(0, 1)[0], disk.peek(8, 1)[0]], [1, 2]);
});

test("a short transfer comes whole in the end, its first part earlier", async () => {
  const { clock, disk } = newDisk();
  disk.faults.add({ operation: "write", kind: "short" });
  disk.faults.add({ operation: "read", kind: "short" });
  await clock.run(disk.zero(0, 8));
  const seen = new Set<number>();
  const writing = disk.write(0, filled(8, 7));
  let done = false;
  const watch = async () => {
    while (!done) {
      seen.add(disk.peek(0, 8).filter((byte) => byte === 7).length / 512);
      await clock.turn();
    }
  };
  await clock.run(Promise.all([writing.then(() => void (done = true)), watch()]));
  assertEquals(disk.peek(0, 8), filled(8, 7));
  assert([...seen].some((sectors) => sectors > 0 && sectors < 8), `seen: ${[...seen].join()}`);
  const into = filled(8, 0);
  await clock.run(disk.read(0, into));
  assertEquals(into, filled(8, 7));
  assertEquals(disk.violations, []);
  assertEquals(disk.faults.injected, 2);
});

test("a misdirected write is acknowledged, lands elsewhere; both places are known", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(16, 1), { fua: true }));
  disk.faults.add({ operation: "write", kind: "misdirected", landsAt: (at) => at + 8 });
  await clock.run(disk.write(2, filled(2, 9), { fua: true }));
  assertEquals(stableBytes(disk, 16), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 1, 1, 1, 1]);
  const told = disk.faults.damage.map(({ sector, wanted, found }) => [sector, wanted[0], found[0]]);
  assertEquals(told, [[2, 9, 1], [3, 9, 1], [10, 1, 9], [11, 1, 9]]);
});

test("where a misdirected write lands on its own place, it is what was to be there", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(8, 1), { fua: true }));
  disk.faults.add({ operation: "write", kind: "misdirected", landsAt: (at) => at + 1 });
  const bytes = new Uint8Array([...filled(1, 7), ...filled(1, 8)]);
  await clock.run(disk.write(2, bytes, { fua: true }));
  const told = disk.faults.damage.map(({ sector, wanted, found }) => [sector, wanted[0], found[0]]);
  assertEquals(told, [[2, 7, 1], [3, 8, 7], [4, 1, 8]]);
});

for (const sync of [false, true]) {
  test(`rot turns over one bit that is read or written${sync ? ", at once" : ""}`, async () => {
    const { clock, disk } = newDisk({ sync });
    const write = async (bytes: Uint8Array) => {
      if (disk.sync) disk.sync.write(0, bytes);
      else await clock.run(disk.write(0, bytes));
    };
    disk.faults.add({ operation: "write", kind: "rot" });
    await write(filled(4, 3));
    assertEquals(bitsThatDiffer(disk.peek(0, 4), filled(4, 3)), 1);
    await write(filled(4, 3));
    await clock.run(disk.flush());
    disk.faults.add({ operation: "read", kind: "rot", fromSector: 0, toSector: 3 });
    const into = filled(4, 0);
    if (disk.sync) disk.sync.read(0, into);
    else await clock.run(disk.read(0, into));
    assertEquals(bitsThatDiffer(into, filled(4, 3)), 1);
    assertEquals(disk.peek(0, 4), into);
    const image = imageAfterCut(disk.snapshot(), "none", new SimRandom(1));
    const stable = filled(4, 0);
    image.read(0, stable);
    assertEquals(stable, into, "the medium itself is wrong");
    assertEquals(disk.faults.damage.length, 3, "of the write; of what is read and what is stable");
    for (const { wanted, found } of disk.faults.damage) {
      assertEquals(bitsThatDiffer(wanted, found), 1);
    }
  });
}

test("rot reaches what was not flushed yet", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(1, 3)));
  disk.faults.add({ operation: "read", kind: "rot" });
  const into = filled(1, 0);
  await clock.run(disk.read(0, into));
  await clock.run(disk.flush());
  assertEquals(bitsThatDiffer(disk.peek(0, 1), filled(1, 3)), 1);
  const stable = filled(1, 0);
  imageAfterCut(disk.snapshot(), "none", new SimRandom(1)).read(0, stable);
  assertEquals(stable, into);
});

test("a flush that lies makes nothing stable, and the next honest one everything", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(2, 1), { fua: true }));
  disk.faults.add({ operation: "flush", kind: "lie" });
  await clock.run(disk.write(0, filled(1, 2)));
  await clock.run(disk.flush());
  assertEquals(stableBytes(disk, 2), [1, 1]);
  disk.faults.add({ operation: "write", kind: "lie" });
  await clock.run(disk.write(1, filled(1, 3), { fua: true }));
  assertEquals(stableBytes(disk, 2), [1, 1]);
  await clock.run(disk.flush());
  assertEquals(stableBytes(disk, 2), [2, 3]);
});

test("a failed flush that loses: no later one makes that stable", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.write(0, filled(3, 1), { fua: true }));
  await clock.run(disk.write(0, filled(2, 2)));
  disk.faults.add({ operation: "flush", loses: true });
  await assertRejects(() => clock.run(disk.flush()), BcacheError, "flush failed");
  await clock.run(disk.write(1, filled(2, 3)));
  await clock.run(disk.flush());
  assertEquals([disk.peek(0, 1)[0], disk.unflushed], [2, 1], "it is read back, and pending");
  assertEquals(stableBytes(disk, 3), [1, 3, 3]);
  const all = filled(3, 0);
  imageAfterCut(disk.snapshot(), "all", new SimRandom(1)).read(0, all);
  assertEquals([all[0], all[512], all[1024]], [2, 3, 3], "nothing old comes back over newer data");
});

test("an error fails the operation, of a write a part may have happened", async () => {
  const { clock, disk } = newDisk();
  await clock.run(disk.zero(0, 8));
  disk.faults.add({ operation: "write", after: 1, errno: "ENOSPC" });
  await clock.run(disk.write(0, filled(8, 1)));
  await assertRejects(() => clock.run(disk.write(0, filled(8, 2))), BcacheError, "write of");
  const changed = disk.peek(0, 8).filter((byte) => byte === 2).length;
  assertLess(changed, 8 * 512 + 1);
  assertEquals(changed % 512, 0);
  assertEquals(disk.faults.injected, 1);
});
