/**
 * Garbage collection: finds out what of the cache device the index still uses. Answers to
 * `bch_btree_gc` and its helpers in btree.c.
 *
 *   1. the bucket table forgets all marks, but remembers what was free (BucketTable.beginGc)
 *   2. level by level, in key order, every node marks what it points to. On the way neighbours with
 *      few keys become one node fewer, and nodes with many bad keys are written anew
 *   3. leaves that were passed are durable: clean keys are not journaled, so what they replaced
 *      must not come back from the disk while its bucket's generations go round
 *   4. in one step journal, UUIDs, priorities and what is being copied are marked; from then on the
 *      marks are valid, and the table counts them (BucketTable.finishGc)
 *
 * All this in slices, other work in between (slices.ts). That is right because no key of a node is
 * left out (marking.ts) and whatever changes meanwhile marks itself: a bucket taken from the
 * allocator is marked as it is taken, one that receives dirty data is marked dirty then, and both
 * stay pinned until their key is in the index. Keys move between nodes only inside the window of
 * nodes that are not marked yet.
 */
import type { Clock } from "../../base/runtime.ts";
import { type Faults, Signal, type TaskGroup } from "../../base/sync.ts";
import { TimeStats } from "../../base/time_stats.ts";
import type { Btree } from "../../btree/btree.ts";
import { COALESCE_NODES_MAX, mayCoalesce } from "../../btree/coalesce.ts";
import type { BtreeNode } from "../../btree/node.ts";
import type { NodeWriter } from "../../btree/node_write.ts";
import type { Replacer } from "../../btree/replace.ts";
import type { Allocator } from "../../buckets/allocator.ts";
import { type BucketTable, GENERATION_LIMIT, MARK } from "../../buckets/table.ts";
import { INODE_MAX, keyDiskWords, OFFSET_MAX, SLOT_WORDS } from "../../ondisk/bkey.ts";
import type { KeyBuffer, Position } from "../key_buffer.ts";
import type { Marker, NodeCensus } from "./marking.ts";
import type { MovingCollector } from "./moving_gc.ts";
import { type SliceBudget, Slices } from "./slices.ts";

/** A node with a pointer staler than this is written anew. */
const STALE_MAX = 10;
/**
 * What one slice may take: requests wait for it. Going over a bucket or a key is one unit of a few
 * nanoseconds, once the runtime has compiled what does it; ten times that before.
 */
const SLICE_BUDGET = { ms: 1, units: 100_000, stepUnits: 512 };
/** Buckets the table is asked to go over between two looks at the clock. */
const SWEEP_BUCKETS = 2048;
/** Leaves on their way to the disk at a time. */
const LEAF_WRITES_MAX = 16;

/** After so many nodes the collector rests; while no requests come, after a share of them all. */
const NODES_PER_PAUSE = 10;
const PAUSES_WHEN_IDLE = 128;
/** A collection is due when this share of the cache was written. */
const COLLECT_SHARE = 16;

/** Rest between two collections: somebody waits for a bucket, or not. As in the kernel. */
const PAUSE_MS_MIN = 10;
const PAUSE_MS = 100;

/** Pointers so far behind their buckets ask for a collection that takes them out. */
const NEED_GC_DUE = (GENERATION_LIMIT * 2) / 3;
/** While nothing is cached for want of buckets, something may have become clean. */
const FULL_RETRY_MS = 30_000;
/** With more than this many percent in use nothing is cached: nothing else would wake us. */
const CACHING_STOPS_PERCENT = 95;
/** With at least this many percent in use a collection after writeback is worth its while. */
const AFTER_WRITEBACK_PERCENT = 50;

/** What else is metadata: marked anew in every collection. */
export type MarkMetadata = () => void;

/** Over all nodes of a collection; answers to struct gc_stat. */
export interface CollectionStats {
  nodes: number;
  goodKeys: number;
  /** 32-bit words that these take on disk. */
  keyWords: number;
  /** Of leaves: good keys, and their sectors. */
  extents: number;
  dataSectors: number;
}

