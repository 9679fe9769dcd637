/** A damaged UUID table, or one that does not fit the index: nothing of the set is served then. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { crc64 } from "../../lib/base/crc64.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { JSET, jsetBytes, readJsetHeader } from "../../lib/ondisk/jset.ts";
import { INODE_MAX, keyInode, pointerSector } from "../../lib/ondisk/bkey.ts";
import { BSET_HEADER_BYTES } from "../../lib/ondisk/bset.ts";
import { viewOf } from "../../lib/ondisk/layout.ts";
import { SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { UUID_ENTRY, UUID_ENTRY_BYTES } from "../../lib/ondisk/uuid_entry.ts";
import { indexOf, patch, patchSuperblock, resealNode } from "../offline/world.ts";
import {
  type MadeSet,
  makeSet,
  superblockOf,
  valuesIn,
  volumeNamed,
  write,
} from "./set_support.ts";

const MIB = 1024 * 1024;
const LENGTH = 64 * 1024;

/** Slot 0 is a cached device, slot 1 a volume; both have dirty data at their beginning. */
async function withVolume(): Promise<MadeSet> {
  const made = await makeSet(1);
  const set = await made.open();
  await set.createVolume({ sizeBytes: MIB, label: "only here" });
  await write(volumeNamed(set, "bcache0"), 0, LENGTH, 1);
  await write(volumeNamed(set, "bcache1"), 0, LENGTH, 2);
  for (const volume of set.volumes) await volume.flush();
  await set.close();
  return made;
}

type Slots = (slot: (index: number) => Uint8Array, view: (index: number) => DataView) => void;

/** Changes slots of the UUID table. Returns what puts the old bytes back. */
async function damage({ cache }: MadeSet, change: Slots): Promise<() => Promise<void>> {
  const sector = (await indexOf(cache)).uuids!.bucket * 16;
  const before = new Uint8Array(16 * 512);
  await cache.read(sector, before);
  const slot = (bytes: Uint8Array, index: number) =>
    bytes.subarray(index * UUID_ENTRY_BYTES, (index + 1) * UUID_ENTRY_BYTES);
  await patch(cache, sector, 16, (bytes) => {
    change((index) => slot(bytes, index), (index) => viewOf(slot(bytes, index)));
  });
  return () => cache.write(sector, before);
}

/** The set does not start, `check` says why, and once the damage is undone all is there. */
async function refuses(made: MadeSet, change: Slots, expected: RegExp): Promise<void> {
  const undo = await damage(made, change);
  const error = await assertRejects(() => made.open(), BcacheError);
  assertEquals([error.code, error.message.includes("\n")], ["BadFormat", false]);
  assertMatch(error.message, expected);
  const backing = made.backings[0]!.device;
  const report = await checkCache({ cache: made.cache, backings: [backing] });
  assert(report.errors > 0, "`check` calls it an error");
  const plan = () => planExtract({ cache: made.cache, of: { backing }, rescue: false });
  await assertRejects(plan, BcacheError, "--rescue");
  await undo();
  const set = await made.open();
  assertEquals(await valuesIn(volumeNamed(set, "bcache0"), 0, LENGTH), [1]);
  assertEquals(await valuesIn(volumeNamed(set, "bcache1"), 0, LENGTH), [2]);
  await set.close();
}

