import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { hex64 } from "../../lib/base/crc64.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { readJournal } from "../../lib/journal/reader.ts";
import { freshJournal, Journal } from "../../lib/journal/writer.ts";
import { drainMicrotasks, ManualClock } from "../support/manual_clock.ts";
import { type Lie, PowerDevice, SeededRandom } from "./power_device.ts";
import {
  idsOf,
  KEY_WORDS,
  keyOf,
  Leaf,
  MAGIC,
  openJournal,
  placeOn,
  type Shape,
  TestFaults,
  type World,
} from "./world.ts";

const SMALL: Shape = { buckets: 4, bucketSectors: 8, blockSectors: 1 };
const WIDE: Shape = { buckets: 4, bucketSectors: 256, blockSectors: 8 };

function deviceFor(shape: Shape): PowerDevice {
  const stable = new Uint8Array((shape.buckets + 3) * shape.bucketSectors * SECTOR_BYTES);
  return new PowerDevice({ random: new SeededRandom(1), stable });
}

async function replayedIds(device: PowerDevice, shape: Shape): Promise<number[]> {
  const replay = await readJournal(placeOn(device, shape));
  const ids: number[] = [];
  for await (const entry of replay.entries()) {
    ids.push(...idsOf(entry.words, entry.start, entry.end));
  }
  return ids;
}

async function end(world: World): Promise<void> {
  await world.journal.stop();
  await drainMicrotasks();
  assertEquals(world.tasks.size, 0);
  assertEquals(world.clock.sleeping, 0);
}

/** Appends the key `id`; the leaf, if any, takes it. Waits for room if need be. */
async function append(world: World, id: number, leaf?: Leaf): Promise<number> {
  for (;;) {
    const seq = world.journal.tryAppend(keyOf(id), 0, KEY_WORDS);
    if (seq > 0) {
      leaf?.insert(seq, id);
      return seq;
    }
    await world.journal.whenRoom();
  }
}

/** A leaf that nobody asks to write, so that replay needs its keys. */
function unwritten(world: World): Leaf {
  return new Leaf(world.journal.pins, new Set(), () => Promise.resolve());
}

