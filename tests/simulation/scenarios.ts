/**
 * The crash workloads of the real engine, by name. Each is a function of its seed alone, so that
 * a name, a seed and a cut's number bring a failure back.
 */
import type { CacheMode } from "../../lib/cache/ports.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { bcacheKind, type BcacheOptions } from "./bcache_kind.ts";
import { flashKind } from "./flash_kind.ts";
import { USUAL_CUTS } from "./explorer.ts";
import type { Scenario } from "./explorer.ts";
import { SimRandom } from "./sim_random.ts";
import { USUAL_WORKLOAD } from "./workload.ts";
import type { WorkloadOptions } from "./workload.ts";

interface Recipe {
  readonly mode: CacheMode;
  readonly workload?: Partial<WorkloadOptions>;
  readonly cutOneIn?: number;
  readonly nestedOneIn?: number;
  readonly volumeSectors?: number;
  readonly blockSectors?: number;
  readonly bucketSectors?: number;
  readonly settings?: ReadonlyArray<readonly [string, string]>;
  readonly setSettings?: ReadonlyArray<readonly [string, string]>;
  readonly disturbance?: BcacheOptions["disturbance"];
  readonly checkState?: boolean;
  /** Further devices on the same cache, each in its mode. */
  readonly besideModes?: readonly CacheMode[];
  /** A volume on the cache alone instead of a cached device. */
  readonly flash?: boolean;
  /** See Scenario.steadfast. Only what never writes past the cache can promise it. */
  readonly steadfast?: boolean;
}

/** A device with stripes, full and partial ones, in turns with small writes past the cache. */
const STRIPED = [
  ["stripe_size", "4M"],
  ["partial_stripes_expensive", "1"],
  ["sequential_cutoff", "64k"],
] as const;
/** Writeback that starts at once, so that it meets the rest of the workload. */
const PROMPT = [["writeback_delay", "0"], ["writeback_percent", "0"]] as const;
const HELD = [["writeback_running", "0"]] as const;
const TINY: Partial<WorkloadOptions> = { steps: 60, spanBytes: 256 << 10 };

