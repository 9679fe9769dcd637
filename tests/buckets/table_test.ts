import { describe, test } from "bun:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { AssertionError } from "../../lib/base/assert.ts";
import {
  BucketTable,
  genAfter,
  GENERATION_LIMIT,
  MARK,
  type Mark,
  MARK_CONFLICT,
} from "../../lib/buckets/table.ts";
import { collect, emptyTable, smallTable } from "./support.ts";

describe("generations", () => {
  test("one up to 128 ahead is after, one further ahead counts as behind", () => {
    assertEquals(genAfter(127, 0), 127);
    assertEquals(genAfter(128, 0), 128);
    assertEquals(genAfter(129, 0), 0);
    assertEquals(genAfter(7, 7), 0);
  });

  test("they wrap after 255", () => {
    assertEquals(genAfter(3, 250), 9);
    assertEquals(genAfter(250, 3), 0);
  });

  test("freeing a node's bucket makes its pointers stale and counts towards the need of gc", () => {
    const table = emptyTable();
    table.gen[5] = table.lastGc[5] = 255;
    assertEquals(table.bumpGen(5), 0);
    assertEquals(table.staleness(5, 255), 1);
    assertEquals(table.needGc, 1);
  });

  test("a bucket at the limit is not invalidated before the next collection", () => {
    const table = emptyTable();
    table.gen[3] = GENERATION_LIMIT - 1;
    assert(table.canInvalidate(3));
    table.gen[3] = GENERATION_LIMIT;
    assert(!table.canInvalidate(3));
    collect(table, new Map());
    assert(table.canInvalidate(3));
  });

  test("registration takes a pointer's generation when it is ahead of the disk's", () => {
    const table = smallTable();
    table.load(4, 32768, 10);
    table.adoptPointer(4, 12, false);
    assertEquals(table.gen[4], 12);
    table.adoptPointer(4, 11, true);
    assertEquals([table.gen[4], table.priority[4]], [12, 32768]);
    table.adoptPointer(4, 12, true);
    assertEquals(table.priority[4], 0xffff);
    table.adoptPointer(4, 12, false);
    assertEquals(table.priority[4], 32768);
  });
});

describe("what may be invalidated", () => {
  test("nothing before the first marking has finished", () => {
    const table = smallTable();
    assert(!table.canInvalidate(1));
    table.finishGc();
    assert(table.canInvalidate(1));
  });

  test("unmarked and clean buckets, not dirty, metadata or pinned ones", () => {
    const table = emptyTable();
    const marks = [MARK.none, MARK.reclaimable, MARK.dirty, MARK.metadata] as const;
    const answers = marks.map((mark, index) => {
      table.setMark(index + 1, mark);
      return table.canInvalidate(index + 1);
    });
    assertEquals(answers, [true, true, false, false]);
    table.pin(1);
    assert(!table.canInvalidate(1));
    table.unpin(1);
    assert(table.canInvalidate(1));
    assertThrows(() => table.invalidate(4), AssertionError);
  });

  test("during a collection only what was reclaimable when it began, and that once", () => {
    const table = emptyTable();
    collect(table, new Map<number, Mark>([[1, MARK.reclaimable], [2, MARK.dirty]]));
    table.beginGc();
    assert(table.canInvalidate(1));
    assert(!table.canInvalidate(2), "its mark is cleared, but it was not reclaimable");
    table.markPointer(1, 0, MARK.dirty, 1);
    assert(!table.canInvalidate(1));
    table.invalidate(3);
    table.take(3, false);
    table.unpin(3);
    assert(!table.canInvalidate(3));
    table.finishGc();
    assert(table.canInvalidate(2));
    assert(table.canInvalidate(3), "it was taken as clean, and nothing points to it");
  });

  test("a pinned bucket keeps its mark through a collection that does not find it", () => {
    const table = emptyTable();
    table.setMark(6, MARK.dirty);
    table.addSectorsUsed(6, 9);
    table.pin(6);
    collect(table, new Map());
    assertEquals([table.mark[6], table.sectorsUsed[6]], [MARK.dirty, 9]);
  });
});

