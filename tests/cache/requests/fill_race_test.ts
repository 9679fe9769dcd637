/**
 * A read fills the cache with what it found on the backing device, while something changes the
 * same range. Whatever comes first, the cache must not keep what is old: Linux did, in 2021, when
 * a write went past the cache.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { DATA_OFFSET, filled, SetWorld } from "../set_world.ts";

const QUIET: [string, string][] = [["writeback_running", "0"], ["sequential_cutoff", "0"]];

/** Opens when told to; counts who came. */
class Gate {
  came = 0;
  #open = Promise.withResolvers<void>();

  wait(): Promise<void> {
    this.came++;
    return this.#open.promise;
  }

  open(): void {
    this.#open.resolve();
  }
}

const CHANGES = {
  "a write past the cache": (world: SetWorld) => world.volume.write(4096, filled(4096, 2)),
  "a written-back write": async (world: SetWorld) => {
    await world.set.setAttribute("bcache0", "cache_mode", "writeback");
    await world.volume.write(4096, filled(4096, 2));
  },
  "a written-through write": async (world: SetWorld) => {
    await world.set.setAttribute("bcache0", "cache_mode", "writethrough");
    await world.volume.write(4096, filled(4096, 2));
  },
  "zeroing": (world: SetWorld) => world.volume.zero(4096, 4096),
};

/** Lets what is ready run, for a while of simulated time. */
const settle = (world: SetWorld) => world.run(world.clock.sleep(50));

describe("a fill that is under way", () => {
  for (const [name, change] of Object.entries(CHANGES)) {
    const wanted = filled(4096, name === "zeroing" ? 0 : 2);

    test(`does not bring back what ${name} replaced while it read`, async () => {
      const world = await SetWorld.make({ mode: "writearound", settings: QUIET });
      await world.write(0, 16384, 1);
      const gate = new Gate();
      world.backing.gate = (kind) => kind === "read" ? gate.wait() : undefined;
      const into = new Uint8Array(16384);
      const reading = world.volume.read(0, into); // Has the old bytes, and has not come back.
      await settle(world);
      assertEquals(gate.came, 1);
      await world.run(change(world));
      gate.open();
      await world.run(reading);
      world.backing.gate = undefined;
      await settle(world);
      assertEquals(await world.read(4096, 4096), wanted);
      assertEquals(await world.read(0, 4096), filled(4096, 1));
      assert(Number(await world.attribute("stats_total/cache_miss_collisions")) > 0);
      await world.close();
      await world.start();
      assertEquals(await world.read(4096, 4096), wanted, "after a restart, too");
      await world.close();
    });

    test(`does not bring back what ${name} replaced while it was put into the cache`, async () => {
      const world = await SetWorld.make({ mode: "writearound", settings: QUIET, asyncOnly: true });
      await world.write(0, 16384, 1);
      const gate = new Gate();
      let isFirst = true;
      world.cache.gate = (kind) => {
        if (kind !== "write" || !isFirst) return undefined;
        isFirst = false;
        return gate.wait();
      };
      await world.read(0, 16384);
      await settle(world);
      assertEquals(
        gate.came,
        1,
        "the data is on its way to the cache, its key is not in the index",
      );
      await world.run(change(world));
      gate.open();
      await settle(world);
      assertEquals(await world.read(4096, 4096), wanted);
      await world.close();
      await world.start();
      assertEquals(await world.read(4096, 4096), wanted, "after a restart, too");
      await world.close();
    });
  }

  test("is not begun behind a write past the cache that has not told the index yet", async () => {
    const world = await SetWorld.make({ mode: "writearound", settings: QUIET });
    await world.write(0, 16384, 1);
    const gate = new Gate();
    world.backing.gate = (kind) => kind === "write" ? gate.wait() : undefined;
    const writing = world.volume.write(4096, filled(4096, 2));
    await settle(world);
    await world.read(0, 16384); // Old, which is right: the write is not acknowledged.
    await settle(world);
    gate.open();
    await world.run(writing);
    assertEquals(await world.read(4096, 4096), filled(4096, 2));
    await world.close();
  });
});

