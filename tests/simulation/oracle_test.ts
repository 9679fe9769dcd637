import { test } from "bun:test";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Oracle, OracleMismatch } from "./oracle.ts";
import { describeSector, fillSector } from "./pattern.ts";

const SEED = 3;

function content(sector: number, version: number): Uint8Array {
  const bytes = new Uint8Array(512);
  fillSector(bytes, SEED, sector, version);
  return bytes;
}

/** Writes one sector and settles it. */
function write(oracle: Oracle, sector: number): { id: number; bytes: Uint8Array } {
  const bytes = new Uint8Array(512);
  const issued = oracle.beginWrite(sector * 512, bytes);
  oracle.settle(issued);
  return { id: issued.id, bytes };
}

function recovers(oracle: Oracle, bytes: Uint8Array, cutAt = oracle.time): boolean {
  const after = new Oracle(SEED);
  try {
    oracle.checkRecovered({ cutAt, sector: 0, bytes, after, steadfast: true });
    return true;
  } catch (error) {
    if (error instanceof OracleMismatch) return false;
    throw error;
  }
}

function reads(oracle: Oracle, bytes: Uint8Array, begunAt = oracle.beginRead()): boolean {
  try {
    oracle.checkRead(begunAt, 0, bytes);
    return true;
  } catch (error) {
    if (error instanceof OracleMismatch) return false;
    throw error;
  }
}

test("a read returns the last settled write and nothing older", () => {
  const oracle = new Oracle(SEED);
  assert(reads(oracle, content(0, 0)));
  const first = write(oracle, 0);
  const second = write(oracle, 0);
  assert(reads(oracle, second.bytes));
  assert(!reads(oracle, first.bytes));
  assert(!reads(oracle, content(0, 0)));
  assert(!reads(oracle, content(1, 0)));
});

test("a read that began before a write may return either side of it", () => {
  const oracle = new Oracle(SEED);
  const first = write(oracle, 0);
  const begunAt = oracle.beginRead();
  const second = write(oracle, 0);
  assert(reads(oracle, first.bytes, begunAt));
  assert(reads(oracle, second.bytes, begunAt));
  assert(!reads(oracle, content(0, 0), begunAt));
});

test("writes under way together have no order; a failed write may have happened or not", () => {
  const oracle = new Oracle(SEED);
  const [a, b] = [new Uint8Array(512), new Uint8Array(512)];
  const [first, second] = [oracle.beginWrite(0, a), oracle.beginWrite(0, b)];
  oracle.settle(second);
  oracle.settle(first);
  assert(reads(oracle, a));
  assert(reads(oracle, b));
  const third = write(oracle, 0);
  assert(!reads(oracle, a));
  const failed = new Uint8Array(512);
  oracle.settle(oracle.beginWrite(0, failed), true);
  assert(reads(oracle, third.bytes));
  assert(reads(oracle, failed));
});

test("after a cut nothing older than the last acknowledged flush may come back", () => {
  const oracle = new Oracle(SEED);
  const first = write(oracle, 0);
  assert(recovers(oracle, content(0, 0)));
  const flush = oracle.beginFlush();
  const second = write(oracle, 0); // Settled after the flush was asked for: not covered.
  assert(recovers(oracle, content(0, 0)));
  oracle.endFlush(flush);
  assert(!recovers(oracle, content(0, 0)));
  assert(recovers(oracle, first.bytes));
  assert(recovers(oracle, second.bytes));
});

test("a past moment is judged by what was known then", () => {
  const oracle = new Oracle(SEED);
  const cutAt = oracle.time;
  const first = write(oracle, 0);
  oracle.endFlush(oracle.beginFlush());
  assert(recovers(oracle, content(0, 0), cutAt));
  assert(!recovers(oracle, first.bytes, cutAt), "it had not been issued");
});

test("pruning forgets only what no later cut can bring back", () => {
  const oracle = new Oracle(SEED);
  const first = write(oracle, 0);
  oracle.endFlush(oracle.beginFlush());
  const second = write(oracle, 0);
  oracle.prune();
  assert(recovers(oracle, first.bytes));
  assert(recovers(oracle, second.bytes));
  assert(!recovers(oracle, content(0, 0)));
});