export const RECIPES = {
  // Every write and flush of a few dozen requests, in each mode.
  "writeback": { mode: "writeback", workload: TINY, settings: PROMPT },
  "writethrough": { mode: "writethrough", workload: TINY },
  "writearound": { mode: "writearound", workload: TINY },
  "none": { mode: "none", workload: TINY },
  "writeback-only": {
    mode: "writeback",
    workload: { ...TINY, weights: { ...USUAL_WORKLOAD.weights, zero: 0 } },
    settings: [["sequential_cutoff", "0"], ...HELD],
    steadfast: true,
  },
  "small-blocks": { mode: "writeback", workload: TINY, blockSectors: 1, settings: PROMPT },
  // Runs of several extents, many of them under way, and keys that change while they are.
  "writeback-runs": {
    mode: "writeback",
    workload: {
      steps: 250,
      lanes: 6,
      spanBytes: 64 << 10,
      writeBytesMax: 16384,
      sequential: 0.4,
      weights: { write: 60, read: 5, flush: 8, zero: 3, sleep: 12, disturb: 6 },
      sleepMsMax: 50,
    },
    settings: [...PROMPT, ["writeback_in_flight", "64"], ["sequential_cutoff", "16k"]],
    disturbance: "drain",
    checkState: true,
    blockSectors: 1,
    cutOneIn: 40,
    nestedOneIn: 400,
  },
  "writeback-stripes": {
    mode: "writeback",
    workload: {
      steps: 300,
      lanes: 5,
      spanBytes: 7 << 20,
      writeBytesMax: 64 << 10,
      sequential: 0.6,
      weights: { write: 70, read: 5, flush: 6, zero: 2, sleep: 10, disturb: 2 },
      sleepMsMax: 100,
    },
    settings: [...PROMPT, ...STRIPED, ["writeback_age_limit", "1"]],
    disturbance: "drain",
    cutOneIn: 60,
    nestedOneIn: 600,
  },
  // A sample of the cuts of longer ones.
  "wrap-journal": {
    mode: "writeback",
    workload: {
      steps: 400,
      lanes: 6,
      weights: { write: 50, read: 5, flush: 40, zero: 2, sleep: 3 },
      writeBytesMax: 4096,
      sleepMsMax: 40,
    },
    cutOneIn: 60,
    nestedOneIn: 200,
  },
  "split-nodes": {
    mode: "writeback",
    workload: {
      steps: 1500,
      lanes: 8,
      spanBytes: 3 << 20,
      writeBytesMax: 2048,
      weights: { write: 85, read: 5, flush: 2, zero: 1, sleep: 2 },
    },
    blockSectors: 1,
    cutOneIn: 200,
    nestedOneIn: 1000,
    settings: HELD,
  },
  "reuse-buckets": {
    mode: "writeback",
    workload: {
      steps: 700,
      lanes: 4,
      spanBytes: 6 << 20,
      writeBytesMax: 96 << 10,
      sequential: 0.1,
      sleepMsMax: 2000,
    },
    cutOneIn: 300,
    nestedOneIn: 1500,
    settings: PROMPT,
  },
  "fill-and-reuse": {
    mode: "writethrough",
    workload: {
      steps: 600,
      lanes: 4,
      spanBytes: 7 << 20,
      writeBytesMax: 64 << 10,
      weights: { write: 25, read: 60, flush: 5, zero: 2, sleep: 8 },
      sleepMsMax: 2000,
    },
    cutOneIn: 200,
    nestedOneIn: 1000,
  },
  // Holes appear all the time, and are read, filled and written to at once.
  "fill-holes": {
    mode: "writethrough",
    workload: {
      steps: 500,
      lanes: 8,
      spanBytes: 64 << 10,
      writeBytesMax: 8192,
      unaligned: 0.05,
      sequential: 0,
      weights: { write: 30, read: 45, flush: 3, zero: 20, sleep: 2 },
      sleepMsMax: 20,
    },
    cutOneIn: 100,
    nestedOneIn: 1000,
  },
  // Reads alone reuse the buckets, so nothing but the priorities themselves writes the journal:
  // what it does not name yet must not be relied on, what it still names not be overwritten.
  "read-and-reuse": {
    mode: "writethrough",
    workload: {
      steps: 700,
      lanes: 4,
      spanBytes: 16 << 20,
      writeBytesMax: 48 << 10,
      weights: { write: 2, read: 93, flush: 0, zero: 0, sleep: 5 },
      sleepMsMax: 50,
    },
    blockSectors: 1,
    volumeSectors: 32768,
    cutOneIn: 100,
    nestedOneIn: 1000,
  },
  // Nodes of two blocks, the smallest: one append, then they are written anew.
  "tiny-nodes": {
    mode: "writeback",
    workload: {
      steps: 500,
      lanes: 6,
      spanBytes: 2 << 20,
      writeBytesMax: 4096,
      weights: { write: 75, read: 10, flush: 8, zero: 2, sleep: 5 },
      sleepMsMax: 400,
    },
    blockSectors: 4,
    bucketSectors: 8,
    cutOneIn: 100,
    nestedOneIn: 500,
    settings: PROMPT,
  },
  // Buckets of clean data are used again and again, and hardly anything comes into the journal.
  "refill": {
    mode: "writethrough",
    workload: {
      steps: 450,
      lanes: 4,
      spanBytes: 6 << 20,
      writeBytesMax: 16 << 10,
      weights: { write: 2, read: 96, flush: 0, zero: 0, sleep: 2 },
      sleepMsMax: 100,
      remembersReads: true,
    },
    cutOneIn: 40,
    nestedOneIn: 1000,
    settings: [["sequential_cutoff", "0"]],
  },
  // The same with buckets that are given up to the disk before they are used again.
  "discard-buckets": {
    mode: "writeback",
    workload: {
      steps: 450,
      lanes: 4,
      spanBytes: 6 << 20,
      writeBytesMax: 32 << 10,
      weights: { write: 15, read: 75, flush: 3, zero: 2, sleep: 5 },
      sleepMsMax: 500,
      remembersReads: true,
    },
    cutOneIn: 100,
    nestedOneIn: 1000,
    settings: [...PROMPT, ["sequential_cutoff", "0"]],
    setSettings: [["discard", "1"]],
  },
  // Clean and dirty in quick turns: the state in the superblock, and keys that change meanwhile.
  "drain-often": {
    mode: "writeback",
    workload: {
      steps: 200,
      lanes: 5,
      spanBytes: 64 << 10,
      writeBytesMax: 8192,
      weights: { write: 30, read: 10, flush: 10, zero: 2, sleep: 28, disturb: 20 },
      sleepMsMax: 60,
    },
    disturbance: "drain",
    checkState: true,
    cutOneIn: 50,
  },
  // Collections copy what is left in sparse buckets together and write every node anew, while it
  // is overwritten; clean and dirty.
  "move-and-coalesce": {
    mode: "writeback",
    workload: {
      steps: 600,
      lanes: 8,
      spanBytes: 192 << 10,
      writeBytesMax: 4096,
      weights: { write: 55, read: 8, flush: 12, zero: 5, sleep: 8, disturb: 16 },
      sleepMsMax: 120,
    },
    setSettings: [["copy_gc_enabled", "1"], ["gc_always_rewrite", "1"]],
    settings: [["writeback_delay", "1"]],
    disturbance: "collect",
    cutOneIn: 100,
    nestedOneIn: 400,
  },
  // Detached, stopped and attached again: every write of these is one at which the power may fail.
  "come-and-go": {
    mode: "writeback",
    workload: {
      steps: 80,
      lanes: 4,
      spanBytes: 128 << 10,
      writeBytesMax: 8192,
      weights: { write: 45, read: 20, flush: 10, zero: 3, sleep: 7, disturb: 15 },
      sleepMsMax: 40,
    },
    disturbance: "come and go",
    settings: [["sequential_cutoff", "0"], ...PROMPT],
  },
  // A volume on the cache alone, while others are made, resized and destroyed beside it.
  "flash-volume": {
    mode: "writeback",
    flash: true,
    workload: {
      steps: 60,
      lanes: 3,
      spanBytes: 96 << 10,
      writeBytesMax: 8192,
      weights: { write: 45, read: 20, flush: 12, zero: 8, sleep: 7, disturb: 8 },
      sleepMsMax: 40,
    },
    volumeSectors: 256,
    steadfast: true,
  },
  // Three devices of one cache at once, and volumes that come and go beside them.
  "neighbours": {
    mode: "writeback",
    besideModes: ["writethrough", "writeback"],
    workload: {
      steps: 50,
      lanes: 2,
      spanBytes: 128 << 10,
      writeBytesMax: 8192,
      weights: { write: 45, read: 25, flush: 12, zero: 4, sleep: 8, disturb: 12 },
      sleepMsMax: 40,
    },
    volumeSectors: 1024,
    settings: PROMPT,
    disturbance: "neighbours",
  },
  "change-settings": {
    mode: "writeback",
    workload: {
      steps: 250,
      spanBytes: 2 << 20,
      weights: { ...USUAL_WORKLOAD.weights, disturb: 8 },
      sleepMsMax: 1500,
    },
    cutOneIn: 100,
    nestedOneIn: 400,
  },
} as const satisfies Record<string, Recipe>;
export type RecipeName = keyof typeof RECIPES;
export const RECIPE_NAMES = Object.keys(RECIPES) as RecipeName[];

