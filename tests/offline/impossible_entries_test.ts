/**
 * Journal entries whose checksum is right and whose numbers cannot be: `check` and a start agree
 * about each, and `check` names the place.
 */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { type Finding, findingText } from "../../lib/offline/findings.ts";
import type { IndexView } from "../../lib/offline/index_view.ts";
import type { ScannedEntry } from "../../lib/offline/journal_scan.ts";
import { JSET } from "../../lib/ondisk/jset.ts";
import { viewOf, writeU64 } from "../../lib/ondisk/layout.ts";
import { setSynchronous } from "../../lib/ondisk/superblock.ts";
import {
  BUCKET_SECTORS,
  changeSuperblock,
  copyOf,
  entrySector,
  indexOf,
  openSet,
  patch,
  resealJset,
  type SmallSet,
  smallSet,
} from "./world.ts";

const LIMIT_MS = 60_000;
const IMPOSSIBLE = /an entry with a right checksum says what cannot be/;

let sound: SmallSet;
let journal: IndexView["journal"];

beforeAll(async () => {
  sound = await smallSet({ writes: 60, reads: 0, seed: 5 });
  const set = await openSet(sound, { seed: 6 });
  // Every flush makes an entry.
  for (let step = 0; step < 45; step++) {
    await set.volumes[0]!.write(step * 4096, new Uint8Array(4096).fill(step));
    await set.volumes[0]!.flush();
  }
  await set.abandon();
  ({ journal } = await indexOf(sound.cache));
});

const sectorOf = (at: { index: number; block: number }): number => entrySector(journal.place, at);

/** Gives the entry at a sector numbers that cannot be, and seals it. */
function plant(
  cache: MemoryDevice,
  sector: number,
  { seq, lastSeq }: { seq: number; lastSeq: number },
): Promise<void> {
  return patch(cache, sector, BUCKET_SECTORS - sector % BUCKET_SECTORS, (bytes) => {
    writeU64(viewOf(bytes), JSET.seq, seq);
    writeU64(viewOf(bytes), JSET.last_seq, lastSeq);
    resealJset(bytes);
  });
}

/** Puts what begins a bucket of the journal at the beginning of another. */
async function copyFirst(cache: MemoryDevice, sector: number): Promise<void> {
  const bucket = new Uint8Array(BUCKET_SECTORS * 512);
  await cache.read(sectorOf(journal.needed.find(({ block }) => block === 0)!), bucket);
  await cache.write(sector, bucket);
}

async function findingsOf(cache: MemoryDevice): Promise<Finding[]> {
  const { findings } = await checkCache({ cache });
  return findings.filter(({ subject }) => subject === "journal");
}

async function start(cache: MemoryDevice): Promise<void> {
  const set = await openSet({ cache, backing: await copyOf(sound.backing) }, { seed: 9 });
  await set.close();
}

/** One in the middle of its bucket: its place is not the bucket's beginning. */
function inMiddle(entries: readonly ScannedEntry[]): ScannedEntry {
  const found = entries.findLast(({ block }) => block > 0);
  assert(found, "an entry lies in the middle of its bucket");
  return found;
}

describe("an entry with a right checksum and numbers that cannot be", () => {
  test("that is needed is an error, once and at its own place", async () => {
    const cache = await copyOf(sound.cache);
    const entry = inMiddle(journal.needed);
    await plant(cache, sectorOf(entry), { seq: entry.seq, lastSeq: entry.seq + 1 });
    const errors = (await findingsOf(cache)).filter(({ severity }) => severity === "error");
    const impossible = errors.filter((finding) => IMPOSSIBLE.test(findingText(finding)));
    assertEquals(impossible.map(({ sector }) => sector), [sectorOf(entry)]);
    assert(errors.every((finding) => !findingText(finding).includes("intact")));
    await assertRejects(() => start(cache), BcacheError, "says what cannot be");
  }, LIMIT_MS);

  test("in the place of the newest one, with an older number, is a warning", async () => {
    const cache = await copyOf(sound.cache);
    const newest = journal.needed.at(-1)!;
    assert(newest.block > 0);
    await plant(cache, sectorOf(newest), { seq: 1, lastSeq: 2 });
    const findings = await findingsOf(cache);
    assertEquals(findings.map(({ severity, sector }) => [severity, sector]), [
      ["warning", sectorOf(newest)],
    ]);
    assertMatch(findingText(findings[0]!), /an impossible entry behind the newest one/);
    await start(cache);
  }, LIMIT_MS);

  test("at the start of a bucket that is not needed is a warning", async () => {
    const cache = await copyOf(sound.cache);
    const indexes = new Set(journal.needed.map(({ index }) => index));
    const index = journal.place.buckets.findIndex((_, at) =>
      !indexes.has(at) && at !== (journal.needed.at(-1)!.index + 1) % journal.place.buckets.length
    );
    assert(index >= 0, "some bucket is not needed");
    const sector = sectorOf({ index, block: 0 });
    await copyFirst(cache, sector);
    await plant(cache, sector, { seq: 1, lastSeq: 2 });
    const findings = await findingsOf(cache);
    assertEquals(findings.map((finding) => [finding.severity, finding.sector]), [
      ["warning", sector],
    ]);
    assertMatch(findingText(findings[0]!), IMPOSSIBLE);
    await start(cache);
  }, LIMIT_MS);

  test("in a set that never ran, as its superblock says, is an error", async () => {
    const { cache, backing } = await smallSet({ writes: 1, mode: "writethrough" });
    const { place, needed } = (await indexOf(cache)).journal;
    const sector = place.buckets[needed.at(-1)!.index]! * place.bucketSectors;
    await plant(cache, sector, { seq: 1, lastSeq: 2 });
    await changeSuperblock(cache, (superblock) => setSynchronous(superblock, false));
    const { clean, findings } = await checkCache({ cache });
    assertEquals(clean, false);
    assert(findings.some((finding) => IMPOSSIBLE.test(findingText(finding))));
    const open = () => openSet({ cache, backing }, { seed: 9 });
    await assertRejects(open, BcacheError, "says what cannot be");
  }, LIMIT_MS);
});
