/**
 * The parts of a running cache set and how they are connected. No algorithms: only what needs
 * what. The order of construction is the order of dependence.
 */
import { BcacheError } from "../base/errors.ts";
import type { Clock, Log, Random } from "../base/runtime.ts";
import { Mutex, TaskGroup } from "../base/sync.ts";
import { Btree } from "../btree/btree.ts";
import { Inserter } from "../btree/insert.ts";
import { NodeWriter } from "../btree/node_write.ts";
import { Replacer } from "../btree/replace.ts";
import { Allocator, type AllocatorOptions } from "../buckets/allocator.ts";
import { PrioWriter, type PrioWriterOptions } from "../buckets/prios.ts";
import { BucketTable, MARK } from "../buckets/table.ts";
import { DistrustedInodes } from "../bset/distrusted.ts";
import type { Device } from "../device/device.ts";
import type { JournalPlace } from "../journal/parse.ts";
import { Journal, type JournalStart } from "../journal/writer.ts";
import { keyDirty, keyInode, keySizeSectors, keyStart, SLOT_WORDS } from "../ondisk/bkey.ts";
import type { Geometry } from "../ondisk/geometry.ts";
import { JSET } from "../ondisk/jset.ts";
import { magicsOf, type SetMagics } from "../ondisk/magic.ts";
import { discardsBuckets, replacementPolicy, type Superblock } from "../ondisk/superblock.ts";
import { KeyCommitter } from "./commit.ts";
import { DeadInodes } from "./collection/dead_inodes.ts";
import { DirtySectors } from "./dirty/dirty_sectors.ts";
import { FaultLatch } from "./faults.ts";
import { Congestion } from "./devices/congestion.ts";
import { CACHE_ERROR_LIMIT, IoErrors } from "./devices/io_errors.ts";
import { type DeviceMeter, MeasuredDevice } from "./devices/measured_device.ts";
import { GatheringDevice } from "./devices/gathering_device.ts";
import { Collector } from "./collection/gc.ts";
import { Marker } from "./collection/marking.ts";
import { MovingCollector } from "./collection/moving_gc.ts";
import type { SliceBudget } from "./collection/slices.ts";
import { OpenBuckets } from "./open_buckets.ts";
import { OrderedDevice } from "./devices/ordered_device.ts";
import { Fills } from "./ranges.ts";
import type { StartProgress } from "./start_progress.ts";
import { UuidTable } from "./uuids.ts";

/** What b-tree nodes may take of memory, if nobody says otherwise (`btree_cache_max`). */
export const BTREE_MEMORY_BYTES = 96 * 1024 * 1024;

export interface EngineWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Told how far starting has come. */
  readonly onProgress?: ((progress: StartProgress) => void) | undefined;
  readonly sliceBudget?: SliceBudget | undefined;
}

/** What does not depend on the journal's state. */
export class Foundations {
  readonly world: EngineWorld;
  readonly superblock: Superblock;
  readonly geometry: Geometry;
  readonly magics: SetMagics;
  readonly cache: OrderedDevice;
  /** How far the cache device is behind. */
  readonly congestion: Congestion;
  /** Of the cache device. */
  readonly errors: IoErrors;
  /** Held while its superblock is changed. */
  readonly superblockWrites: Mutex = new Mutex();
  readonly faults: FaultLatch;
  /** Everything that runs by itself, but for the journal. */
  readonly tasks: TaskGroup;
  /** The journal's own, which ends last: everything else commits to it. */
  readonly journalTasks: TaskGroup;
  readonly buckets: BucketTable;
  readonly uuids: UuidTable;
  readonly dirty: DirtySectors;
  /** Devices whose backing device failed a flush: what is clean of them does not become durable. */
  readonly distrusted: DistrustedInodes = new DistrustedInodes();
  /** Bucket of the priorities as the next journal entry names it. */
  prioBucket = 0;
  readonly #onTaskFailure: (error: unknown) => void;

