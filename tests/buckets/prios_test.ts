import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { prioSetCount, PrioWriter } from "../../lib/buckets/prios.ts";
import { RESERVE } from "../../lib/buckets/reserves.ts";
import { BucketTable, MARK } from "../../lib/buckets/table.ts";
import { magicsOf } from "../../lib/ondisk/magic.ts";
import { genAt, PRIO_SET_HEADER_BYTES, sealPrioSet } from "../../lib/ondisk/prio_set.ts";
import { ioError, smallTable, TestDevice } from "./support.ts";

/** Meta areas of 512 bytes describe 157 buckets each, so that chains of several sets are small. */
const META_BYTES = 512;
const BUCKET_SECTORS = 2;
const MAGIC = { low: 0x0b3a_191e, high: 0x201f_d5fd };

interface World {
  table: BucketTable;
  device: TestDevice;
  writer: PrioWriter;
  /** Buckets that `tryTake` gives, in order. */
  free: number[];
  released: number[];
  givenBack: number[];
  commits: number[];
  onCommit: (firstBucket: number) => Promise<void>;
}

function world(bucketCount = 400, device = new TestDevice(bucketCount * BUCKET_SECTORS)): World {
  const table = smallTable(bucketCount, BUCKET_SECTORS);
  const self: World = {
    table,
    device,
    free: [10, 20, 30, 40, 50, 60, 70, 80, 90],
    released: [],
    givenBack: [],
    commits: [],
    onCommit: () => Promise.resolve(),
    writer: new PrioWriter({
      table,
      device,
      metaBytes: META_BYTES,
      magic: MAGIC,
      buckets: {
        available: (reserve) => {
          assertEquals(reserve, RESERVE.prio);
          return self.free.length;
        },
        tryTake: () => {
          const bucket = self.free.shift() ?? -1;
          if (bucket >= 0) table.pin(bucket);
          return bucket;
        },
        giveBack: (bucket) => {
          self.givenBack.push(bucket);
        },
        release: (bucket) => {
          assertEquals(table.pins[bucket], 0);
          self.released.push(bucket);
        },
      },
      commitPrios: async (firstBucket) => {
        self.commits.push(firstBucket);
        await self.onCommit(firstBucket);
      },
    }),
  };
  return self;
}

/** Gives every bucket a priority and a generation of its own. */
function vary(table: BucketTable, salt: number): void {
  for (let bucket = 0; bucket < table.bucketCount; bucket++) {
    table.priority[bucket] = (bucket * 331 + salt) & 0xffff;
    table.gen[bucket] = (bucket * 7 + salt) & 0xff;
  }
}

async function readBack(from: World, firstBucket: number): Promise<World> {
  const fresh = world(from.table.bucketCount, from.device);
  await fresh.writer.read(firstBucket);
  return fresh;
}

describe("writing the chain", () => {
  test("what was written is read back, in several sets, over several rounds", async () => {
    const first = world();
    assertEquals(first.writer.setCount, 3);
    vary(first.table, 1);
    assert(await first.writer.write());
    vary(first.table, 77);
    assert(await first.writer.write());
    assertEquals(first.commits, [10, 40]);
    const second = await readBack(first, 40);
    assertEquals(second.table.gen, first.table.gen);
    assertEquals(second.table.lastGc, first.table.gen);
    assertEquals(second.table.priority, first.table.priority);
    assertEquals([second.writer.sequence, second.writer.firstBucket], [2, 40]);
    assertEquals(second.writer.liveBuckets(), [40, 50, 60]);
  });

  test("sets go out last to first, each naming the next, and the last naming none", async () => {
    const { device, writer } = world();
    await writer.write();
    assertEquals(device.writes, [30, 20, 10].map((bucket) => bucket * BUCKET_SECTORS));
    const view = new DataView(device.bytes.buffer);
    const next = [10, 20, 30].map((bucket) => view.getUint32(bucket * 1024 + 32, true));
    assertEquals(next, [20, 30, 0]);
  });

  test("the old chain is released only after the new one is journaled", async () => {
    const self = world();
    await self.writer.write();
    assertEquals(self.released, []);
    self.onCommit = () => {
      assertEquals(self.released, []);
      assertEquals(self.writer.firstBucket, 10);
      assertEquals(self.writer.liveBuckets(), [10, 20, 30, 40, 50, 60]);
      return Promise.resolve();
    };
    await self.writer.write();
    assertEquals(self.released, [10, 20, 30]);
    assertEquals([self.table.pins[10], self.table.pins[40]], [0, 1]);
  });
});