describe("the journal", () => {
  test("writes the first entry of a new set as Linux does, byte for byte", async () => {
    const device = deviceFor(WIDE);
    const faults = new TestFaults();
    const { TaskGroup } = await import("../../lib/base/sync.ts");
    const tasks = new TaskGroup((error) => faults.raise(error));
    const stamper = {
      stamp(words: Uint32Array) {
        // The uuid table in bucket 37, the root in bucket 36, priorities in bucket 17.
        words.set([0x1000_0000, 0x9000_0000, 0, 0, 0x0025_0001, 0], 40 / 4);
        words.set([0x100f_ffff, 0x9000_0000, ~0, 0x7fff_ffff, 0x0024_0001, 0], 104 / 4);
        words[176 / 4] = 17;
      },
    };
    const journal = new Journal({
      place: { ...placeOn(device, WIDE), magic: MAGIC },
      start: freshJournal(4),
      clock: new ManualClock(),
      faults,
      tasks,
      stamper,
    });
    journal.start();
    await journal.finishRecovery();
    await journal.commit();
    await journal.stop();
    const entry = new Uint8Array(8 * SECTOR_BYTES);
    await device.read(2 * 256, entry);
    const view = new DataView(entry.buffer);
    const word = (at: number) => view.getUint32(at, true);
    assertEquals(hex64(word(0), word(4)), "08245a98661086b8");
    assertEquals(hex64(word(8), word(12)), "631d01632f6b36bd");
    assertEquals([word(16), word(24), word(28), word(32)], [1, 1, 0, 1]);
    assert(entry.subarray(240).every((byte) => byte === 0), "the padding is zero");
  });

  test("keys come back in the order in which they were appended", async () => {
    const device = deviceFor(WIDE);
    const world = openJournal(device, WIDE);
    await world.journal.finishRecovery();
    const leaf = unwritten(world);
    for (let id = 1; id <= 3000; id++) await append(world, id, leaf);
    await world.journal.commit();
    const ids = await replayedIds(device, WIDE);
    assertEquals(ids, Array.from({ length: 3000 }, (_, index) => index + 1));
    await end(world);
  });

  test("takes no key before recovery is finished, nor after it was stopped", async () => {
    const world = openJournal(deviceFor(SMALL), SMALL);
    assertEquals(world.journal.tryAppend(keyOf(1), 0, KEY_WORDS), 0);
    await world.journal.finishRecovery();
    assertEquals(world.journal.tryAppend(keyOf(1), 0, KEY_WORDS), 1);
    await end(world);
    assertEquals(world.journal.tryAppend(keyOf(1), 0, KEY_WORDS), 0);
    await assertRejects(() => world.journal.commit(), BcacheError, "stopping");
    await assertRejects(() => world.journal.whenRoom(), BcacheError, "stopping");
  });

  test("writes a lone key after the delay, and not before", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    await world.journal.finishRecovery();
    await append(world, 1);
    await world.clock.advance(99);
    assertEquals(world.journal.counters.entriesWritten, 0);
    await append(world, 2);
    await world.clock.advance(1);
    assertEquals(world.journal.counters.entriesWritten, 1);
    assertEquals(await replayedIds(device, SMALL), [1, 2]);
    await append(world, 3);
    await world.clock.advance(100);
    assertEquals(world.journal.counters.entriesWritten, 2);
    await end(world);
  });

  test("stopping writes what is pending", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    await world.journal.finishRecovery();
    await append(world, 5);
    await end(world);
    assertEquals(await replayedIds(device, SMALL), [5]);
  });

  test("commits asked for together share one entry, and flush twice", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    await world.journal.finishRecovery();
    await append(world, 1);
    await Promise.all([world.journal.commit(), world.journal.commit(), world.journal.commit()]);
    assertEquals(world.journal.counters.entriesWritten, 1);
    assertEquals(device.operations, 2); // One flush, one write that is stable when it ends.
    await end(world);
  });

  test("a commit asked for while another is being written gets an entry of its own", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    await world.journal.finishRecovery();
    const leaf = unwritten(world);
    await append(world, 1, leaf);
    const first = world.journal.commit();
    await drainUntil(() => device.inFlight > 0);
    await append(world, 2, leaf);
    const second = world.journal.commit();
    const third = world.journal.commit();
    await first;
    await Promise.all([second, third]);
    assertEquals(world.journal.counters.entriesWritten, 2);
    assertEquals(await replayedIds(device, SMALL), [1, 2]);
    await end(world);
  });

  test("a commit without keys makes the present metadata durable", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    await world.journal.finishRecovery();
    await world.journal.commit();
    world.stamp.prioBucket = 99;
    await world.journal.commit();
    const replay = await readJournal(placeOn(device, SMALL));
    assertEquals(replay.head.prioBucket, 99);
    assertEquals(replay.head.rootKey[4], 4096 << 8 | 1);
    assertEquals(replay.head.lastSeq, 2);
    await end(world);
  });

  test("appending goes on while an entry is written; it stops when the queue is full", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, { ...SMALL, queueEntries: 3 });
    await world.journal.finishRecovery();
    let appended = 0;
    // No await: the writer cannot run.
    while (world.journal.tryAppend(keyOf(appended + 1), 0, KEY_WORDS) > 0) appended++;
    const keysInEntry = Math.floor(world.journal.appendWordsMax / KEY_WORDS);
    assertEquals(appended, 4 * keysInEntry);
    await world.journal.whenRoom();
    assert(world.journal.tryAppend(keyOf(appended + 1), 0, KEY_WORDS) > 0);
    await end(world);
  });

  test("a leaf's last_seq moves only when the leaf was written", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, SMALL);
    const leaf = new Leaf(world.journal.pins, new Set(), () => Promise.resolve());
    await world.journal.finishRecovery();
    for (let id = 1; id <= 5; id++) {
      await append(world, id, leaf);
      await world.journal.commit();
    }
    assertEquals((await readJournal(placeOn(device, SMALL))).head.lastSeq, 1);
    await leaf.flushForJournal();
    await world.journal.commit();
    assertEquals((await readJournal(placeOn(device, SMALL))).head.lastSeq, 6);
    await end(world);
  });
});

