/** Small writes to consecutive sectors gathered into one: nobody can tell but by counting. */
import { describe, test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import { GatheringDevice } from "../../../lib/cache/devices/gathering_device.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { TracedDevice } from "../../../lib/device/traced.ts";
import { SimRandom } from "../../simulation/sim_random.ts";

function setUp() {
  const writes: Array<[number, number]> = [];
  let broken = false;
  const memory = new MemoryDevice(4096);
  const device = new GatheringDevice(
    new TracedDevice(memory, {
      begin: ({ kind, atSector, sectors }) => {
        if (kind !== "write") return;
        if (broken) throw new Error("cannot write");
        writes.push([atSector, sectors]);
      },
    }),
  );
  const breakWrites = (is: boolean) => {
    broken = is;
  };
  return { device, memory, writes, breakWrites };
}

const sectors = (count: number, value: number) => new Uint8Array(count * 512).fill(value);

describe("a gathering device", () => {
  test("writes what goes to consecutive sectors at once, when a flush asks for it", async () => {
    const { device, writes } = setUp();
    for (let at = 8; at < 40; at += 8) device.sync!.write(at, sectors(8, at));
    assertEquals(writes, []);
    await device.flush();
    assertEquals(writes, [[8, 32]]);
    await device.flush();
    assertEquals(writes.length, 1);
  });

  test("does not wait with long writes, nor with what goes elsewhere", () => {
    const { device, writes } = setUp();
    device.sync!.write(0, sectors(8, 1));
    device.sync!.write(100, sectors(8, 2));
    assertEquals(writes, [[0, 8]]);
    device.sync!.write(108, sectors(128, 3));
    assertEquals(writes, [[0, 8], [100, 8], [108, 128]]);
  });

  test("is bounded in what it gathers", () => {
    const { device, writes } = setUp();
    for (let at = 0; at < 1024; at += 8) device.sync!.write(at, sectors(8, 1));
    assertEquals(writes, [[0, 256], [256, 256], [512, 256]]);
  });

  test("keeps what cannot be written, and fails whoever needs it", async () => {
    const { device, memory, breakWrites } = setUp();
    device.sync!.write(8, sectors(8, 5));
    breakWrites(true);
    assertThrows(() => device.sync!.read(8, sectors(8, 0)));
    let failed = false;
    await device.flush().catch(() => failed = true);
    assertEquals(failed, true);
    breakWrites(false);
    await device.flush();
    const into = sectors(8, 0);
    await memory.read(8, into);
    assertEquals(into, sectors(8, 5));
  });

  test("reads and overwrites as the device alone would, whatever the order", async () => {
    const { device } = setUp();
    const model = new Uint8Array(256 * 512);
    const random = new SimRandom(4);
    let next = 0;
    for (let step = 0; step < 3000; step++) {
      const count = 1 + random.below(random.chance(0.1) ? 80 : 8);
      const at = random.chance(0.6) && next + count <= 256 ? next : random.below(256 - count);
      const bytes = sectors(count, 1 + random.below(255));
      const kind = random.below(10);
      if (kind < 6) {
        device.sync!.write(at, bytes);
        model.set(bytes, at * 512);
        next = at + count;
      } else if (kind < 7) {
        await device.write(at, bytes);
        model.set(bytes, at * 512);
      } else if (kind < 8) {
        await device.zero(at, count);
        model.fill(0, at * 512, (at + count) * 512);
      } else {
        if (kind === 8) device.sync!.read(at, bytes);
        else await device.read(at, bytes);
        assertEquals(bytes, model.slice(at * 512, (at + count) * 512), `step ${step}`);
      }
    }
  });
});