const NOTHING_COUNTED: CollectionStats = {
  nodes: 0,
  goodKeys: 0,
  keyWords: 0,
  extents: 0,
  dataSectors: 0,
};

/** A node that was not marked yet, held, and what its good keys take on disk. */
interface Candidate {
  readonly node: BtreeNode;
  readonly parent: BtreeNode | undefined;
  readonly goodWords: number;
}

function isLast(node: BtreeNode): boolean {
  return node.endInode === INODE_MAX && node.endOffset >= OFFSET_MAX;
}

export class Collector {
  #btree: Btree;
  #buckets: BucketTable;
  #allocator: Allocator;
  #writer: NodeWriter;
  #replacer: Replacer;
  #clock: Clock;
  #faults: Faults;
  #markMetadata: MarkMetadata;
  /** Runs after each collection; set by who builds both. */
  moving: MovingCollector | undefined;
  #wake = new Signal();
  #wanted = false;
  #sectorsToGc: number;
  readonly #sectorsPerGc: number;
  #keyBuffers = new Set<KeyBuffer>();
  #afterWritebackArmed = false;
  /** Collect when writeback has written everything back (`gc_after_writeback`). */
  afterWriteback = false;
  collections = 0;
  lastDurationMs = 0;
  /** Whole collections. */
  readonly times: TimeStats = new TimeStats();
  /** Write every node anew (`gc_always_rewrite`); for tests and people who look for damage. */
  alwaysRewrite = false;
  readonly slices: Slices;
  readonly marker: Marker;
  /** Of the last whole collection. */
  stats: CollectionStats = { ...NOTHING_COUNTED };
  #counting: CollectionStats = { ...NOTHING_COUNTED };
  #leafWrites: Array<Promise<unknown>> = [];
  #nodesSincePause = 0;
  #requestsAtPause = 0;
  #needGcLeft = 0;
  #idle = true;
  nodesMarked = 0;
  nodesRewritten = 0;
  /** Those that were to be written anew for what they held in vain, whether they were or not. */
  leavesDue = 0;
  nodesCoalesced = 0;

  constructor(options: {
    btree: Btree;
    allocator: Allocator;
    writer: NodeWriter;
    replacer: Replacer;
    clock: Clock;
    sliceBudget?: SliceBudget | undefined;
    faults: Faults;
    markMetadata: MarkMetadata;
    marker: Marker;
  }) {
    this.#btree = options.btree;
    this.#buckets = options.btree.buckets;
    this.#allocator = options.allocator;
    this.#writer = options.writer;
    this.#replacer = options.replacer;
    this.#clock = options.clock;
    this.#faults = options.faults;
    this.#markMetadata = options.markMetadata;
    this.marker = options.marker;
    this.slices = new Slices(options.clock, options.sliceBudget ?? SLICE_BUDGET);
    const { bucketCount, bucketSectors } = options.btree.geometry;
    this.#sectorsPerGc = Math.floor((bucketCount * bucketSectors) / COLLECT_SHARE);
    this.#sectorsToGc = this.#sectorsPerGc;
  }

