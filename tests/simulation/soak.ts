/**
 * A long life of one cache set, in simulated time: a cache a tenth of what goes through it, reads,
 * writes, zeroing and flushes, settings that change meanwhile (mode and policy, too, for the rest
 * of one round of five), collections, writeback, and every few minutes an end, by a clean stop or a
 * power cut, and a new beginning.
 *
 * At every end the offline check, which shares no code with recovery, looks at the devices: it must
 * find no error, and the engine that then starts must count the very dirty bytes that it counted.
 * At the last, every byte is read, everything is written back, and the backing device alone must
 * hold it all.
 */
import type { CacheSet } from "../../lib/cache/cache_set.ts";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import type { CacheMode } from "../../lib/cache/ports.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { findingText } from "../../lib/offline/findings.ts";
import type { ReplacementPolicy } from "../../lib/ondisk/superblock.ts";
import { bcacheKind, openBcache } from "./bcache_kind.ts";
import type { BcacheEngine, BcacheOptions } from "./bcache_kind.ts";
import { checkAllRecovered, checkBackingAlone } from "./recovery_checks.ts";
import { Oracle } from "./oracle.ts";
import { fillSector } from "./pattern.ts";
import { CUT_POLICIES } from "./power_cut.ts";
import { hashOf, SimRandom } from "./sim_random.ts";
import { runWorkload, USUAL_WORKLOAD } from "./workload.ts";
import type { WorkloadOptions } from "./workload.ts";
import { World, worldAfterCut } from "./world.ts";
import type { WorldOptions } from "./world.ts";

export interface SoakOptions {
  readonly mode: CacheMode;
  readonly replacement: ReplacementPolicy;
  readonly seed: number;
  /** Simulated time, but for what the last checks take. */
  readonly minutes: number;
}

export interface SoakReport {
  requests: number;
  /** Starts after a clean stop, and after a power cut. */
  restarts: number;
  powerCuts: number;
  collections: number;
  writtenBackBytes: number;
  simulatedMinutes: number;
}

const BUCKET_SECTORS = 16;
const BUCKETS = 520;
/** Ten times the cache. */
const VOLUME_SECTORS = BUCKET_SECTORS * BUCKETS * 10;
/** Between two ends of the set. */
const LIFE_MINUTES = 3;
const STEPS_PER_ROUND = 150;
/** One round of so many may also turn what the life is named after. */
const ROUNDS_PER_TURN = 5;

const WORKLOAD: WorkloadOptions = {
  ...USUAL_WORKLOAD,
  steps: STEPS_PER_ROUND,
  lanes: 4,
  writeBytesMax: 24 << 10,
  unaligned: 0.05,
  weights: { write: 30, read: 50, flush: 5, zero: 2, sleep: 12, disturb: 1 },
  sleepMsMax: 8000,
};

/** @throws when anything is not as it must be; the message says in which life. */
export async function soak(options: SoakOptions): Promise<SoakReport> {
  const one = new Soak(options);
  try {
    return await one.run();
  } catch (error) {
    const { mode, replacement, seed } = options;
    const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    throw new Error(
      `soak in ${mode}, ${replacement}, life ${one.life}, ${one.minutes} minutes in: ${reason}\n` +
        `  replay: npx bun tests/simulation/run_soak.ts --mode ${mode} --policy ${replacement} ` +
        `--seed ${seed} --minutes ${options.minutes}`,
      { cause: error },
    );
  }
}

