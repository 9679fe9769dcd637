/**
 * An engine on devices in memory and a simulated clock, without volumes: tests of collection work
 * on the index and the buckets themselves.
 */
import type { Engine } from "../../lib/cache/engine.ts";
import { readSuperblock } from "../../lib/cache/members/attach.ts";
import { makeCache } from "../../lib/cache/make.ts";
import { BatchBuilder } from "../../lib/cache/request_parts.ts";
import { startExisting, startNew } from "../../lib/cache/recovery.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
} from "../../lib/ondisk/bkey.ts";
import { pointerGen, pointerSector } from "../../lib/ondisk/bkey.ts";
import { geometryOf } from "../../lib/ondisk/geometry.ts";
import { isSynchronous } from "../../lib/ondisk/superblock.ts";
import { forEachExtent } from "../../lib/cache/key_buffer.ts";
import { registerInodes } from "../support/bare_engine.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";

export const BUCKET_SECTORS = 32;

export interface EngineWorldOptions {
  readonly bucketCount?: number;
  readonly bucketSectors?: number;
  readonly blockSectors?: number;
  readonly seed?: number;
  readonly device?: Device;
}

/** One extent of the index. */
export interface Found {
  readonly inode: number;
  readonly start: number;
  readonly sectors: number;
  readonly sector: number;
  readonly gen: number;
  readonly dirty: boolean;
}

export class EngineWorld {
  readonly clock: SimClock = new SimClock();
  readonly log: string[] = [];
  readonly device: Device;
  readonly #options: EngineWorldOptions;
  #engine: Engine | undefined;

  constructor(options: EngineWorldOptions = {}) {
    this.#options = options;
    const { bucketCount = 600, bucketSectors = BUCKET_SECTORS } = options;
    this.device = options.device ?? new MemoryDevice(bucketCount * bucketSectors);
  }

  get engine(): Engine {
    if (this.#engine === undefined) throw new Error("the engine is not started");
    return this.#engine;
  }

  /** Runs simulated time until `work` settles. */
  async run<T>(work: Promise<T>): Promise<T> {
    return (await this.clock.run(work, { limitMs: 20 * 3_600_000 })) as T;
  }

  async format(): Promise<void> {
    const { bucketSectors = BUCKET_SECTORS, blockSectors = 1 } = this.#options;
    await this.run(makeCache(this.device, {
      setUuid: new Uint8Array(16).fill(7),
      uuid: new Uint8Array(16).fill(1),
      blockSectors,
      bucketSectors,
    }));
  }

  /** Starts what is on the device: a set that ran before, or a new one. */
  async start(): Promise<Engine> {
    const superblock = await this.run(readSuperblock(this.device));
    const source = {
      device: this.device,
      superblock,
      geometry: geometryOf(superblock, "cache"),
      world: {
        clock: this.clock,
        random: new SimRandom(this.#options.seed ?? 1),
        log: (level: string, message: string) => void this.log.push(`${level}: ${message}`),
      },
    };
    const isNew = !isSynchronous(superblock);
    const engine = await this.run(isNew ? startNew(source) : startExisting(source));
    if (isNew) await this.run(registerInodes(engine, 8));
    this.#engine = engine;
    return engine;
  }

  /** As a power cut, but for what is in memory only: nothing more is written. */
  async abandon(): Promise<void> {
    this.engine.faults.raise(new Error("abandoned"));
    await this.run(this.engine.stopTasks());
  }

  /** Stops in good order. */
  async stop(): Promise<void> {
    const { tasks, nodes, journal, cache } = this.engine;
    await this.run((async () => {
      await tasks.stop();
      await nodes.writeAllDirty();
      await journal.stop();
      await cache.flush();
      await this.engine.stopTasks();
    })());
  }

  /** Caches `sectors` at `start`: data, then the journaled key. Returns where they lie. */
  async put(
    inode: number,
    start: number,
    sectors: number,
    options: { dirty?: boolean; fill?: number } = {},
  ): Promise<void> {
    const { open, allocator, cache, committer } = this.engine;
    const dirty = options.dirty ?? false;
    await this.run((async () => {
      for (let at = start; at < start + sectors;) {
        while (!open.tryAllocate(start + sectors - at, dirty)) {
          await allocator.whenAvailable(3, 1);
        }
        const { bucket, gen, sector, sectors: granted } = open.grant;
        const builder = new BatchBuilder();
        builder.addData(inode, at, { bucket, gen, sector, sectors: granted }, dirty);
        await cache.write(sector, new Uint8Array(granted * 512).fill(options.fill ?? 1));
        while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
        open.settle(bucket);
        at += granted;
      }
    })());
  }

  /** Makes the index say that nothing is cached there. */
  async drop(inode: number, start: number, sectors: number): Promise<void> {
    const { committer } = this.engine;
    const builder = new BatchBuilder();
    builder.addHole(inode, start, start + sectors);
    await this.run((async () => {
      while (!committer.tryCommit(builder.batch)) await committer.ready(builder.batch);
    })());
  }

  /** A whole collection. */
  async collect(): Promise<void> {
    await this.run(this.engine.collector.collect(new AbortController().signal));
  }

  /** Everything the index has in the cache, in order. */
  async extents(): Promise<Found[]> {
    const { btree } = this.engine;
    const found: Found[] = [];
    await this.run(btree.walk(0, { inode: 0, offset: 0 }, (leaf) => {
      forEachExtent(leaf, 0, 0, (words, at) => {
        if (keyPointers(words, at) === 0 || btree.isBad(words, at, 0)) return true;
        const sectors = keySizeSectors(words, at);
        found.push({
          inode: keyInode(words, at),
          start: keyOffset(words, at) - sectors,
          sectors,
          sector: pointerSector(words, at),
          gen: pointerGen(words, at),
          dirty: keyDirty(words, at),
        });
        return true;
      });
      return true;
    }));
    return found;
  }

  /** Leaves, and nodes in all. */
  async countNodes(): Promise<{ leaves: number; all: number }> {
    const { btree } = this.engine;
    let all = 0;
    let leaves = 0;
    for (let level = 0; level <= btree.root.level; level++) {
      await this.run(btree.walk(level, { inode: 0, offset: 0 }, () => {
        all++;
        if (level === 0) leaves++;
        return true;
      }));
    }
    return { leaves, all };
  }
}

/** A fresh set, running. */
export async function freshWorld(options: EngineWorldOptions = {}): Promise<EngineWorld> {
  const world = new EngineWorld(options);
  await world.format();
  await world.start();
  return world;
}