describe("the order of writes", () => {
  /** What was still volatile when an entry was written, over a few commits with fresh data. */
  async function violations(lie?: Lie): Promise<string[]> {
    const stable = new Uint8Array((SMALL.buckets + 3) * SMALL.bucketSectors * SECTOR_BYTES);
    const journalEnd = (SMALL.buckets + 1) * SMALL.bucketSectors;
    const device = new PowerDevice({
      random: new SeededRandom(3),
      stable,
      ordered: { from: SMALL.bucketSectors, to: journalEnd },
      ...(lie === undefined ? {} : { lie }),
    });
    const world = openJournal(device, { ...SMALL, queueEntries: 8 });
    await world.journal.finishRecovery();
    for (let round = 0; round < 10; round++) {
      await device.write(journalEnd, new Uint8Array(SECTOR_BYTES));
      // Enough for several full entries, so that they are written one after the other.
      for (let id = 1; id <= 500; id++) {
        if (world.journal.tryAppend(keyOf(id), 0, KEY_WORDS) === 0) break;
      }
      await world.journal.commit();
      if (device.volatile > 0) device.violations.push("a commit resolved too early");
    }
    await end(world);
    return device.violations;
  }

  test("data is stable before its key is written, each entry before the next", async () => {
    assertEquals(await violations(), []);
  });

  for (const lie of ["flush does nothing", "fua does nothing"] as const) {
    test(`is seen to be broken if ${lie.replace("does", "did")}`, async () => {
      assert((await violations(lie)).length > 0);
    });
  }
});

describe("a journal whose device fails", () => {
  test("tells everyone who waits, raises the fault, and writes nothing more", async () => {
    const device = deviceFor(SMALL);
    const world = openJournal(device, { ...SMALL, queueEntries: 1 });
    await world.journal.finishRecovery();
    device.failAt = 0;
    while (world.journal.tryAppend(keyOf(1), 0, KEY_WORDS) > 0);
    const outcomes = await Promise.allSettled([world.journal.commit(), world.journal.whenRoom()]);
    for (const outcome of outcomes) {
      assertEquals(outcome.status, "rejected");
      if (outcome.status === "rejected") {
        assert(outcome.reason instanceof BcacheError);
        assertEquals(outcome.reason.code, "DeviceIo");
        assertStringIncludes(outcome.reason.message, "journal");
      }
    }
    const operations = device.operations;
    await assertRejects(() => world.journal.commit(), BcacheError, "failed");
    await world.clock.advance(1000);
    assertEquals(device.operations, operations);
    await world.journal.stop();
    await drainMicrotasks();
    assertEquals(world.tasks.size, 0);
  });

  test("an abandoned journal rejects those who wait", async () => {
    const world = openJournal(deviceFor(SMALL), SMALL);
    await world.journal.finishRecovery();
    await append(world, 1);
    const commit = world.journal.commit();
    world.journal.abandon(new BcacheError("SetFailed", "the set failed"));
    await assertRejects(() => commit, BcacheError, "the set failed");
    await world.tasks.stop();
    assertEquals(world.tasks.size, 0);
  });

  test("a leaf that cannot be written fails the set instead of stalling it", async () => {
    const world = openJournal(deviceFor(SMALL), { ...SMALL, buckets: 2 });
    const broken = new Leaf(
      world.journal.pins,
      new Set(),
      () => Promise.reject(new BcacheError("DeviceIo", "leaf lost")),
    );
    await world.journal.finishRecovery();
    await assertRejects(
      async () => {
        for (let id = 1; id < 5000; id++) await append(world, id, id === 1 ? broken : undefined);
      },
      BcacheError,
      "leaf lost",
    );
    await world.tasks.stop();
  });

  test("aborting the task group ends the journal", async () => {
    const world = openJournal(deviceFor(SMALL), SMALL);
    await world.journal.finishRecovery();
    await append(world, 1);
    await world.tasks.stop();
    assertEquals(world.tasks.size, 0);
    await assertRejects(() => world.journal.commit(), BcacheError, "stop");
  });
});

