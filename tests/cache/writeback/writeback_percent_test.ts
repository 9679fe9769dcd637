/** What `writeback_percent` means for how soon dirty data is written back. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { oneDevice } from "../one_device.ts";

async function dirtyAfter(percent: number, ms: number): Promise<number> {
  const one = await oneDevice({ mode: "writeback", bucketSectors: 64, volumeSectors: 16384 });
  for (let at = 0; at < 12_000; at += 128) await one.write(at, 64, 1);
  await one.run(one.set.setAttribute("bcache0", "writeback_delay", "0"));
  await one.run(one.set.setAttribute("bcache0", "writeback_percent", String(percent)));
  await one.run(one.set.setAttribute("bcache0", "writeback_running", "1"));
  await one.settle(ms);
  const { dirtyBytes } = await one.device();
  await one.close();
  return dirtyBytes;
}

test("with 0 percent writeback knows no rate, with more it keeps to it", async () => {
  assertEquals(await dirtyAfter(0, 1500), 0);
  // 1024 sectors a second at first.
  assert(await dirtyAfter(10, 1500) > 2000 * 512);
});
