import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { formatBytes, formatSize, isoTime, parseSizeBytes } from "../../lib/base/units.ts";

test("sizes are bytes, or k, M, G, T of 1024 each, in any case", () => {
  assertEquals(parseSizeBytes("0"), 0);
  assertEquals(parseSizeBytes("4096"), 4096);
  assertEquals(parseSizeBytes("512k"), 524288);
  assertEquals(parseSizeBytes("512K"), 524288);
  assertEquals(parseSizeBytes("1.5M"), 1572864);
  assertEquals(parseSizeBytes("2G"), 2147483648);
  assertEquals(parseSizeBytes("1TiB"), 1099511627776);
  assertEquals(parseSizeBytes(" 10 g "), 10737418240);
});

test("what is no size is refused with the option's name and the forms there are", () => {
  for (const text of ["", "k", "- 1", "1e3", "0x10", "4 k k", "1Z", "1.0001", "1,5M"]) {
    const error = assertThrows(() => parseSizeBytes(text, "--size"), BcacheError, "--size");
    assertEquals(error.code, "InvalidArgument", text);
  }
  assertThrows(() => parseSizeBytes("x".repeat(5000)), BcacheError, "like 512k");
  for (
    const [text, why] of [["9999999T", "too large"], ["-1", "negative"], ["-1.5k", "negative"]]
  ) {
    const error = assertThrows(() => parseSizeBytes(text!, "--size"), BcacheError, why!);
    assertEquals(error.code, "OutOfRange", text);
  }
});

test("sizes print as bcache prints them", () => {
  assertEquals(formatSize(0), "0.0k");
  assertEquals(formatSize(4096), "4.0k");
  assertEquals(formatSize(512), "0.5k");
  assertEquals(formatSize(999 * 1024), "999.0k");
  assertEquals(formatSize(1000 * 1024), "0.9M");
  assertEquals(formatSize(1024 * 1024 * 1.99), "1.9M");
  assertEquals(formatSize(5 * 1024 ** 3), "5.0G");
  assertEquals(formatSize(-4096), "-4.0k");
  assertEquals(formatSize(Number.MAX_SAFE_INTEGER), "7.9P");
});

test("sizes for people have one digit behind the point, bytes none", () => {
  assertEquals([0, 512, 1536, 26_214_400, 2 ** 50].map(formatBytes), [
    "0 B",
    "512 B",
    "1.5 KiB",
    "25.0 MiB",
    "1.0 PiB",
  ]);
});

test("times are ISO's, in every year", () => {
  assertEquals(isoTime(0), "1970-01-01T00:00:00Z");
  assertEquals(isoTime(951_782_400), "2000-02-29T00:00:00Z");
  // Every 37th day or so, from long before 1970 to behind the last 32-bit time.
  for (let at = -9e9; at < 6e9; at += 3_200_007) {
    assertEquals(isoTime(at), new Date(at * 1000).toISOString().replace(".000Z", "Z"));
  }
});
