import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import { BcacheError } from "../../lib/base/errors.ts";
import { TaskGroup } from "../../lib/base/sync.ts";
import { Allocator, type AllocatorOptions } from "../../lib/buckets/allocator.ts";
import { RESERVE, type Reserve, reserveSizes } from "../../lib/buckets/reserves.ts";
import { MARK, type Mark } from "../../lib/buckets/table.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";
import { collect, emptyTable, FakeFaults, ioError, seededRandom } from "./support.ts";

const SIZES = { btree: 4, prio: 1, movingGc: 1, none: 6, pending: 6 };
const { btree, prio, movingGc, none } = RESERVE;

/** An allocator whose priorities go to `disk`, and fail or wait when told to. */
class World {
  readonly table;
  readonly faults = new FakeFaults();
  readonly tasks = new TaskGroup((error) => this.faults.raise(error));
  readonly allocator: Allocator;
  /** The generations that are durable. */
  disk: Uint8Array;
  writes = 0;
  gcsAsked = 0;
  discarded: number[] = [];
  /** What a write of priorities waits for. */
  beforeWrite: () => Promise<void> = () => Promise.resolve();
  #prioBucket = -1;

  constructor(bucketCount = 64, options: Partial<AllocatorOptions> = {}) {
    this.table = emptyTable(bucketCount);
    this.disk = this.table.gen.slice();
    this.allocator = new Allocator({
      table: this.table,
      prioSetCount: 1,
      policy: "lru",
      random: seededRandom(1),
      faults: this.faults,
      sizes: SIZES,
      persistPrios: () => this.#persist(),
      wakeGc: () => {
        this.gcsAsked++;
      },
      turn: drainMicrotasks,
      discard: (buckets) => {
        this.discarded.push(...buckets);
        return Promise.resolve();
      },
      ...options,
    });
  }