describe("a write to the backing device that fails", () => {
  /** Changes sectors 8 to 15 on the medium, waits at the gate, and is refused all the same. */
  async function failingWrite(world: SetWorld, gate: Gate, way: "written" | "zeroed") {
    world.backing.gate = (kind) => kind === "write" ? gate.wait() : undefined;
    world.backing.failing = ({ kind }) => kind === "write" || kind === "zero";
    await world.backing.memory.write(DATA_OFFSET + 8, filled(4096, 2));
    const change = way === "written"
      ? world.volume.write(4096, filled(4096, 2))
      : world.volume.zero(4096, 4096);
    return change.then(() => assert(false, "it was refused"), () => undefined);
  }

  test("leaves nothing in the cache of what a read saw meanwhile", async () => {
    const world = await SetWorld.make({ mode: "writearound", settings: QUIET });
    await world.write(0, 16384, 1);
    const gate = new Gate();
    const writing = failingWrite(world, gate, "written");
    await settle(world);
    assertEquals(gate.came, 1);
    assertEquals(await world.read(4096, 4096), filled(4096, 2));
    await world.backing.memory.write(DATA_OFFSET + 8, filled(4096, 1));
    gate.open();
    await world.run(writing);
    assertEquals(await world.read(4096, 4096), filled(4096, 1), "what is there, and stays");
    world.backing.failing = undefined;
    await world.close();
  });

  for (const way of ["written", "zeroed"] as const) {
    test(`does not leave in the cache what it may have replaced (${way})`, async () => {
      const world = await SetWorld.make({ mode: "writearound", settings: QUIET });
      await world.write(0, 16384, 1);
      assertEquals(await world.read(0, 16384), filled(16384, 1));
      const gate = new Gate();
      gate.open();
      await world.run(failingWrite(world, gate, way));
      assertEquals(await world.read(4096, 4096), filled(4096, 2));
      world.backing.trace.length = 0;
      assertEquals(await world.read(0, 4096), filled(4096, 1));
      assertEquals(world.backing.trace, [], "beside it everything is cached still");
      world.backing.failing = undefined;
      await world.close();
    });
  }

  test("does not let a read cache what it may have replaced meanwhile", async () => {
    const world = await SetWorld.make({ mode: "writearound", settings: QUIET });
    await world.write(0, 16384, 1);
    const gate = new Gate();
    world.backing.gate = (kind) => kind === "read" ? gate.wait() : undefined;
    const reading = world.volume.read(0, new Uint8Array(16384)); // Has the old bytes.
    await settle(world);
    assertEquals(gate.came, 1);
    const open = new Gate();
    open.open();
    await world.run(failingWrite(world, open, "written"));
    gate.open();
    await world.run(reading);
    assertEquals(await world.read(4096, 4096), filled(4096, 2));
    world.backing.failing = undefined;
    await world.close();
  });
});

describe("when data cannot be written to the cache", () => {
  test("a written-through write drops what was cached of the range", async () => {
    const world = await SetWorld.make({ mode: "writethrough", settings: QUIET, asyncOnly: true });
    await world.write(0, 4096, 1);
    await world.read(0, 4096);
    world.cache.failing = (operation) => operation.kind === "write" && operation.sectors === 8;
    await world.write(0, 4096, 2);
    world.cache.failing = undefined;
    assertEquals(await world.read(0, 4096), filled(4096, 2));
    assertEquals(await world.onBacking(0, 4096), filled(4096, 2));
    await world.close();
  });

  test("a fill is given up, and the read does not fail", async () => {
    for (const asyncOnly of [false, true]) {
      const world = await SetWorld.make({ mode: "writearound", settings: QUIET, asyncOnly });
      await world.write(0, 131072, 1);
      world.cache.failing = (operation) =>
        operation.kind === "write" && operation.sectors >= 32 &&
        new BcacheError("DeviceIo", "cache: planted write error");
      assertEquals(await world.read(0, 131072), filled(131072, 1));
      await settle(world);
      world.cache.failing = undefined;
      world.backing.trace.length = 0;
      assertEquals(await world.read(0, 131072), filled(131072, 1));
      assert(world.backing.trace.some(({ kind }) => kind === "read"), "it was not cached");
      await world.close();
    }
  });
});
