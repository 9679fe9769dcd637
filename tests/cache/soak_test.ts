/**
 * The engine under load: random reads, writes, zeroing and flushes over a cache much smaller than
 * what they touch, checked byte for byte against a plain copy, in every mode and policy; then a
 * restart, a drain, and the backing device alone. The clock is real, devices are in memory.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { makeBacking, makeCache } from "../../lib/cache/make.ts";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { BlockVolume, CacheMode } from "../../lib/cache/ports.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

const VOLUME_BYTES = 24 << 20;

interface Setup {
  readonly mode: CacheMode;
  readonly replacement: ReplacementPolicy;
  readonly blockSectors: number;
  readonly bucketSectors: number;
  readonly seed: number;
  /** Hide the synchronous way, so that everything goes the asynchronous one. */
  readonly asyncOnly?: boolean;
}

function withoutSync(device: MemoryDevice): Device {
  return new Proxy<Device>(device, {
    get(target, name) {
      if (name === "sync") return undefined;
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

async function openSet(cache: Device, backing: Device, seed: number): Promise<CacheSet> {
  return await CacheSet.open({
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock: new RealClock(),
    random: new SimRandom(seed),
    log: (level, message) => assert(level === "info", message),
  });
}

/** A few requests at a time; overlapping ones never run together, so the copy is exact. */
async function exercise(
  volume: BlockVolume,
  model: Uint8Array,
  random: SimRandom,
  steps: number,
): Promise<void> {
  const below = (bound: number) => random.nextU32() % bound;
  for (let step = 0; step < steps; step++) {
    const grain = below(4) === 0 ? 1 : 4096;
    const length = Math.min(
      (1 + below(step % 5 === 0 ? 64 : 4)) * grain * (grain === 1 ? 700 : 1),
      1 << 18,
    );
    const offset = Math.floor(below(VOLUME_BYTES - length) / grain) * grain;
    const kind = below(100);
    if (kind < 50) {
      const data = new Uint8Array(length).fill(1 + below(255));
      if (!volume.tryWrite(offset, data)) await volume.write(offset, data);
      model.set(data, offset);
    } else if (kind < 95) {
      const into = new Uint8Array(length);
      if (!volume.tryRead(offset, into)) await volume.read(offset, into);
      const wanted = model.subarray(offset, offset + length);
      const wrong = into.findIndex((byte, index) => byte !== wanted[index]);
      assertEquals(wrong, -1, `step ${step}: byte ${offset + wrong} is wrong`);
    } else if (kind < 98) {
      await volume.zero(offset, length);
      model.fill(0, offset, offset + length);
    } else await volume.flush();
  }
}

async function compare(
  read: (at: number, into: Uint8Array) => Promise<void>,
  model: Uint8Array,
): Promise<void> {
  const into = new Uint8Array(1 << 20);
  for (let at = 0; at < VOLUME_BYTES; at += into.length) {
    await read(at, into);
    const wrong = into.findIndex((byte, index) => byte !== model[at + index]);
    assertEquals(wrong, -1, `byte ${at + wrong} is wrong`);
  }
}

async function soak(setup: Setup, steps: number): Promise<void> {
  const { blockSectors, bucketSectors } = setup;
  const memory = new MemoryDevice(600 * bucketSectors);
  const cache = setup.asyncOnly ? withoutSync(memory) : memory;
  const backing = new MemoryDevice(16 + VOLUME_BYTES / 512);
  const setUuid = new Uint8Array(16).fill(7);
  const common = { setUuid, blockSectors, bucketSectors };
  await makeCache(memory, {
    ...common,
    uuid: new Uint8Array(16).fill(1),
    replacement: setup.replacement,
  });
  await makeBacking(backing, {
    ...common,
    uuid: new Uint8Array(16).fill(2),
    cacheMode: setup.mode,
  });
  const model = new Uint8Array(VOLUME_BYTES);
  const random = new SimRandom(setup.seed);
  for (let life = 0; life < 2; life++) {
    const set = await openSet(cache, backing, setup.seed + life);
    await set.setAttribute("bcache0", "writeback_delay", "0");
    await set.setAttribute("bcache0", "writeback_percent", life === 0 ? "0" : "10");
    const volume = set.volumes[0]!;
    await exercise(volume, model, random, steps);
    await compare((at, into) => volume.read(at, into), model);
    if (life === 1) {
      await set.flushDirty(undefined);
      const { devices } = await set.status();
      assertEquals([devices[0]!.state, devices[0]!.dirtyBytes], ["clean", 0]);
    }
    await set.close();
  }
  await compare((at, into) => backing.read(16 + at / 512, into), model);
}

describe("a cache a fraction of what goes through it", () => {
  const policies: ReplacementPolicy[] = ["lru", "fifo", "random"];
  CACHE_MODES.forEach((mode, index) => {
    for (const bucketSectors of [16, 32]) {
      const replacement = policies[(index + bucketSectors / 16) % 3]!;
      const setup = { mode, replacement, blockSectors: 1, bucketSectors, seed: 100 + index };
      test(
        `every byte is right in ${mode}, ${replacement}, ${bucketSectors / 2}k buckets`,
        async () => {
          await soak(setup, 1200);
        },
        60_000,
      );
    }
  });

  test("every byte is right when the cache device is never used synchronously", async () => {
    await soak({
      mode: "writeback",
      replacement: "lru",
      blockSectors: 1,
      bucketSectors: 32,
      seed: 5,
      asyncOnly: true,
    }, 1200);
  }, 60_000);
});
