/** What a failing cache device does to requests: clean data is read from the backing device. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import type { CacheMode } from "../../lib/cache/ports.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const BUCKET = 32;

/** Memory that cannot be read while `broken`, behind the first metadata buckets. */
class FailingDevice extends MemoryDevice {
  broken = false;
  override readonly sync = {
    read: (atSector: number, into: Uint8Array): void => {
      this.refuse();
      this.#memory.sync.read(atSector, into);
    },
    write: (atSector: number, from: Uint8Array): void => {
      this.#memory.sync.write(atSector, from);
    },
  };
  #memory: MemoryDevice;

  constructor(memory: MemoryDevice) {
    super(memory.sizeSectors, { name: "failing" });
    this.#memory = memory;
  }

  refuse(): void {
    if (this.broken) throw new BcacheError("DeviceIo", "failing: cannot read");
  }

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    this.refuse();
    await this.#memory.read(atSector, into);
  }

  override async write(atSector: number, from: Uint8Array): Promise<void> {
    await this.#memory.write(atSector, from);
  }
}

async function setUp(mode: CacheMode) {
  const cache = new FailingDevice(new MemoryDevice(600 * BUCKET));
  const backing = new MemoryDevice(16 + 16384);
  const common = { setUuid: new Uint8Array(16).fill(9), blockSectors: 1, bucketSectors: BUCKET };
  await makeCache(cache, { ...common, uuid: new Uint8Array(16).fill(1) });
  await makeBacking(backing, { ...common, uuid: new Uint8Array(16).fill(2), cacheMode: mode });
  const log: string[] = [];
  const set = await CacheSet.open({
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock: new RealClock(),
    random: new SimRandom(1),
    log: (_level, message) => log.push(message),
    settings: [["writeback_running", "0"], ["sequential_cutoff", "0"]],
  });
  const volume = set.volumes[0]!;
  await volume.write(8192, new Uint8Array(8192).fill(0x5a));
  return { cache, set, volume, log };
}

describe("when the cache device cannot be read", () => {
  test("clean data is served from the backing device", async () => {
    const { cache, set, volume, log } = await setUp("writethrough");
    const into = new Uint8Array(8192);
    assert(volume.tryRead(8192, into), "it is cached");
    cache.broken = true;
    into.fill(0);
    assertEquals(volume.tryRead(8192, into), false);
    await volume.read(8192, into);
    assertEquals(into, new Uint8Array(8192).fill(0x5a));
    assert(log.some((line) => line.includes("served from the backing device")), log.join("\n"));
    assertEquals((await set.status()).ioErrors > 0, true);
    cache.broken = false;
    await set.close();
  });

  test("dirty data fails with EIO, and the log says which extent", async () => {
    const { cache, set, volume, log } = await setUp("writeback");
    await volume.flush(); // So that it is on the device, not gathered in memory.
    cache.broken = true;
    const into = new Uint8Array(4096);
    const error = await assertRejects(() => volume.read(8192, into), BcacheError, "are dirty");
    assertEquals(error.errno, 5);
    assert(log.some((line) => /bcache0: sectors \d+-\d+ .* dirty/.test(line)), log.join("\n"));
    cache.broken = false;
    await volume.read(8192, into);
    assertEquals(into, new Uint8Array(4096).fill(0x5a));
    await set.close();
  });
});
