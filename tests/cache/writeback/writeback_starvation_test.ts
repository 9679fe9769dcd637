/** Whether it can be seen that dirty data is not being written back. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { STILL, writebackWorld } from "./writeback_world.ts";

test("writeback that gets nowhere is seen, until it gets on again", async () => {
  const world = await writebackWorld({ settings: STILL });
  const starved = async () => Number(await world.get("writeback_starved_seconds"));
  await world.pass(100);
  assertEquals(await starved(), 0, "nothing is dirty");
  await world.write(0, 4096);
  await world.pass(100);
  const stopped = await starved();
  assert(stopped >= 90 && stopped <= 105, `about the time that passed: ${stopped}`);
  world.backing.failWrite = () => true;
  await world.set.setAttribute("bcache0", "writeback_running", "1");
  await world.pass(30);
  assert(await starved() >= 120, "a device that fails starves it as well");
  world.backing.failWrite = () => false;
  await world.pass(100);
  assertEquals([await starved(), await world.dirtyBytes()], [0, 0]);
  await world.close();
});

test("dirty data below the target is not starved", async () => {
  const world = await writebackWorld({
    settings: [["writeback_running", "0"], ["sequential_cutoff", "0"], ["writeback_percent", "40"]],
  });
  await world.write(0, 4096);
  await world.pass(100);
  assertEquals(await world.get("writeback_starved_seconds"), "0");
  await world.close();
});
