/** What starting a set leaves on the cache device, and what it counts from then on. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { Clock } from "../../lib/base/runtime.ts";
import type { Device } from "../../lib/device/device.ts";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const BUCKET = 32;
const DAY_SECONDS = 86_400;

async function setUp() {
  const cache = new MemoryDevice(600 * BUCKET);
  const backing = new MemoryDevice(16 + 16384);
  const common = { setUuid: new Uint8Array(16).fill(9), blockSectors: 1, bucketSectors: BUCKET };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  await makeBacking(backing, {
    ...common,
    uuid: new Uint8Array(16).fill(2),
    cacheMode: "writeback",
  });
  const open = (wallSeconds: number, readOnly = false, clock: Clock = new RealClock()) => {
    clock.wallSeconds = () => wallSeconds;
    return CacheSet.open({
      cache,
      backings: [{ device: new SlowDevice(backing, clock), path: "backing" }],
      clock,
      random: new SimRandom(1),
      log: () => {},
      readOnly,
    });
  };
  const superblock = async () => {
    const page = new Uint8Array(4096);
    await cache.read(8, page);
    return decodeSuperblock(page, cache);
  };
  return { open, superblock };
}

test("each start writes the superblock: one more, and when; a read-only one does not", async () => {
  const { open, superblock } = await setUp();
  await (await open(DAY_SECONDS)).close();
  const first = await superblock();
  assertEquals(first.lastMountSeconds, DAY_SECONDS);
  await (await open(2 * DAY_SECONDS)).close();
  const second = await superblock();
  assertEquals(second.lastMountSeconds, 2 * DAY_SECONDS);
  assertEquals(second.sequence, first.sequence + 1);
  await (await open(3 * DAY_SECONDS, true)).close();
  assertEquals((await superblock()).lastMountSeconds, 2 * DAY_SECONDS);
});

test("what was written is counted from the start on, metadata with the b-tree in it", async () => {
  const { open } = await setUp();
  await (await open(1)).close();
  const set = await open(2);
  const read = async (name: string) => Number((await set.attributes(undefined, name))[0]!.value);
  assertEquals(await read("written"), 0);
  const before = await read("metadata_written");
  await set.volumes[0]!.write(0, new Uint8Array(8192));
  await set.volumes[0]!.flush();
  assertEquals(await read("written"), 8192);
  assert(await read("metadata_written") >= before + 512, "a journal entry was written");
  assert(await read("metadata_written") >= await read("btree_written"), "nodes are metadata");
  await set.setAttribute(undefined, "cache_replacement_policy", "fifo");
  assertEquals(
    (await set.attributes(undefined, "feature_incompat"))[0]!.value,
    "obso_large_bucket large_bucket",
  );
  await set.close();
});

/** Takes 50 ms for every read. */
class SlowDevice extends ForwardingDevice {
  #clock: Clock;

  constructor(inner: Device, clock: Clock) {
    super(inner);
    this.#clock = clock;
  }

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    await this.#clock.sleep(50);
    await this.inner.read(atSector, into);
  }
}

test("the load of the backing device shows how busy requests keep it", async () => {
  const clock = new SimClock();
  const measure = async () => {
    const { open } = await setUp();
    const set = await open(1, false, clock);
    const load = async () => Number((await set.attributes("bcache0", "backing_load_1m"))[0]!.value);
    const before = await load();
    // Reading past the cache one block after the other, with as long a pause in between.
    await set.setAttribute("bcache0", "cache_mode", "none");
    for (let read = 0; read < 3000; read++) {
      await set.volumes[0]!.read((read % 1000) * 4096, new Uint8Array(4096));
      await clock.sleep(50);
    }
    const during = await load();
    await clock.sleep(600_000);
    const after = await load();
    await set.close();
    return { before, during, after };
  };
  const loads = await clock.run(measure(), { limitMs: 10_000_000 });
  assert(loads !== undefined, "the run came to its end");
  assertEquals([loads.before, loads.after], [0, 0]);
  assert(loads.during > 40 && loads.during <= 50, `about half of the time: ${loads.during}`);
});
