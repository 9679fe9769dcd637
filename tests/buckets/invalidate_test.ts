import { describe, test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import fc from "fast-check";
import { evictionCost, REPLACEMENT_POLICIES } from "../../lib/buckets/invalidate.ts";
import { type BucketTable, MARK } from "../../lib/buckets/table.ts";
import { emptyTable, seededRandom, smallTable } from "./support.ts";

type Name = keyof typeof REPLACEMENT_POLICIES;
const NAMES: readonly Name[] = ["lru", "fifo", "random"];

function run(table: BucketTable, name: Name, wanted: number, options?: {
  cursor?: number;
  atPause?: () => void;
  seed?: number;
}) {
  const taken: number[] = [];
  let gcs = 0;
  const work = {
    table,
    random: seededRandom(options?.seed ?? 1),
    fifoCursor: options?.cursor ?? 1,
    wanted: () => wanted - taken.length,
    take: (bucket: number) => {
      table.invalidate(bucket);
      taken.push(bucket);
    },
    needGc: () => {
      gcs++;
    },
  };
  const steps = REPLACEMENT_POLICIES[name](work);
  let pauses = 0;
  while (!steps.next().done) {
    pauses++;
    options?.atPause?.();
  }
  return { taken, gcs, pauses, cursor: work.fifoCursor };
}

const bucketState = fc.record({
  mark: fc.constantFrom(MARK.none, MARK.reclaimable, MARK.reclaimable, MARK.dirty, MARK.metadata),
  sectors: fc.integer({ min: 1, max: 64 }),
  priority: fc.integer({ min: 0, max: 32768 }),
  pinned: fc.boolean(),
});
const states = fc.array(bucketState, { minLength: 2, maxLength: 40 });

function tableOf(list: readonly (typeof bucketState extends fc.Arbitrary<infer S> ? S : never)[]) {
  const table = smallTable(list.length + 1);
  list.forEach(({ mark, sectors, priority, pinned }, index) => {
    table.setMark(index + 1, mark);
    if (mark !== MARK.none) table.addSectorsUsed(index + 1, sectors);
    table.priority[index + 1] = priority;
    if (pinned) table.pin(index + 1);
  });
  table.finishGc();
  return table;
}

function candidates(table: BucketTable): number[] {
  const all = Array.from({ length: table.bucketCount }, (_, bucket) => bucket);
  return all.filter((bucket) => bucket >= table.firstBucket && table.canInvalidate(bucket));
}

describe("every policy", () => {
  test("takes as many as wanted or all there are, each once, and then asks for gc", () => {
    fc.assert(fc.property(
      states,
      fc.constantFrom(...NAMES),
      fc.integer({ min: 0, max: 45 }),
      fc.integer(),
      (list, name, wanted, seed) => {
        const table = tableOf(list);
        const before = candidates(table);
        const { taken, gcs } = run(table, name, wanted, { seed });
        assertEquals(taken.length, Math.min(wanted, before.length));
        assertEquals(new Set(taken).size, taken.length);
        assert(taken.every((bucket) => before.includes(bucket)), "only what could be invalidated");
        assertEquals(gcs, wanted > before.length ? 1 : 0);
        table.checkInvariants();
      },
    ));
  });
});

describe("lru", () => {
  test("takes exactly the cheapest by brute force, in order", () => {
    fc.assert(fc.property(states, fc.integer({ min: 1, max: 10 }), (list, wanted) => {
      const table = tableOf(list);
      const expected = candidates(table)
        .map((bucket) => ({ bucket, cost: evictionCost(table, bucket) }))
        .toSorted((a, b) => a.cost - b.cost || a.bucket - b.bucket)
        .slice(0, wanted).map(({ bucket }) => bucket);
      assertEquals(run(table, "lru", wanted).taken, expected);
    }));
  });

  test("weighs recency by use: empty first, then little used, then long unused", () => {
    const table = smallTable(8);
    const fill = (bucket: number, sectors: number, priority: number) => {
      table.markPointer(bucket, 0, MARK.reclaimable, sectors);
      table.priority[bucket] = priority;
    };
    fill(1, 64, 32768);
    fill(2, 64, 100);
    fill(3, 1, 32768);
    fill(5, 64, 200);
    table.finishGc();
    // The costs: 64 * 36864, 64 * 4196, 36864, 0, 64 * 4296, 0, 0.
    assertEquals(run(table, "lru", 7).taken, [4, 6, 7, 3, 2, 5, 1]);
  });

  test("costs do not overflow for the largest buckets", () => {
    const table = emptyTable(4, 32768);
    table.invalidate(1);
    table.take(1, false);
    assertEquals(evictionCost(table, 1), (32768 + 4096) * 32768);
  });

  test("a bucket that was pinned while it paused is not taken", () => {
    const table = emptyTable(40_000);
    let paused = 0;
    const { taken, pauses } = run(table, "lru", 3, {
      atPause: () => {
        if (paused++ === 0) table.pin(2);
      },
    });
    assert(pauses >= 1, "a long table is looked over in pieces");
    assertEquals(taken, [1, 3]);
  });
});

describe("fifo", () => {
  test("goes on where it stopped, round the end, from any cursor", () => {
    const table = emptyTable(6);
    const first = run(table, "fifo", 3, { cursor: 4 });
    assertEquals(first.taken, [4, 5, 1]);
    assertEquals(run(table, "fifo", 1, { cursor: first.cursor }).taken, [2]);
    assertEquals(run(emptyTable(6), "fifo", 1, { cursor: 4_000_000 }).taken, [1]);
  });
});

describe("random", () => {
  test("reaches first and last bucket, and draws differ by seed", () => {
    const drawn = [1, 2, 3].map((seed) => run(emptyTable(200), "random", 5, { seed }).taken);
    assertNotEquals(drawn[0], drawn[1]);
    const edges = [0, 0xffff_ffff].map((word) => {
      const table = emptyTable(9);
      const taken: number[] = [];
      const work = {
        table,
        random: { nextU32: () => word },
        fifoCursor: 1,
        wanted: () => 1 - taken.length,
        take: (bucket: number) => {
          taken.push(bucket);
        },
        needGc: () => {},
      };
      while (!REPLACEMENT_POLICIES.random(work).next().done);
      return taken[0];
    });
    assertEquals(edges, [1, 8]);
  });

  test("finds the only free bucket of many", () => {
    const table = smallTable(600);
    for (let bucket = 1; bucket < 600; bucket++) {
      if (bucket !== 417) table.setMark(bucket, MARK.dirty);
    }
    table.finishGc();
    assertEquals(run(table, "random", 1).taken, [417]);
  });
});
