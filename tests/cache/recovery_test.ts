/** Starting a set: nodes are read ahead and once, progress is told, generations are taken over. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { Segment } from "../../lib/btree/btree.ts";
import type { Engine } from "../../lib/cache/engine.ts";
import { type StartProgress, StartReporter } from "../../lib/cache/start_progress.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { RESERVE } from "../../lib/buckets/reserves.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { closeBare, makeBare, startBare } from "../support/bare_engine.ts";

const SHAPE = { bucketSectors: 16, blockSectors: 1 };

class Setup {
  readonly clock = new SimClock();
  readonly memory = new MemoryDevice(4000 * SHAPE.bucketSectors);
  readonly progress: StartProgress[] = [];

  run<T>(work: Promise<T>): Promise<T> {
    return this.clock.run(work) as Promise<T>;
  }

  async start(device: Device = this.memory): Promise<Engine> {
    this.progress.length = 0;
    return await this.run(startBare(device, {
      clock: this.clock,
      random: new SimRandom(5),
      onProgress: (step) => void this.progress.push(step),
    }));
  }

  /** Inserts one dirty extent of 8 sectors; the bucket is the caller's. */
  async insert(engine: Engine, start: number, bucket: number): Promise<void> {
    const slot = new Uint32Array(SLOT_WORDS);
    setKey(slot, 0, {
      inode: 0,
      offset: start + 8,
      sizeSectors: 8,
      dirty: true,
      pointer: { sector: bucket * SHAPE.bucketSectors, gen: engine.buckets.gen[bucket]! },
    });
    const batch = new KeySet(1);
    batch.push(slot, 0);
    while (!engine.committer.tryCommit(batch)) await engine.committer.ready(batch);
  }

  async fill(engine: Engine, extents: number): Promise<number> {
    const bucket = engine.allocator.tryTake(RESERVE.none);
    for (let index = 0; index < extents; index++) await this.insert(engine, index * 16, bucket);
    return bucket;
  }
}

async function filled(extents: number): Promise<Setup> {
  const setup = new Setup();
  await makeBare(setup.memory, SHAPE);
  const engine = await setup.start();
  await setup.run(setup.fill(engine, extents));
  await setup.run(engine.settleKeys());
  await setup.run(closeBare(engine));
  return setup;
}

/** The device, each read taking its time; counts how many are under way. */
function slow(setup: Setup): { device: Device; most: () => number; reads: number[] } {
  let under = 0;
  let most = 0;
  const reads: number[] = [];
  const device = new Proxy<Device>(setup.memory, {
    get(target, name) {
      if (name === "sync") return undefined;
      if (name === "read") {
        return async (atSector: number, into: Uint8Array) => {
          most = Math.max(most, ++under);
          reads.push(atSector);
          await setup.clock.sleep(5);
          await target.read(atSector, into);
          under--;
        };
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return { device, most: () => most, reads };
}

describe("starting a cache set", () => {
  test("reads each node once, several at a time but not without bound", async () => {
    const setup = await filled(8000);
    const { device, most, reads } = slow(setup);
    const engine = await setup.start(device);
    const { nodesRead, cache } = engine.btree;
    assertGreater(nodesRead, 20);
    assertEquals(nodesRead, cache.size);
    assert(most() > 4 && most() <= 9, `${most()} reads were under way at once`);
    const nodes = reads.filter((sector) => cache.get(sector / SHAPE.bucketSectors));
    assertEquals(new Set(nodes).size, nodes.length, "no node is read twice");
    await setup.run(engine.stopTasks());
  });

  test("reads each node once however little of them memory holds", async () => {
    const setup = await filled(8000);
    const { device } = slow(setup);
    const engine = await setup.start(device);
    const { btree } = engine;
    btree.cache.bytesMax = 0;
    await setup.run(btree.cache.makeRoom());
    btree.cache.prune(1000);
    const before = btree.nodesRead;
    let visited = 0;
    await setup.run(btree.walk(0, { inode: 0, offset: 0 }, () => ++visited > 0));
    assert(btree.nodesRead - before <= visited, "nothing is read ahead without room for it");
    assertGreater(visited, 30);
    const { size, reserveNodes } = btree.cache;
    assert(size <= reserveNodes + 1, `${size} nodes are in memory`);
    await setup.run(engine.stopTasks());
  });

  test("tells how far it has come, in nodes and in journal entries", async () => {
    const setup = await filled(4000);
    const engine = await setup.start();
    const steps = setup.progress.filter((step) => step.phase === "index");
    const last = steps.at(-1)!;
    assertEquals(steps.length, last.total);
    assertEquals(steps.map((step) => step.done), steps.map((_, index) => index + 1));
    assert(steps.every((step) => step.done <= step.total), "the total is never less");
    const replayed = setup.progress.filter((step) => step.phase === "replay");
    assertEquals(replayed.at(-1)?.done, replayed.at(-1)?.total);
    await setup.run(engine.stopTasks());
  });

  test("the log tells it once a second, and not at all when it is quick", () => {
    const lines: string[] = [];
    let now = 0;
    const clock = new SimClock();
    clock.nowMs = () => now;
    const reporter = new StartReporter({ clock, log: (_, line) => void lines.push(line) });
    for (let node = 1; node <= 500; node++) {
      now += 5;
      reporter.report("index", node, 1000);
    }
    assertEquals(lines, [
      "starting: 200 of 1000 b-tree nodes were read",
      "starting: 400 of 1000 b-tree nodes were read",
    ]);
  });

  test("refuses nodes of a single block, and says what to do", async () => {
    const setup = new Setup();
    await makeBare(setup.memory, { bucketSectors: 8, blockSectors: 8 });
    const error = await assertRejects(
      () => setup.start(),
      BcacheError,
      "memory: a b-tree node is a single block, expected at least 2: make the cache",
    );
    assertEquals(error.code, "NotSupported");
  });

  test("marks anew when a later node knows of a newer generation of a marked bucket", async () => {
    const setup = new Setup();
    await makeBare(setup.memory, SHAPE);
    const first = await setup.start();
    const [bucket] = [await setup.run(setup.fill(first, 2000))];
    const shared = first.allocator.tryTake(RESERVE.none);
    // The old generation in the first leaf, the new one, never persisted, in the last.
    await setup.run(setup.insert(first, 8, shared));
    const oldGen = first.buckets.gen[shared]!;
    first.buckets.bumpGen(shared);
    await setup.run(setup.insert(first, 64_000, shared));
    await setup.run(first.settleKeys());
    await setup.run(closeBare(first));

    const engine = await setup.start();
    const rounds = setup.progress.filter(({ phase, done }) => phase === "index" && done === 1);
    assertEquals(rounds.length, 2);
    assertEquals(engine.buckets.gen[shared], oldGen + 1);
    assertEquals(engine.dirty.of(0), 2000 * 8 + 8, "what is stale is not dirty");
    assertEquals(engine.buckets.sectorsUsed[shared], 8);
    assertEquals(engine.buckets.sectorsUsed[bucket!], SHAPE.bucketSectors);
    const found = (at: number): boolean => {
      const segment = new Segment();
      const leaf = engine.btree.findLeaf(0, at)!;
      engine.btree.lookup(leaf, 0, at, at + 8, segment);
      return segment.cached;
    };
    assertEquals([found(0), found(8), found(64_000)], [true, false, true]);
    await setup.run(closeBare(engine));
  });
});
