/** The table of damage holds: every cell is tried, and its outcome is what the cell says. */
import { beforeAll, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { readFileSync } from "node:fs";
import { BcacheError } from "../../lib/base/errors.ts";
import { crc64 } from "../../lib/base/crc64.ts";
import { pointerSector } from "../../lib/ondisk/bkey.ts";
import { JSET, jsetBytes, readJsetHeader } from "../../lib/ondisk/jset.ts";
import {
  genAt,
  prioAt,
  putPrio,
  readPrioSetHeader,
  sealPrioSet,
} from "../../lib/ondisk/prio_set.ts";
import { copyOf, indexOf, MAGICS, patch } from "../offline/world.ts";
import { changesOf, DAMAGES } from "./damage.ts";
import { CORRUPTION_DOCS, corruptionDocs } from "./docs.ts";
import { OF_VOLUME, type Place, placesOf, type Structure, STRUCTURES } from "./places.ts";
import {
  BUCKET_SECTORS,
  makeSample,
  openSample,
  type Sample,
  SET_STATES,
  type SetState,
} from "./set.ts";
import { CANNOT_BE_TOLD, TABLE } from "./table.ts";
import { type Observed, tryDamage } from "./trial.ts";

const LIMIT_MS = 60_000;
const samples = new Map<SetState, [Sample, Record<Structure, Place>]>();
const withVolume: typeof samples = new Map();

beforeAll(async () => {
  for (const state of SET_STATES) {
    const sample = await makeSample(state);
    samples.set(state, [sample, await placesOf(sample)]);
    const other = await makeSample(state, true);
    withVolume.set(state, [other, await placesOf(other)]);
  }
});

function checkObserved(what: string, { outcome, check, detail, told }: Observed): void {
  const found = `${what}: ${outcome}, ${detail}`;
  assert(outcome !== "refuse" || check === "error", `\`check\` says why: ${found}`);
  assert(!detail.includes("\n"), `one line: ${found}`);
  if (outcome === "refuse") {
    assertMatch(detail, /^[^ ]+: .*; /, `the device, what is wrong and what to do: ${found}`);
  }
  // What `check` can tell of data that is lost, the start tells as well.
  assert(outcome !== "old data" || check === "nothing" || told.length > 0, `told: ${found}`);
  const isLost = told.some((line) => line.includes("of dirty data were used again, first"));
  assert(!isLost || outcome === "old data", `no false alarm: ${found}, ${told.join()}`);
}

for (const state of SET_STATES) {
  describe(`a ${state} set, damaged`, () => {
    for (const structure of STRUCTURES) {
      test(`${structure}: ends as the table says`, async () => {
        const [sample, places] = (structure === OF_VOLUME ? withVolume : samples).get(state)!;
        for (const damage of DAMAGES) {
          const outcomes = new Set<string>();
          const seen: string[] = [];
          for (const change of await changesOf(sample, places[structure], damage)) {
            const observed = await tryDamage(sample, places[structure], change);
            checkObserved(`${damage}, ${change.what}`, observed);
            outcomes.add(observed.outcome);
            seen.push(`${change.what}: ${observed.outcome}, ${observed.detail}`);
          }
          const expected = [...TABLE[structure][state][damage]].sort();
          assertEquals([...outcomes].sort(), expected, `${damage}:\n${seen.join("\n")}`);
        }
      }, LIMIT_MS);
    }
  });
}

test("priorities that take the root for dropped are refused", async () => {
  const [sample] = samples.get("dirty")!;
  const { journal } = await indexOf(sample.cache);
  const { rootKey, prioBucket } = journal.head;
  const cache = await copyOf(sample.cache);
  const bucket = Math.floor(pointerSector(rootKey, 0) / BUCKET_SECTORS);
  await patch(cache, prioBucket * BUCKET_SECTORS, BUCKET_SECTORS, (bytes) => {
    putPrio(bytes, bucket, prioAt(bytes, bucket), genAt(bytes, bucket) + 50);
    sealPrioSet(bytes, readPrioSetHeader(bytes), MAGICS.prioSet);
  });
  await assertRejects(
    () => openSample({ cache, backings: sample.backings }, 5),
    BcacheError,
    "is stale: its bucket is at generation",
  );
});

test("a root that ends before the last position is refused: a walk would not end", async () => {
  const [sample, places] = samples.get("clean")!;
  const cache = await copyOf(sample.cache);
  await patch(cache, places["journal: the newest entry"].sector, 4, (bytes) => {
    bytes[JSET.btree_root + 2]! &= 0xf0; // The inode of the root's key.
    const length = jsetBytes(readJsetHeader(bytes).keyWords);
    const sum = new Uint32Array(2);
    crc64(bytes, 8, length, sum);
    bytes.set(new Uint8Array(sum.buffer));
  });
  await assertRejects(
    () => openSample({ cache, backings: sample.backings }, 5),
    BcacheError,
    "does not end at the last position",
  );
});

describe("the table of damage", () => {
  test("serves old or wrong data only where a note says why nobody can tell", () => {
    for (const structure of STRUCTURES) {
      const all = SET_STATES.flatMap((state) => Object.values(TABLE[structure][state]).flat());
      const isSilent = all.includes("old data") || all.includes("wrong data");
      assert(!isSilent || structure in CANNOT_BE_TOLD, structure);
      const isForged = structure.endsWith("whose checksum is right");
      assert(isForged || !all.includes("wrong data"), structure);
    }
  });

  test("is what docs/corruption.md shows; `npm run docs` writes it", () => {
    assertEquals(readFileSync(CORRUPTION_DOCS, "utf8"), corruptionDocs());
  });
});