  /** Data went into the cache. What bypasses it does not count. */
  noteCached(sectors: number): void {
    this.#sectorsToGc -= sectors;
    const { needGc } = this.#buckets;
    if (this.#sectorsToGc < 0 || (needGc >= NEED_GC_DUE && needGc > this.#needGcLeft)) this.wake();
    else if (this.#idle && this.#isFull()) this.#wake.raise();
  }

  #isFull(): boolean {
    return this.#buckets.inUsePercent() > CACHING_STOPS_PERCENT;
  }

  /** The writeback controller has run: what it writes now may be worth a collection later. */
  noteWritebackControl(): void {
    if (!this.afterWriteback) return;
    if (this.#buckets.inUsePercent() >= AFTER_WRITEBACK_PERCENT) this.#afterWritebackArmed = true;
  }

  /**
   * A device has no dirty data left. With the cache full nothing is cached, so nothing would ever
   * ask for the collection that finds out what is clean now.
   */
  noteClean(): void {
    const armed = this.afterWriteback && this.#afterWritebackArmed;
    this.#afterWritebackArmed = false;
    if (armed || this.#isFull()) this.wake();
  }

  /** From now on no collection frees what the keys of `buffer` point to. */
  guard(buffer: KeyBuffer): void {
    this.#keyBuffers.add(buffer);
  }

  unguard(buffer: KeyBuffer): void {
    this.#keyBuffers.delete(buffer);
  }

  /** Bytes that a good key stands for on average (`average_key_size`); 0: there are no keys. */
  get averageKeyBytes(): number {
    const { extents, dataSectors } = this.#counting;
    return extents === 0 ? 0 : Math.floor((dataSectors * 512) / extents);
  }

  /** Asks for a collection. */
  wake(): void {
    this.#wanted = true;
    this.#wake.raise();
  }

  start(tasks: TaskGroup): void {
    tasks.start(async (signal) => {
      signal.addEventListener("abort", () => this.#wake.raise(), { once: true });
      while (!signal.aborted && !this.#faults.failed) {
        if (!this.#wanted) {
          await this.#rest();
          continue;
        }
        const before = this.slices.totalMs;
        await this.collect(signal);
        // While everything is dirty a collection frees nothing, and is asked for again at once.
        const pauseMs = this.#allocator.waiting > 0 ? PAUSE_MS_MIN : PAUSE_MS;
        await this.#clock.sleep(Math.max(pauseMs, this.slices.totalMs - before), signal);
      }
    });
  }

  /** Until a collection is wanted; while the cache is full one is, every so often. */
  async #rest(): Promise<void> {
    this.#idle = !this.#isFull();
    if (this.#idle) return await this.#wake.wait();
    const stop = new AbortController();
    const woken = this.#wake.wait().then(() => stop.abort());
    await this.#clock.sleep(FULL_RETRY_MS, stop.signal);
    if (!stop.signal.aborted) this.wake();
    await woken;
  }

  /** One whole collection. Ends early, with the marks left invalid, only when stopped or failed. */
  async collect(signal: AbortSignal): Promise<void> {
    this.#wanted = false;
    this.#sectorsToGc = this.#sectorsPerGc;
    const began = this.#clock.nowMs();
    const { slices } = this;
    this.#allocator.gcBegan();
    slices.begin();
    await this.#sweep(() => this.#buckets.beginGc(SWEEP_BUCKETS));
    await slices.turn();
    if (this.#stopping(signal)) return;
    this.nodesMarked = 0;
    this.#counting = { ...NOTHING_COUNTED };
    const { root } = this.#btree;
    this.marker.markKey(root.key, 0, root.level + 1);
    for (let level = root.level; level >= 0; level--) {
      await this.#markLevel(level, signal);
      if (this.#stopping(signal)) return;
    }
    await this.#leavesWritten(0);
    await slices.turn();
    if (this.#stopping(signal)) return;
    this.#markMetadata();
    this.#markBuffered();
    // No await before the first call: from it on the marks are valid.
    await this.#sweep(() => this.#buckets.finishGc(SWEEP_BUCKETS));
    slices.end();
    this.stats = this.#counting;
    this.#sectorsToGc = this.#sectorsPerGc;
    this.#needGcLeft = this.#buckets.needGc;
    this.collections++;
    const ended = this.#clock.nowMs();
    this.lastDurationMs = ended - began;
    this.times.record(began, ended);
    this.#allocator.gcFinished();
    // Whoever waits for room for data would be refused while it lies about in sparse buckets.
    if (this.moving !== undefined && (this.moving.enabled || this.#allocator.dataWaits)) {
      slices.begin();
      await this.moving.run(signal);
      slices.end();
    }
    this.#allocator.gcOver();
  }

  #stopping(signal: AbortSignal): boolean {
    return signal.aborted || this.#faults.failed !== undefined;
  }

  /** Calls `step` until it is done; the first time without waiting. */
  async #sweep(step: () => boolean): Promise<void> {
    const buckets = Math.min(SWEEP_BUCKETS, this.#buckets.bucketCount);
    while (!step()) {
      if (this.slices.spend(buckets)) await this.slices.turn();
    }
    this.slices.spend(buckets);
  }

  /**
   * A key that was overwritten since it was buffered is not in the index, but will be compared with
   * it: in a bucket that was used again meanwhile another one could look the same.
   */
  #markBuffered(): void {
    for (const buffer of this.#keyBuffers) {
      for (const { sector, gen } of buffer.keys()) {
        const bucket = Math.floor(sector / this.#buckets.bucketSectors);
        if (this.#buckets.staleness(bucket, gen) > 0) continue;
        this.#buckets.setMark(bucket, MARK.dirty);
      }
    }
  }

  /**
   * Goes along a level with a window of neighbours that are not marked yet. Nodes are found by
   * position, so whatever happens to them while others have their turn, none is left out.
   */
  async #markLevel(level: number, signal: AbortSignal): Promise<void> {
    const window: Candidate[] = [];
    let done: Position = { inode: 0, offset: 0 };
    try {
      for (;;) {
        if (this.#stopping(signal)) return;
        const newest = window.at(-1)?.node;
        if (newest === undefined || (!isLast(newest) && window.length < COALESCE_NODES_MAX)) {
          const behind = newest ? { inode: newest.endInode, offset: newest.endOffset } : done;
          if (await this.#enter(window, level, behind)) continue;
          // Changed: whatever is behind `done` is looked at anew.
          this.#letGo(window);
          continue;
        }
        const { node } = window[0]!;
        if (node.freed) {
          this.#letGo(window);
          continue;
        }
        const census = await this.#mark(node, signal);
        if (census === undefined) continue;
        done = { inode: node.endInode, offset: node.endOffset };
        const ended = isLast(node);
        const isDue = this.#isDueForRewrite(census);
        if (isDue && level === 0) this.leavesDue++;
        // Buckets that somebody waits for are for what gives some back: nodes that become fewer.
        const always = this.alwaysRewrite && this.#allocator.waiting === 0;
        await this.#leave(node, isDue || always, signal);
        node.holds--;
        window.shift();
        if (ended) return;
      }
    } finally {
      this.#letGo(window);
    }
  }

  /**
   * Marks a node with others having their turn. Undefined: it is no longer part of the index, or
   * the collection is to end. No await since the last of its keys was marked.
   */
  async #mark(node: BtreeNode, signal: AbortSignal): Promise<NodeCensus | undefined> {
    this.marker.begin(node);
    for (;;) {
      const census = this.marker.markSome(this.slices.stepUnits);
      const over = this.slices.spend(
        Math.min(this.slices.stepUnits, node.base.count + node.delta.count),
      );
      if (census !== undefined) {
        this.#count(census, node.level);
        return census;
      }
      if (!over) continue;
      await this.slices.turn();
      if (node.freed || this.#stopping(signal)) return undefined;
    }
  }

  /** Marks a node at once, at registration, when nobody waits. */
  markNode(node: BtreeNode): void {
    this.#count(this.marker.markNode(node), node.level);
  }

  #count({ goodKeys, keyWords, dataSectors }: NodeCensus, level: number): void {
    const counting = this.#counting;
    this.nodesMarked++;
    counting.nodes++;
    counting.goodKeys += goodKeys;
    counting.keyWords += keyWords;
    if (level > 0) return;
    counting.extents += goodKeys;
    counting.dataSectors += dataSectors;
  }

  #letGo(window: Candidate[]): void {
    for (const { node } of window) node.holds--;
    window.length = 0;
  }

  /** Takes one more node into the window. False: neighbours became one fewer. */
  async #enter(window: Candidate[], level: number, behind: Position): Promise<boolean> {
    const { inode, offset } = behind;
    const btree = this.#btree;
    let node = btree.findNode(level, inode, offset);
    while (node === undefined) {
      await this.slices.waitFor(btree.loadNode(level, inode, offset));
      // await: it may be gone again.
      node = btree.findNode(level, inode, offset);
    }
    node.holds++;
    const parent = node === btree.root ? undefined : btree.findNode(level + 1, inode, offset);
    window.push({ node, parent, goodWords: await this.#goodWords(node) });
    return !await this.#coalesce(window);
  }

  /** Makes the siblings at the end of the window one node fewer, if that is worth while. */
  async #coalesce(window: readonly Candidate[]): Promise<boolean> {
    const { parent, node } = window.at(-1)!;
    if (parent === undefined) return false;
    const siblings = window.filter((each) => each.parent === parent);
    const words = siblings.reduce((sum, each) => sum + each.goodWords, 0);
    if (!mayCoalesce(words, siblings.length, node)) return false;
    const nodes = siblings.map((each) => each.node);
    const done = await this.slices.waitFor(this.#replacer.coalesce(nodes, this.slices));
    if (done) this.nodesCoalesced++;
    await this.slices.turn();
    return done;
  }

  /** What the good keys of a node take, about: others have their turn while they are counted. */
  async #goodWords(node: BtreeNode): Promise<number> {
    const { stepUnits } = this.slices;
    let words = 0;
    for (const set of [node.base, node.delta]) {
      for (let from = 0; from < set.count; from += stepUnits) {
        const to = Math.min(from + stepUnits, set.count);
        for (let at = from * SLOT_WORDS; at < to * SLOT_WORDS; at += SLOT_WORDS) {
          if (!this.#btree.isBad(set.words, at, node.level)) words += keyDiskWords(set.words, at);
        }
        if (this.slices.spend(to - from)) await this.slices.turn();
      }
    }
    return words;
  }

  #isDueForRewrite(census: NodeCensus): boolean {
    const { stalest, keys, goodKeys, deadKeys } = census;
    return stalest > STALE_MAX || (keys - goodKeys) * 2 > keys ||
      deadKeys > 0;
  }

  /** A node was marked: it is written, anew if that is due, and others have their turn. */
  async #leave(node: BtreeNode, rewrite: boolean, signal: AbortSignal): Promise<void> {
    const wrote = node.level === 0 && this.#writeLeaf(node);
    // A write puts keys in order and sums them up before it waits: that is a slice of its own.
    if (wrote) await this.slices.turn();
    if (rewrite) {
      if (await this.slices.waitFor(this.#replacer.rewrite(node, this.slices))) {
        this.nodesRewritten++;
      }
      await this.slices.turn();
    }
    if (this.#leafWrites.length >= LEAF_WRITES_MAX) await this.#leavesWritten(LEAF_WRITES_MAX / 2);
    this.#nodesSincePause++;
    const quiet = this.#buckets.requestsSeen === this.#requestsAtPause;
    const nodes = quiet ? Math.floor(this.stats.nodes / PAUSES_WHEN_IDLE) : 0;
    if (this.#nodesSincePause < Math.max(NODES_PER_PAUSE, nodes)) return;
    this.#nodesSincePause = 0;
    this.#requestsAtPause = this.#buckets.requestsSeen;
    // Whoever waits for a bucket waits for us: then a turn is all that the others get.
    if (this.#allocator.waiting > 0) await this.slices.turn();
    else await this.slices.waitFor(this.#clock.sleep(PAUSE_MS, signal));
  }

  /**
   * The keys that a leaf has now will be durable once `#leavesWritten(0)` resolves. True: a write
   * was begun for that.
   */
  #writeLeaf(node: BtreeNode): boolean {
    const writes = this.#leafWrites;
    const { dirty } = node;
    if (dirty) writes.push(this.#writer.write(node));
    else if (node.writesPending > 0) writes.push(node.lastWrite);
    // It is being replaced, and the buckets for that are there already.
    if (node.writesHeldBy !== undefined) writes.push(node.writesHeldBy);
    // A write that fails fails the set, and that ends the collection.
    for (const write of writes) write.catch(() => undefined);
    return dirty;
  }

  /** Resolves when at most `left` leaves that were passed are not durable. */
  async #leavesWritten(left: number): Promise<void> {
    const writes = this.#leafWrites.splice(0, Math.max(0, this.#leafWrites.length - left));
    if (writes.length > 0) await this.slices.waitFor(Promise.allSettled(writes));
  }
}
