/** The first start of a set, its end, and what is on the devices in between. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreater, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import { BATCH_KEYS_MAX } from "../../lib/btree/insert.ts";
import { Entry } from "../../lib/journal/entry.ts";
import { SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { isSynchronous, sealSuperblock, SUPERBLOCK } from "../../lib/ondisk/superblock.ts";
import { decodeSuperblock } from "../../lib/ondisk/superblock_verify.ts";
import { OneDevice, oneDevice } from "./one_device.ts";
import { makeSet, valuesIn, write } from "./set_support.ts";

function superblockOf(one: OneDevice) {
  return decodeSuperblock(one.cacheDisk.peek(8, 8), one.cacheDisk);
}

describe("a new cache set", () => {
  test("says that it is valid when all it names is stable, in one stable write", async () => {
    const one = new OneDevice({ sync: false });
    await one.format();
    const formatted = superblockOf(one);
    assert(!isSynchronous(formatted));
    await one.open();
    const at = one.trace.findIndex(({ on, kind, atSector }) =>
      on === "cache" && kind === "write" && atSector === 8
    );
    assertGreater(at, 0);
    const { fua, preflush } = one.trace[at]!;
    assert(fua && !preflush);
    const before = one.trace.slice(0, at).filter(({ on }) => on === "cache");
    // Whatever was written before is stable: by FUA itself, or by a flush after it.
    const flush = before.findLastIndex(({ kind }) => kind === "flush");
    const late = before.slice(flush).filter((each) => each.kind === "write" && !each.fua);
    assertEquals(late, []);
    assertGreater(before.filter(({ kind }) => kind === "write").length, 3);
    const running = superblockOf(one);
    assert(isSynchronous(running));
    assertEquals(running.sequence, formatted.sequence + 1);
    assertEquals(running.lastMountSeconds, 1_700_000_000);
    await one.close();
  });

  test("is read back by the next start", async () => {
    const one = await oneDevice();
    await one.write(0, 8, 3);
    await one.close();
    await one.open();
    assert((await one.read(0, 8)).every((byte) => byte === 3));
    assertEquals((await one.device()).dirtyBytes, 4096);
    await one.close();
  });
});

test("the journal is spoken of when it brought something back, not after a clean end", async () => {
  const made = await makeSet(1);
  const lines = () => made.log.splice(0).filter((line) => line.startsWith("journal: "));
  const first = await made.open();
  for (let at = 0; at < 40; at++) await write(first.volumes[0]!, at * 8192, 4096, 1);
  await first.close();
  assertEquals(lines(), []);
  const second = await made.open();
  assertEquals(lines(), []);
  await write(second.volumes[0]!, 0, 4096, 2);
  await second.volumes[0]!.flush();
  await second.abandon();
  const third = await made.open();
  const [line, ...more] = lines();
  assertMatch(line!, /^journal: \d+ entr(y|ies) with \d+ keys? replayed, the newest is \d+$/);
  assertEquals(more, []);
  await third.close();
});

describe("a superblock from before the first start", () => {
  for (
    const [mode, why] of [
      ["writethrough", "journal entry"],
      ["writeback", "/disk0: has dirty data in a cache"],
    ] as const
  ) {
    test(`is refused with nothing written, told by what is there in ${mode}`, async () => {
      const made = await makeSet(1, { mode });
      const old = new Uint8Array(4096);
      await made.cache.read(8, old);
      let set = await made.open();
      for (let entry = 0; entry < 20; entry++) {
        await write(set.volumes[0]!, 4096 * entry, 4096, 1 + entry);
        await set.volumes[0]!.flush();
      }
      await set.close();
      const newer = new Uint8Array(4096);
      await made.cache.read(8, newer);
      await made.cache.write(8, old);
      const error = await assertRejects(() => made.open(), BcacheError, "never ran");
      assertEquals([error.code, error.message.includes(why)], ["BadFormat", true]);
      await made.cache.write(8, newer);
      set = await made.open();
      assertEquals(await valuesIn(set.volumes[0]!, 4096 * 19, 4096), [20]);
      await set.close();
    });
  }
});

describe("a device that is attached for the first time", () => {
  test("has its slot stable in the cache before its superblock names the set", async () => {
    const one = new OneDevice({ sync: false });
    await one.format();
    await one.open();
    const at = one.trace.findIndex(({ on, kind, atSector }) =>
      on === "backing" && kind === "write" && atSector === 8
    );
    assertGreater(at, 0);
    const before = one.trace.slice(0, at).filter(({ on }) => on === "cache");
    const flush = before.findLastIndex(({ kind }) => kind === "flush");
    assertEquals(before.slice(flush).filter((each) => each.kind === "write" && !each.fua), []);
    const writes = before.filter(({ kind }) => kind === "write");
    const { firstBucket, journalBucketCount } = superblockOf(one);
    const journalEnd = (firstBucket + journalBucketCount) * 16;
    assert(writes.at(-1)!.atSector < journalEnd, "an entry is the last to be written");
    assert(writes.at(-2)!.atSector >= journalEnd, "it names the table, written before");
    assertEquals(one.trace[at + 1]?.kind, "flush", "and the superblock is stable in turn");
    const [known] = await one.run(one.set.uuids());
    assertEquals(known?.uuid, "02020202-0202-0202-0202-020202020202");
    assertEquals([known?.firstRegisteredSeconds, known?.lastRegisteredSeconds], [
      1_700_000_000,
      1_700_000_000,
    ]);
    assertEquals((await one.device()).state, "clean");
    await one.close();
  });
});

describe("superblocks of backing devices", () => {
  test("are stable before a state they announce is relied on", async () => {
    const one = await oneDevice({ mode: "writeback", sync: false });
    one.trace.length = 0;
    await one.write(0, 8, 3);
    const superblock = one.trace.findIndex((each) => each.on === "backing" && each.atSector === 8);
    const flush = one.trace.findIndex((each) => each.on === "backing" && each.kind === "flush");
    assert(superblock >= 0 && flush > superblock, "dirty is written and flushed");
    assertEquals((await one.device()).state, "dirty");
    await one.close();
  });
});

describe("the end of a cache set", () => {
  test("leaves nothing volatile behind, and everything that was acknowledged", async () => {
    const one = await oneDevice({ sync: false });
    for (let at = 0; at < 512; at += 8) await one.write(at, 8, 1 + at / 8);
    await one.close();
    assertEquals(one.cacheDisk.unflushed, 0);
    assertEquals(one.cacheDisk.inFlight + one.backingDisk.inFlight, 0);
    await one.open();
    for (let at = 0; at < 512; at += 8) assertEquals((await one.read(at, 8))[0], 1 + at / 8);
    await one.close();
  });
});

test("a cache with the obsolete large_bucket feature is served for reading only", async () => {
  const one = await oneDevice({ mode: "writethrough" });
  await one.write(0, 8, 3);
  await one.close();
  const page = one.cacheDisk.peek(8, 8);
  const view = new DataView(page.buffer);
  view.setBigUint64(SUPERBLOCK.version, 5n, true);
  view.setUint32(SUPERBLOCK.feature_incompat, 1, true);
  sealSuperblock(page);
  one.cacheDisk.patch(8, page);
  const error = await assertRejects(() => one.open(), BcacheError, "--read-only");
  assertEquals(error.code, "ReadOnly");
  one.trace.length = 0;
  await one.open({ readOnly: true, settings: [] });
  assert((await one.read(0, 8)).every((byte) => byte === 3));
  await one.close();
  assertEquals(one.trace.filter(({ kind }) => kind === "write"), []);
});

test("the largest batch of keys fits an empty entry of the smallest journal bucket", () => {
  // The smallest bucket is a page, and no entry is larger than its bucket.
  assertGreater(Entry.keyWordsIn(8 * 512), BATCH_KEYS_MAX * SLOT_WORDS);
});

test("what is no cache device is not opened as one", async () => {
  const one = new OneDevice();
  await one.format();
  await assertRejects(
    () =>
      one.run(CacheSet.open({
        cache: one.backingDisk,
        backings: [],
        clock: one.clock,
        random: { nextU32: () => 1 },
        log: () => {},
      })),
    BcacheError,
    "backing device",
  );
});
