/** The whole engine when its journal is short of room: it goes on, and it always starts again. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { Inserter } from "../../lib/btree/insert.ts";
import { BucketTable, MARK } from "../../lib/buckets/table.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SmallIndex } from "../btree/small_index.ts";

/** The device, on which writes behind the journal's buckets never end until `release`. */
function stalling(
  index: SmallIndex,
): { device: Device; stall: () => void; release: () => void } {
  const { bucketSectors } = index.shape;
  const { firstBucket, journalBucketCount } = index.engine.superblock;
  const behind = (firstBucket + journalBucketCount) * bucketSectors;
  let stalled = false;
  let held: Array<(error: Error) => void> = [];
  const device = new Proxy<Device>(index.device, {
    get(target, name) {
      if (name === "sync") return undefined;
      if (name === "write") {
        return async (atSector: number, bytes: Uint8Array, options?: WriteOptions) => {
          if (stalled && atSector >= behind) {
            await new Promise((_, reject) => held.push(reject));
          }
          await target.write(atSector, bytes, options);
        };
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return {
    device,
    stall: () => void (stalled = true),
    release: () => {
      for (const reject of held) reject(new Error("the power is gone"));
      held = [];
    },
  };
}

/** Keys of one round; put again and again they fill the journal, but never a page of the leaf. */
const ROUND_KEYS = 20;

/** Puts the round's keys until nothing moves any more; returns how often. */
async function putUntilFull(index: SmallIndex, first: number): Promise<number> {
  let puts = 0;
  const work = (async () => {
    for (; puts < 1_000_000; puts++) await index.put(first + puts % ROUND_KEYS);
  })();
  work.catch(() => undefined);
  let before = -1;
  while (before !== puts) {
    before = puts;
    await index.clock.sleep(500);
  }
  return puts;
}

describe("a full journal", () => {
  test("is recovered from, as often as it is filled again and the power cut", async () => {
    // Nodes with room for all that is written to them in every round.
    const index = await SmallIndex.make({ bucketSectors: 64, bucketCount: 600 });
    await index.close();
    for (let round = 0; round < 6; round++) {
      const { device, stall, release } = stalling(index);
      await index.start(device);
      const keys = round * ROUND_KEYS;
      assertEquals(await index.run(index.count(0, keys)), keys, `round ${round}`);
      stall();
      const puts = await index.run(putUntilFull(index, keys));
      const { journal, faults } = index.engine;
      assertGreater(puts, 3000, "the journal took what it could");
      assertEquals(journal.tryAppend(index.key(0).words, 0, SLOT_WORDS), 0, "it is full");
      faults.raise(new Error("cut"));
      release();
      await index.run(index.engine.stopTasks());
    }
    await index.start();
    assertEquals(await index.run(index.count(0, 120)), 120);
    await index.close();
  }, 60_000);

  test("has the dirty root written when it is the only leaf, and waits for no timer", async () => {
    const index = await SmallIndex.make();
    const { btree, journal } = index.engine;
    await index.run((async () => {
      // The same few keys: the leaf never fills a page, so nothing else would write it.
      for (let round = 0; round < 800; round++) {
        await index.putAll(0, 20);
        if (round % 4 === 0) await journal.commit();
      }
    })());
    assertEquals(btree.root.level, 0);
    assertGreater(journal.counters.bucketsOpened, 2 * index.engine.superblock.journalBucketCount);
    assertGreater(journal.counters.pressureFlushes, 0);
    assert(index.clock.nowMs() < 10_000, `it took ${index.clock.nowMs()} ms`);
    await index.close();
  });
});

/** Has `note` told of every call of a method, until what is returned is called. */
function before(
  prototype: object,
  method: string,
  note: (parameters: unknown[]) => void,
): () => void {
  const original = Reflect.get(prototype, method) as (...parameters: unknown[]) => unknown;
  Reflect.set(prototype, method, function (this: unknown, ...parameters: unknown[]) {
    note(parameters);
    return original.apply(this, parameters);
  });
  return () => void Reflect.set(prototype, method, original);
}

describe("replay", () => {
  test("holds each entry until its keys are in leaves that were written", async () => {
    const index = await SmallIndex.make();
    await index.run((async () => {
      for (let entry = 0; entry < 20; entry++) {
        await index.putAll(entry * 5, entry * 5 + 5);
        await index.engine.journal.commit();
      }
    })());
    await index.cut();
    for (let time = 0; time < 3; time++) {
      await index.start();
      // New entries come, the leaf is not written: the old ones must still be replayed.
      await index.run(index.engine.journal.commit());
      assertGreater(index.engine.journal.counters.activeEntries, 20);
      await index.cut();
    }
    await index.start();
    assertEquals(await index.run(index.count(0, 100)), 100);
    await index.run(index.engine.settleKeys());
    assert(index.engine.journal.counters.activeEntries <= 2, "written, it lets go of them");
    await index.close();
  });

  test("pins and marks the buckets of its keys before the first goes into a leaf", async () => {
    const index = await SmallIndex.make();
    await index.run(index.putAll(0, 10));
    await index.run(index.engine.journal.commit());
    const { bucket } = index;
    await index.cut();
    index.bucket = -1; // Nobody but the replay itself is to pin it.
    const events: string[] = [];
    const restore = [
      before(BucketTable.prototype, "pin", ([which]) => {
        if (which === bucket) events.push("pinned");
      }),
      before(BucketTable.prototype, "markPointer", ([which]) => {
        if (which === bucket && events.length === 0) events.push("marked");
      }),
      before(Inserter.prototype, "insert", () => {
        if (events.at(-1) !== "inserted") events.push("inserted");
      }),
    ];
    try {
      await index.start();
    } finally {
      for (const each of restore) each();
    }
    assertEquals(events, ["marked", "pinned", "inserted"]);
    const { buckets } = index.engine;
    assertEquals([buckets.pins[bucket], buckets.mark[bucket]], [0, MARK.dirty]);
    await index.close();
  });

  test("refuses a key that points outside the device, naming entry and key", async () => {
    const index = await SmallIndex.make();
    const { journal } = index.engine;
    const slot = new Uint32Array(SLOT_WORDS);
    const sector = index.shape.bucketCount * index.shape.bucketSectors + 8;
    setKey(slot, 0, { inode: 0, offset: 64, sizeSectors: 4, pointer: { sector, gen: 0 } });
    const seq = journal.tryAppend(slot, 0, SLOT_WORDS);
    assertGreater(seq, 0);
    await index.run(journal.commit());
    await index.cut();
    const error = await assertRejects(
      () => index.start(),
      BcacheError,
      `memory: journal entry ${seq}: key 0:60 len 4 -> [0:${sector} gen 0] points outside`,
    );
    assertEquals(error.code, "BadFormat");
  });
});