describe("marking", () => {
  test("a stale pointer only tells how stale it is and holds the oldest generation", () => {
    const table = emptyTable();
    table.gen[7] = 20;
    table.beginGc();
    assertEquals(table.lastGc[7], 20);
    assertEquals(table.markPointer(7, 15, MARK.dirty, 8), 5);
    assertEquals([table.lastGc[7], table.mark[7], table.sectorsUsed[7]], [15, MARK.none, 0]);
    table.markPointer(7, 18, MARK.dirty, 8);
    assertEquals(table.lastGc[7], 15);
    table.finishGc();
    assertEquals([table.gcGen(7), table.needGc], [5, 5]);
  });

  test("dirty outweighs clean in either order", () => {
    const table = emptyTable();
    for (const order of [[MARK.dirty, MARK.reclaimable], [MARK.reclaimable, MARK.dirty]]) {
      table.beginGc();
      for (const mark of order) assertEquals(table.markPointer(2, 0, mark as Mark, 3), 0);
      table.finishGc();
      assertEquals([table.mark[2], table.sectorsUsed[2]], [MARK.dirty, 6]);
    }
  });

  test("a bucket that is both metadata and data is a conflict and stays as it was", () => {
    const table = emptyTable();
    table.markPointer(2, 0, MARK.metadata, 64);
    assertEquals(table.markPointer(2, 0, MARK.dirty, 3), MARK_CONFLICT);
    assertEquals([table.mark[2], table.sectorsUsed[2]], [MARK.metadata, 64]);
    table.markPointer(3, 0, MARK.reclaimable, 1);
    assertEquals(table.markPointer(3, 0, MARK.metadata, 64), MARK_CONFLICT);
  });

  test("use is counted in full in buckets of 16 MiB, and ends at a full bucket", () => {
    const table = emptyTable(8, 32768);
    table.addSectorsUsed(1, 20000);
    table.addSectorsUsed(1, 10000);
    assertEquals(table.sectorsUsed[1], 30000);
    table.addSectorsUsed(1, 10000);
    assertEquals(table.sectorsUsed[1], 32768);
    table.setMark(1, MARK.dirty);
    table.invalidate(2);
    table.take(2, false);
    assertEquals(table.sectorsUsed[2], 32768);
  });
});

describe("available buckets", () => {
  test("a bucket counts as used once when taken, whatever the collections between", () => {
    const table = emptyTable(101);
    assertEquals([table.availableBuckets, table.inUsePercent()], [100, 0]);
    table.invalidate(1);
    assertEquals(table.availableBuckets, 100);
    collect(table, new Map());
    assertEquals(table.availableBuckets, 100);
    table.take(1, true);
    assertEquals(table.availableBuckets, 99);
    table.release(1);
    table.release(1);
    assertEquals(table.availableBuckets, 100);
  });

  test("percent in use is of all buckets, rounded down", () => {
    const table = emptyTable(64);
    collect(table, new Map(Array.from({ length: 31 }, (_, index) => [index + 1, MARK.dirty])));
    assertEquals(table.inUsePercent(), 50);
  });

  test("taken metadata gets the highest priority, data the initial one", () => {
    const table = emptyTable();
    table.invalidate(1);
    table.invalidate(2);
    table.take(1, true);
    table.take(2, false);
    assertEquals([table.mark[1], table.priority[1]], [MARK.metadata, 0xffff]);
    assertEquals([table.mark[2], table.priority[2]], [MARK.reclaimable, 32768]);
    assertEquals([table.pins[1], table.gen[1]], [1, 1]);
    table.unpin(1);
    assertThrows(() => table.unpin(1), AssertionError);
  });
});

describe("ageing", () => {
  test("a 1024th of the cache's size in requests ages every bucket in use by one", () => {
    // 2048 buckets of 1024 sectors: two sweeps' worth of sectors is 2 * 2047.
    const table = emptyTable(2048, 1024);
    for (let bucket = 1; bucket < 2048; bucket++) table.touch(bucket);
    table.priority[5] = 0xffff;
    table.priority[6] = 0;
    table.pin(7);
    for (let sectors = 0; sectors < 2 * 2047; sectors++) table.rescale(1);
    const ages = new Set(Array.from(table.priority.subarray(8), (value) => 32768 - value));
    assertEquals(
      [...ages].toSorted((a, b) => a - b),
      [1, 2],
      "the last slice of the second sweep is still due",
    );
    table.rescale(256);
    assertEquals(table.priority[2047], 32766);
    assertEquals([...table.priority.subarray(5, 8)], [0xffff, 0, 32768]);
  });

  test("the minimum follows the least recently used bucket up and down", () => {
    const table = emptyTable(10, 1024);
    for (let bucket = 1; bucket < 10; bucket++) table.priority[bucket] = 100 + bucket;
    table.rescale(1_000_000);
    assertEquals([table.priority[1], table.minPriority], [100, 100], "one request ages once");
    table.touch(1);
    table.rescale(1_000_000);
    assertEquals(table.minPriority, 100);
    assertEquals([table.priority[1], table.priority[2]], [32767, 100]);
  });

  test("a bucket reaches zero and stays there", () => {
    const table = emptyTable(4, 16);
    table.priority[1] = 2;
    for (let round = 0; round < 5; round++) table.rescale(1_000_000);
    assertEquals([table.priority[1], table.minPriority], [0, 0]);
  });
});

test("the table takes at most 12 bytes a bucket", () => {
  const table = new BucketTable({ bucketCount: 1000, firstBucket: 1, bucketSectors: 1024 });
  const { gen, priority, lastGc, mark, pins, sectorsUsed } = table;
  const flagsBytes = 1000;
  const bytes = [gen, priority, lastGc, mark, pins, sectorsUsed]
    .reduce((sum, array) => sum + array.byteLength, flagsBytes);
  assertEquals(bytes, 12_000);
});

