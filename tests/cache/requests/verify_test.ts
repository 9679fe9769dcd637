/** The attribute `verify`: clean data in the cache is compared with the backing device's. */
import { test } from "bun:test";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { DATA_OFFSET, STILL, writebackWorld } from "../writeback/writeback_world.ts";

test("clean data that differs fails the set, and the backing device serves", async () => {
  const world = await writebackWorld({ settings: STILL, mode: "writethrough" });
  await world.write(8192, 4096, 5);
  const into = new Uint8Array(4096);
  await world.set.setAttribute("bcache0", "verify", "1");
  await world.run(world.volume.read(8192, into));
  assert(into.every((byte) => byte === 5), "what agrees is served");
  // Behind the set's back.
  await world.run(world.backing.write(DATA_OFFSET + 16 + 3, new Uint8Array(512).fill(9)));
  await world.run(world.volume.read(8192, into));
  assertEquals([into[0], into[3 * 512], into[4 * 512]], [5, 9, 5], "past the cache");
  const { failed } = await world.set.status();
  assertStringIncludes(failed ?? "", `sector ${DATA_OFFSET + 16 + 3}: verify failed`);
  await world.close();
});

test("dirty data is not compared, and a set that does not verify does not notice", async () => {
  const world = await writebackWorld({ settings: STILL });
  await world.write(0, 4096, 5);
  await world.set.setAttribute("bcache0", "verify", "1");
  const into = new Uint8Array(4096);
  await world.run(world.volume.read(0, into));
  assert(into.every((byte) => byte === 5), "only the cache has it");
  await world.drain();
  await world.run(world.backing.write(DATA_OFFSET, new Uint8Array(512).fill(9)));
  await world.set.setAttribute("bcache0", "verify", "0");
  await world.run(world.volume.read(0, into));
  assertEquals(into[0], 5);
  await world.close();
});

test("data that is written while it is compared is no difference", async () => {
  const world = await writebackWorld({ settings: STILL, mode: "writethrough" });
  await world.write(0, 4096, 1);
  await world.set.setAttribute("bcache0", "verify", "1");
  world.backing.writeMs = 10;
  const into = new Uint8Array(4096);
  const both = Promise.all([
    world.volume.write(0, new Uint8Array(4096).fill(2)),
    ...Array.from({ length: 20 }, () => world.volume.read(0, into)),
  ]);
  await world.run(both);
  await world.run(world.volume.read(0, into));
  assertEquals(into[0], 2);
  assertEquals((await world.set.status()).failed, undefined);
  await world.close();
});