describe("a round of writing", () => {
  test("a round has the generations of the moment it began, not of its writes", async () => {
    const self = world();
    vary(self.table, 5);
    const genBefore = self.table.gen.slice();
    self.device.beforeWrite = () => {
      vary(self.table, self.device.writes.length * 13);
      return Promise.resolve();
    };
    await self.writer.write();
    const second = await readBack(self, 10);
    assertEquals(second.table.gen, genBefore);
  });

  test("with too few buckets nothing happens", async () => {
    const self = world();
    self.free = [10, 20];
    assertEquals(await self.writer.write(), false);
    assertEquals([self.free, self.device.writes, self.commits], [[10, 20], [], []]);
  });

  test("a failed write gives the buckets back and leaves the chain in force", async () => {
    const self = world();
    await self.writer.write();
    self.device.beforeWrite = (sector) =>
      sector === 50 * BUCKET_SECTORS ? Promise.reject(ioError()) : Promise.resolve();
    await assertRejects(() => self.writer.write(), BcacheError, "planted");
    assertEquals([self.givenBack, self.released, self.commits], [[40, 50, 60], [], [10]]);
    assertEquals(self.writer.liveBuckets(), [10, 20, 30]);
    assertEquals((await readBack(self, 10)).writer.sequence, 1);
  });

  test("when journaling fails, either chain may be in force: both are kept", async () => {
    const self = world();
    await self.writer.write();
    self.onCommit = () => Promise.reject(ioError());
    await assertRejects(() => self.writer.write(), BcacheError, "planted");
    assertEquals([self.givenBack, self.released], [[], []]);
    assertEquals(self.writer.liveBuckets(), [10, 20, 30, 40, 50, 60]);
    assertEquals((await readBack(self, 40)).writer.sequence, 2);
  });
});

async function written(): Promise<World> {
  const self = world();
  vary(self.table, 3);
  await self.writer.write();
  return self;
}

/** Changes set `bucket` as a correct writer never would, with a good checksum. */
function reseal(device: TestDevice, bucket: number, sequence: number, nextBucket: number) {
  const bytes = device.bytes.subarray(bucket * 1024, bucket * 1024 + META_BYTES);
  sealPrioSet(bytes, { sequence, nextBucket }, MAGIC);
}

async function refusal(self: World, firstBucket = 10): Promise<BcacheError> {
  return await assertRejects(() => readBack(self, firstBucket), BcacheError);
}

describe("reading the chain", () => {
  test("its buckets are marked and pinned", async () => {
    const { table } = await readBack(await written(), 10);
    for (const bucket of [10, 20, 30]) {
      assertEquals([table.mark[bucket], table.pins[bucket]], [MARK.metadata, 1]);
    }
    table.finishGc();
    assert(!table.canInvalidate(20));
  });

  test("a flipped bit anywhere is a bad checksum that names the bucket", async () => {
    for (const offset of [0, 8, 16, 24, 28, 32, PRIO_SET_HEADER_BYTES, 300, META_BYTES - 1]) {
      const self = await written();
      self.device.bytes[20 * 1024 + offset]! ^= 4;
      const error = await refusal(self);
      assertEquals(error.code, "BadChecksum");
      assertStringIncludes(error.message, "test-cache: prio_set 1 of 3 in bucket 20");
      assertStringIncludes(error.message, "expected 0x");
    }
  });

  test("another set's magic is refused though its checksum is good", async () => {
    const self = await written();
    const bytes = self.device.bytes.subarray(10 * 1024, 10 * 1024 + META_BYTES);
    sealPrioSet(bytes, { sequence: 1, nextBucket: 20 }, { low: 1, high: 2 });
    const error = await refusal(self);
    assertEquals(error.code, "BadChecksum");
    assertStringIncludes(error.message, "0x0000000200000001, expected 0x201fd5fd0b3a191e");
  });
});

describe("a chain with good checksums that cannot be right", () => {
  test("links out of the device, into the superblock, or in a circle are refused", async () => {
    for (const next of [0, 400, 2 ** 40, 10]) {
      const self = await written();
      reseal(self.device, 10, 1, next);
      const error = await refusal(self);
      assertEquals(error.code, "BadFormat");
      assertStringIncludes(error.message, `the prio_set in bucket 10 names bucket ${next} `);
    }
    const error = await refusal(await written(), 400);
    assertStringIncludes(error.message, "the journal names bucket 400");
  });

  test("a set of another round is refused", async () => {
    const self = await written();
    reseal(self.device, 20, 9, 30);
    const error = await refusal(self);
    assertEquals(error.code, "BadFormat");
    assertStringIncludes(error.message, "bucket 20 has sequence 9, expected 1");
  });

  test("what the last set names as next is not followed", async () => {
    const self = await written();
    reseal(self.device, 30, 1, 0xdead_beef);
    const second = await readBack(self, 10);
    assertEquals(second.table.gen, self.table.gen);
  });

  test("a sequence that could not be counted on is refused", async () => {
    const self = await written();
    reseal(self.device, 10, Number.MAX_SAFE_INTEGER, 20);
    assertEquals((await refusal(self)).code, "BadFormat");
  });
});

