import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { AssertionError } from "../../lib/base/assert.ts";
import { crc64, crc64Seeded, hex64 } from "../../lib/base/crc64.ts";

const out = new Uint32Array(2);

function general(bytes: Uint8Array): string {
  crc64(bytes, 0, bytes.length, out);
  return hex64(out[0]!, out[1]!);
}

function seeded(bytes: Uint8Array, seedLow: number, seedHigh: number): string {
  crc64Seeded(bytes, 0, bytes.length, seedLow, seedHigh, out);
  return hex64(out[0]!, out[1]!);
}

const ascii = (text: string) => new TextEncoder().encode(text);

/** The definition, bit by bit, for comparison. */
function naive(bytes: Uint8Array, seed: bigint): string {
  const mask = (1n << 64n) - 1n;
  let crc = seed;
  for (const byte of bytes) {
    crc ^= BigInt(byte) << 56n;
    for (let bit = 0; bit < 8; bit++) {
      const carry = (crc >> 63n) === 1n;
      crc = (crc << 1n) & mask;
      if (carry) crc ^= 0x42f0e1eba9ea3693n;
    }
  }
  return ((crc ^ mask) & mask).toString(16).padStart(16, "0");
}

test("the general checksum has the values the kernel computes", () => {
  const ascending = Uint8Array.from({ length: 256 }, (_, i) => i);
  assertEquals(general(ascii("")), "0000000000000000");
  assertEquals(general(ascii("123456789")), "62ec59e3f1a4f00a");
  assertEquals(general(ascii("a")), "ce73f427acc0a99a");
  assertEquals(general(new Uint8Array(1)), "9afce626ce85b5f8");
  assertEquals(general(new Uint8Array(8)), "03534142a6ce566d");
  assertEquals(general(new Uint8Array(4088)), "7e5706a7380d6e37");
  assertEquals(general(ascending), "59c3325b2927a19a");
});

test("a seed of zero without the final inversion is CRC-64/ECMA-182", () => {
  seeded(ascii("123456789"), 0, 0);
  assertEquals(hex64(~out[0]!, ~out[1]!), "6c40df5f0b497347");
});

test("a byte alone shows the table of the polynomial", () => {
  const table = (byte: number) => {
    seeded(Uint8Array.of(byte), 0, 0);
    return hex64(~out[0]!, ~out[1]!);
  };
  assertEquals([0, 1, 2, 3, 128, 255].map(table), [
    "0000000000000000",
    "42f0e1eba9ea3693",
    "85e1c3d753d46d26",
    "c711223cfa3e5bb5",
    "f6fae5c07d3274cd",
    "9afce626ce85b507",
  ]);
});

test("a set of a b-tree node is summed from its node's first pointer", () => {
  assertEquals(seeded(ascii("123456789"), 0x240001, 0), "633b560270040846");
  // The first set of a root the kernel wrote: magic, seq, version 1, no keys.
  const bset = Uint8Array.from(
    [
      ...[0x7a, 0x61, 0x97, 0x35, 0xda, 0x68, 0x5c, 0xd7],
      ...[0x65, 0xbb, 0xd5, 0x49, 0x14, 0xb3, 0xa7, 0x0b],
      ...[1, 0, 0, 0, 0, 0, 0, 0],
    ],
  );
  assertEquals(seeded(bset, 0x240001, 0), "9db61cc79330c40d");
});

test("all 64 bits of the seed count", () => {
  const bytes = ascii("sector");
  assertEquals(seeded(bytes, 0x89abcdef, 0x01234567), naive(bytes, 0x0123456789abcdefn));
});

test("any bytes with any seed give what the definition gives", () => {
  const word = fc.integer({ min: 0, max: 0xffff_ffff });
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 70 }), word, word, (bytes, low, high) => {
      assertEquals(seeded(bytes, low, high), naive(bytes, (BigInt(high) << 32n) | BigInt(low)));
    }),
  );
});

test("only the range that was asked for is summed", () => {
  const bytes = ascii("xx123456789yy");
  crc64(bytes, 2, 11, out);
  assertEquals(hex64(out[0]!, out[1]!), "62ec59e3f1a4f00a");
});

test("a range outside the buffer is a bug", () => {
  assertThrows(() => crc64(new Uint8Array(8), 0, 9, out), AssertionError);
  assertThrows(() => crc64(new Uint8Array(8), 5, 4, out), AssertionError);
});
