import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import {
  type JournalReplay,
  readJournal,
  type ReadJournalOptions,
} from "../../lib/journal/reader.ts";
import { JSET, JSET_HEADER_BYTES, sealJset } from "../../lib/ondisk/jset.ts";
import { resealJset } from "../offline/world.ts";
import { PowerDevice, SeededRandom } from "./power_device.ts";
import { idsOf, KEY_WORDS, keyOf, Leaf, MAGIC, openJournal, placeOn, type Shape } from "./world.ts";

const SHAPE: Shape = { buckets: 4, bucketSectors: 8, blockSectors: 1 };
const BYTES = (SHAPE.buckets + 1) * SHAPE.bucketSectors * SECTOR_BYTES;

interface Planted {
  bucket: number;
  block: number;
  seq: number;
  lastSeq: number;
  version?: number;
  keys?: Uint32Array;
}

function deviceOf(stable: Uint8Array): PowerDevice {
  return new PowerDevice({ random: new SeededRandom(1), stable });
}

/** Where an entry of a bucket's block begins. */
function offsetOf(bucket: number, block: number): number {
  return ((bucket + 1) * SHAPE.bucketSectors + block) * SECTOR_BYTES;
}

/** An image with these entries, each of one block. */
function image(entries: readonly Planted[]): Uint8Array {
  const bytes = new Uint8Array(BYTES);
  for (const { bucket, block, seq, lastSeq, version, keys } of entries) {
    const at = offsetOf(bucket, block);
    const entry = bytes.subarray(at, at + SECTOR_BYTES);
    const words = keys ?? keyOf(seq);
    new Uint32Array(bytes.buffer, at + JSET_HEADER_BYTES, words.length).set(words);
    const header = {
      sequence: seq,
      lastSequence: lastSeq,
      version: version ?? 1,
      keyWords: words.length / 2,
      btreeLevel: 3,
      prioBucket: 9,
    };
    sealJset(entry, header, MAGIC);
  }
  return bytes;
}

function read(stable: Uint8Array, options?: ReadJournalOptions): Promise<JournalReplay> {
  return readJournal(placeOn(deviceOf(stable), SHAPE), options);
}

async function seqsOf(replay: JournalReplay): Promise<number[]> {
  const seqs: number[] = [];
  for await (const entry of replay.entries()) {
    assertEquals(idsOf(entry.words, entry.start, entry.end), [entry.seq]);
    seqs.push(entry.seq);
  }
  assertEquals(seqs.length, replay.entryCount);
  return seqs;
}

/** The entries [from, to], filling buckets from `bucket` on. */
function run(bucket: number, from: number, to: number, lastSeq: number): Planted[] {
  const entries: Planted[] = [];
  for (let seq = from; seq <= to; seq++) {
    const block = (seq - from) % SHAPE.bucketSectors;
    const index = (bucket + Math.floor((seq - from) / SHAPE.bucketSectors)) % SHAPE.buckets;
    entries.push({ bucket: index, block, seq, lastSeq: Math.min(lastSeq, seq) });
  }
  return entries;
}

/** An entry that calls itself 6 and needs those from 7 on, rightly sealed. */
function plantImpossible(bytes: Uint8Array, bucket: number, block: number): void {
  const at = offsetOf(bucket, block);
  const from = offsetOf(1, 0);
  bytes.copyWithin(at, from, from + SECTOR_BYTES);
  const view = new DataView(bytes.buffer, at, SECTOR_BYTES);
  view.setBigUint64(JSET.seq, 6n, true);
  view.setBigUint64(JSET.last_seq, 7n, true);
  resealJset(new Uint8Array(bytes.buffer, at, SECTOR_BYTES));
}