describe("a damaged UUID table is refused, and nothing is lost by trying", () => {
  test("when a volume's slot is zero, and the cache has its data", async () => {
    await refuses(
      await withVolume(),
      (slot) => void slot(1).fill(0),
      /slot 1 is unused, but the cache has 64.0 KiB of dirty data of device number 1;.*--volume 1/,
    );
  });

  test("when a device's slot is zero, which would be taken for another's", async () => {
    await refuses(
      await withVolume(),
      (slot) => void slot(0).fill(0),
      /slot 0 is unused, but the cache has 64.0 KiB of dirty data of device number 0;/,
    );
  });

  test("when two slots have one UUID", async () => {
    await refuses(
      await withVolume(),
      (slot) => slot(2).set(slot(0)),
      /UUID table in bucket \d+: slots 0 and 2 have one UUID, 20202020-.*`extract --rescue`/,
    );
  });

  test("when a slot has flags that nobody knows", async () => {
    await refuses(
      await withVolume(),
      (_, view) => view(0).setUint32(UUID_ENTRY.flags, 4, true),
      /slot 0 has unknown flags: found 0x4, expected 0 or 1;/,
    );
  });

  test("when a volume's slot says that it is none", async () => {
    await refuses(
      await withVolume(),
      (_, view) => view(1).setUint32(UUID_ENTRY.flags, 0, true),
      /slot 1 has the size of a volume, but is none: found 2048 sectors, expected 0;/,
    );
  });

  test("when a device's slot says that it is a volume", async () => {
    await refuses(
      await withVolume(),
      (_, view) => view(0).setUint32(UUID_ENTRY.flags, 1, true),
      /\/disk0: slot 0 of the UUID table of \/cache has its UUID, and says that it is a volume/,
    );
  });

  test("when the slots of a device and a volume are swapped", async () => {
    await refuses(
      await withVolume(),
      (slot) => {
        const first = slot(0).slice();
        slot(0).set(slot(1));
        slot(1).set(first);
      },
      /\/disk0: the cache holds data of the part before .* from sector 0, expected from 16 on;/,
    );
  });
});

test("dirty data of a number that the UUID table cannot have is refused, and rescued", async () => {
  const made = await withVolume();
  const { cache } = made;
  const leaf = (await indexOf(cache)).tree.leaves.at(-1)!.key!;
  await patch(cache, pointerSector(leaf, 0), 16, (bytes) => {
    const words = new Uint32Array(bytes.buffer);
    for (let at = BSET_HEADER_BYTES / 4; at < words.length; at++) {
      // What begins a key of the volume: its number, and the bit that every key has.
      if (words[at + 1]! >>> 31 !== 1 || keyInode(words, at) !== 1) continue;
      words[at] = (words[at]! & ~INODE_MAX) | 1000;
    }
    resealNode(bytes, leaf, 512);
  });
  const why =
    "there is no slot 1000, but the cache has 64.0 KiB of dirty data of device number 1000";
  await assertRejects(() => made.open(), BcacheError, why);
  const { findings } = await checkCache({ cache });
  assert(findings.some(({ what }) => what.includes("device number 1000")));
  const plan = await planExtract({ cache, of: { volume: 1000 }, rescue: true });
  assertEquals(plan.sizeSectors, LENGTH / 512);
});

test("what is left of a slot that was given up is no damage", async () => {
  const made = await withVolume();
  const set = await made.open();
  await set.destroyVolume("bcache1", { force: true });
  await set.abandon();
  const again = await made.open();
  assertEquals(again.volumes.length, 1);
  await again.close();
});

describe("a rescue", () => {
  test("takes a volume by the number of its data when the table has lost it", async () => {
    const made = await withVolume();
    await damage(made, (slot) => void slot(1).fill(0));
    const { cache } = made;
    const plan = await planExtract({ cache, of: { volume: 1 }, rescue: true });
    assertEquals(plan.sizeSectors, LENGTH / 512);
    const output = new MemoryDevice(plan.sizeSectors);
    const { doubtful } = await plan.copyTo(output);
    assertMatch(doubtful[0]!.why, /does not know the volume: it ends where its last data does/);
    const image = new Uint8Array(LENGTH);
    await output.read(0, image);
    assertEquals([...new Set(image)], [2]);
    const other = () => planExtract({ cache, of: { volume: 3 }, rescue: true });
    await assertRejects(other, BcacheError, "no flash-only volume number 3");
  });

  test("takes a volume whose size is lost as far as its data goes", async () => {
    const made = await withVolume();
    await damage(made, (_, view) => view(1).setUint32(UUID_ENTRY.sectors, 0, true));
    const { cache } = made;
    const plan = (rescue: boolean) => planExtract({ cache, of: { volume: "only here" }, rescue });
    const why = "volume 1 has 0 sectors in the UUID table";
    await assertRejects(() => plan(false), BcacheError, `${why}, expected 1 to`);
    const rescued = await plan(true);
    assertEquals(rescued.sizeSectors, LENGTH / 512);
    const { doubtful } = await rescued.copyTo(new MemoryDevice(rescued.sizeSectors));
    assertMatch(doubtful[0]!.why, new RegExp(`${why}: it ends where its last data does`));
  });

  test("takes a device's data beside a volume's when the table has lost the device", async () => {
    const made = await withVolume();
    await damage(made, (slot) => void slot(0).fill(0));
    const of = { backing: made.backings[0]!.device };
    const plan = await planExtract({ cache: made.cache, of, rescue: true });
    const output = new MemoryDevice(plan.sizeSectors);
    const { doubtful } = await plan.copyTo(output);
    assertMatch(doubtful[0]!.why, /took number 0, the only one/);
    const image = new Uint8Array(LENGTH);
    await output.read(0, image);
    assertEquals([...new Set(image)], [1]);
  });
});