test("pruning keeps what a read that is under way may still return", () => {
  const oracle = new Oracle(SEED);
  const old = write(oracle, 0);
  oracle.endFlush(oracle.beginFlush());
  const begunAt = oracle.beginRead();
  const fresh = write(oracle, 0);
  oracle.endFlush(oracle.beginFlush());
  oracle.prune();
  assert(reads(oracle, old.bytes, begunAt), "it may have looked before the write");
  oracle.prune();
  assert(!reads(oracle, old.bytes));
  assert(reads(oracle, fresh.bytes));
});

test("parts of sectors keep the bytes around them, and zeroing is a version too", () => {
  const oracle = new Oracle(SEED);
  const part = new Uint8Array(100);
  const issued = oracle.beginWrite(450, part);
  oracle.settle(issued);
  const expected = new Uint8Array(1024);
  expected.set(content(0, 0));
  expected.set(content(1, 0), 512);
  expected.set(part, 450);
  assert(reads(oracle, expected));
  expected[449]! ^= 1;
  assert(!reads(oracle, expected));
  expected[449]! ^= 1;
  oracle.settle(oracle.beginZero(10, 20));
  assert(!reads(oracle, expected));
  expected.fill(0, 10, 30);
  assert(reads(oracle, expected));
  assert(reads(oracle, expected.subarray(0, 33)));
});

test("after a steadfast recovery what was read is the only answer", () => {
  const oracle = new Oracle(SEED);
  const first = write(oracle, 0);
  for (const steadfast of [true, false]) {
    const after = new Oracle(SEED);
    const { time: cutAt } = oracle;
    oracle.checkRecovered({ cutAt, sector: 0, bytes: content(0, 0), after, steadfast });
    assert(reads(after, content(0, 0)));
    assertEquals(reads(after, first.bytes), !steadfast);
    assert(write(after, 0).id > first.id, "numbers go on");
  }
});

test("after any recovery nothing older than what was read comes back, but by a cut", () => {
  const oracle = new Oracle(SEED);
  const writes = [write(oracle, 0), write(oracle, 0)];
  const zero = oracle.beginZero(0, 512);
  oracle.settle(zero);
  const zeroes = new Uint8Array(512);
  const contents = [content(0, 0), writes[0]!.bytes, writes[1]!.bytes, zeroes];
  for (const [found, read] of contents.entries()) {
    const after = new Oracle(SEED);
    const { time: cutAt } = oracle;
    oracle.checkRecovered({ cutAt, sector: 0, bytes: read, after, steadfast: false });
    const allowed = contents.map((bytes) => reads(after, bytes));
    assertEquals(allowed, contents.map((_, version) => version >= found));
    after.endFlush(after.beginFlush());
    const allowedAfterCut = contents.map((bytes) => recovers(after, bytes));
    assertEquals(allowedAfterCut, contents.map(() => true));
  }
});

test("of zeroes written twice any may be the ones that were read", () => {
  const oracle = new Oracle(SEED);
  oracle.settle(oracle.beginZero(0, 512));
  const between = write(oracle, 0);
  oracle.settle(oracle.beginZero(0, 512));
  const after = new Oracle(SEED);
  const bytes = new Uint8Array(512);
  oracle.checkRecovered({ cutAt: oracle.time, sector: 0, bytes, after, steadfast: false });
  assert(reads(after, between.bytes));
  assert(!reads(after, content(0, 0)));
});

test("writes that were under way together have no order after a recovery either", () => {
  const oracle = new Oracle(SEED);
  const bytes = [new Uint8Array(512), new Uint8Array(512)];
  const begun = bytes.map((each) => oracle.beginWrite(0, each));
  for (const each of begun) oracle.settle(each);
  const after = new Oracle(SEED);
  oracle.checkRecovered({
    cutAt: oracle.time,
    sector: 0,
    bytes: bytes[1]!,
    after,
    steadfast: false,
  });
  assert(reads(after, bytes[0]!));
  assert(!reads(after, content(0, 0)));
});

test("a wrong sector is named for what it is", () => {
  const bytes = content(9, 4);
  assertEquals(describeSector(bytes), "version 4 of sector 9");
  bytes[100]! ^= 1;
  assertStringIncludes(describeSector(bytes), "up to byte 100");
  assertEquals(describeSector(new Uint8Array(512)), "zeroes");
  assertStringIncludes(describeSector(new Uint8Array(512).fill(1)), "nobody wrote");
  const error = assertThrows(() => {
    const oracle = new Oracle(SEED);
    oracle.checkRead(oracle.beginRead(), 512, content(9, 4));
  }, OracleMismatch);
  assertStringIncludes(error.message, "sector 1 read: found version 4 of sector 9; allowed 0");
});
