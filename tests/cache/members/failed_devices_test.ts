/** Several devices of one failed set: each is served as its own data allows. */
import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import type { BackingSource } from "../../../lib/cache/members/attach.ts";
import { CacheSet } from "../../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../../lib/cache/make.ts";
import { MemoryDevice } from "../../../lib/device/memory.ts";
import { SimClock } from "../../simulation/sim_clock.ts";
import { SimRandom } from "../../simulation/sim_random.ts";
import { BUCKET_SECTORS, filled, UnreliableDevice } from "../set_world.ts";

test("of two devices the dirty one refuses, and the clean one goes on", async () => {
  const clock = new SimClock();
  const run = <T>(work: Promise<T>) => clock.run(work) as Promise<T>;
  const cache = new UnreliableDevice("cache", 600 * BUCKET_SECTORS, false);
  const setUuid = new Uint8Array(16).fill(9);
  const common = { setUuid, blockSectors: 1, bucketSectors: BUCKET_SECTORS };
  await makeCache(cache.memory, { ...common, uuid: new Uint8Array(16).fill(1) });
  const backings: BackingSource[] = [];
  for (const index of [2, 3]) {
    const device = new MemoryDevice(16 + 4096, { name: `backing${index}` });
    await makeBacking(device, {
      ...common,
      uuid: new Uint8Array(16).fill(index),
      cacheMode: index === 2 ? "writeback" : "writethrough",
    });
    backings.push({ device, path: device.name });
  }
  const world = { clock, random: new SimRandom(1), log: () => {} };
  const settings: [string, string][] = [["writeback_running", "0"]];
  const open = () => run(CacheSet.open({ cache: cache.device, backings, ...world, settings }));
  const set = await open();
  const [dirty, clean] = set.volumes;
  await run(dirty!.write(0, filled(4096, 1)));
  await run(clean!.write(0, filled(4096, 2)));
  await run(dirty!.flush());
  cache.failing = ({ kind }) => kind === "write" && new BcacheError("NoSpace", "cache: full");
  await run(clean!.write(4096, filled(4096, 3)));
  // The journal cannot be written: the set fails, and this device goes on.
  await run(clean!.flush());
  const services = (await set.status()).devices.map(({ service }) => service);
  assertEquals(services, ["clean ranges only", "pass through"]);
  await assertRejects(() => run(dirty!.read(0, new Uint8Array(512))), BcacheError, "only there");
  const into = new Uint8Array(4096);
  await run(clean!.read(4096, into));
  assertEquals(into, filled(4096, 3));
  await run(clean!.write(0, filled(4096, 4)));
  await run(set.close());
  cache.failing = undefined;
  const again = await open();
  await run(again.volumes[0]!.read(0, into));
  assertEquals(into, filled(4096, 1), "the dirty data is taken up again");
  await run(again.volumes[1]!.read(0, into));
  assertEquals(into, filled(4096, 4), "and nothing old is served");
  await run(again.close());
});