  constructor(device: Device, superblock: Superblock, geometry: Geometry, world: EngineWorld) {
    this.world = world;
    this.superblock = superblock;
    this.geometry = geometry;
    this.magics = magicsOf(superblock.setUuid);
    this.congestion = new Congestion(world.random);
    this.errors = new IoErrors(CACHE_ERROR_LIMIT);
    const meter: DeviceMeter = {
      note: (isWrite, beganMs, endedMs) => {
        this.congestion.note(isWrite, beganMs, endedMs);
        this.errors.noteOperation();
      },
    };
    const measured = new MeasuredDevice(device, world.clock, meter);
    this.cache = new OrderedDevice(new GatheringDevice(measured));
    this.faults = new FaultLatch(world.log);
    this.#onTaskFailure = (error: unknown): void => {
      // Whoever waited while the set was stopped was told so; nothing is wrong.
      if (error instanceof BcacheError && error.code === "Shutdown") return;
      this.faults.raise(error);
    };
    this.tasks = this.newTasks();
    this.journalTasks = this.newTasks();
    this.buckets = new BucketTable(geometry);
    this.uuids = new UuidTable({
      device: this.cache,
      buckets: this.buckets,
      metaBytes: geometry.metaBytes,
    });
    this.dirty = new DirtySectors(geometry.uuidEntryCount);
  }

  /** A group for what ends before the set does: the background work of one device. */
  newTasks(): TaskGroup {
    return new TaskGroup(this.#onTaskFailure);
  }

  journalPlace(): JournalPlace {
    const { geometry, superblock } = this;
    return {
      device: this.cache,
      magic: this.magics.jset,
      bucketSectors: geometry.bucketSectors,
      blockSectors: geometry.blockSectors,
      buckets: Array.from(
        { length: superblock.journalBucketCount },
        (_, index) => superblock.firstBucket + index,
      ),
    };
  }
}

export class Engine extends Foundations {
  readonly journal: Journal;
  readonly allocator: Allocator;
  readonly prios: PrioWriter;
  readonly btree: Btree;
  readonly nodes: NodeWriter;
  readonly replacer: Replacer;
  readonly inserter: Inserter;
  readonly committer: KeyCommitter;
  readonly open: OpenBuckets;
  readonly fills: Fills = new Fills();
  readonly collector: Collector;
  readonly dead: DeadInodes;
  readonly moving: MovingCollector;
  /** False while a new set is being made: nothing refers to the journal yet. */
  journaling = true;

  constructor(
    from: { device: Device; superblock: Superblock; geometry: Geometry; world: EngineWorld },
    start: JournalStart,
  ) {
    super(from.device, from.superblock, from.geometry, from.world);
    const { cache, geometry, faults, tasks, buckets, distrusted } = this;
    const { clock, random } = from.world;
    this.journal = new Journal({
      place: this.journalPlace(),
      start,
      clock,
      faults,
      tasks: this.journalTasks,
      stamper: { stamp: (words) => this.#stamp(words) },
      distrusted,
    });
    this.allocator = new Allocator(this.#allocatorOptions());
    this.prios = new PrioWriter(this.#prioOptions());
    this.btree = this.#newBtree();
    this.nodes = new NodeWriter({
      device: cache,
      geometry,
      magic: this.magics.bset,
      pins: this.journal.pins,
      clock,
      faults,
      tasks,
      btree: this.btree,
      distrusted,
    });
    this.replacer = new Replacer({
      btree: this.btree,
      writer: this.nodes,
      allocator: this.allocator,
      random,
      commitRoot: () => this.commitMetadata(),
      tasks,
    });
    this.inserter = new Inserter({
      btree: this.btree,
      writer: this.nodes,
      replacer: this.replacer,
      ledger: this.dirty,
    });
    this.committer = new KeyCommitter(this.inserter, this.journal);
    this.open = new OpenBuckets({
      buckets,
      allocator: this.allocator,
      blockSectors: geometry.blockSectors,
    });
    this.dead = new DeadInodes(this.uuids);
    this.collector = this.#newCollector();
    this.moving = this.#newMoving();
    this.collector.moving = this.moving;
    faults.onFailure((error) => {
      this.allocator.setFailed();
      this.journal.abandon(error);
    });
  }

  #newCollector(): Collector {
    const { btree, allocator, nodes, replacer, faults, dead, world } = this;
    replacer.copyMaker.isDead = (words, at) => dead.isDead(words, at);
    replacer.copyMaker.onDeadDropped = (words, at) => {
      if (!keyDirty(words, at)) return;
      const size = keySizeSectors(words, at);
      this.dirty.add(keyInode(words, at), keyStart(words, at), -size);
    };
    return new Collector({
      btree,
      allocator,
      writer: nodes,
      replacer,
      clock: world.clock,
      faults,
      sliceBudget: world.sliceBudget,
      markMetadata: () => this.markMetadata(),
      marker: new Marker({ btree, dead, faults, log: world.log }),
    });
  }

  #newMoving(): MovingCollector {
    const { btree, allocator, cache, committer, geometry, collector, faults, world } = this;
    return new MovingCollector({
      btree,
      allocator,
      cache,
      committer,
      blockSectors: geometry.blockSectors,
      slices: collector.slices,
      faults,
      log: world.log,
      noteCached: (sectors) => collector.noteCached(sectors),
    });
  }

  #newBtree(): Btree {
    const { cache, geometry, magics, buckets, faults, world } = this;
    return new Btree({
      device: cache,
      geometry,
      magic: magics.bset,
      buckets,
      faults,
      memoryBytesMax: BTREE_MEMORY_BYTES,
      clock: world.clock,
    });
  }

