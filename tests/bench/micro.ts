/**
 * The micro benchmark: the index, the journal and start-up by themselves, on a device in memory.
 *
 *   bun tests/bench/run.ts --micro [--quick] [--write]      (or deno run -A)
 *
 * Lookups, inserts, merges and journal appends per second; how long a collection keeps others
 * waiting; how long a cache with a million extents, and a sparse one of 1 TiB, take to start.
 */
import { Segment } from "../../lib/btree/btree.ts";
import type { Engine } from "../../lib/cache/engine.ts";
import { insertExtent, InsertScratch } from "../../lib/bset/extents.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import { mergeDelta, mergeExtents } from "../../lib/bset/merge.ts";
import { MARK } from "../../lib/buckets/table.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { collectGarbage } from "../../lib/runtime/garbage.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { ProcessorClock, SlowestTurn, TurnDevice } from "./turns.ts";
import { closeBare, makeBare, startBare } from "../support/bare_engine.ts";

export interface MicroSizes {
  /** Keys of the big index. */
  readonly extents: number;
  /** How long each of the loops is repeated. */
  readonly loopMs: number;
  readonly sparseBytes: number;
}

export const MICRO_FULL: MicroSizes = { extents: 1_000_000, loopMs: 500, sparseBytes: 2 ** 40 };
export const MICRO_QUICK: MicroSizes = { extents: 20_000, loopMs: 20, sparseBytes: 2 ** 34 };

/** One line of the result. */
export interface MicroResult {
  readonly what: string;
  readonly value: string;
  readonly wanted: string;
}

const BUCKET_SECTORS = 1024;
const BLOCK_SECTORS = 8;
/** Extents are this long, with as long a gap behind: none merge. */
const EXTENT_SECTORS = 8;

/** How long writes are given to come to an end before others are measured. */
const SETTLE_MS = 300;

/** What is measured for comparison with collections: about as long, and as much at a time. */
const PLAIN_LOOPS = 8;
const PLAIN_TURN_MS = 1;

function extent(slot: Uint32Array, index: number, sector: number): void {
  setKey(slot, 0, {
    inode: 0,
    offset: (2 * index + 1) * EXTENT_SECTORS,
    sizeSectors: EXTENT_SECTORS,
    dirty: true,
    pointer: { sector, gen: 0 },
  });
}

function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** Calls between two looks at the clock. */
const BURST = 50;

/** Calls `body` with numbers from 0 on for a while; its calls per second. */
function perSecond(loopMs: number, body: (turn: number) => void): number {
  const warming = performance.now();
  for (let warm = 0; warm < 20_000 && performance.now() - warming < loopMs; warm++) body(warm);
  const began = performance.now();
  let turns = 0;
  let elapsed = 0;
  do {
    for (let burst = 0; burst < BURST; burst++) body(turns++);
    elapsed = performance.now() - began;
  } while (elapsed < loopMs);
  return (turns * 1000) / elapsed;
}

function fullSet(keys: number): KeySet {
  const set = new KeySet(keys);
  const slot = new Uint32Array(SLOT_WORDS);
  for (let index = 0; index < keys; index++) {
    extent(slot, index, 4096 + index * EXTENT_SECTORS);
    set.push(slot, 0);
  }
  return set;
}

/** A leaf's lookup by the number of its keys: doubling them must add a step, not double it. */
function lookups(engine: Engine, sizes: MicroSizes): MicroResult[] {
  const { btree } = engine;
  const random = new SimRandom(1);
  const probes = Float64Array.from({ length: 4096 }, () => random.nextU32() / 2 ** 32);
  const leaf = btree.root;
  const { base } = leaf;
  const segment = new Segment();
  const results = [1365, 5461, 10922, 21845].map((keys) => {
    leaf.base = fullSet(keys);
    const span = keys * 2 * EXTENT_SECTORS;
    const rate = perSecond(sizes.loopMs, (turn) => {
      const at = Math.floor(probes[turn & 4095]! * span);
      segment.baseGuess = 0;
      btree.lookup(leaf, 0, at, at + 8, segment);
    });
    return {
      what: `lookups in a leaf of ${count(keys)} keys (${keys * 24 >>> 10} KiB)`,
      value: `${count(rate)}/s, ${(1e9 / rate).toFixed(0)} ns`,
      wanted: "",
    };
  });
  leaf.base = base;
  return results;
}

