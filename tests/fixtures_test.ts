/**
 * The engine on images that the Linux kernel wrote: what the kernel served, we serve; what it
 * wrote back, we write back; what it refused, we refuse and say why.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { BcacheError } from "../lib/base/errors.ts";
import { CacheSet } from "../lib/cache/cache_set.ts";
import type { BlockVolume } from "../lib/cache/ports.ts";
import { openFileDevice } from "../lib/device/file.ts";
import { RealClock } from "../lib/runtime/clock.ts";
import { SystemRandom } from "../lib/runtime/random.ts";
import {
  type FixtureDevice,
  type FixtureEntry,
  fixtures,
  hashOfFile,
  type UnpackedFixture,
  unpackFixture,
  zeroTail,
} from "./support/fixtures.ts";

const SECTOR_BYTES = 512;
const LIMIT_MS = 120_000;

/** The backing images that the kernel served from this cache set. */
function servedBackings(entry: FixtureEntry): Array<[string, FixtureDevice]> {
  return Object.entries(entry.kernel.devices).filter(([name, device]) =>
    name.startsWith("backing") && device.running === "1" && device.state !== "no cache"
  );
}

async function openSet(unpacked: UnpackedFixture, backings: readonly string[]): Promise<CacheSet> {
  return await CacheSet.open({
    cache: await openFileDevice(unpacked.pathOf("cache.img")),
    backings: await Promise.all(backings.map(async (name) => {
      const path = unpacked.pathOf(name);
      return { device: await openFileDevice(path), path };
    })),
    clock: new RealClock(),
    random: new SystemRandom(),
    log: () => {},
    settings: [
      // What is dirty stays dirty until a test asks for it to be written back.
      ["writeback_running", "0"],
      // As when the hashes were taken: every read counts as sequential, so that hits come from
      // the cache and misses do not go into it.
      ["sequential_cutoff", "512"],
    ],
  });
}

/**
 * Clean data that the kernel dropped as it registered these two caches, to have free buckets in
 * stock; here it is dropped when somebody wants a bucket. Found by comparing what the kernel
 * serves, sector by sector, with what we do: [offset, length] in bytes.
 */
const DROPPED_BY_THE_KERNEL: Readonly<Record<string, ReadonlyArray<readonly [number, number]>>> = {
  "gc-reuse": [
    [50839552, 16384],
    [52887552, 8192],
    [52899840, 4096],
    [54607872, 8192],
    [54620160, 4096],
    [55951360, 4096],
    [55959552, 8192],
    [62095360, 8192],
    [62107648, 4096],
  ],
  "writearound-fifo-discard": [[0, 196608]],
};

/** Blanks what of the ranges lies in `piece`, which begins at byte `at`; it must not be blank. */
function blank(piece: Uint8Array, at: number, ranges: ReadonlyArray<readonly [number, number]>) {
  for (const [offset, length] of ranges) {
    const from = Math.max(offset - at, 0);
    const to = Math.min(offset + length - at, piece.length);
    if (from >= to) continue;
    assert(piece.subarray(from, to).some((byte) => byte !== 0), "served from the cache as well");
    piece.fill(0, from, to);
  }
}

async function hashOfVolume(
  volume: BlockVolume,
  blanked: ReadonlyArray<readonly [number, number]> = [],
): Promise<string> {
  const hash = createHash("sha256");
  const piece = new Uint8Array(1 << 20);
  for (let at = 0; at < volume.sizeBytes; at += piece.length) {
    const into = piece.subarray(0, Math.min(piece.length, volume.sizeBytes - at));
    if (!volume.tryRead(at, into)) await volume.read(at, into);
    blank(into, at, blanked);
    hash.update(into);
  }
  return hash.digest("hex");
}

function dataOffsetBytes(entry: FixtureEntry, image: string): number {
  return entry.images[image]!.data_offset_sectors! * SECTOR_BYTES;
}

/** The volume of a backing image, and what the set says of it. */
async function volumeOf(set: CacheSet, path: string) {
  const device = (await set.status()).devices.find((device) => device.backingPath === path);
  assert(device !== undefined, `the set serves ${path}`);
  const volume = set.volumes.find((volume) => volume.name === device.name);
  assert(volume !== undefined, `${device.name} is a volume`);
  return { device, volume };
}

