/** Which bucket data goes into: kinds apart, streams apart, small writes side by side. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { OpenBuckets } from "../../lib/cache/open_buckets.ts";
import { emptyTable } from "../buckets/support.ts";

const BUCKET_SECTORS = 64;

function setUp(bucketCount = 64) {
  const buckets = emptyTable(bucketCount, BUCKET_SECTORS);
  let next = 1;
  const allocator = {
    tryTake: (): number => {
      if (next === bucketCount) return -1;
      buckets.invalidate(next);
      buckets.take(next, false);
      return next++;
    },
  };
  const open = new OpenBuckets({ buckets, allocator, blockSectors: 8 });
  /** Writes, and says where it went. */
  const write = (inode: number, start: number, sectors = 8, dirty = true) => {
    assert(open.tryAllocate(sectors, dirty, inode, start), "there is a bucket");
    const { bucket, sector, sectors: granted } = open.grant;
    open.settle(bucket);
    return { bucket, sector, granted };
  };
  return { buckets, open, write, taken: () => next - 1 };
}

describe("open buckets", () => {
  test("dirty and clean data, and devices, go into buckets of their own", () => {
    const { write } = setUp();
    const places = [write(0, 100), write(0, 500, 8, false), write(1, 100), write(1, 500, 8, false)];
    assertEquals(new Set(places.map(({ bucket }) => bucket)).size, 4);
    assertEquals(write(0, 900).sector, places[0]!.sector + 8);
    assertEquals(write(1, 900, 8, false).sector, places[3]!.sector + 8);
  });

  test("a stream stays in one piece whatever is written between its parts", () => {
    const { write } = setUp();
    write(0, 1000);
    const stream = write(0, 1008);
    const odd = write(0, 5000);
    assertNotEquals(odd.bucket, stream.bucket);
    assertEquals(write(0, 1016), { bucket: stream.bucket, sector: stream.sector + 8, granted: 8 });
    assertEquals(write(0, 9000).sector, odd.sector + 8);
    assertEquals(write(0, 1024).sector, stream.sector + 16);
  });

  test("a stream takes its next bucket when one is full, and grants end at a bucket's end", () => {
    const { write } = setUp();
    write(0, 0);
    const first = write(0, 8, 60);
    assertEquals(first.granted, 60);
    const rest = write(0, 68, 60);
    assertNotEquals(rest.bucket, first.bucket, "four sectors are less than a block: forfeited");
    assertEquals(rest.sector % BUCKET_SECTORS, 0);
  });

  test("no more are open than may be: the least recently used one changes its owner", () => {
    const { write, open, taken } = setUp();
    open.countMax = 2;
    const a = write(0, 1000);
    const b = write(1, 1000);
    const c = write(2, 1000);
    assertEquals(c.sector, a.sector + 8, "what is free of a bucket is not lost");
    assertEquals(write(1, 5000).sector, b.sector + 8);
    assertEquals(taken(), 2);
    open.countMax = 1;
    const d = write(3, 7000);
    assertEquals(write(3, 7008).bucket, d.bucket);
    assertEquals(taken(), 2, "with one there are no streams");
  });

  test("closed buckets are not pinned, and without a free bucket nothing changes", () => {
    const { buckets, write, open } = setUp(3);
    write(0, 0, 64);
    write(0, 5000, 64);
    assertEquals([...buckets.pins.subarray(1, 3)], [0, 0]);
    assertEquals(open.tryAllocate(8, true, 0, 9000), false);
    assertEquals(open.grantedSectors, 128);
  });
});