class Soak {
  life = 0;
  #options: SoakOptions;
  #bcache: BcacheOptions;
  #random: SimRandom;
  #oracle: Oracle;
  #world: World;
  #rounds = 0;
  /** Of the worlds that ended. */
  #earlierMs = 0;
  #report: SoakReport = {
    requests: 0,
    restarts: 0,
    powerCuts: 0,
    collections: 0,
    writtenBackBytes: 0,
    simulatedMinutes: 0,
  };

  constructor(options: SoakOptions) {
    const { mode, replacement, seed } = options;
    this.#options = options;
    this.#bcache = {
      mode,
      replacement,
      bucketSectors: BUCKET_SECTORS,
      bucketCount: BUCKETS,
      blockSectors: 1,
      volumeSectors: VOLUME_SECTORS,
      checkState: true,
    };
    this.#random = new SimRandom(seed);
    this.#oracle = new Oracle(seed);
    this.#world = new World(this.#worldOptions());
  }

  get minutes(): number {
    return Math.floor((this.#earlierMs + this.#world.clock.nowMs()) / 60_000);
  }

  async run(): Promise<SoakReport> {
    const { kind, cache, backing } = this.#world;
    await this.#world.run(kind.format(cache, backing));
    await this.#world.run(Promise.all([cache.flush(), backing.flush()]));
    while (this.minutes < this.#options.minutes) {
      const engine = await this.#start();
      await this.#live(engine);
      if (this.minutes >= this.#options.minutes) await this.#finish(engine);
      else if (this.life % 2 === 0) await this.#stop(engine);
      else await this.#cutPower(engine);
      this.life++;
    }
    this.#report.simulatedMinutes = this.minutes;
    return this.#report;
  }

  #worldOptions(): Omit<WorldOptions, "images"> {
    const { seed } = this.#options;
    return {
      kind: bcacheKind(this.#bcache),
      seed: hashOf(seed, this.life, 3),
      sync: seed % 2 === 0,
      initial: (sector, into) => fillSector(into, seed, sector, 0),
    };
  }

  /** The engine counts as dirty what the check counted before it started. */
  async #start(): Promise<BcacheEngine> {
    const dirtyBytes = await this.#check();
    const engine = await this.#run(openBcache(this.#world.parts, this.#bcache));
    await this.#expectDirty(engine.set, dirtyBytes);
    return engine;
  }

  /** Checks the devices offline; the bytes it takes for dirty. */
  async #check(): Promise<number> {
    const { cache, backing } = this.#world;
    const report = await this.#run(checkCache({ cache, backings: [backing] }));
    if (report.btree?.staleDirtyExtents) throw new Error("check: a dirty extent is stale");
    if (!report.clean) {
      const errors = report.findings.filter(({ severity }) => severity === "error");
      throw new Error(errors.slice(0, 5).map(findingText).join("\n  "));
    }
    return report.devices.reduce((sum, device) => sum + device.dirtyBytes, 0);
  }

  async #expectDirty(set: CacheSet, expected: number): Promise<void> {
    const found = (await set.status()).devices[0]!.dirtyBytes;
    if (found === expected) return;
    throw new Error(`the engine counts ${found} dirty bytes, the offline check ${expected}`);
  }

  async #live(engine: BcacheEngine): Promise<void> {
    const { clock } = this.#world;
    const { minutes } = this.#options;
    const end = Math.min(LIFE_MINUTES * 60_000, minutes * 60_000 - this.#earlierMs);
    while (clock.nowMs() < end) {
      await this.#asNamed(engine.set);
      const isTurned = this.#rounds++ % ROUNDS_PER_TURN === 0;
      await this.#run(this.#round(engine, isTurned ? [...SETTINGS, ...TURNED] : SETTINGS));
      if (!isTurned) await this.#expectNamed(engine.set);
      this.#oracle.prune();
      this.#report.requests += STEPS_PER_ROUND;
    }
    const [gcs] = await engine.set.attributes(undefined, "gc_runs");
    this.#report.collections += Number(gcs!.value);
  }

  /** A life is of one mode and policy: where a round has turned them, they are turned back. */
  async #asNamed(set: CacheSet): Promise<void> {
    const { mode, replacement } = this.#options;
    await this.#run(set.setAttribute("bcache0", "cache_mode", mode));
    await this.#run(set.setAttribute(undefined, "cache_replacement_policy", replacement));
  }

  async #expectNamed(set: CacheSet): Promise<void> {
    const [mode] = await set.attributes("bcache0", "cache_mode");
    const [policy] = await set.attributes(undefined, "cache_replacement_policy");
    const { mode: named, replacement } = this.#options;
    if (mode!.value === named && policy!.value === replacement) return;
    throw new Error(
      `a round was to run in ${named}, ${replacement}, but had ${mode!.value}, ` +
        `${policy!.value}`,
    );
  }

  #round(engine: BcacheEngine, settings = SETTINGS): Promise<void> {
    // Now over all of it, now within what the cache can hold.
    const span = VOLUME_SECTORS * 512 / this.#random.pick([1, 1, 4, 16]);
    const target = {
      volume: engine.volume,
      oracle: this.#oracle,
      clock: this.#world.clock,
      random: this.#random,
      disturb: (random: SimRandom) => turnOne(engine.set, settings, random),
    };
    return runWorkload(target, { ...WORKLOAD, spanBytes: Math.floor(span) });
  }

  async #stop(engine: BcacheEngine): Promise<void> {
    const { dirtyBytes } = (await engine.set.status()).devices[0]!;
    await this.#run(engine.set.close());
    this.#noViolations();
    const found = await this.#check();
    // Clean keys may have become durable since; dirty ones cannot have come.
    if (found > dirtyBytes) throw new Error(`${found} bytes are dirty, ${dirtyBytes} before`);
    this.#report.restarts++;
    this.#nextWorld("all");
  }

  /** In the middle of a round. */
  async #cutPower(engine: BcacheEngine): Promise<void> {
    let events = this.#random.below(3000);
    await this.#world.run(this.#round(engine), { stopped: () => events-- <= 0 });
    const cutAt = this.#oracle.time;
    this.#nextWorld(this.#random.pick(CUT_POLICIES));
    this.#report.powerCuts++;
    const dirtyBytes = await this.#check();
    const next = await this.#run(openBcache(this.#world.parts, this.#bcache));
    await this.#expectDirty(next.set, dirtyBytes);
    const options = { cutAt, steadfast: false };
    this.#oracle = await this.#run(checkAllRecovered(next.volume, this.#oracle, options));
    await this.#run(next.set.close());
    this.#nextWorld("all");
  }

  /** Every byte through the engine, then the backing device alone. */
  async #finish(engine: BcacheEngine): Promise<void> {
    await this.#run(engine.volume.flush());
    const cutAt = this.#oracle.time;
    const options = { cutAt, steadfast: false };
    await this.#run(checkAllRecovered(engine.volume, this.#oracle, options));
    await this.#run(engine.drain());
    await this.#expectDirty(engine.set, 0);
    checkBackingAlone(this.#world, this.#oracle);
    await this.#run(engine.set.close());
    this.#noViolations();
    const dirtyBytes = await this.#check();
    if (dirtyBytes !== 0) throw new Error(`after the drain ${dirtyBytes} bytes are dirty on disk`);
  }

  #noViolations(): void {
    const violations = this.#world.violations();
    if (violations.length > 0) throw new Error(violations.join("; "));
  }

  #nextWorld(policy: (typeof CUT_POLICIES)[number]): void {
    this.#report.writtenBackBytes += this.#world.backing.counts.sectorsWritten * 512;
    this.#earlierMs += this.#world.clock.nowMs();
    this.#world = worldAfterCut(this.#world.snapshot(), policy, this.#worldOptions());
  }

  async #run<T>(work: Promise<T>): Promise<T> {
    return await this.#world.run(work, { eventsMax: 50_000_000, limitMs: 24 * 3_600_000 }) as T;
  }
}

type Setting = readonly [device: string | undefined, name: string, values: readonly string[]];

/** What a person may turn while the device is in use. */
const SETTINGS: readonly Setting[] = [
  ["bcache0", "sequential_cutoff", ["0", "64k", "4M"]],
  ["bcache0", "writeback_running", ["0", "1", "1"]],
  ["bcache0", "writeback_percent", ["0", "10", "40"]],
  ["bcache0", "writeback_delay", ["0", "1", "30"]],
  [undefined, "trigger_gc", ["1"]],
  [undefined, "journal_delay_ms", ["1", "100", "1000"]],
  [undefined, "gc_always_rewrite", ["0", "0", "1"]],
  [undefined, "prune_cache", ["1000"]],
];

const TURNED: readonly Setting[] = [
  ["bcache0", "cache_mode", CACHE_MODES],
  [undefined, "cache_replacement_policy", ["lru", "fifo", "random"]],
];

async function turnOne(
  set: CacheSet,
  settings: readonly Setting[],
  random: SimRandom,
): Promise<void> {
  const [device, name, values] = random.pick(settings);
  await set.setAttribute(device, name, random.pick(values));
}