  async #persist(): Promise<boolean> {
    if (this.allocator.available(prio) < 1) return false;
    const bucket = this.allocator.tryTake(prio);
    const snapshot = this.table.gen.slice();
    this.writes++;
    try {
      await this.beforeWrite();
    } catch (error) {
      this.allocator.giveBack(bucket, prio);
      throw error;
    }
    this.disk = snapshot;
    if (this.#prioBucket >= 0) {
      this.table.unpin(this.#prioBucket);
      this.allocator.release(this.#prioBucket);
    }
    this.#prioBucket = bucket;
    return true;
  }

  async begin(): Promise<this> {
    assert(this.allocator.firstFill(), "PRIO is full");
    this.disk = this.table.gen.slice(); // Nothing points to those: no need to write them.
    this.allocator.start(this.tasks);
    await drainMicrotasks();
    return this;
  }

  /** Takes all there are of a reserve. */
  takeAll(reserve: Reserve): number[] {
    const taken: number[] = [];
    for (;;) {
      const bucket = this.allocator.tryTake(reserve);
      if (bucket < 0) return taken;
      assertEquals(this.disk[bucket], this.table.gen[bucket], "its generation is durable");
      taken.push(bucket);
    }
  }

  /** The marks of a collection are valid, and it is over. */
  endGc(): void {
    this.allocator.gcFinished();
    this.allocator.gcOver();
  }

  /** Marks all that is not held as dirty, in a collection. */
  async collectAllDirty(except: readonly number[] = []): Promise<void> {
    const dirty = new Map<number, Mark>();
    for (let bucket = 1; bucket < this.table.bucketCount; bucket++) {
      const leave = this.table.isHeld(bucket) || this.table.pins[bucket] !== 0;
      if (!leave && !except.includes(bucket)) dirty.set(bucket, MARK.dirty);
    }
    collect(this.table, dirty);
    this.endGc();
    await drainMicrotasks();
  }

  async end(): Promise<void> {
    this.allocator.checkInvariants();
    await this.tasks.stop();
    assertEquals(this.tasks.size, 0);
  }
}

/** What a promise came to, or undefined while it waits. */
function watch(promise: Promise<void>): { outcome: string | undefined } {
  const seen: { outcome: string | undefined } = { outcome: undefined };
  promise.then(() => {
    seen.outcome = "resolved";
  }, (error) => {
    seen.outcome = error instanceof BcacheError ? error.code : String(error);
  });
  return seen;
}

describe("first fill", () => {
  test("gives unused buckets, ascending, to PRIO and then BTREE without a write", () => {
    const world = new World();
    collect(world.table, new Map<number, Mark>([[1, MARK.dirty], [3, MARK.reclaimable]]));
    assert(world.allocator.firstFill());
    assertEquals(world.allocator.available(none), 0);
    world.disk = world.table.gen.slice();
    assertEquals([prio, btree].map((reserve) => world.takeAll(reserve)), [[2], [4, 5, 6, 7]]);
    assertEquals(world.writes, 0);
  });

  test("never takes clean data, and says when there is too little else", () => {
    const world = new World(8);
    const clean = Array.from({ length: 7 }, (_, index) => [index + 1, MARK.reclaimable] as const);
    collect(world.table, new Map<number, Mark>(clean));
    assertEquals(world.allocator.firstFill(), false);
    assertEquals(world.allocator.freeCount(btree), 0);
  });
});

describe("taking", () => {
  test("NONE is asked first, then the named reserve, and nobody else's", async () => {
    const world = await new World().begin();
    const { allocator } = world;
    assertEquals([none, btree, movingGc, prio].map((r) => allocator.available(r)), [6, 10, 7, 7]);
    world.beforeWrite = () => new Promise(() => {}); // No more rounds.
    assertEquals(world.takeAll(none).length, 6);
    assertEquals(allocator.freeCount(btree), 4);
    assertEquals(world.takeAll(btree).length, 4);
    assertEquals([movingGc, none].map((r) => allocator.tryTake(r) > 0), [true, false]);
    allocator.checkInvariants();
  });

  test("`available` is what can be taken without waiting", async () => {
    const world = await new World().begin();
    for (const reserve of [btree, movingGc, none]) {
      const promised = world.allocator.available(reserve);
      assertEquals(world.takeAll(reserve).length, promised);
      assertEquals(world.allocator.available(reserve), 0);
      await drainMicrotasks();
    }
    await world.end();
  });

  test("a bucket comes pinned once, marked for its purpose, and counts as used", async () => {
    const world = await new World().begin();
    const before = world.table.availableBuckets;
    const data = world.allocator.tryTake(none);
    const node = world.allocator.tryTake(btree);
    const { mark, pins, priority, sectorsUsed } = world.table;
    assertEquals([mark[data], pins[data], priority[data]], [MARK.reclaimable, 1, 32768]);
    assertEquals([mark[node], pins[node], priority[node]], [MARK.metadata, 1, 0xffff]);
    assertEquals([sectorsUsed[data], world.table.availableBuckets], [64, before - 2]);
    await world.end();
  });

  test("taking wakes the task, which refills the lists", async () => {
    const world = await new World().begin();
    for (let round = 0; round < 5; round++) {
      for (const bucket of world.takeAll(none)) world.table.unpin(bucket);
      await drainMicrotasks();
      assertEquals(world.allocator.available(none), SIZES.none);
      world.allocator.checkInvariants();
    }
    await world.end();
  });

  test("when all lists are empty, PRIO gets the first, then BTREE, MOVINGGC and NONE", async () => {
    const world = await new World(64, { sizes: { ...SIZES, pending: 3 } }).begin();
    const { allocator } = world;
    let goOn = () => {};
    world.beforeWrite = () =>
      new Promise((resolve) => {
        goOn = resolve;
      });
    const lists = [prio, btree, movingGc, none];
    const counts = () => lists.map((reserve) => allocator.freeCount(reserve));
    for (let round = 0; round < 3; round++) {
      for (const reserve of lists) world.takeAll(reserve);
      await drainMicrotasks();
    }
    // A round of three is being written, with the bucket of PRIO that it took.
    assertEquals([counts(), allocator.pendingCount], [[0, 0, 0, 0], 3]);
    const seen: number[][] = [];
    for (let round = 0; round < 4; round++) {
      goOn();
      await drainMicrotasks();
      seen.push(counts());
    }
    // Of each three the next round has taken one: PRIO's while NONE has none, and then NONE's.
    assertEquals(seen, [[0, 2, 0, 0], [0, 4, 0, 0], [1, 4, 1, 0], [1, 4, 1, 2]]);
    world.beforeWrite = () => Promise.resolve();
    goOn();
    await world.end();
  });

  test("a bucket given back can be taken at once, without a write", async () => {
    const world = await new World().begin();
    world.beforeWrite = () => new Promise(() => {});
    const taken = world.takeAll(none);
    world.allocator.giveBack(taken[0]!, btree);
    world.allocator.giveBack(taken[1]!, none);
    assertEquals(world.allocator.available(none), 2);
    world.allocator.checkInvariants();
  });
});

describe("priorities before reuse", () => {
  test("while they are being written, nothing of the round can be taken", async () => {
    const world = new World();
    let finish = () => {};
    world.beforeWrite = () =>
      new Promise((resolve) => {
        finish = resolve;
      });
    await world.begin();
    assertEquals([world.allocator.pendingCount, world.allocator.available(none)], [6, 0]);
    const waiting = watch(world.allocator.whenAvailable(none, 2));
    await drainMicrotasks();
    assertEquals(waiting.outcome, undefined);
    finish();
    await drainMicrotasks();
    assertEquals(waiting.outcome, "resolved");
    assert(world.takeAll(none).length >= 2, "and then they can");
  });

  test("after a failed write the round stays pending, and all who wait are refused", async () => {
    const world = new World();
    world.beforeWrite = () => Promise.reject(ioError());
    const waiting = [none, btree].map((reserve) =>
      watch(world.allocator.whenAvailable(reserve, 4))
    );
    await world.begin();
    assertEquals(world.allocator.pendingCount, 6);
    assertEquals(world.faults.failed?.message, ioError().message);
    assertEquals(waiting.map(({ outcome }) => outcome), ["SetFailed", "resolved"]);
    assertEquals(world.allocator.tryTake(btree), -1);
    assertEquals(world.allocator.available(btree), 0);
    world.allocator.checkInvariants();
    const error = await assertRejects(
      () => world.allocator.whenAvailable(none, 1),
      BcacheError,
      "write failed (planted)",
    );
    assertEquals(error.code, "SetFailed");
    await world.end();
  });
});

describe("a write of priorities", () => {
  test("waits until the parent of a freed node is durable", async () => {
    const world = new World();
    world.allocator.blockPrios();
    world.allocator.blockPrios();
    await world.begin();
    world.allocator.unblockPrios();
    await drainMicrotasks();
    assertEquals([world.writes, world.allocator.pendingCount], [0, 6]);
    world.allocator.unblockPrios();
    await drainMicrotasks();
    assertEquals(world.allocator.available(none), 6);
    await world.end();
  });

  test("the device may forget a bucket after the write and before the reuse", async () => {
    const world = new World();
    let finish = () => {};
    world.beforeWrite = () =>
      new Promise((resolve) => {
        finish = resolve;
      });
    await world.begin();
    assertEquals(world.discarded, []);
    finish();
    await drainMicrotasks();
    assertEquals(world.discarded.length, 6);
    world.beforeWrite = () => new Promise(() => {});
    for (const bucket of world.takeAll(none)) assert(world.discarded.includes(bucket));
  });
});

/** All buckets taken or dirty. */
async function full(options: Partial<AllocatorOptions> = {}): Promise<World> {
  const world = await new World(24, options).begin();
  for (;;) {
    const taken = world.takeAll(none);
    if (taken.length === 0) break;
    for (const bucket of taken) {
      world.table.setMark(bucket, MARK.dirty);
      world.table.unpin(bucket);
    }
    await drainMicrotasks();
  }
  return world;
}

describe("when nothing can be dropped", () => {
  test("gc is asked once, and its end lets the allocator go on", async () => {
    const world = await full();
    assertEquals([world.gcsAsked, world.allocator.needsGc], [1, true]);
    const waiting = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals([waiting.outcome, world.gcsAsked], [undefined, 1]);
    collect(world.table, new Map());
    world.endGc();
    await drainMicrotasks();
    assertEquals(waiting.outcome, "resolved");
    await world.end();
  });

  test("after a gc without effect data is refused, metadata waits on", async () => {
    const world = await full();
    world.takeAll(btree);
    const data = watch(world.allocator.whenAvailable(none, 1));
    const moving = watch(world.allocator.whenAvailable(movingGc, 1));
    const node = watch(world.allocator.whenAvailable(btree, 2));
    await world.collectAllDirty();
    await world.collectAllDirty();
    assert(world.allocator.exhausted);
    assertEquals([data.outcome, node.outcome], ["NoSpace", undefined]);
    assertEquals(moving.outcome, "resolved", "its own reserve has one");
    const later = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals(later.outcome, "NoSpace");

    // Writeback has cleaned some; the next collection finds out.
    await world.collectAllDirty(Array.from({ length: 23 }, (_, index) => index + 1));
    assertEquals([node.outcome, world.allocator.exhausted], ["resolved", false]);
    await world.end();
  });
});

describe("a full cache", () => {
  test("what nodes gave back that a collection wrote anew is no reason to wait on", async () => {
    const world = await full();
    const nodes = world.takeAll(btree);
    for (const bucket of nodes) world.table.unpin(bucket);
    const waiting = watch(world.allocator.whenAvailable(none, 1));
    let gcs = 0;
    for (; waiting.outcome === undefined && gcs < 20; gcs++) {
      for (const bucket of nodes.splice(0)) world.allocator.release(bucket);
      await world.collectAllDirty();
      nodes.push(...world.takeAll(btree));
      for (const bucket of nodes) world.table.unpin(bucket);
    }
    assertEquals(waiting.outcome, "NoSpace");
    assert(gcs < 5, `${gcs} collections`);
    await world.end();
  });

  test("who comes when something moved waits for a collection", async () => {
    let moved = 0;
    const world = await full({ changes: () => moved });
    await world.collectAllDirty();
    await world.collectAllDirty();
    assert(world.allocator.exhausted);
    const early = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals(early.outcome, "NoSpace");
    moved++;
    const late = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals(late.outcome, undefined);
    await world.collectAllDirty(Array.from({ length: 23 }, (_, index) => index + 1));
    assertEquals(late.outcome, "resolved");
    await world.end();
  });

  test("gc is asked again only when somebody needs a bucket", async () => {
    const world = await full();
    await world.collectAllDirty();
    await world.collectAllDirty();
    const before = world.gcsAsked;
    await drainMicrotasks();
    assertEquals(world.gcsAsked, before);
    for (let tries = 0; tries < 5; tries++) assertEquals(world.allocator.tryTake(none), -1);
    assertEquals(world.gcsAsked, before + 1);
    await world.end();
  });

  test("a gc that ends while it is being asked for does not hang or spin the task", async () => {
    const world: World = new World(8, {
      wakeGc: () => {
        world.gcsAsked++;
        world.endGc();
      },
    });
    await world.begin();
    for (const bucket of world.takeAll(none)) world.table.setMark(bucket, MARK.dirty);
    await drainMicrotasks();
    assert(world.gcsAsked < 10, "it asks a bounded number of times");
    assert(world.allocator.exhausted);
    await world.end();
  });

  test("a released bucket is found without a gc", async () => {
    const world = await full();
    const waiting = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals(waiting.outcome, undefined);
    const dirty = (bucket: number) => world.table.mark[bucket] === MARK.dirty;
    const writesBefore = world.writes;
    let freed = 0;
    for (let bucket = 1; waiting.outcome === undefined && bucket < 24; bucket++) {
      if (!dirty(bucket)) continue;
      world.allocator.release(bucket);
      freed++;
      await drainMicrotasks();
    }
    assertEquals([waiting.outcome, world.gcsAsked], ["resolved", 1]);
    assert(freed <= 2, "one for the reserve, one for who waits");
    for (let turns = 0; turns < 20; turns++) await drainMicrotasks();
    assert(
      world.writes <= writesBefore + freed,
      "old prio_sets alone are no reason for a write of priorities",
    );
    await world.end();
  });
});

describe("the end", () => {
  test("all who wait are refused when the set stops, and later ones too", async () => {
    const world = new World();
    world.beforeWrite = () => Promise.resolve();
    world.allocator.blockPrios();
    await world.begin();
    const waiting = watch(world.allocator.whenAvailable(none, 1));
    await world.tasks.stop();
    await drainMicrotasks();
    assertEquals([waiting.outcome, world.allocator.waiting], ["Shutdown", 0]);
    const later = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals(later.outcome, "Shutdown");
  });

  test("nobody waits any more once the end begins, though the task goes on", async () => {
    const world = await full();
    const [data, node] = [none, btree].map((reserve) =>
      watch(world.allocator.whenAvailable(reserve, reserve === btree ? 4 : 1))
    );
    world.takeAll(btree);
    const late = watch(world.allocator.whenAvailable(btree, 1));
    world.allocator.stopWaiting();
    await drainMicrotasks();
    assertEquals([data!.outcome, node!.outcome, late.outcome], [
      "Shutdown",
      "resolved",
      "Shutdown",
    ]);
    const later = watch(world.allocator.whenAvailable(none, 1));
    await drainMicrotasks();
    assertEquals([later.outcome, world.allocator.waiting], ["Shutdown", 0]);
    await world.end();
  });

  test("a fault elsewhere refuses all who wait and ends the task", async () => {
    const world = new World();
    world.allocator.blockPrios();
    await world.begin();
    const waiting = watch(world.allocator.whenAvailable(none, 1));
    world.faults.raise(ioError());
    world.allocator.setFailed();
    await drainMicrotasks();
    assertEquals([waiting.outcome, world.tasks.size, world.writes], ["SetFailed", 0, 0]);
  });
});

test("however used, no bucket is lost, given twice, or given before it is durable", async () => {
  const step = fc.record({
    act: fc.constantFrom("none", "btree", "movingGc", "drop", "free", "gc", "settle", "settle"),
    index: fc.nat(50),
  });
  const run = fc.asyncProperty(
    fc.array(step, { maxLength: 60 }),
    fc.constantFrom("lru", "fifo", "random"),
    async (steps, policy) => {
      const world = await new World(40, { policy: policy as "lru" }).begin();
      const owned: number[] = [];
      for (const { act, index } of steps) {
        if (act === "settle") await drainMicrotasks();
        else if (act === "gc") await world.collectAllDirty([1 + index % 39]);
        else if (act === "drop" || act === "free") {
          const bucket = owned.splice(index % (owned.length || 1), 1)[0];
          if (bucket === undefined) continue;
          if (act === "free") world.allocator.release(bucket);
          world.table.unpin(bucket);
        } else {
          const bucket = world.allocator.tryTake(RESERVE[act]);
          if (bucket < 0) continue;
          assertEquals(world.disk[bucket], world.table.gen[bucket]);
          assert(!owned.includes(bucket), "nobody else has it");
          owned.push(bucket);
        }
        for (const bucket of owned) assert(world.table.pins[bucket] === 1, "the owner's pin stays");
        world.allocator.checkInvariants();
      }
      await world.end();
      assertEquals(world.faults.failed, undefined);
    },
  );
  await fc.assert(run, { numRuns: 60 });
});

describe("the sizes of the reserves", () => {
  test("the smallest cache keeps more than nine tenths of its buckets usable", () => {
    const sizes = reserveSizes(513, 1);
    assertEquals(sizes, { btree: 16, prio: 1, movingGc: 1, none: 16, pending: 16 });
    const held = Object.values(sizes).reduce((sum, size) => sum + size, 0);
    assert(held < 513 / 10, "a tenth");
  });

  test("a large cache has room for a round of priorities and bounded lists", () => {
    const sizes = reserveSizes(2 ** 21, 13);
    assertEquals(sizes, { btree: 256, prio: 13, movingGc: 2048, none: 4096, pending: 4096 });
    assertEquals(reserveSizes(2 ** 24, 97).none, 16384);
  });
});