function merges(sizes: MicroSizes): MicroResult[] {
  const base = fullSet(8192);
  const random = new SimRandom(2);
  const delta = new KeySet();
  const slot = new Uint32Array(SLOT_WORDS);
  const context = {
    ledger: { add: () => {} },
    scratch: new InsertScratch(),
    bucketSectors: BUCKET_SECTORS,
  };
  for (let key = 0; key < 160; key++) {
    extent(slot, random.below(8192), 9_000_000 + key * 16);
    insertExtent({ base, delta }, slot, 0, context);
  }
  const lazy = perSecond(sizes.loopMs, () => void mergeDelta(base, delta, BUCKET_SECTORS));
  const full = perSecond(
    sizes.loopMs,
    () => void mergeExtents(base, delta, { bucketSectors: BUCKET_SECTORS }),
  );
  const words = (rate: number) => `${count(rate)}/s, ${(1e6 / rate).toFixed(0)} µs`;
  return [
    { what: "merges of a page of 160 keys into 8,192", value: words(lazy), wanted: "" },
    { what: "full sorts of 8,352 keys", value: words(full), wanted: "" },
  ];
}

/** Puts `extents` keys into the index in random order. */
async function insertAll(engine: Engine, extents: number): Promise<MicroResult> {
  const order = Uint32Array.from({ length: extents }, (_, index) => index);
  const random = new SimRandom(3);
  for (let index = extents - 1; index > 0; index--) {
    const other = random.below(index + 1);
    [order[index], order[other]] = [order[other]!, order[index]!];
  }
  const { committer, geometry } = engine;
  const slot = new Uint32Array(SLOT_WORDS);
  const batch = new KeySet(1);
  const room = (geometry.bucketCount - 1000) * BUCKET_SECTORS - EXTENT_SECTORS;
  const began = performance.now();
  for (let turn = 0; turn < extents; turn++) {
    const index = order[turn]!;
    extent(slot, index, 900 * BUCKET_SECTORS + (index * EXTENT_SECTORS) % room);
    batch.clear();
    batch.push(slot, 0);
    while (!committer.tryCommit(batch)) await committer.ready(batch);
  }
  const rate = (extents * 1000) / (performance.now() - began);
  return {
    what: `inserts of ${count(extents)} extents in random order, journaled`,
    value: `${count(rate)}/s`,
    wanted: "",
  };
}

async function journalAppends(engine: Engine, loopMs: number): Promise<MicroResult> {
  const { journal } = engine;
  const slot = new Uint32Array(SLOT_WORDS);
  extent(slot, 1, 4096);
  const began = performance.now();
  let appended = 0;
  while (performance.now() - began < loopMs) {
    for (let burst = 0; burst < 500; burst++) {
      while (journal.tryAppend(slot, 0, SLOT_WORDS) === 0) await journal.whenRoom();
      appended++;
    }
  }
  await journal.commit();
  const rate = (appended * 1000) / (performance.now() - began);
  return { what: "journal appends of one key, durable", value: `${count(rate)}/s`, wanted: "" };
}

/** What kept others waiting; without a slice of its own the turn is all that is known. */
function stall(
  slices: { longestMs: number } | undefined,
  { cpuMs, wallMs }: { cpuMs: number; wallMs: number },
): string {
  const turn = `turn ${cpuMs.toFixed(1)} ms (${wallMs.toFixed(1)} ms by the clock)`;
  return slices === undefined ? turn : `${slices.longestMs.toFixed(1)} ms, ${turn}`;
}

/** A few collections: how long a slice of them takes, and a turn of the event loop beside them. */
async function collections(engine: Engine, which: string, runs = 1): Promise<MicroResult> {
  const { collector } = engine;
  const slowest = new SlowestTurn(await openLibc());
  collector.slices.reset();
  const times = await slowest.during(async () => {
    for (let run = 0; run < runs; run++) await collector.collect(new AbortController().signal);
  });
  return {
    what: `${which}: longest slice`,
    value: `${stall(collector.slices, times)} of ${times.tookMs.toFixed(0)} ms`,
    wanted: "under 5 ms",
  };
}

