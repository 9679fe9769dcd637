/**
 * A cache full of what is nowhere else: writes are refused, or go past it, after few collections,
 * whatever these write anew or copy; and never while one could still free a bucket.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import type { BlockVolume } from "../../../lib/cache/ports.ts";
import { drainMicrotasks } from "../../support/manual_clock.ts";
import { SetWorld } from "../set_world.ts";

const KIB = 1024;
const PIECE_BYTES = 64 * KIB;
/** So many collections may pass before a write is refused. */
const GCS_MAX = 40;

type Settings = ReadonlyArray<readonly [string, string]>;

const MANNERS: ReadonlyArray<readonly [string, Settings]> = [
  ["", []],
  [" with gc_always_rewrite", [["gc_always_rewrite", "1"]]],
  [" with copy_gc_enabled", [["copy_gc_enabled", "1"]]],
  [" with both", [["gc_always_rewrite", "1"], ["copy_gc_enabled", "1"]]],
];

interface Full {
  readonly world: SetWorld;
  readonly volume: BlockVolume;
}

async function makeVolume(settings: Settings): Promise<Full> {
  const world = await SetWorld.make({ settings, mode: "writeback", bucketCount: 600 });
  await world.run(world.set.createVolume({ sizeBytes: 600 * 16 * KIB }));
  return { world, volume: world.set.volumes[1]! };
}

async function gcRuns(world: SetWorld): Promise<number> {
  return Number(await world.attribute("gc_runs", "set"));
}

/** "" or the code of the refusal. A write that never ends fails the clock's time limit. */
async function write({ world, volume }: Full, at: number, bytes: number): Promise<string> {
  const from = new Uint8Array(bytes).fill(1 + at % 251);
  if (volume.tryWrite(at, from)) return "";
  const code = await world.run(
    volume.write(at, from).then(() => "", (error) => error instanceof BcacheError && error.code),
  );
  assert(code !== false, "a write is refused for a reason");
  return code;
}

/** Writes until it is refused. Returns where. */
async function fill(full: Full): Promise<number> {
  for (let at = 0; at < full.volume.sizeBytes; at += PIECE_BYTES) {
    const before = await gcRuns(full.world);
    const code = await write(full, at, PIECE_BYTES);
    const gcs = await gcRuns(full.world) - before;
    assert(gcs <= GCS_MAX, `a write took ${gcs} collections`);
    if (code === "") continue;
    assertEquals(code, "NoSpace");
    return at;
  }
  throw new Error("the volume is larger than the cache");
}

async function zero({ world, volume }: Full, at: number, bytes: number): Promise<void> {
  await world.run(volume.zero(at, bytes));
}

async function dropHalfOfEachBucket(full: Full, end: number): Promise<void> {
  for (let at = 0; at < end; at += 16 * KIB) await zero(full, at, 8 * KIB);
}

test("who waits for room is refused when the set is to end", async () => {
  const full = await makeVolume([]);
  const { world, volume } = full;
  const end = await fill(full);
  await zero(full, 0, PIECE_BYTES / 2);
  // It waits for a collection, which takes a while.
  const waiting = volume.write(end, new Uint8Array(PIECE_BYTES)).then(
    () => "written",
    (error: BcacheError) => error.code,
  );
  await drainMicrotasks();
  world.set.stopWaiting();
  await drainMicrotasks();
  assertEquals(await Promise.race([waiting, Promise.resolve("waits still")]), "Shutdown");
  await world.close();
});

for (const [manner, settings] of MANNERS) {
  const copies = settings.some(([name]) => name === "copy_gc_enabled");

  describe(`a volume that fills the cache${manner}`, () => {
    test("is refused more, and then nothing is collected for it", async () => {
      const full = await makeVolume(settings);
      const { world } = full;
      const end = await fill(full);
      assert(end > 8000 * KIB, `most of the cache was used: ${end} bytes`);
      const before = await gcRuns(world);
      await world.run(world.clock.sleep(100_000));
      const idle = await gcRuns(world) - before;
      assert(idle <= 8, `${idle} collections while nobody wrote`);
      assertEquals(await write(full, end, PIECE_BYTES), "NoSpace");
      await world.close();
    });

    test("takes what there is room for again as soon as some was given up", async () => {
      const full = await makeVolume(settings);
      const end = await fill(full);
      for (let round = 0; round < 5; round++) {
        await zero(full, round * 256 * KIB, 256 * KIB);
        for (let done = 0; done < 192 * KIB; done += PIECE_BYTES) {
          assertEquals(await write(full, round * 256 * KIB + done, PIECE_BYTES), "");
        }
      }
      // A quarter of what was given up was not written again.
      let more = 0;
      while (await write(full, end + more, 8 * KIB) === "") more += 8 * KIB;
      assert(more >= 256 * KIB && more <= 384 * KIB, `${more} bytes more`);
      await full.world.close();
    });

    test("goes on in what is copied together, rather than be full of buckets in half", async () => {
      const full = await makeVolume(settings);
      const end = await fill(full);
      await dropHalfOfEachBucket(full, end);
      let written = 0;
      while (written < 2048 * KIB && await write(full, written, 8 * KIB) === "") {
        written += 16 * KIB;
      }
      assertEquals(written, 2048 * KIB);
      await full.world.close();
    });
  });

  test(`many small holes in a full volume are refused, not a destroy${manner}`, async () => {
    const full = await makeVolume(settings);
    const { world, volume } = full;
    const end = await fill(full);
    let refusal: unknown;
    for (let at = 0; at < end && refusal === undefined; at += 1 * KIB) {
      await world.run(volume.zero(at, 512).catch((error) => refusal = error));
    }
    if (!copies) assert(refusal instanceof BcacheError && refusal.code === "NoSpace");
    await world.run(world.set.destroyVolume("bcache1", { force: true }));
    await world.run(world.set.createVolume({ sizeBytes: 600 * 16 * KIB }));
    assert(await fill({ world, volume: world.set.volumes[1]! }) > 8000 * KIB, "all is free again");
    await world.close();
  });

  test(`a cached device beside a volume that fills the cache goes past it${manner}`, async () => {
    const full = await makeVolume([...settings, ["writeback_running", "0"]]);
    const { world } = full;
    for (let at = 0; at < 1024 * KIB; at += PIECE_BYTES) await world.write(at, PIECE_BYTES, 7);
    await fill(full);
    const before = await gcRuns(world);
    for (let at = 0; at < 4096 * KIB; at += PIECE_BYTES) await world.write(at, PIECE_BYTES, 9);
    assertEquals(new Set(await world.read(0, 4096 * KIB)), new Set([9]));
    await world.run(world.clock.sleep(100_000));
    const gcs = await gcRuns(world) - before;
    assert(gcs <= GCS_MAX, `${gcs} collections`);
    await world.close();
  });
}
