import { test } from "bun:test";
import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BcacheError } from "../../lib/base/errors.ts";
import {
  formatBacking,
  type FormatBackingOptions,
  formatCache,
  type FormatCacheOptions,
} from "../../lib/ondisk/format.ts";
import { viewOf, writeU64 } from "../../lib/ondisk/layout.ts";
import { madeText, showSuperblock, superblockToJson } from "../../lib/ondisk/show.ts";
import { sealSuperblock, SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { parseUuid } from "../../lib/ondisk/uuid.ts";

const uuid = parseUuid("c730f6ac-bdd4-489d-ad24-86ed66eecbf3")!;
const setUuid = parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!;
const sizeSectors = 600 * 1024 + 3;
const base = { name: "d", sizeSectors, logicalBlockSectors: 1, uuid, setUuid };

interface Ran {
  text: string;
  error: string;
  exitCode: number;
}

function run(program: string, ...args: string[]): Ran {
  const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
  const { stdout, stderr, status, error } = spawnSync(program, args, { encoding: "utf8", env });
  if (error) throw error;
  return { text: stdout, error: stderr, exitCode: status ?? -1 };
}

/** Gives `body` the path of a sparse file with these bytes behind the first 4096. */
function withImage(page: Uint8Array, body: (path: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-show-"));
  try {
    const path = join(folder, "d.img");
    const image = new Uint8Array(8192);
    image.set(page, 4096);
    writeFileSync(path, image);
    truncateSync(path, sizeSectors * 512);
    body(path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Shows the page here and there; the answers must be one and the same. */
function compare(page: Uint8Array, force = false): Ran {
  const { text, error, exitCode } = showSuperblock(page, force);
  const ours: Ran = { text, error: error === undefined ? "" : `${error}\n`, exitCode };
  withImage(page, (path) => {
    assertEquals(ours, run("bcache-super-show", ...(force ? ["-f"] : []), path));
  });
  return ours;
}

const CACHES: ReadonlyArray<Partial<FormatCacheOptions>> = [
  {},
  { bucketSectors: 8, blockSectors: 1, discard: true },
  { bucketSectors: 64, replacement: "fifo" },
  { replacement: "random", label: "fast one/50%" },
  { label: "x".repeat(32) },
  { label: "Größe ñ" },
];

for (const options of CACHES) {
  test(`a cache made with ${JSON.stringify(options)} shows as by bcache-super-show`, () => {
    assertEquals(compare(formatCache({ ...base, ...options })).exitCode, 0);
  });
}

const BACKINGS: ReadonlyArray<Partial<FormatBackingOptions>> = [
  {},
  { cacheMode: "writeback" },
  { cacheMode: "writearound", dataOffsetSectors: 2048, label: "disk" },
  { cacheMode: "none", blockSectors: 1, bucketSectors: 128 },
];

for (const options of BACKINGS) {
  test(`a backing device made with ${JSON.stringify(options)} shows as there`, () => {
    assertEquals(compare(formatBacking({ ...base, ...options })).exitCode, 0);
  });
}

test("every state, mode, policy and version shows as there", () => {
  const backing = formatBacking({ ...base, dataOffsetSectors: 32 });
  for (const [low, high] of [[1, 0x2000_0000], [2, 0x4000_0000], [9, 0x6000_0000]] as const) {
    viewOf(backing).setUint32(SUPERBLOCK.flags, low, true);
    viewOf(backing).setUint32(SUPERBLOCK.flags + 4, high, true);
    sealSuperblock(backing);
    compare(backing);
  }
  const cache = formatCache(base);
  for (const version of [3, 2, 7, 99]) {
    writeU64(viewOf(cache), SUPERBLOCK.version, version);
    viewOf(cache).setUint32(SUPERBLOCK.flags, version * 4 + 1, true);
    sealSuperblock(cache);
    compare(cache);
  }
});

test("bad magic, place, checksum and an old format end as there", () => {
  const damaged = (change: (page: Uint8Array, view: DataView) => void, sum = true) => {
    const page = formatBacking({ ...base, dataOffsetSectors: 32 });
    change(page, viewOf(page));
    if (sum) sealSuperblock(page);
    return page;
  };
  assertEquals(compare(new Uint8Array(4096)).exitCode, 2);
  assertEquals(compare(damaged((_, v) => writeU64(v, SUPERBLOCK.offset, 9))).exitCode, 2);
  const wrong = damaged((p) => p[0x50] = 0x41, false);
  assertEquals(compare(wrong).error, "Corrupt superblock (bad csum)\n");
  assertEquals(compare(wrong, true).exitCode, 0);
  const sumBelow2To60 = damaged((_, v) => v.setUint32(4, 0x00000123, true), false);
  assertEquals(compare(sumBelow2To60).exitCode, 2);
  assertEquals(compare(damaged((_, v) => writeU64(v, SUPERBLOCK.d, 5))).exitCode, 3);
});

test("what make-bcache writes, we show alike; what we write in its place is the same", () => {
  const cases: ReadonlyArray<readonly [string[], (size: number) => Uint8Array]> = [
    [["-C"], () => formatCache(base)],
    [
      ["-C", "-b", "32k", "-w", "512", "--discard", "--cache_replacement_policy=fifo"],
      () =>
        formatCache({
          ...base,
          bucketSectors: 64,
          blockSectors: 1,
          discard: true,
          replacement: "fifo",
        }),
    ],
    [["-C", "-b", "4k"], () => formatCache({ ...base, bucketSectors: 8 })],
    [["-B"], () => formatBacking(base)],
    [
      ["-B", "--writeback", "-o", "2048"],
      () => formatBacking({ ...base, dataOffsetSectors: 2048, cacheMode: "writeback" }),
    ],
  ];
  for (const [args, format] of cases) {
    withImage(new Uint8Array(4096), (path) => {
      const set = "8f66098c-a234-4f47-a35b-7392a76383cd";
      const made = run("make-bcache", ...args, "--cset-uuid", set, path);
      assertEquals(made.exitCode, 0, made.error);
      const page = Uint8Array.from(readFileSync(path).subarray(4096, 8192));
      assertEquals(madeText(page), made.text);
      const { text, exitCode } = showSuperblock(page);
      assertEquals({ text, exitCode, error: "" }, run("bcache-super-show", path));
      // Their random UUID put into ours, the pages must be equal to the last byte.
      const ours = format(sizeSectors);
      ours.set(page.subarray(SUPERBLOCK.uuid, SUPERBLOCK.uuid + 16), SUPERBLOCK.uuid);
      sealSuperblock(ours);
      assertEquals(ours, page, args.join(" "));
    });
  }
});

test("versions 5 and 6, unknown there, are shown in full here", () => {
  const large = formatCache({ ...base, sizeSectors: 65536 * 600, bucketSectors: 65536 });
  const { text, exitCode } = showSuperblock(large);
  assertEquals(exitCode, 0);
  assertStringIncludes(text, "sb.version\t\t5 [cache device]\n");
  assertStringIncludes(text, "dev.sectors_per_bucket\t65536\n");
  assertStringIncludes(text, "dev.cache.features\tlarge_bucket\n");
  assertStringIncludes(text, "dev.cache.total_sectors\t39321600\n");
});

test("the JSON form says the same in numbers and names", () => {
  const cache = superblockToJson(formatCache({ ...base, label: "fast", discard: true }));
  assertEquals(cache.kind, "cache");
  assertEquals([cache.magicOk, cache.checksumOk, cache.label], [true, true, "fast"]);
  assertEquals(cache.uuid, "c730f6ac-bdd4-489d-ad24-86ed66eecbf3");
  assertEquals([cache.bucketSectors, cache.cache?.bucketCount, cache.cache?.discard], [
    1024,
    600,
    true,
  ]);
  const backing = superblockToJson(formatBacking({ ...base, cacheMode: "writeback" }));
  assertEquals(backing.backing, {
    dataOffsetSectors: 16,
    cacheMode: "writeback",
    state: "detached",
  });
  assertEquals(superblockToJson(new Uint8Array(4096)).kind, "unknown");
});

test("no bytes make showing throw", () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(0x8d8), fc.nat(255))), fc.boolean(), (edits, isCache) => {
      const page = isCache ? formatCache(base) : formatBacking(base);
      for (const [at, value] of edits) page[at] = value;
      assertEquals(showSuperblock(page, true).text.endsWith("\n"), true);
      JSON.stringify(superblockToJson(page));
    }),
  );
});

