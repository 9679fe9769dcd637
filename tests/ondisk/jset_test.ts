import { test } from "bun:test";
import { assertEquals, assertGreater, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import * as fc from "fast-check";
import { AssertionError } from "../../lib/base/assert.ts";
import { geometryOf, journalBucket } from "../../lib/ondisk/geometry.ts";
import {
  JSET,
  JSET_BYTES_MAX,
  JSET_HEADER_BYTES,
  jsetBytes,
  type JsetHeader,
  readJsetHeader,
  sealJset,
  verifyJset,
} from "../../lib/ondisk/jset.ts";
import { viewOf } from "../../lib/ondisk/layout.ts";
import { magicsOf } from "../../lib/ondisk/magic.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { parseUuid } from "../../lib/ondisk/uuid.ts";
import { unpackFixture } from "../support/fixtures.ts";

const magic = magicsOf(parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!).jset;
const header: JsetHeader = {
  sequence: 2 ** 40 + 7,
  version: 1,
  keyWords: 6,
  lastSequence: 2 ** 40 + 3,
  btreeLevel: 2,
  prioBucket: 35,
};

function sealed(): Uint8Array {
  const bytes = new Uint8Array(512).fill(0xaa);
  sealJset(bytes, header, magic);
  return bytes;
}

test("the magics are those of a set the kernel made", () => {
  const magics = magicsOf(parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!);
  assertEquals(magics.jset, { high: 0x631d0163, low: 0x2f6b36bd });
  assertEquals(magics.prioSet, { high: 0x201fd5fd, low: 0x0b3a191e });
  assertEquals(magics.bset, { high: 0xd75c68da, low: 0x3597617a });
});

test("entries the kernel wrote verify, and sealing them again changes nothing", () => {
  const fixture = unpackFixture("clean-writethrough");
  try {
    const image = readFileSync(fixture.pathOf("cache.img"));
    const page = Uint8Array.from(image.subarray(4096, 8192));
    const place = { name: "cache.img", sizeSectors: image.length / 512, logicalBlockSectors: 1 };
    const superblock = decodeSuperblock(page, place);
    const geometry = geometryOf(superblock, "cache.img");
    const { jset } = magicsOf(superblock.setUuid);
    let entries = 0;
    for (let index = 0; index < geometry.journalBucketCount; index++) {
      const at = journalBucket(geometry, index) * geometry.bucketBytes;
      const bytes = Uint8Array.from(image.subarray(at, at + geometry.bucketBytes));
      if (verifyJset(bytes, bytes.length, jset) !== undefined) continue;
      entries++;
      const header = readJsetHeader(bytes);
      const again = bytes.slice(0, Math.ceil(jsetBytes(header.keyWords) / 4096) * 4096);
      sealJset(again, header, jset);
      const length = jsetBytes(header.keyWords);
      // Slots of other caches are undefined there and zero here; the checksum covers them.
      again.set(bytes.subarray(0, 8));
      again.set(bytes.subarray(JSET.prio_bucket + 8, JSET_HEADER_BYTES), JSET.prio_bucket + 8);
      assertEquals(again.subarray(0, length), bytes.subarray(0, length));
      assertEquals(verifyJset(again, again.length, jset), undefined);
    }
    assertGreater(entries, 0);
  } finally {
    fixture.remove();
  }
});

test("a sealed entry is good, says what was put in, and is zero behind its keys", () => {
  const bytes = sealed();
  assertEquals(verifyJset(bytes, 512, magic), undefined);
  assertEquals(readJsetHeader(bytes), header);
  assertEquals(bytes.subarray(JSET_HEADER_BYTES, jsetBytes(6)).every((b) => b === 0xaa), true);
  assertEquals(bytes.subarray(jsetBytes(6)).every((b) => b === 0), true);
});

test("each cache of a set has its own slot for priorities", () => {
  const bytes = new Uint8Array(512);
  sealJset(bytes, header, magic, 3);
  assertEquals(readJsetHeader(bytes, 3).prioBucket, 35);
  assertEquals(readJsetHeader(bytes, 0).prioBucket, 0);
});

test("another set's entry, or none, has a bad magic", () => {
  const other = { low: magic.low ^ 1, high: magic.high };
  assertEquals(verifyJset(sealed(), 512, other)?.reason, "bad magic");
  assertEquals(verifyJset(new Uint8Array(512), 512, magic)?.reason, "bad magic");
});

test("an entry that would leave its bucket is refused before its checksum is looked at", () => {
  assertEquals(verifyJset(sealed(), 280, magic)?.reason, "past its bucket");
});

test("an entry of more than 32 KiB is refused", () => {
  const bytes = sealed();
  viewOf(bytes).setUint32(28, (JSET_BYTES_MAX - JSET_HEADER_BYTES) / 8 + 1, true);
  assertEquals(verifyJset(bytes, 2 ** 20, magic)?.reason, "too large");
});

test("a key count near 2^32 is refused without reading that far", () => {
  const bytes = sealed();
  viewOf(bytes).setUint32(28, 0xffff_ffff, true);
  assertEquals(verifyJset(bytes, 2 ** 20, magic)?.reason, "past its bucket");
});

test("an entry that goes on behind what was read is incomplete", () => {
  assertEquals(verifyJset(sealed().subarray(0, 256), 512, magic)?.reason, "incomplete");
  assertEquals(verifyJset(sealed().subarray(0, 100), 512, magic)?.reason, "incomplete");
});

test("a changed byte anywhere in an entry is found", () => {
  for (let at = 0; at < jsetBytes(6); at++) {
    const bytes = sealed();
    bytes[at]! ^= 0x10;
    const fault = verifyJset(bytes, 512, magic);
    if (fault === undefined) throw new Error(`byte ${at} was changed unnoticed`);
  }
  const bytes = sealed();
  bytes[jsetBytes(6)]! ^= 1; // Padding is nobody's.
  assertEquals(verifyJset(bytes, 512, magic), undefined);
});

test("a fault says what was found and what was expected", () => {
  const bytes = sealed();
  bytes[0] = 0;
  const detail = verifyJset(bytes, 512, magic)!.detail;
  assertEquals(/^checksum 0x[0-9a-f]{14}00, expected 0x[0-9a-f]{16}$/.test(detail), true, detail);
});

test("an entry that needs entries newer than itself is refused", () => {
  const bytes = new Uint8Array(512);
  assertThrows(
    () => sealJset(bytes, { ...header, lastSequence: header.sequence + 1 }, magic),
    AssertionError,
  );
});

test("no bytes at all make the check throw", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600 }), fc.nat(4096), (bytes, leftBytes) => {
      if (bytes.length >= 16) { // With a good magic, so that the later checks are reached.
        viewOf(bytes).setUint32(8, magic.low, true);
        viewOf(bytes).setUint32(12, magic.high, true);
      }
      if (verifyJset(bytes, leftBytes, magic) === undefined) throw new Error("accepted");
    }),
  );
});
