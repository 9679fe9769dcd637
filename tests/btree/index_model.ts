/**
 * The index beside a naive copy of it: for every sector of two devices, where on the cache device
 * its data lies, and whether it is dirty. Drives a bare engine with random batches.
 */
import { assert, assertEquals } from "@std/assert";
import { Segment } from "../../lib/btree/btree.ts";
import { BATCH_KEYS_MAX } from "../../lib/btree/insert.ts";
import { RESERVE } from "../../lib/buckets/reserves.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import type { Engine } from "../../lib/cache/engine.ts";
import type { MemoryDevice } from "../../lib/device/memory.ts";
import { setDirty, setExtent, setPointer, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { closeBare, makeBare, startBare } from "../support/bare_engine.ts";

/** Device numbers that the model writes to. */
const INODES = [0, 3] as const;
/** Buckets whose sectors the keys point to. */
const DATA_BUCKETS = 64;

export interface ModelOptions {
  readonly device: MemoryDevice;
  readonly bucketSectors: number;
  readonly blockSectors: number;
  readonly spanSectors: number;
  readonly seed: number;
}

/** What one key says. */
export interface Piece {
  readonly inode: number;
  readonly start: number;
  readonly sectors: number;
  /** 0: nothing is cached there. */
  readonly sector: number;
  readonly dirty: boolean;
}

export class IndexModel {
  readonly clock = new SimClock();
  readonly random: SimRandom;
  #options: ModelOptions;
  #engine: Engine | undefined;
  /** Per inode and sector: the sector on the cache device, 0 for none, negative when dirty. */
  #truth = INODES.map(() => new Float64Array(0));
  #dataBuckets: number[] = [];
  #gens: number[] = [];
  #segment = new Segment();

  constructor(options: ModelOptions) {
    this.#options = options;
    this.random = new SimRandom(options.seed);
    this.#truth = INODES.map(() => new Float64Array(options.spanSectors));
  }

  get engine(): Engine {
    assert(this.#engine !== undefined, "the model has an engine");
    return this.#engine;
  }

  run<T>(work: Promise<T>): Promise<T> {
    return this.clock.run(work) as Promise<T>;
  }

  /** Makes the cache and reserves the buckets that keys will point to. */
  async make(): Promise<void> {
    const { device, bucketSectors, blockSectors } = this.#options;
    await makeBare(device, { bucketSectors, blockSectors });
    await this.start();
    const { allocator, buckets } = this.engine;
    while (this.#dataBuckets.length < DATA_BUCKETS) {
      const bucket = allocator.tryTake(RESERVE.none);
      if (bucket < 0) await this.run(allocator.whenAvailable(RESERVE.none, 1));
      else this.#dataBuckets.push(bucket);
    }
    this.#gens = this.#dataBuckets.map((bucket) => buckets.gen[bucket]!);
  }

  async start(): Promise<void> {
    const options = { clock: this.clock, random: this.random };
    this.#engine = await this.run(startBare(this.#options.device, options));
    // What the keys point to is not to be reused, whatever else happens.
    for (const bucket of this.#dataBuckets) this.engine.buckets.pin(bucket);
  }

  /** Stops in good order. */
  async close(): Promise<void> {
    await this.run(closeBare(this.engine));
  }

  /** Stops as a power cut behind a flush does: the journal has everything, leaves may not. */
  async cut(): Promise<void> {
    await this.run(this.engine.journal.commit());
    await this.run(this.engine.stopTasks());
  }

  /** A random piece; now and then one that spans many leaves. */
  randomPiece(): Piece {
    const { random } = this;
    const { spanSectors, bucketSectors } = this.#options;
    const inode = random.pick(INODES);
    const hole = random.chance(0.1);
    const sectors = hole && random.chance(0.1)
      ? random.between(1000, 20_000)
      : random.between(1, hole ? 64 : Math.min(12, bucketSectors));
    const start = random.below(spanSectors - Math.min(sectors, spanSectors - 1));
    const slot = random.below(DATA_BUCKETS);
    const offset = random.below(bucketSectors - Math.min(sectors, bucketSectors - 1));
    return {
      inode,
      start,
      sectors: Math.min(sectors, spanSectors - start),
      sector: hole ? 0 : this.#dataBuckets[slot]! * bucketSectors + offset,
      dirty: !hole && random.chance(0.4),
    };
  }

  /** Puts the pieces into journal and index as one batch, and into the copy. */
  async insert(pieces: readonly Piece[]): Promise<void> {
    assert(pieces.length <= BATCH_KEYS_MAX, "a batch is bounded");
    const batch = this.#batchOf(pieces);
    const { committer } = this.engine;
    while (!committer.tryCommit(batch)) await committer.ready(batch);
    for (const { inode, start, sectors, sector, dirty } of pieces) {
      const truth = this.#truthOf(inode);
      for (let at = 0; at < sectors; at++) {
        truth[start + at] = sector === 0 ? 0 : dirty ? -(sector + at) : sector + at;
      }
    }
  }

  #batchOf(pieces: readonly Piece[]): KeySet {
    const batch = new KeySet(pieces.length);
    const slot = new Uint32Array(SLOT_WORDS);
    for (const { inode, start, sectors, sector, dirty } of pieces) {
      setExtent(slot, 0, inode, start + sectors, sectors);
      if (sector > 0) {
        const bucket = Math.floor(sector / this.#options.bucketSectors);
        setPointer(slot, 0, sector, this.#gens[this.#dataBuckets.indexOf(bucket)]!);
        setDirty(slot, 0, dirty);
      }
      batch.push(slot, 0);
    }
    return batch;
  }

  #truthOf(inode: number): Float64Array {
    return this.#truth[INODES.indexOf(inode as 0 | 3)]!;
  }

  /** Compares [start, end) of `inode` with the copy, through the lookups that requests make. */
  async check(inode: number, start: number, end: number): Promise<void> {
    const { btree } = this.engine;
    const truth = this.#truthOf(inode);
    const segment = this.#segment;
    for (let at = start; at < end;) {
      const leaf = btree.findLeaf(inode, at);
      if (leaf === undefined) {
        await btree.loadLeaf(inode, at);
        continue;
      }
      btree.lookup(leaf, inode, at, end, segment);
      assert(segment.end > at, "a lookup gets on");
      for (let sector = at; sector < segment.end; sector++) {
        const found = segment.cached ? segment.sector + (sector - at) : 0;
        const wanted = truth[sector]!;
        if (found !== Math.abs(wanted) || (found > 0 && segment.dirty !== wanted < 0)) {
          assertEquals(
            { inode, sector, found, dirty: segment.dirty },
            { inode, sector, found: Math.abs(wanted), dirty: wanted < 0 },
          );
        }
      }
      at = segment.end;
    }
  }

  /** Compares everything, dirty counts too; then every node's and the cache's own invariants. */
  async checkAll(): Promise<void> {
    const { btree, dirty } = this.engine;
    for (const inode of INODES) {
      await this.check(inode, 0, this.#options.spanSectors);
      const wanted = this.#truthOf(inode).reduce((sum, value) => sum + (value < 0 ? 1 : 0), 0);
      assertEquals(dirty.of(inode), wanted, `dirty sectors of inode ${inode}`);
    }
    for (const node of btree.cache.nodes()) node.checkInvariants();
    btree.cache.checkInvariants();
  }
}