describe("reading the journal", () => {
  test("finds the entries from last_seq to the newest, whichever bucket is newest", async () => {
    for (let bucket = 0; bucket < SHAPE.buckets; bucket++) {
      const replay = await read(image(run(bucket, 100, 125, 107)));
      assertEquals(await seqsOf(replay), Array.from({ length: 19 }, (_, index) => 107 + index));
      assertEquals(replay.head.rootLevel, 3);
      assertEquals(replay.head.prioBucket, 9);
      assertEquals(replay.start.nextSeq, 126);
      assertEquals(replay.start.firstSeq, 107);
      assertEquals(replay.start.ring.currentIndex, (bucket + 3) % SHAPE.buckets);
      assertEquals(replay.start.ring.currentUsedBlocks, 2);
      assertEquals(await seqsOf(replay), Array.from({ length: 19 }, (_, index) => 107 + index));
    }
  });

  test("ignores what a former round left behind the newest entry", async () => {
    const stale = run(0, 10, 17, 10);
    const fresh = run(0, 42, 44, 42);
    const replay = await read(image([...stale, ...run(1, 18, 41, 18), ...fresh]));
    assertEquals(await seqsOf(replay), [42, 43, 44]);
    assertEquals(replay.start.ring.currentUsedBlocks, 3);
    assertEquals(replay.warnings, []);
  });

  test("says so when there is no entry at all", async () => {
    const error = await assertRejects(() => read(new Uint8Array(BYTES)), BcacheError, "no journal");
    assertEquals(error.code, "BadFormat");
  });

  test("passes over a damaged newest entry, with a warning that names the place", async () => {
    const bytes = image(run(0, 1, 12, 1));
    bytes[offsetOf(1, 3) + 100]! ^= 1;
    const replay = await read(bytes);
    assertEquals(replay.head.seq, 11);
    assertEquals(replay.warnings.length, 1);
    assertStringIncludes(replay.warnings[0]!, "journal bucket 2, offset 3 sectors: checksum 0x");
  });

  test("refuses an entry with a right checksum whose numbers cannot be", async () => {
    const numbers: Array<[seq: bigint, lastSeq: bigint]> = [
      [12n, 13n],
      [1n << 53n, 1n],
      [(1n << 64n) - 1n, (1n << 64n) - 1n],
      [0n, 0n],
    ];
    for (const [seq, lastSeq] of numbers) {
      // The newest entry, in the middle of a bucket and at its start.
      for (const [newest, bucket, block] of [[12, 1, 3], [9, 1, 0]] as const) {
        const bytes = image(run(0, 1, newest, 1));
        const view = new DataView(bytes.buffer, offsetOf(bucket, block), SECTOR_BYTES);
        view.setBigUint64(JSET.seq, seq, true);
        view.setBigUint64(JSET.last_seq, lastSeq, true);
        resealJset(new Uint8Array(bytes.buffer, view.byteOffset, SECTOR_BYTES));
        const error = await assertRejects(() => read(bytes), BcacheError);
        assertEquals(error.code, "BadFormat");
        const where = `journal bucket 2, offset ${block} sectors: an entry with a right checksum`;
        assertStringIncludes(error.message, where);
        assertStringIncludes(error.message, "extract --rescue");
      }
    }
  });

  test("passes over such an older entry behind the newest one, with a warning", async () => {
    const bytes = image(run(0, 1, 12, 1));
    // Bucket 1 has entries 9-12; the next bucket, too, is looked at for newer ones.
    for (const [bucket, block] of [[1, 6], [2, 5]] as const) plantImpossible(bytes, bucket, block);
    const quiet = await read(bytes);
    assertEquals([quiet.head.seq, quiet.warnings], [12, []]);
    // This may be the next entry with a wrong number.
    plantImpossible(bytes, 1, 4);
    const { head, warnings } = await read(bytes);
    assertEquals([head.seq, warnings.length], [12, 1]);
    assertStringIncludes(warnings[0]!, "bucket 2, offset 4 sectors: an entry with a right");
    assertStringIncludes(warnings[0]!, "sequence 6, oldest needed 7");
  });

  test("passes over one at the start of a bucket that is not needed, with a warning", async () => {
    const bytes = image(run(0, 2, 20, 10));
    plantImpossible(bytes, 0, 0);
    plantImpossible(bytes, 3, 0);
    const replay = await read(bytes);
    assertEquals(await seqsOf(replay), Array.from({ length: 11 }, (_, index) => 10 + index));
    assertEquals(replay.warnings.length, 2);
    assertStringIncludes(replay.warnings[0]!, "journal bucket 1, offset 0 sectors: an entry with");
    // With a number that is needed it may be that entry.
    const needing = image(run(0, 2, 20, 6));
    plantImpossible(needing, 3, 0);
    await assertRejects(() => read(needing), BcacheError, "bucket 4, offset 0 sectors: an entry");
  });

  test("refuses a journal whose newest entries are hidden behind damage", async () => {
    const damages: Array<(bytes: Uint8Array, at: number) => void> = [
      (bytes, at) => void (bytes[at + 100]! ^= 1),
      (bytes, at) => void (bytes[at + 8]! ^= 1), // The magic: not even a damaged entry.
      (bytes, at) => void bytes.fill(0, at, at + SECTOR_BYTES),
    ];
    for (const damage of damages) {
      // In the bucket of the newest entry, and at the start of the one after it.
      for (const [bucket, block] of [[1, 2], [1, 0]] as const) {
        const bytes = image(run(0, 1, 13, 1));
        damage(bytes, offsetOf(bucket, block));
        const lost = 9 + block;
        const error = await assertRejects(
          () => read(bytes),
          BcacheError,
          `bucket ${bucket + 1}, offset ${block} sectors: entry ${lost} is damaged, but entry ` +
            `${lost + 1} behind it is intact`,
        );
        assertEquals(error.code, "BadFormat");
      }
    }
  });

  test("refuses a journal that lacks an entry in the middle", async () => {
    const bytes = image(run(0, 1, 20, 3));
    bytes[offsetOf(1, 2) + 16]! ^= 1;
    const error = await assertRejects(
      () => read(bytes),
      BcacheError,
      "journal entries 11-16 missing (replaying 3-20)",
    );
    assertEquals(error.code, "BadFormat");
    await assertRejects(() => read(bytes, { discard: true }), BcacheError, "11-16 missing");
  });

  test("accepts missing entries at the beginning only from a set that discards", async () => {
    const bytes = image(run(0, 5, 12, 2).map((entry) => ({ ...entry, lastSeq: 2 })));
    await assertRejects(
      () => read(bytes),
      BcacheError,
      "journal entries 2-4 missing (replaying 2-12)",
    );
    const replay = await read(bytes, { discard: true });
    assertEquals(await seqsOf(replay), [5, 6, 7, 8, 9, 10, 11, 12]);
    assertStringIncludes(replay.warnings[0]!, "2-4 missing");
    assertEquals(replay.start.firstSeq, 5);
  });

  test("refuses keys that cannot be keys, naming bucket, offset and key", async () => {
    const good = keyOf(4);
    const two = good.slice();
    two[1] = (two[1]! & ~0x7000_0000) | 0x2000_0000;
    const larger = good.slice();
    larger[0] = 9 << 20;
    const cases: Array<[Uint32Array, string]> = [
      [new Uint32Array([...good, ...good.subarray(0, 4)]), "key 1 is cut off"],
      [new Uint32Array([...good, ...good.subarray(0, 2)]), "key 1 is cut off"],
      [two, "key 0 has 2 pointers"],
      [larger, "key 0 has 9 sectors that end at sector 4"],
      [new Uint32Array([0, 0x8000_0000, 0, 0x7fff_ffff]), "key 0 ends beyond"],
    ];
    for (const [keys, message] of cases) {
      const bytes = image([
        { bucket: 1, block: 0, seq: 3, lastSeq: 3 },
        { bucket: 1, block: 1, seq: 4, lastSeq: 3, keys },
      ]);
      const error = await assertRejects(() => read(bytes), BcacheError, message);
      assertStringIncludes(error.message, "journal bucket 2, offset 1 sectors, entry 4");
    }
  });

  test("a bad key in an entry that is not needed any more does no harm", async () => {
    const keys = keyOf(3);
    keys[1] = 0xf000_0000;
    const bytes = image([
      { bucket: 1, block: 0, seq: 3, lastSeq: 3, keys },
      { bucket: 1, block: 1, seq: 4, lastSeq: 4 },
    ]);
    assertEquals(await seqsOf(await read(bytes)), [4]);
  });

  test("refuses a version of entries that nobody knows", async () => {
    const entry = { bucket: 0, block: 0, seq: 1, lastSeq: 1 };
    assertEquals((await read(image([{ ...entry, version: 0 }]))).head.version, 0);
    const bytes = image([{ ...entry, version: 2 }]);
    await assertRejects(() => read(bytes), BcacheError, "version 2");
  });

  test("reports a device that reads differently the second time", async () => {
    const bytes = image(run(0, 1, 5, 1));
    const device = deviceOf(bytes);
    const replay = await readJournal(placeOn(device, SHAPE));
    await device.write(offsetOf(0, 2) / SECTOR_BYTES, new Uint8Array(SECTOR_BYTES));
    const error = await assertRejects(() => seqsOf(replay), BcacheError, "journal entry 3");
    assertEquals(error.code, "DeviceIo");
  });
});

