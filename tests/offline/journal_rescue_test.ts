/**
 * A damaged journal: a rescue takes every intact entry that is needed, also those that the damage
 * hides from recovery, so that nothing is lost but what the damaged entry said itself.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import { JSET } from "../../lib/ondisk/jset.ts";
import { viewOf, writeU64 } from "../../lib/ondisk/layout.ts";
import type { CacheImage } from "../../lib/offline/cache_image.ts";
import { dump } from "../../lib/offline/dump.ts";
import { type ExtractResult, planExtract } from "../../lib/offline/extract.ts";
import type { JournalScan } from "../../lib/offline/journal_scan.ts";
import { journalKeys } from "../../lib/offline/replay.ts";
import { keyOffset, keyStart, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";
import {
  copyOf,
  DATA_OFFSET,
  entrySector,
  failingAt,
  indexOf,
  openSet,
  patch,
  resealJset,
  type SmallSet,
  smallSet,
} from "./world.ts";

const LIMIT_MS = 60_000;

let sound: SmallSet;
let journal: JournalScan;
let image: CacheImage;
/** The sectors of the volume that each needed entry speaks of. */
const sectorsOf = new Map<number, Set<number>>();

beforeAll(async () => {
  sound = await smallSet({ writes: 60, reads: 0, seed: 5 });
  const set = await openSet(sound, { seed: 6 });
  const volume = set.volumes[0]!;
  const random = new SimRandom(7);
  // Every flush makes an entry; places are written again and again, so that order matters.
  for (let step = 0; step < 50; step++) {
    const at = random.below(200) * 512;
    const bytes = new Uint8Array((1 + random.below(8)) * 512).fill(1 + random.below(255));
    await volume.write(at, bytes);
    await volume.flush();
    sound.model.set(bytes, at);
    await drainMicrotasks();
  }
  await set.abandon();
  ({ journal, image } = await indexOf(sound.cache));
  for await (const { entry, keys } of journalKeys(image, journal)) {
    const sectors = new Set<number>();
    for (let at = 0; at < keys.count * SLOT_WORDS; at += SLOT_WORDS) {
      const end = keyOffset(keys.words, at);
      for (let sector = keyStart(keys.words, at); sector < end; sector++) {
        sectors.add(sector - DATA_OFFSET);
      }
    }
    sectorsOf.set(entry.seq, sectors);
  }
});

const sectorOf = (at: { index: number; block: number }): number => entrySector(journal.place, at);

async function rescued(cache: Device): Promise<{ bytes: Uint8Array; result: ExtractResult }> {
  const of = { backing: sound.backing };
  const plan = await planExtract({ cache, of, rescue: true });
  const output = new MemoryDevice(plan.sizeSectors, { name: "output" });
  const result = await plan.copyTo(output);
  const bytes = new Uint8Array(plan.sizeSectors * 512);
  await output.read(0, bytes);
  return { bytes, result };
}

function wrongSectors(bytes: Uint8Array): number[] {
  return Array.from({ length: bytes.length / 512 }, (_, sector) => sector)
    .filter((sector) => {
      const [from, to] = [sector * 512, (sector + 1) * 512];
      return Buffer.compare(bytes.subarray(from, to), sound.model.subarray(from, to)) !== 0;
    });
}

/** Only what the damaged entries say may be wrong, and everything is in doubt. */
async function checkRescue(cache: Device, damaged: readonly number[]): Promise<number> {
  const { bytes, result } = await rescued(cache);
  const wrong = wrongSectors(bytes);
  const isTold = (sector: number) => damaged.some((seq) => sectorsOf.get(seq)!.has(sector));
  assertEquals(wrong.filter((sector) => !isTold(sector)), [], `damaged: ${damaged.join()}`);
  const { startByte, endByte, why } = result.doubtful[0]!;
  assertEquals([startByte, endByte], [0, bytes.length]);
  assertMatch(why, /a part of the journal is missing/);
  return wrong.length;
}

