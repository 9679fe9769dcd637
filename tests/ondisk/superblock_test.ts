import { test } from "bun:test";
import {
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import * as fc from "fast-check";
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { BcacheError } from "../../lib/base/errors.ts";
import { geometryOf, newJournalBucketCount } from "../../lib/ondisk/geometry.ts";
import { decodeLabel } from "../../lib/ondisk/label.ts";
import { viewOf, writeU64 } from "../../lib/ondisk/layout.ts";
import {
  backingState,
  cacheMode,
  discardsBuckets,
  encodeSuperblock,
  isSynchronous,
  replacementPolicy,
  sealSuperblock,
  setBackingState,
  setCacheMode,
  setDiscardsBuckets,
  setReplacementPolicy,
  setSynchronous,
  SUPERBLOCK,
  SUPERBLOCK_BYTES,
} from "../../lib/ondisk/superblock.ts";
import { decodeSuperblock, verifySuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { formatBacking, formatCache } from "../../lib/ondisk/format.ts";
import { formatUuid, parseUuid } from "../../lib/ondisk/uuid.ts";
import { fixtures, unpackFixture } from "../support/fixtures.ts";

const place = { name: "d", sizeSectors: 1024 * 1024, logicalBlockSectors: 1 };
const uuid = parseUuid("c730f6ac-bdd4-489d-ad24-86ed66eecbf3")!;
const setUuid = parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!;
const base = { ...place, uuid, setUuid };

const cachePage = () => formatCache({ ...base, bucketSectors: 256 });
const backingPage = () => formatBacking(base);

type Change = (page: Uint8Array, view: DataView) => void;

/** A page changed and summed again, as a program with other ideas would have written it. */
function changed(page: Uint8Array, change: Change): Uint8Array {
  change(page, viewOf(page));
  sealSuperblock(page);
  return page;
}

function refusal(page: Uint8Array, where = place): string {
  return assertThrows(() => decodeSuperblock(page, where), BcacheError).message;
}

test("every superblock the kernel wrote decodes, and encodes to the same bytes", () => {
  for (const entry of fixtures().filter((f) => !f.name.startsWith("damaged-"))) {
    const fixture = unpackFixture(entry.name);
    try {
      for (const [name, image] of Object.entries(entry.images)) {
        const page = new Uint8Array(SUPERBLOCK_BYTES);
        const file = openSync(fixture.pathOf(name), "r");
        readSync(file, page, 0, page.length, 4096);
        closeSync(file);
        const sizeSectors = statSync(fixture.pathOf(name)).size / 512;
        const sb = decodeSuperblock(page, { name, sizeSectors, logicalBlockSectors: 1 });
        assertEquals(encodeSuperblock(sb), page, `${entry.name}/${name}`);
        assertEquals(formatUuid(sb.uuid), image.uuid);
        assertEquals(formatUuid(sb.setUuid), image.set_uuid);
        assertEquals(sb.blockSectors * 512, image.block_size);
        const offset = sb.kind === "backing" ? sb.dataOffsetSectors : undefined;
        if (image.data_offset_sectors) assertEquals(offset, image.data_offset_sectors);
      }
    } finally {
      fixture.remove();
    }
  }
}, 60_000);

test("the first write of a version 0 cache raises it to 3 and keeps what it does not know", () => {
  const page = cachePage();
  page.fill(0x5a, 0x90, 0xb8); // Padding.
  page.fill(0x5a, 0x8d0, 4096); // Behind the journal's slots.
  sealSuperblock(page);
  const sb = decodeSuperblock(page, place);
  setSynchronous(sb, true);
  sb.journalBucketCount = 3;
  sb.sequence++;
  sb.lastMountSeconds = 0x6b001104;
  const written = encodeSuperblock(sb);
  const again = decodeSuperblock(written, place);
  assertEquals([again.version, again.sequence, again.journalBucketCount], [3, 1, 3]);
  assertEquals([again.lastMountSeconds, isSynchronous(again)], [0x6b001104, true]);
  const view = viewOf(written);
  assertEquals([0, 1, 2].map((i) => view.getUint32(SUPERBLOCK.d + 8 * i, true)), [1, 2, 3]);
  for (let at = 0x90; at < 0xb8; at++) assertEquals(written[at], 0x5a);
  for (let at = 0x8d0; at < 4096; at++) assertEquals(written[at], 0x5a);
  assertEquals(sb.page, page);
});

test("flags of caches are where the kernel has them", () => {
  const sb = decodeSuperblock(cachePage(), place);
  assertEquals([isSynchronous(sb), discardsBuckets(sb), replacementPolicy(sb)], [
    false,
    false,
    "lru",
  ]);
  setSynchronous(sb, true);
  assertEquals(sb.flagsLow, 1);
  setDiscardsBuckets(sb, true);
  assertEquals(sb.flagsLow, 3);
  setReplacementPolicy(sb, "random");
  assertEquals(sb.flagsLow, 0b1011);
  setReplacementPolicy(sb, "fifo");
  assertEquals([sb.flagsLow, replacementPolicy(sb)], [0b111, "fifo"]);
  setSynchronous(sb, false);
  setDiscardsBuckets(sb, false);
  assertEquals(sb.flagsLow, 0b100);
});

test("flags of backing devices are where the kernel has them", () => {
  const sb = decodeSuperblock(backingPage(), place);
  assertEquals([cacheMode(sb), backingState(sb)], ["writethrough", "none"]);
  setCacheMode(sb, "writeback");
  setBackingState(sb, "dirty");
  assertEquals([sb.flagsLow, sb.flagsHigh], [1, 0x4000_0000]); // 01 00 00 00 00 00 00 40
  setBackingState(sb, "stale");
  assertEquals([sb.flagsHigh, backingState(sb)], [0x6000_0000, "stale"]);
  setBackingState(sb, "none");
  setCacheMode(sb, "none");
  assertEquals([sb.flagsLow, sb.flagsHigh, cacheMode(sb)], [3, 0, "none"]);
  sb.flagsLow = 7;
  assertEquals(cacheMode(sb), undefined);
});

test("a changed byte under the checksum is found", () => {
  for (let at = 0; at < 0xd0; at++) {
    const page = cachePage();
    page[at]! ^= 1;
    assertEquals(verifySuperblock(page, place) === undefined, false, `byte ${at}`);
  }
  const page = cachePage();
  page[0x70]! ^= 1;
  assertStringIncludes(refusal(page), "d: superblock: checksum 0x");
  assertEquals(verifySuperblock(page, place)?.code, "BadChecksum");
});

test("a device that is not bcache's is told apart from a damaged one", () => {
  assertStringIncludes(refusal(new Uint8Array(4096)), "not a bcache device");
});

const REFUSED: ReadonlyArray<readonly [string, string, Change]> = [
  ["another place", "lives at sector 9", (_, v) => v.setUint32(SUPERBLOCK.offset, 9, true)],
  ["no UUID", "UUID is all zero", (p) => p.fill(0, 0x28, 0x38)],
  ["no set", "set's UUID is all zero", (p) => p.fill(0, 0x38, 0x48)],
  ["version 2", "version 2", (_, v) => v.setUint32(SUPERBLOCK.version, 2, true)],
  ["version 7", "version 7", (_, v) => v.setUint32(SUPERBLOCK.version, 7, true)],
  ["a version of 64 bits", "version 42949", (_, v) => v.setUint32(0x14, 1, true)],
  ["127 buckets", "127 buckets", (_, v) => v.setUint32(SUPERBLOCK.nbuckets, 127, true)],
  ["2^63 buckets", "buckets of 256", (_, v) => v.setUint32(0xbc, 0x8000_0000, true)],
  ["more buckets than sectors", "only 1048576", (_, v) => v.setUint32(0xb8, 4097, true)],
  ["blocks of 3 sectors", "block size 3", (_, v) => v.setUint16(0xc0, 3, true)],
  ["blocks of 16 sectors", "block size 16", (_, v) => v.setUint16(0xc0, 16, true)],
  ["blocks of none", "block size 0", (_, v) => v.setUint16(0xc0, 0, true)],
  ["buckets of 100 sectors", "bucket size 100", (_, v) => v.setUint16(0xc2, 100, true)],
  ["buckets of 4 sectors", "bucket size 4", (_, v) => v.setUint16(0xc2, 4, true)],
  ["no caches", "cache number 0 of 0", (_, v) => v.setUint16(0xc4, 0, true)],
  ["9 caches", "cache number 0 of 9", (_, v) => v.setUint16(0xc4, 9, true)],
  ["cache 1 of 1", "cache number 1 of 1", (_, v) => v.setUint16(0xc6, 1, true)],
  ["257 journal buckets", "257 journal buckets", (_, v) => v.setUint16(0xce, 257, true)],
  ["a journal with a gap", "journal bucket 1 is bucket 3, expected 2", (_, v) => {
    v.setUint16(0xce, 2, true);
    writeU64(v, 0xd0, 1);
    writeU64(v, 0xd8, 3);
  }],
  ["a journal over the superblock", "lies over", (_, v) => v.setUint16(0xcc, 0, true)],
  ["a first bucket beyond", "only 4096 buckets", (_, v) => v.setUint16(0xcc, 5000, true)],
  ["no bucket behind its first", "only 4096 buckets", (_, v) => v.setUint16(0xcc, 4096, true)],
  ["a sequence of 64 bits", "write sequence", (_, v) => v.setUint32(0x74, 0xffff_ffff, true)],
];

for (const [what, reason, change] of REFUSED) {
  test(`a cache with ${what} is refused by name`, () => {
    const page = cachePage();
    // 257 keys would be summed past the page; the count is refused before any sum.
    if (what.startsWith("257")) change(page, viewOf(page));
    else changed(page, change);
    const found = refusal(page);
    assertStringIncludes(found, reason);
    assertMatch(found, /; [^;]*(restore|newer program)/, "and says what to do");
  });
}

test("feature bits of version 5: large buckets are known, others are refused by name", () => {
  const version5 = (change: Change) =>
    changed(cachePage(), (page, view) => {
      writeU64(view, SUPERBLOCK.version, 5);
      change(page, view);
    });
  const large = version5((_, v) => {
    v.setUint32(SUPERBLOCK.feature_incompat, 2, true);
    v.setUint16(SUPERBLOCK.bucket_size, 8, true);
  });
  const sb = decodeSuperblock(large, place);
  assertEquals([sb.bucketSectors, sb.mustBeReadOnly], [256, false]);
  assertEquals(encodeSuperblock(sb), large);

  const obsolete = version5((_, v) => {
    v.setUint32(SUPERBLOCK.feature_incompat, 1, true);
    v.setUint16(SUPERBLOCK.bucket_size, 0, true);
    v.setUint16(SUPERBLOCK.obso_bucket_size_hi, 1, true);
    writeU64(v, SUPERBLOCK.nbuckets, 600);
  });
  const huge = { ...place, sizeSectors: 600 * 65536 };
  const old = decodeSuperblock(obsolete, huge);
  assertEquals([old.bucketSectors, old.mustBeReadOnly], [65536, true]);

  const incompatible = version5((_, v) => v.setUint32(SUPERBLOCK.feature_incompat, 6, true));
  assertStringIncludes(refusal(incompatible), "unknown incompatible feature bits 0x00000000000000");
  assertStringIncludes(refusal(incompatible), "4; known are 0x1 (obso_large_bucket)");
  const compatible = version5((_, v) => v.setUint32(SUPERBLOCK.feature_compat + 4, 1, true));
  assertStringIncludes(refusal(compatible), "unknown compatible feature bits 0x0000000100000000");
  const readOnly = version5((_, v) => v.setUint32(SUPERBLOCK.feature_ro_compat, 8, true));
  assertStringIncludes(refusal(readOnly), "unknown read-only compatible feature bits");
  const shift = version5((_, v) => {
    v.setUint32(SUPERBLOCK.feature_incompat, 2, true);
    v.setUint16(SUPERBLOCK.bucket_size, 99, true);
  });
  assertStringIncludes(refusal(shift), "bucket size 0");
});

test("backing devices of versions 1, 4 and 6 have their data where they say", () => {
  const one = decodeSuperblock(backingPage(), place);
  assertEquals([one.version, one.dataOffsetSectors, one.bucketCount], [1, 16, 0]);
  const four = decodeSuperblock(formatBacking({ ...base, dataOffsetSectors: 2048 }), place);
  assertEquals([four.version, four.dataOffsetSectors], [4, 2048]);
  // Version 6 has feature words that mean nothing: any bits are accepted and kept.
  const page = changed(formatBacking({ ...base, dataOffsetSectors: 2048 }), (_, v) => {
    writeU64(v, SUPERBLOCK.version, 6);
    v.setUint32(SUPERBLOCK.feature_incompat, 0xffff_ffff, true);
  });
  const six = decodeSuperblock(page, place);
  assertEquals([six.version, six.dataOffsetSectors, six.mustBeReadOnly], [6, 2048, false]);
  assertEquals(encodeSuperblock(six), page);
});

test("a backing device whose data begins too early or beyond its end is refused", () => {
  const at = (offset: number) =>
    changed(
      formatBacking({ ...base, dataOffsetSectors: 32 }),
      (_, v) => writeU64(v, SUPERBLOCK.nbuckets, offset),
    );
  assertStringIncludes(refusal(at(8)), "data offset 8 sectors, expected 16 or more");
  assertStringIncludes(refusal(at(place.sizeSectors)), "but the device ends at");
});

test("a detached backing device has no set, and that is fine", () => {
  const page = changed(backingPage(), (p) => p.fill(0, 0x38, 0x48));
  assertEquals(decodeSuperblock(page, place).setUuid, new Uint8Array(16));
});

test("blocks smaller than the device's own sectors are refused", () => {
  const small = formatBacking({ ...base, blockSectors: 1 });
  assertStringIncludes(refusal(small, { ...place, logicalBlockSectors: 8 }), "larger -w");
});

test("the geometry is the kernel's for every bucket size", () => {
  const geometry = (bucketSectors: number, sizeSectors = bucketSectors * 2048) => {
    const where = { ...place, sizeSectors };
    const page = formatCache({ ...base, sizeSectors, bucketSectors });
    return geometryOf(decodeSuperblock(page, where), "d");
  };
  const nodes = [32, 256, 2048, 4096, 16384].map((s) => geometry(s).nodeBytes / 1024);
  assertEquals(nodes, [16, 128, 256, 512, 1024]);
  const metas = [32, 256, 16384].map((s) => geometry(s).metaBytes / 1024);
  assertEquals(metas, [16, 128, 4096]);
  const small = geometry(256);
  assertEquals([small.uuidEntryCount, small.priosPerSet, small.prioSetCount], [1024, 43677, 1]);
  assertEquals([small.newJournalBucketCount, small.firstBucket], [16, 1]);
  assertEquals(geometry(32, 32 * 16384).prioSetCount, 4);
  assertEquals([8, 16, 32].map((s) => geometry(s).firstBucket), [3, 2, 1]);
  assertEquals([513, 1024, 2048, 16384, 10 ** 6].map(newJournalBucketCount), [
    4,
    8,
    16,
    128,
    256,
  ]);
});

test("512 buckets are too few to run, 513 are enough", () => {
  const small = (count: number) => changed(cachePage(), (_, v) => writeU64(v, 0xb8, count));
  const decoded = (count: number) => decodeSuperblock(small(count), place);
  assertThrows(() => geometryOf(decoded(512), "d"), BcacheError, "a cache needs 513");
  assertEquals(geometryOf(decoded(513), "d").bucketCount, 513);
});

test("more buckets than memory can hold are refused before any memory is asked for", () => {
  const huge = changed(cachePage(), (_, v) => writeU64(v, 0xb8, 2 ** 30 + 1));
  const superblock = decodeSuperblock(huge, { ...place, sizeSectors: 2 ** 50 });
  const error = assertThrows(() => geometryOf(superblock, "d"), BcacheError, "1073741825 buckets");
  assertEquals(error.code, "NotSupported");
});

test("no bytes make decoding throw anything but a BcacheError", () => {
  const edits = fc.array(fc.tuple(fc.nat(0x8d8), fc.nat(255)), { maxLength: 12 });
  fc.assert(
    fc.property(fc.boolean(), edits, (isCache, list) => {
      const page = isCache ? cachePage() : backingPage();
      for (const [at, value] of list) page[at] = value;
      if (viewOf(page).getUint16(SUPERBLOCK.keys, true) <= 256) sealSuperblock(page);
      try {
        const sb = decodeSuperblock(page, place);
        decodeLabel(sb.label);
        decodeSuperblock(encodeSuperblock(sb), place);
        if (sb.kind === "cache") geometryOf(sb, "d");
      } catch (error) {
        if (!(error instanceof BcacheError)) throw error;
      }
    }),
  );
});

test("superblocks that the kernel refused are refused here, by name and place", () => {
  const refused: ReadonlyArray<readonly [string, string]> = [
    ["damaged-cache-superblock", "cache.img"],
    ["damaged-backing-superblock", "backing1.img"],
  ];
  for (const [fixtureName, image] of refused) {
    const fixture = unpackFixture(fixtureName);
    try {
      assertNotEquals(fixture.entry.kernel.register[image], "ok");
      const page = new Uint8Array(SUPERBLOCK_BYTES);
      const file = openSync(fixture.pathOf(image), "r");
      readSync(file, page, 0, page.length, 4096);
      closeSync(file);
      const sizeSectors = statSync(fixture.pathOf(image)).size / 512;
      const message = refusal(page, { name: image, sizeSectors, logicalBlockSectors: 1 });
      assertStringIncludes(message, `${image}: superblock: checksum 0x`);
    } finally {
      fixture.remove();
    }
  }
});