describe("mutated journals", () => {
  /** Sets the seal of whatever is at a block right again, so that a lie passes the checksum. */
  function reseal(bytes: Uint8Array, at: number, change: (view: DataView) => void): void {
    const entry = bytes.subarray(at, at + SECTOR_BYTES);
    const view = new DataView(bytes.buffer, at, SECTOR_BYTES);
    change(view);
    const u64 = (offset: number) =>
      view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 2 ** 32;
    const sequence = u64(JSET.seq);
    const lastSequence = u64(JSET.last_seq);
    const keyWords = view.getUint32(JSET.keys, true);
    if (!Number.isSafeInteger(sequence) || lastSequence > sequence || keyWords > 34) return;
    const header = { sequence, lastSequence, keyWords, version: 1, btreeLevel: 0, prioBucket: 0 };
    sealJset(entry, header, MAGIC);
  }

  test("never cause anything but a typed error, and never yield a gap", async () => {
    const random = new SeededRandom(11);
    const good = image(run(2, 40, 64, 44));
    let refused = 0;
    for (let round = 0; round < 3000; round++) {
      const bytes = good.slice();
      for (let change = random.below(4); change >= 0; change--) {
        const at = offsetOf(random.below(4), random.below(8));
        const offset = random.below(2) === 0 ? random.below(64) : random.below(SECTOR_BYTES - 4);
        if (random.below(2) === 0) bytes[at + offset]! ^= 1 << random.below(8);
        else {
          const value = random.below(2) === 0 ? random.below(80) : random.nextU32();
          reseal(bytes, at, (view) => view.setUint32(offset & ~3, value, true));
        }
      }
      try {
        const replay = await read(bytes);
        let expected = replay.start.firstSeq;
        for await (const entry of replay.entries()) {
          assertEquals(entry.seq, expected++);
          assert(entry.end <= entry.words.length, "keys lie inside the entry");
        }
        assertEquals(expected, replay.start.nextSeq);
      } catch (error) {
        assert(error instanceof BcacheError, `round ${round}: ${String(error)}`);
        refused++;
      }
    }
    assert(refused > 100, "some journals were refused");
    assert(refused < 2900, "some journals were read");
  }, 20_000);
});