/** How long others wait for nothing but arithmetic: what of the above is the machine's own. */
async function plainWork(sizes: MicroSizes): Promise<MicroResult> {
  const slowest = new SlowestTurn(await openLibc());
  const times = await slowest.during(async () => {
    const until = performance.now() + PLAIN_LOOPS * sizes.loopMs;
    while (performance.now() < until) {
      const turnEnds = performance.now() + PLAIN_TURN_MS;
      while (performance.now() < turnEnds) { /* Nobody has a turn. */ }
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
  });
  const what = `no collection, but arithmetic of ${PLAIN_TURN_MS} ms a turn`;
  const value = `${stall(undefined, times)} of ${times.tookMs.toFixed(0)} ms`;
  return { what, value, wanted: "for comparison" };
}

/** What is behind seven of eight buckets is gone: most nodes have next to nothing to keep. */
function makeStale({ buckets }: Engine): void {
  for (let bucket = buckets.firstBucket; bucket < buckets.bucketCount; bucket++) {
    const data = buckets.mark[bucket] !== MARK.metadata && buckets.pins[bucket] === 0;
    if (data && bucket % 8 > 0) buckets.bumpGen(bucket);
  }
}

async function million(sizes: MicroSizes): Promise<MicroResult[]> {
  const clock = new ProcessorClock(await openLibc());
  const bucketCount = 4000 + Math.ceil(sizes.extents * EXTENT_SECTORS / BUCKET_SECTORS);
  const device = new TurnDevice(bucketCount * BUCKET_SECTORS);
  await makeBare(device, { bucketSectors: BUCKET_SECTORS, blockSectors: BLOCK_SECTORS });
  const options = { clock, random: new SimRandom(9) };
  const engine = await startBare(device, options);
  const results = [...lookups(engine, sizes), ...merges(sizes)];
  results.push(await insertAll(engine, sizes.extents));
  device.late = true;
  // What the inserts left to be written is not the collection's.
  await clock.sleep(SETTLE_MS);
  const of = `of ${count(sizes.extents)} extents`;
  results.push(await collections(engine, `first collection ${of}`));
  results.push(await collections(engine, `five more collections ${of}`, 5));
  results.push(await plainWork(sizes));
  engine.collector.alwaysRewrite = true;
  results.push(await collections(engine, `collection that writes all nodes anew ${of}`));
  device.late = false;
  await closeBare(engine);
  const began = performance.now();
  const again = await startBare(device, options);
  collectGarbage(); // As a mount does.
  results.push({
    what: `start of a cache with ${count(sizes.extents)} extents`,
    value: `${(performance.now() - began).toFixed(0)} ms`,
    wanted: "under 2,000 ms",
  });
  results.push(await journalAppends(again, sizes.loopMs));
  collectGarbage();
  device.late = true;
  makeStale(again);
  results.push(await collections(again, `collection ${of}, seven eighths of them stale`));
  await again.stopTasks();
  const checkBegan = performance.now();
  const { btree } = await checkCache({ cache: device });
  results.push({
    what: `offline check of a cache with ${count(btree?.extents ?? 0)} extents`,
    value: `${(performance.now() - checkBegan).toFixed(0)} ms`,
    wanted: "",
  });
  return results;
}

function stateBytes(engine: Engine): number {
  const { gen, priority, lastGc, mark, pins, sectorsUsed } = engine.buckets;
  const arrays = [gen, priority, lastGc, mark, pins, sectorsUsed];
  return arrays.reduce((sum, array) => sum + array.byteLength, engine.buckets.bucketCount);
}

/** What goes over every bucket: how long it keeps others waiting. */
async function sparseSlices(engine: Engine): Promise<MicroResult[]> {
  const slowest = new SlowestTurn(await openLibc());
  const { collector, prios } = engine;
  const buckets = count(engine.buckets.bucketCount);
  collector.slices.reset();
  const collect = await slowest.during(() => collector.collect(new AbortController().signal));
  const collected = stall(collector.slices, collect);
  const write = await slowest.during(async () => void await prios.write());
  const wanted = "under 5 ms";
  return [
    { what: `collection of ${buckets} buckets: longest slice`, value: collected, wanted },
    { what: `priorities of ${buckets} buckets`, value: stall(undefined, write), wanted },
  ];
}

async function sparse(sizes: MicroSizes): Promise<MicroResult[]> {
  const device = new TurnDevice(sizes.sparseBytes / 512);
  await makeBare(device, { bucketSectors: BUCKET_SECTORS, blockSectors: BLOCK_SECTORS });
  const options = { clock: new ProcessorClock(await openLibc()), random: new SimRandom(9) };
  await closeBare(await startBare(device, options));
  const began = performance.now();
  const engine = await startBare(device, options);
  const tookMs = performance.now() - began;
  const bytes = stateBytes(engine);
  collectGarbage(); // As a mount does.
  device.late = true;
  const slices = await sparseSlices(engine);
  device.late = false;
  await engine.stopTasks();
  const checkBegan = performance.now();
  await checkCache({ cache: device });
  const checkMs = performance.now() - checkBegan;
  const what = `sparse cache of ${count(sizes.sparseBytes / 2 ** 30)} GiB, 512 KiB buckets`;
  return [
    ...slices,
    { what: `start of a ${what}`, value: `${tookMs.toFixed(0)} ms`, wanted: "under 3,000 ms" },
    {
      what: `bucket state of a ${what}`,
      value: `${(bytes / 2 ** 20).toFixed(0)} MiB`,
      wanted: "under 150 MiB",
    },
    { what: `offline check of a ${what}`, value: `${checkMs.toFixed(0)} ms`, wanted: "" },
  ];
}

/** Measures everything; `say` is told each line when it is known. */
export async function micro(sizes: MicroSizes, say: (result: MicroResult) => void): Promise<void> {
  for (const part of [million, sparse]) for (const result of await part(sizes)) say(result);
}