/** Unpacks, opens with every backing image the kernel served, runs `body`, closes, removes. */
async function withSet(
  entry: FixtureEntry,
  body: (set: CacheSet, unpacked: UnpackedFixture) => Promise<void>,
  options: { zeroed: boolean; afterwards?: (unpacked: UnpackedFixture) => void },
): Promise<void> {
  const unpacked = unpackFixture(entry.name);
  try {
    const names = servedBackings(entry).map(([name]) => name);
    if (options.zeroed) {
      for (const name of names) zeroTail(unpacked.pathOf(name), dataOffsetBytes(entry, name));
    }
    const set = await openSet(unpacked, names);
    try {
      await body(set, unpacked);
    } finally {
      await set.close();
    }
    options.afterwards?.(unpacked);
  } finally {
    unpacked.remove();
  }
}

/** Compares every served device's state, dirty bytes and content with the kernel's. */
async function checkServed(
  entry: FixtureEntry,
  set: CacheSet,
  unpacked: UnpackedFixture,
  expected: (device: FixtureDevice) => string | undefined,
  blanked: ReadonlyArray<readonly [number, number]> = [],
): Promise<void> {
  for (const [name, kernel] of servedBackings(entry)) {
    const { device, volume } = await volumeOf(set, unpacked.pathOf(name));
    assertEquals(volume.sizeBytes, kernel.bytes, `${name}: size`);
    assertEquals(device.state, kernel.state, `${name}: state`);
    assertEquals(device.cacheMode, kernel.cache_mode, `${name}: cache mode`);
    assertEquals(device.label, kernel.label, `${name}: label`);
    // Recorded only of devices that were dirty: of what the kernel then wrote back.
    if (kernel.dirty_bytes !== undefined) {
      assertEquals(device.dirtyBytes, kernel.dirty_bytes, `${name}: dirty bytes`);
    }
    assertEquals(await hashOfVolume(volume, blanked), expected(kernel), `${name}: content`);
  }
}

for (const entry of fixtures()) {
  const served = servedBackings(entry);
  if (served.length === 0) continue;
  describe(entry.name, () => {
    test(
      "serves what the kernel served, and leaves it on the backing device when flushed",
      () =>
        withSet(entry, async (set, unpacked) => {
          await checkServed(entry, set, unpacked, (device) => device.sha256);
          await set.flushDirty(undefined);
          for (const [name] of served) {
            const { device } = await volumeOf(set, unpacked.pathOf(name));
            assertEquals([device.state, device.dirtyBytes], ["clean", 0], name);
          }
        }, {
          zeroed: false,
          afterwards: (unpacked) => {
            for (const [name, kernel] of served) {
              const found = hashOfFile(unpacked.pathOf(name), dataOffsetBytes(entry, name));
              assertEquals(found, kernel.sha256, `${name}: data area after the flush`);
            }
          },
        }),
      LIMIT_MS,
    );

    test(
      "takes from the cache exactly the blocks the kernel took",
      () =>
        withSet(entry, async (set, unpacked) => {
          await checkServed(
            entry,
            set,
            unpacked,
            (device) => device.sha256_with_backing_data_zeroed,
            DROPPED_BY_THE_KERNEL[entry.name],
          );
        }, { zeroed: true }),
      LIMIT_MS,
    );

    if (!served.some(([, kernel]) => kernel.sha256_of_dirty_over_zeroes)) return;
    test(
      "writes back exactly the blocks the kernel had dirty",
      () =>
        withSet(entry, (set) => set.flushDirty(undefined), {
          zeroed: true,
          afterwards: (unpacked) => {
            for (const [name, kernel] of served) {
              if (kernel.sha256_of_dirty_over_zeroes === undefined) continue;
              const found = hashOfFile(unpacked.pathOf(name), dataOffsetBytes(entry, name));
              assertEquals(found, kernel.sha256_of_dirty_over_zeroes, name);
            }
          },
        }),
      LIMIT_MS,
    );
  });
}

/** The volumes on the cache alone that the kernel served. */
function servedVolumes(entry: FixtureEntry): FixtureDevice[] {
  return Object.entries(entry.kernel.devices).filter(([name]) => name.startsWith("volume"))
    .map(([, device]) => device);
}