test("a device whose data begins behind the cache's data of it is not attached", async () => {
  const made = await withVolume();
  const { device } = made.backings[0]!;
  await patchSuperblock(device, (page) => {
    viewOf(page).setBigUint64(SUPERBLOCK.version, 4n, true);
    viewOf(page).setBigUint64(SUPERBLOCK.nbuckets, 17n, true);
  });
  const why = "found an extent from sector 16, expected from 17 on";
  await assertRejects(() => made.open(), BcacheError, why);
  const { cache } = made;
  const extract = (rescue: boolean) => planExtract({ cache, of: { backing: device }, rescue });
  await assertRejects(() => extract(false), BcacheError, why);
  const plan = await extract(true);
  const { doubtful } = await plan.copyTo(new MemoryDevice(plan.sizeSectors));
  assertMatch(doubtful[0]!.why, /holds data of the part before the device's data/);
  // Without it the rest of the set is served, and it is not let in later either.
  const set = await made.open({ backings: [] });
  await assertRejects(() => set.attach("/disk0"), BcacheError, why);
  await set.close();
});

test("a cache that says it is one of several is refused as `check` refuses it", async () => {
  const made = await withVolume();
  await patchSuperblock(made.cache, (page) => {
    viewOf(page).setUint16(SUPERBLOCK.nr_in_set, 8, true);
    viewOf(page).setUint16(SUPERBLOCK.nr_this_dev, 7, true);
  });
  const said = /a set of several cache devices, which nobody can run: found device 7 of 8, exp/;
  const error = await assertRejects(() => made.open(), BcacheError);
  assertMatch(error.message, said);
  const { cache } = made;
  const { findings } = await checkCache({ cache });
  assertEquals(findings.length, 1);
  assertMatch(findingText(findings[0]!), said);
  const extract = (rescue: boolean) => planExtract({ cache, of: { volume: 1 }, rescue });
  await assertRejects(() => extract(false), BcacheError, "several cache devices");
  const plan = await extract(true);
  assertEquals(plan.findings.length, 1);
  const output = new MemoryDevice(plan.sizeSectors);
  await plan.copyTo(output);
  const image = new Uint8Array(LENGTH);
  await output.read(0, image);
  assertEquals([...new Set(image)], [2]);
});

test("a write sequence that leaves no room is refused, of the cache and of a device", async () => {
  for (const which of ["cache", "backing"] as const) {
    const made = await withVolume();
    const device = which === "cache" ? made.cache : made.backings[0]!.device;
    await patchSuperblock(device, (page) => {
      viewOf(page).setBigUint64(SUPERBLOCK.seq, (1n << 53n) - 1n, true);
    });
    const why = "write sequence 9007199254740991, expected at most 2^52";
    await assertRejects(() => made.open(), BcacheError, why);
    const backings = [made.backings[0]!.device];
    const report = await checkCache({ cache: made.cache, backings });
    assert(report.findings.some((finding) => findingText(finding).includes(why)));
  }
});

test("a journal whose numbers leave no room is refused", async () => {
  const made = await withVolume();
  const { firstBucket } = await superblockOf(made.cache);
  // The first entry, which is where a journal of its own begins.
  await patch(made.cache, (firstBucket + 1) * 16, 16, (bytes) => {
    const view = viewOf(bytes);
    for (const field of [JSET.seq, JSET.last_seq]) view.setBigUint64(field, (1n << 53n) - 2n, true);
    const sum = new Uint32Array(2);
    crc64(bytes, 8, jsetBytes(readJsetHeader(bytes).keyWords), sum);
    bytes.set(new Uint8Array(sum.buffer));
  });
  const why = "entry 9007199254740990 leaves no room for newer ones";
  await assertRejects(() => made.open(), BcacheError, why);
  const { findings } = await checkCache({ cache: made.cache });
  assert(findings.some((finding) => findingText(finding).includes(why)));
});
