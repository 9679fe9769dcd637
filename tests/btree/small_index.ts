/** An index in nodes of 16 blocks, on a device in memory and a clock that runs by itself. */
import { assert } from "@std/assert";
import { Segment } from "../../lib/btree/btree.ts";
import type { BtreeNode } from "../../lib/btree/node.ts";
import { RESERVE } from "../../lib/buckets/reserves.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import type { Engine } from "../../lib/cache/engine.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { setKey, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SimClock } from "../simulation/sim_clock.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { closeBare, makeBare, startBare } from "../support/bare_engine.ts";

export interface SmallShape {
  readonly bucketSectors: number;
  readonly blockSectors: number;
  readonly bucketCount: number;
}

const USUAL: SmallShape = { bucketSectors: 16, blockSectors: 1, bucketCount: 2000 };

/** Extents of `put` are this long; a gap as long follows, so that none merge. */
export const EXTENT_SECTORS = 4;

export class SmallIndex {
  readonly clock: SimClock = new SimClock();
  readonly shape: SmallShape;
  readonly device: MemoryDevice;
  /** Where the keys point to. */
  bucket = -1;
  #engine: Engine | undefined;

  private constructor(shape: SmallShape) {
    this.shape = shape;
    this.device = new MemoryDevice(shape.bucketCount * shape.bucketSectors);
  }

  static async make(shape: Partial<SmallShape> = {}): Promise<SmallIndex> {
    const index = new SmallIndex({ ...USUAL, ...shape });
    await makeBare(index.device, index.shape);
    await index.start();
    index.bucket = index.engine.allocator.tryTake(RESERVE.none);
    return index;
  }

  get engine(): Engine {
    assert(this.#engine !== undefined, "the index was started");
    return this.#engine;
  }

  run<T>(work: Promise<T>): Promise<T> {
    return this.clock.run(work) as Promise<T>;
  }

  async start(device: Device = this.device): Promise<void> {
    const options = { clock: this.clock, random: new SimRandom(4) };
    this.#engine = await this.run(startBare(device, options));
    if (this.bucket >= 0) this.engine.buckets.pin(this.bucket);
  }

  /** Ends without writing anything: what a power cut leaves of memory. */
  async cut(): Promise<void> {
    this.engine.faults.raise(new Error("cut"));
    await this.run(this.engine.stopTasks());
  }

  async close(): Promise<void> {
    await this.run(closeBare(this.engine));
  }

  key(index: number, more: { sectors?: number; hole?: boolean; dirty?: boolean } = {}): KeySet {
    const { sectors = EXTENT_SECTORS, hole = false, dirty = true } = more;
    const { bucketSectors } = this.shape;
    const slot = new Uint32Array(SLOT_WORDS);
    setKey(slot, 0, {
      inode: 0,
      offset: index * 2 * EXTENT_SECTORS + sectors,
      sizeSectors: sectors,
      dirty: dirty && !hole,
      ...(hole ? {} : {
        pointer: {
          sector: this.bucket * bucketSectors,
          gen: this.engine.buckets.gen[this.bucket]!,
        },
      }),
    });
    const batch = new KeySet(1);
    batch.push(slot, 0);
    return batch;
  }

  /** Journals and inserts extent number `index`. */
  async put(index: number, more: Parameters<SmallIndex["key"]>[1] = {}): Promise<void> {
    const batch = this.key(index, more);
    const { committer } = this.engine;
    while (!committer.tryCommit(batch)) await committer.ready(batch);
  }

  async putAll(from: number, to: number): Promise<void> {
    for (let index = from; index < to; index++) await this.put(index);
  }

  /** Whether extent number `index` is cached. Its leaf must be in memory. */
  has(index: number): boolean {
    const at = index * 2 * EXTENT_SECTORS;
    const leaf = this.leaf(index);
    const segment = new Segment();
    this.engine.btree.lookup(leaf, 0, at, at + EXTENT_SECTORS, segment);
    return segment.cached;
  }

  /** How many of the extents are cached. */
  async count(from: number, to: number): Promise<number> {
    let found = 0;
    for (let index = from; index < to; index++) {
      await this.engine.btree.loadLeaf(0, index * 2 * EXTENT_SECTORS);
      if (this.has(index)) found++;
    }
    return found;
  }

  leaf(index: number): BtreeNode {
    const leaf = this.engine.btree.findLeaf(0, index * 2 * EXTENT_SECTORS);
    assert(leaf !== undefined, "the leaf is in memory");
    return leaf;
  }

  /** The nodes of a level, in order. */
  async level(level: number): Promise<BtreeNode[]> {
    const nodes: BtreeNode[] = [];
    await this.engine.btree.walk(level, { inode: 0, offset: 0 }, (node) => nodes.push(node) > 0);
    return nodes;
  }
}