  #allocatorOptions(): AllocatorOptions {
    const { buckets, faults, geometry, world } = this;
    return {
      table: buckets,
      prioSetCount: geometry.prioSetCount,
      policy: replacementPolicy(this.superblock),
      random: world.random,
      faults,
      persistPrios: () => this.prios.write(),
      wakeGc: () => this.collector.wake(),
      changes: () => this.#changes(),
      turn: () => world.clock.turn(),
      onDemand: true,
      discard: (list) => this.#discard(list),
    };
  }

  /** Grows with all that may let a collection find more than the last one did. */
  #changes(): number {
    const { dirty, uuids, collector, moving } = this;
    return dirty.dropped + uuids.version + moving.sectorsMoved + collector.nodesCoalesced +
      collector.leavesDue;
  }

  #prioOptions(): PrioWriterOptions {
    const { buckets, cache, geometry, world } = this;
    return {
      table: buckets,
      device: cache,
      metaBytes: geometry.metaBytes,
      magic: this.magics.prioSet,
      buckets: this.allocator,
      commitPrios: async (firstBucket) => {
        this.prioBucket = firstBucket;
        await this.commitMetadata();
      },
      turn: () => world.clock.turn(),
    };
  }

  /**
   * Bytes written to the cache device since start, as the kernel counts them: a round of
   * priorities and the UUID table count as whole buckets, metadata includes the b-tree.
   */
  get written(): { data: number; btree: number; metadata: number } {
    const { bucketBytes } = this.geometry;
    const btree = this.nodes.writtenSectors * 512;
    const buckets = this.prios.setsWritten + this.uuids.writes;
    const journal = this.journal.counters.bytesWritten;
    const metadata = btree + journal + buckets * bucketBytes;
    return { data: this.open.grantedSectors * 512, btree, metadata };
  }

  /** Ends everything that runs by itself, without writing. */
  async stopTasks(): Promise<void> {
    await this.tasks.stop();
    await this.journalTasks.stop();
  }

  /** Makes root, UUID table and priorities as they are now what a restart will find. */
  async commitMetadata(): Promise<void> {
    if (this.journaling) await this.journal.commit();
  }

  /**
   * Makes every key that is in the index now durable in the index itself, and lets the journal
   * forget all older ones: a replay will not bring them back. The first entry carries the open
   * keys; nothing that comes in meanwhile can hold it once the nodes are written after it, so the
   * second one's `last_seq` is behind it.
   */
  async settleKeys(): Promise<void> {
    await this.journal.commit();
    await this.nodes.writeAllDirty();
    await this.journal.commit();
  }

  /** Fills the parts of a journal entry that name the metadata. */
  #stamp(words: Uint32Array): void {
    words.set(this.uuids.key, JSET.uuid_bucket / 4);
    const { root } = this.btree;
    words.set(root.key.subarray(0, SLOT_WORDS), JSET.btree_root / 4);
    words[JSET.btree_level / 4] = root.level;
    words[JSET.prio_bucket / 4 + 2 * this.geometry.cacheIndex] = this.prioBucket;
  }

  /** Journal, UUID table and priorities are in use whatever the index says. */
  markMetadata(): void {
    const { firstBucket, journalBucketCount } = this.superblock;
    for (let index = 0; index < journalBucketCount; index++) {
      this.buckets.setMark(firstBucket + index, MARK.metadata);
    }
    this.uuids.mark();
    for (const bucket of this.prios.liveBuckets()) this.buckets.setMark(bucket, MARK.metadata);
  }

  async #discard(list: readonly number[]): Promise<void> {
    if (!discardsBuckets(this.superblock)) return;
    const { bucketSectors } = this.geometry;
    for (const bucket of list) await this.cache.discard(bucket * bucketSectors, bucketSectors);
  }
}