test("any sequence of operations keeps the table consistent with a naive twin", () => {
  const COUNT = 12;
  const step = fc.record({
    act: fc.constantFrom("invalidate", "take", "pin", "unpin", "release", "mark", "gc", "bump"),
    bucket: fc.integer({ min: 1, max: COUNT - 1 }),
    mark: fc.constantFrom(MARK.reclaimable, MARK.dirty, MARK.metadata),
  });
  fc.assert(fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
    const table = emptyTable(COUNT, 8);
    const available = new Set(Array.from({ length: COUNT - 1 }, (_, index) => index + 1));
    for (const { act, bucket, mark } of steps) {
      const held = table.isHeld(bucket);
      if (act === "invalidate" && table.canInvalidate(bucket)) {
        table.invalidate(bucket);
        available.add(bucket);
      } else if (act === "take" && held) {
        table.take(bucket, mark === MARK.metadata);
        available.delete(bucket);
      } else if (act === "pin" && !held) table.pin(bucket);
      else if (act === "unpin" && !held && table.pins[bucket]! > 0) table.unpin(bucket);
      else if (act === "release" && !held) {
        table.release(bucket);
        available.add(bucket);
      } else if (act === "mark" && !held) {
        const data = mark !== MARK.metadata;
        const before = table.mark[bucket]!;
        const conflict = before !== MARK.none && (before !== MARK.metadata) !== data;
        assertEquals(table.setMark(bucket, mark), !conflict);
      } else if (act === "bump" && !held && table.gcGen(bucket) < 100) table.bumpGen(bucket);
      else if (act === "gc") {
        collect(table, new Map([[bucket, MARK.dirty]].filter(() => !held) as [number, Mark][]));
        available.clear();
        for (let each = 1; each < COUNT; each++) {
          const free = table.pins[each] === 0 && table.mark[each]! <= MARK.reclaimable;
          if (free || table.isHeld(each)) available.add(each);
        }
      }
      assertEquals(table.availableBuckets, available.size);
      table.checkInvariants();
    }
  }));
});

describe("a collection in slices", () => {
  function inUse(): BucketTable {
    const table = emptyTable(64);
    const found = Array.from(
      { length: 60 },
      (_, index): [number, Mark] => [index + 1, index % 3 === 0 ? MARK.dirty : MARK.reclaimable],
    );
    collect(table, new Map(found));
    return table;
  }

  test("what begun buckets held is remembered, the others' marks stay valid", () => {
    const table = inUse();
    assert(!table.beginGc(10));
    assertEquals([table.mark[2], table.mark[30]], [MARK.none, MARK.reclaimable]);
    assert(table.canInvalidate(2), "it was reclaimable when it was begun");
    assert(!table.canInvalidate(1), "it was dirty, though its mark is cleared");
    assert(table.canInvalidate(30) && !table.canInvalidate(31), "not begun: as marked");
    assert(table.beginGc());
    assert(!table.gcMarksValid);
  });

  test("a bucket taken before or after it was begun keeps what it was taken for", () => {
    const table = inUse();
    table.invalidate(2);
    table.invalidate(30);
    table.beginGc(10);
    table.take(2, true);
    table.take(30, true);
    while (!table.beginGc(10));
    assertEquals([table.mark[2], table.mark[30]], [MARK.metadata, MARK.metadata]);
    while (!table.finishGc(10));
    assertEquals([table.mark[2], table.mark[30]], [MARK.metadata, MARK.metadata]);
    table.checkInvariants();
  });

  test("marks are valid from the first slice of the end on, the count always exact", () => {
    const table = inUse();
    while (!table.beginGc(7));
    for (let bucket = 1; bucket <= 20; bucket++) table.markPointer(bucket, 0, MARK.dirty, 8);
    const before = table.availableBuckets;
    assert(!table.finishGc(7));
    assert(table.gcMarksValid);
    assert(table.canInvalidate(50), "not counted yet, but known to be free");
    table.invalidate(50);
    table.take(50, false);
    table.checkInvariants();
    while (!table.finishGc(7)) table.checkInvariants();
    assertEquals([before, table.availableBuckets], [43, 42]);
  });

  test("a slice goes over no more buckets than it was asked to", () => {
    const table = smallTable(2_000_000);
    table.finishGc();
    let slices = 1;
    while (!table.beginGc(32_768)) slices++;
    assertEquals(slices, Math.ceil(1_999_999 / 32_768));
    slices = 1;
    while (!table.finishGc(32_768)) slices++;
    assertEquals(slices, Math.ceil(1_999_999 / 32_768));
    assertEquals(table.availableBuckets, 1_999_999);
  });

  test("generations raised between slices are counted into the need of gc", () => {
    const table = inUse();
    while (!table.beginGc(7));
    table.finishGc(40);
    table.bumpGen(5);
    table.bumpGen(5);
    while (!table.finishGc(7));
    assertEquals(table.needGc, 2);
  });
});