describe("a full journal", () => {
  for (const buckets of [2, 3, 5]) {
    test(`of ${buckets} buckets has the oldest leaves written and goes on`, async () => {
      const shape = { ...SMALL, buckets };
      const device = deviceFor(shape);
      const world = openJournal(device, shape);
      const leaves = Array.from(
        { length: 12 },
        () => new Leaf(world.journal.pins, new Set(), () => Promise.resolve()),
      );
      await world.journal.finishRecovery();
      for (let id = 1; id <= 4000; id++) {
        // One leaf gets a key only rarely: it holds the oldest entry.
        const leaf = leaves[id % 500 === 1 ? 0 : 1 + id % 11]!;
        await append(world, id, leaf);
      }
      await world.journal.commit();
      const { counters } = world.journal;
      assert(counters.bucketsOpened > 3 * buckets, "the ring went round");
      assert(counters.pressureFlushes > 0, "leaves were asked to write");
      const ids = new Set(await replayedIds(device, shape));
      for (const leaf of leaves) for (const id of leaf.durable) ids.add(id);
      assertEquals(ids.size, 4000);
      await end(world);
    });
  }

  test("that stands still piles up no entries, whatever is asked of it", async () => {
    const shape = { ...SMALL, queueEntries: 4 };
    const world = openJournal(deviceFor(shape), shape);
    const { journal } = world;
    let release = () => {};
    const gate = new Promise<void>((resolve) => release = resolve);
    const leaf = new Leaf(journal.pins, new Set(), () => gate);
    await journal.finishRecovery();
    const commits: Array<Promise<void>> = [];
    for (let id = 1; id <= 600; id++) {
      const seq = journal.tryAppend(keyOf(id), 0, KEY_WORDS);
      if (seq > 0) leaf.insert(seq, id);
      if (id % 3 === 0) commits.push(journal.commit());
      if (id % 5 === 0) await world.clock.advance(150);
      const fits = 1 + shape.queueEntries + shape.buckets * shape.bucketSectors;
      assert(journal.counters.activeEntries <= fits, `${journal.counters.activeEntries} entries`);
    }
    assertEquals(journal.tryAppend(keyOf(601), 0, KEY_WORDS), 0, "it is full");
    release();
    await Promise.all(commits);
    await end(world);
  });

  test("goes on when the pins are used up before the ring is", async () => {
    const shape = { ...WIDE, pins: 32 };
    const device = deviceFor(shape);
    const world = openJournal(device, shape);
    const leaf = new Leaf(world.journal.pins, new Set(), () => Promise.resolve());
    await world.journal.finishRecovery();
    for (let id = 1; id <= 200; id++) {
      await append(world, id, leaf);
      await world.journal.commit();
      assert(world.journal.counters.activeEntries <= 32);
    }
    assert(leaf.flushes > 0);
    await end(world);
  });
});

async function drainUntil(condition: () => boolean): Promise<void> {
  for (let turns = 0; turns < 1000; turns++) {
    if (condition()) return;
    await Promise.resolve();
  }
  await drainMicrotasks();
  assert(condition(), "the condition came about");
}

test("a recovery that was overtaken by a failure is told which", async () => {
  const world = openJournal(deviceFor(SMALL), SMALL);
  world.journal.abandon(new BcacheError("DeviceIo", "a node cannot be written"));
  world.faults.raise(new BcacheError("DeviceIo", "a node cannot be written"));
  await assertRejects(() => world.journal.finishRecovery(), BcacheError, "cannot be written");
});