/** The scenario of a name and a seed; `over` changes how much of it is looked at. */
export function scenarioOf(
  name: RecipeName,
  seed: number,
  over: Partial<Pick<Scenario, "cutOneIn" | "nestedOneIn" | "auditOneIn" | "onlyCut" | "subsets">> =
    {},
): Scenario {
  const recipe: Recipe = RECIPES[name];
  const random = new SimRandom(seed);
  const blockSectors = recipe.blockSectors ?? random.pick([1, 8]);
  const bucketSectors = recipe.bucketSectors ??
    (blockSectors === 1 ? random.pick([16, 32]) : random.pick([32, 64]));
  const replacement = random.pick<ReplacementPolicy>(["lru", "fifo", "random"]);
  return {
    ...USUAL_CUTS,
    seed,
    kind: (recipe.flash ? flashKind : bcacheKind)({
      seed,
      mode: recipe.mode,
      bucketSectors,
      bucketCount: 513 + random.below(8),
      blockSectors,
      volumeSectors: recipe.volumeSectors ?? 16384,
      replacement,
      besideModes: recipe.besideModes ?? [],
      settings: recipe.settings ?? [],
      setSettings: recipe.setSettings ?? [],
      disturbance: recipe.disturbance ?? "any",
      checkState: recipe.checkState ?? false,
    }),
    sync: random.chance(0.5),
    workload: { ...USUAL_WORKLOAD, ...recipe.workload },
    cutOneIn: recipe.cutOneIn ?? 1,
    nestedOneIn: recipe.nestedOneIn ?? USUAL_CUTS.nestedOneIn,
    steadfast: recipe.steadfast ?? false,
    replay: `--scenario ${name}`,
    ...over,
  };
}