for (const entry of fixtures().filter((each) => servedVolumes(each).length > 0)) {
  for (const zeroed of [false, true]) {
    const backings = zeroed ? "zeroed backing devices" : "its backing devices";
    test(
      `${entry.name}: volumes on the cache alone are what the kernel served, with ${backings}`,
      () =>
        withSet(entry, async (set) => {
          const { volumes } = await set.status();
          const found = await Promise.all(volumes.map(async ({ name, label }) => {
            const volume = set.volumes.find((each) => each.name === name)!;
            return { bytes: volume.sizeBytes, label, sha256: await hashOfVolume(volume) };
          }));
          const expected = servedVolumes(entry).map(({ bytes, label, sha256 }) => {
            return { bytes: bytes!, label: label!, sha256: sha256! };
          });
          assertEquals(found, expected);
          // Cached devices have the first names, then come the volumes.
          assertEquals(volumes[0]!.name, `bcache${servedBackings(entry).length}`);
          assertEquals((await set.uuids()).filter(({ kind }) => kind === "volume").length, 1);
        }, { zeroed }),
      LIMIT_MS,
    );
  }
}

test("two-backings: each device has its own settings, label and data in the cache", async () => {
  const entry = fixtures().find((each) => each.name === "two-backings")!;
  await withSet(entry, async (set) => {
    const { devices } = await set.status();
    assertEquals(devices.map(({ name, label, cacheMode }) => [name, label, cacheMode]), [
      ["bcache0", "data-one", "writeback"],
      ["bcache1", "the second one", "writethrough"],
    ]);
    await set.setAttribute("bcache1", "sequential_cutoff", "1M");
    assertEquals((await set.attributes("bcache0", "sequential_cutoff"))[0]!.value, "512");
    const uuids = await set.uuids();
    assertEquals(uuids.map(({ label, device }) => [label, device]), [
      ["data-one", "bcache0"],
      ["the second one", "bcache1"],
    ]);
    assertEquals(uuids[0]!.dirtyBytes, entry.kernel.devices["backing1.img"]!.dirty_bytes);
    assertEquals(uuids[1]!.cachedBytes > 0 && uuids[1]!.dirtyBytes === 0, true);
  }, { zeroed: false });
}, LIMIT_MS);

test("none-and-detached: a device that was detached gets nothing of what was cached", async () => {
  const entry = fixtures().find((each) => each.name === "none-and-detached")!;
  const unpacked = unpackFixture(entry.name);
  try {
    const set = await openSet(unpacked, ["backing1.img", "backing2.img"]);
    for (const name of ["backing1.img", "backing2.img"]) {
      const { volume } = await volumeOf(set, unpacked.pathOf(name));
      assertEquals(await hashOfVolume(volume), entry.kernel.devices[name]!.sha256, name);
    }
    await set.close();
  } finally {
    unpacked.remove();
  }
}, LIMIT_MS);

/** What the refusal of a damaged fixture must name: the structure, and where it lies. */
const REFUSALS: Readonly<Record<string, readonly RegExp[]>> = {
  "damaged-cache-superblock": [/superblock/i, /checksum/i, /cache\.img/],
  "damaged-backing-superblock": [/superblock/i, /checksum/i, /backing1\.img/],
  "damaged-btree-root": [/b-?tree|node/i, /checksum/i, /bucket 19\b/],
  "damaged-btree-leaf": [/b-?tree|node/i, /checksum/i, /bucket 575\b/],
  "damaged-btree-append": [/b-?tree|node/i, /checksum/i, /bucket 437\b/],
  "damaged-priorities": [/priorit/i, /checksum/i, /bucket 22\b/],
  "damaged-journal-middle": [/journal/i, /missing/i, /\b57\b.*\b64\b/],
};

test("the table of refusals names every fixture that the kernel did not serve", () => {
  const refused = fixtures().filter((entry) => servedBackings(entry).length === 0);
  assertEquals(refused.map((entry) => entry.name).sort(), Object.keys(REFUSALS).sort());
});

for (const [name, patterns] of Object.entries(REFUSALS)) {
  test(`${name} is refused by structure and place, and left as it was`, async () => {
    const unpacked = unpackFixture(name);
    try {
      const error = await assertRejects(() => openSet(unpacked, ["backing1.img"]), BcacheError);
      for (const pattern of patterns) assertMatch(error.message, pattern);
      assert(!error.message.includes("\n"), "the message is one line");
      for (const [image, recorded] of Object.entries(unpacked.entry.images)) {
        assertEquals(hashOfFile(unpacked.pathOf(image)), recorded.sha256, `${image} is unchanged`);
      }
    } finally {
      unpacked.remove();
    }
  }, LIMIT_MS);
}