describe("a rescue with a damaged journal", () => {
  test("loses what a damaged entry said, and nothing else", async () => {
    const buckets = new Set(journal.needed.map((entry) => entry.index));
    assert(buckets.size >= 3, "the needed entries lie in several buckets");
    const firsts = journal.needed.filter((entry) => entry.block === 0);
    const newest = journal.needed.at(-1)!;
    const middles = journal.needed.filter((entry, at) => at % 23 === 11 && entry !== newest);
    const last = journal.needed.at(-2)!;
    let lost = 0;
    for (const entry of new Set([...firsts, ...middles, last])) {
      const cache = await copyOf(sound.cache);
      await patch(cache, sectorOf(entry), 1, (bytes) => bytes[100]! ^= 4);
      await assertRejects(() => openSet({ cache, backing: sound.backing }, { seed: 9 }));
      lost += await checkRescue(cache, [entry.seq]);
    }
    assert(lost > 0, "what damaged entries said is lost");
  }, LIMIT_MS);

  test("goes on without an entry of impossible numbers, which all others refuse", async () => {
    const newest = journal.needed.at(-1)!;
    const { backing } = sound;
    for (const [field, value] of [["last_seq", newest.seq + 1], ["seq", 0]] as const) {
      const cache = await copyOf(sound.cache);
      await patch(cache, sectorOf(newest), 1, (bytes) => {
        writeU64(viewOf(bytes), JSET[field], value);
        resealJset(bytes);
      });
      const why = /an entry with a right checksum says what cannot be/;
      const refusals = [
        await assertRejects(() => openSet({ cache, backing }, { seed: 9 }), BcacheError),
        await assertRejects(() => planExtract({ cache, of: { backing }, rescue: false })),
      ];
      for (const error of refusals) assertMatch((error as Error).message, why);
      const { errors, findings } = await checkCache({ cache });
      assert(errors > 0);
      assertMatch(findingText(findings[0]!), why);
      await checkRescue(cache, [newest.seq]);
    }
  }, LIMIT_MS);

  test("also when several are damaged, and the first of every bucket", async () => {
    const cache = await copyOf(sound.cache);
    const damaged = journal.needed.filter((entry, at) => entry.block === 0 || at % 31 === 7);
    for (const entry of damaged) {
      await patch(cache, sectorOf(entry), 1, (bytes) => bytes.fill(0, 0, 64));
    }
    await checkRescue(cache, damaged.map((entry) => entry.seq));
    // The buckets with former entries as well: no bucket begins with an entry.
    const { buckets, bucketSectors } = journal.place;
    for (const bucket of buckets) {
      await patch(cache, bucket * bucketSectors, 1, (bytes) => bytes.fill(0));
    }
    await checkRescue(cache, damaged.map((entry) => entry.seq));
  }, LIMIT_MS);

  test(
    "loses no entry to a sector near it that cannot be read, and says what is in doubt",
    async () => {
      const at = journal.needed.length - 5;
      for (const entry of [journal.needed[at]!, journal.needed[at >> 1]!]) {
        await checkRescue(failingAt(sound.cache, sectorOf(entry)), [entry.seq]);
      }
      // Nothing is missing between the entries that recovery could still see.
      const newest = journal.needed.at(-1)!;
      assert(newest.block > 0, "its bucket begins with another entry");
      await checkRescue(failingAt(sound.cache, sectorOf(newest)), [newest.seq]);
    },
    LIMIT_MS,
  );

  test("does not believe what somebody went on without", async () => {
    // Linux goes on behind the last entry that it sees, with the numbers of the hidden ones.
    const cache = await copyOf(sound.cache);
    const { buckets, bucketSectors, blockSectors } = journal.place;
    const [newest, before] = [journal.needed.at(-1)!, journal.needed.at(-2)!];
    const far = (newest.index + 2) % buckets.length;
    assert(journal.needed.every((entry) => entry.index !== far), "nothing needed is there");
    const entry = new Uint8Array(bucketSectors * 512 - newest.block * blockSectors * 512);
    await cache.read(sectorOf(newest), entry);
    await patch(cache, sectorOf(newest), 1, (bytes) => bytes.fill(0));
    const gap = journal.needed.at(-9)!;
    await patch(cache, sectorOf(gap), 1, (bytes) => bytes[100]! ^= 4);
    await patch(cache, buckets[far]! * bucketSectors, bucketSectors, (bytes) => {
      bytes.set(entry.subarray(0, 512));
      bytes[100]! ^= 4;
      bytes.set(entry.subarray(0, bytes.length - 512), 512);
    });
    const { entries } = await dumped(cache);
    const isNeeded = (seq: number) => entries.find((shown) => shown.seq === seq)?.needed;
    assertEquals([isNeeded(newest.seq), isNeeded(before.seq)], [false, true]);
    await checkRescue(cache, [gap.seq, newest.seq]);
  }, LIMIT_MS);
});

test("dump says which entries are needed though damage hides them", async () => {
  const cache = await copyOf(sound.cache);
  const { index } = journal.needed.at(-12)!;
  const [, gap, ...behind] = journal.needed.filter((entry) => entry.index === index);
  assert(gap !== undefined && behind.length > 1);
  await patch(cache, sectorOf(gap), 1, (bytes) => bytes[100]! ^= 4);
  const { entries, lines } = await dumped(cache);
  const needed = entries.filter((entry) => entry.needed).map((entry) => entry.seq);
  const expected = journal.needed.map((entry) => entry.seq).filter((seq) => seq !== gap.seq);
  assertEquals(needed.sort((a, b) => a - b), expected);
  const hidden = entries.filter((entry) => entry.hidden).map((entry) => entry.seq);
  assertEquals(hidden, behind.map((entry) => entry.seq));
  assert(lines.some((line) => /^entry \d+: .* needed but hidden by damage, last_seq/.test(line)));
  const whole = await dumped(sound.cache);
  assert(whole.entries.every((entry) => !entry.hidden));
}, LIMIT_MS);

interface Shown {
  seq: number;
  needed: boolean;
  hidden: boolean;
}

async function dumped(cache: Device): Promise<{ entries: Shown[]; lines: string[] }> {
  const entries: Shown[] = [];
  const lines: string[] = [];
  await dump(cache, "journal", (item) => {
    lines.push(item.text.split("\n")[0]!);
    if (item.unreadable !== true) entries.push(item.json as Shown);
  });
  return { entries, lines };
}