describe("a journal that goes on after recovery", () => {
  async function goOn(bytes: Uint8Array, commits: number) {
    const device = deviceOf(bytes);
    const replay = await readJournal(placeOn(device, SHAPE));
    const world = openJournal(device, SHAPE, replay.start);
    for (let seq = replay.start.firstSeq; seq < replay.start.nextSeq; seq++) {
      world.journal.pins.release(seq);
    }
    await world.journal.finishRecovery();
    const leaf = new Leaf(world.journal.pins, new Set(), () => Promise.resolve());
    for (let count = 0; count < commits; count++) {
      const seq = world.journal.tryAppend(keyOf(1000), 0, KEY_WORDS);
      assert(seq > 0);
      leaf.insert(seq, 1000);
      await world.journal.commit();
    }
    await world.journal.stop();
    return { device, replay: await readJournal(placeOn(device, SHAPE)) };
  }

  test("begins the bucket after the newest entry's, as Linux does", async () => {
    const { replay } = await goOn(image(run(3, 1, 3, 1)), 1);
    assertEquals(replay.start.ring.currentIndex, 0);
    assertEquals(replay.head.seq, 4);
  });

  test("goes on behind the newest entry when no bucket is free", async () => {
    // 26 entries in four buckets of eight, all needed: the next bucket holds the oldest.
    const { replay } = await goOn(image(run(1, 1, 26, 1)), 1);
    assert(replay.head.seq > 26);
    assertEquals(replay.start.ring.currentIndex, 0);
    assert(replay.start.ring.currentUsedBlocks > 2);
  });

  test("erases what a power cut tore behind the newest entry", async () => {
    const bytes = image(run(0, 1, 6, 1));
    bytes[offsetOf(0, 5) + 50]! ^= 1; // Entry 6 was being written.
    const { device, replay } = await goOn(bytes, 1);
    assertEquals(replay.head.seq, 6);
    const torn = new Uint8Array(3 * SECTOR_BYTES);
    await device.read(offsetOf(0, 5) / SECTOR_BYTES, torn);
    assert(torn.every((byte) => byte === 0), "nothing is left of it behind the newest");
  });

  test("recovers from a ring without one free block, by renewing the newest entry", async () => {
    const { replay } = await goOn(image(run(0, 1, 32, 1)), 3);
    assertEquals(replay.head.seq, 35);
    assertEquals(await idsIn(replay), [1000, 1000, 1000]);
  });

  test("makes metadata durable in a full ring while every entry is to be replayed", async () => {
    const device = new PowerDevice({
      random: new SeededRandom(1),
      stable: image(run(0, 1, 32, 1)),
      ordered: { from: SHAPE.bucketSectors, to: BYTES / SECTOR_BYTES },
    });
    const first = await readJournal(placeOn(device, SHAPE));
    const world = openJournal(device, SHAPE, first.start);
    for (const prioBucket of [50, 51]) {
      world.stamp.prioBucket = prioBucket;
      // What the metadata names was written, and is volatile still.
      await device.write(0, new Uint8Array(SECTOR_BYTES));
      await world.journal.commit();
      assertEquals(device.violations, []);
      const replay = await readJournal(placeOn(deviceOf(device.afterPowerCut()), SHAPE));
      device.dead = false;
      assertEquals(replay.head.prioBucket, prioBucket);
      assertEquals((await seqsOf(replay)).length, 32);
    }
    await world.journal.stop();
  });
});

async function idsIn(replay: JournalReplay): Promise<number[]> {
  const ids: number[] = [];
  for await (const entry of replay.entries()) {
    ids.push(...idsOf(entry.words, entry.start, entry.end));
  }
  return ids;
}