const REFUSED: ReadonlyArray<readonly [string, () => Uint8Array]> = [
  ["a cache needs 513", () => formatCache({ ...base, sizeSectors: 512 * 1024 + 1023 })],
  ["choose one with -b", () => formatCache({ ...base, bucketSectors: 100 })],
  ["choose one with -b", () => formatCache({ ...base, bucketSectors: 4 })],
  ["at most 1G", () => formatCache({ ...base, bucketSectors: 2 ** 22 })],
  ["choose one with -w", () => formatCache({ ...base, blockSectors: 3 })],
  ["at most 4.0k", () => formatCache({ ...base, blockSectors: 16 })],
  [
    "choose at least that with -w",
    () => formatCache({ ...base, logicalBlockSectors: 8, blockSectors: 1 }),
  ],
  ["larger -b", () => formatBacking({ ...base, blockSectors: 16, bucketSectors: 8 })],
  ["or more with -o", () => formatBacking({ ...base, dataOffsetSectors: 8 })],
  ["choose a multiple with -o", () => formatBacking({ ...base, dataOffsetSectors: 17 })],
  ["use a larger device", () => formatBacking({ ...base, sizeSectors: 16 })],
  ["all zero", () => formatCache({ ...base, setUuid: new Uint8Array(16) })],
  ["at most 32 fit", () => formatCache({ ...base, label: "x".repeat(33) })],
];

for (const [what, format] of REFUSED) {
  test(`formatting refuses what cannot work and says: ${what}`, () => {
    assertEquals(assertThrows(format, BcacheError, what).code, "InvalidArgument");
  });
}