describe("the bytes of a kernel's prio_set", () => {
  // Bucket 42 of a cache that Linux 6.1 wrote: [how many, priority, generation], in order.
  const RUNS: ReadonlyArray<readonly [number, number, number]> = [
    ...[[17, 0, 0], [1, 65535, 1], [7, 32768, 1], [7, 0, 0], [1, 32768, 2], [1, 65535, 1]],
    ...[[1, 32768, 1], [1, 65535, 2], [2, 65535, 1], [3, 32768, 1], [1, 32757, 1], [1, 32768, 2]],
    ...[[2, 32756, 1], [2, 32755, 1], [1, 32754, 1], [1, 32760, 1], [1, 32763, 1], [2, 32759, 1]],
    ...[[2, 32758, 1], [1, 32757, 1], [1, 32766, 1], [2, 32762, 1], [2, 32761, 1], [1, 32760, 1]],
    ...[[1, 32768, 1], [2, 32765, 1], [2, 32764, 1], [1, 32763, 1], [3, 32768, 1], [2, 32767, 1]],
    ...[[1, 32766, 1], [1, 0, 0], [5, 32768, 1], [1969, 0, 0]],
  ] as Array<[number, number, number]>;
  const HEADER = "67bacb3e1d88e2ad1e193a0bfdd51f2006000000000000000000000000000000" +
    "2300000000000000";
  const META = 131072;
  const SET_UUID = Uint8Array.fromHex("8f66098ca2344f47a35b7392a76383cd");

  function image(): Uint8Array {
    const bytes = new Uint8Array(META);
    bytes.set(Uint8Array.fromHex(HEADER));
    let at = PRIO_SET_HEADER_BYTES;
    for (const [count, priority, gen] of RUNS) {
      for (let each = 0; each < count; each++) {
        bytes.set([priority & 0xff, priority >>> 8, gen], at);
        at += 3;
      }
    }
    return bytes;
  }

  function writerOn(device: TestDevice, table: BucketTable, bucket: number): PrioWriter {
    const unused = () => {};
    return new PrioWriter({
      table,
      device,
      metaBytes: META,
      magic: magicsOf(SET_UUID).prioSet,
      buckets: {
        available: () => 1,
        tryTake: () => {
          table.pin(bucket);
          return bucket;
        },
        giveBack: unused,
        release: unused,
      },
      commitPrios: () => Promise.resolve(),
    });
  }
  const newTable = () =>
    new BucketTable({ bucketCount: 2048, firstBucket: 1, bucketSectors: META / 512 });

  test("are read, its garbage link ignored, and what we write is the same", async () => {
    const device = new TestDevice(44 * META / 512);
    device.bytes.set(image(), 42 * META);
    const table = newTable();
    const writer = writerOn(device, table, 43);
    await writer.read(42);
    assertEquals(writer.sequence, 6);
    assertEquals([...table.priority.subarray(32, 36)], [32768, 65535, 32768, 65535]);
    assertEquals([...table.gen.subarray(32, 36)], [2, 1, 1, 2]);

    // The same round written by us: the same bytes but the last set's link, which we leave zero.
    await writer.write();
    const ours = device.bytes.slice(43 * META, 44 * META);
    assertEquals(writer.sequence, 7);
    sealPrioSet(ours, { sequence: 6, nextBucket: 35 }, magicsOf(SET_UUID).prioSet);
    assertEquals(ours.subarray(0, 40).toHex(), HEADER);
    assertEquals(ours.toHex(), image().toHex());
  });
});

test("the number of sets follows from buckets and meta area as in the kernel", () => {
  assertEquals(prioSetCount(2048, 131072), 1);
  assertEquals(prioSetCount(43677, 131072), 1);
  assertEquals(prioSetCount(43678, 131072), 2);
  assertEquals(prioSetCount(5449, 16384), 2);
});

test("a round holds the generations of one moment, though others run meanwhile", async () => {
  const COUNT = 200_000;
  const META = 65536;
  const setCount = prioSetCount(COUNT, META);
  const table = smallTable(COUNT, META / 512);
  const written: Uint8Array[] = [];
  let turns = 0;
  let free = 100;
  const device = Object.assign(new TestDevice(1), {
    write: (_at: number, from: Uint8Array) => {
      written.unshift(from.slice());
      return Promise.resolve();
    },
  });
  const writer = new PrioWriter({
    table,
    device,
    metaBytes: META,
    magic: MAGIC,
    buckets: {
      available: () => setCount,
      tryTake: () => free++,
      giveBack: () => {},
      release: () => {},
    },
    commitPrios: () => Promise.resolve(),
    turn: () => {
      turns++;
      // Nodes are freed: one in what was composed already, one in what was not.
      table.bumpGen(7);
      table.bumpGen(199_990);
      return Promise.resolve();
    },
  });
  table.gen.fill(9);
  table.lastGc.fill(9);
  assert(await writer.write());
  assertEquals(turns, 12 + setCount, "twelve slices end early, and each set is written alone");
  const gens = written.flatMap((set) =>
    Array.from(
      { length: Math.floor((META - PRIO_SET_HEADER_BYTES) / 3) },
      (_, index) => genAt(set, index),
    )
  );
  assertEquals([gens[7], gens[199_990]], [9, 9]);
  assertEquals([table.gen[7], table.gen[199_990]], [9 + turns, 9 + turns]);
  assertEquals(table.watchGens().size, 0, "nobody watches any more");
});
