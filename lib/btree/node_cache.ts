/**
 * The b-tree nodes in memory, and the bound on what they take. Answers to the `mca_…` functions of
 * btree.c, the shrinker and cannibalising among them.
 *
 * Nodes are in a ring from the hottest to the coldest. A use only sets a mark (the hit path);
 * whoever looks for something to drop goes from the cold end, and a marked node gets one more
 * round. Looking costs what it passes over, never a sort of everything.
 *
 * Invariants:
 *   - `bytes` is the exact sum of what the resident nodes take: whoever changes a node's sets
 *     calls `resized`.
 *   - Only clean, idle nodes are dropped, never the root, and never so many that fewer than the
 *     reserve are left: enough for every level of a split and for those who are half-way along.
 *   - Beyond the bound a load first waits until something was dropped, if need be after it was
 *     written (`makeRoom`): memory stays bounded even when everything is dirty. Writing a node
 *     waits neither for a load nor for who waits for one, so this ends.
 * What nobody may drop (nodes that are held, or being replaced) may exceed the bound for a while.
 */
import { assert } from "../base/assert.ts";
import type { Faults } from "../base/sync.ts";
import type { BtreeNode } from "./node.ts";

/** Cold dirty nodes that are written at once when room is needed. */
const FLUSH_NODES_MAX = 8;

/** Writes nodes for the cache; the node writer. */
export interface NodeFlusher {
  /** Resolves when the node's keys are durable. */
  write(node: BtreeNode): Promise<void>;
}

export class NodeCache {
  /** More than this is given back, if it can be. */
  bytesMax: number;
  /** Nothing is dropped for want of memory (`btree_shrinker_disabled`). */
  shrinkingDisabled = false;
  /** Set by who writes nodes; without it nothing is dirty. */
  flusher: NodeFlusher | undefined;
  /** Told, in the middle of anything, that nodes grew beyond the bound. Must only take note. */
  onPressure: (() => void) | undefined;
  /** Nodes dropped for want of memory, and dirty ones written for that. */
  reaped = 0;
  flushed = 0;

  #faults: Faults;
  #nodes = new Map<number, BtreeNode>();
  #root: BtreeNode | undefined;
  #bytes = 0;
  /** What nodes that are being read will take at most. */
  #expectedBytes = 0;
  #hottest: BtreeNode | undefined;
  #coldest: BtreeNode | undefined;

  constructor(options: { faults: Faults; bytesMax: number }) {
    this.#faults = options.faults;
    this.bytesMax = options.bytesMax;
  }

  get root(): BtreeNode | undefined {
    return this.#root;
  }

  get size(): number {
    return this.#nodes.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Nodes that are never dropped for want of memory. As in the kernel. */
  get reserveNodes(): number {
    return 8 * Math.max(this.#root?.level ?? 0, 1) + 16;
  }

  nodes(): IterableIterator<BtreeNode> {
    return this.#nodes.values();
  }

  /** The node in `bucket`, if it is in memory. Does not count as a use. */
  get(bucket: number): BtreeNode | undefined {
    return this.#nodes.get(bucket);
  }

  /** The root stays in memory. It is adopted as well. */
  setRoot(node: BtreeNode): void {
    this.#root = node;
    this.adopt(node);
  }

  /** Makes a node findable, as the hottest one. */
  adopt(node: BtreeNode): void {
    const present = this.#nodes.get(node.bucket);
    if (present === node) return;
    if (present !== undefined) {
      assert(!present.dirty, "a node whose keys are not written is not displaced");
      this.drop(present);
    }
    this.#nodes.set(node.bucket, node);
    node.cachedBytes = node.memoryBytes;
    this.#bytes += node.cachedBytes;
    this.#linkHottest(node);
  }

  /** Takes a node out of memory: a freed one, or one that can be read again. */
  drop(node: BtreeNode): void {
    if (this.#nodes.get(node.bucket) !== node) return;
    this.#nodes.delete(node.bucket);
    this.#bytes -= node.cachedBytes;
    node.cachedBytes = 0;
    this.#unlink(node);
  }

  /** The node's sets grew or shrank. */
  resized(node: BtreeNode): void {
    if (node.cachedBytes === 0) return; // Not resident.
    const bytes = node.memoryBytes;
    if (bytes === node.cachedBytes) return;
    const grew = bytes > node.cachedBytes;
    this.#bytes += bytes - node.cachedBytes;
    node.cachedBytes = bytes;
    if (grew && this.#excess() > 0) this.onPressure?.();
  }

  /** Whether a node of so many bytes could be read without dropping another. */
  hasRoom(bytes: number): boolean {
    return this.#bytes + this.#expectedBytes + bytes <= this.bytesMax;
  }

  /** A node of at most so many bytes is being read; `arrived` when it is, or is not. */
  expect(bytes: number): void {
    this.#expectedBytes += bytes;
  }

  arrived(bytes: number): void {
    this.#expectedBytes -= bytes;
    assert(this.#expectedBytes >= 0, "what arrives was expected");
  }

  /**
   * Resolves when memory is within its bound, counting what is expected, or nothing more can be
   * done about it. Rejects when a node could not be written. Not to be awaited by whoever a node's
   * write waits for.
   */
  async makeRoom(): Promise<void> {
    while (this.#excess() > 0 && this.#faults.failed === undefined) {
      const dirty = this.#reap();
      if (this.#excess() <= 0 || dirty.length === 0) return;
      // What is being written is waited for, not written again: two who wait would take turns in
      // keeping each other's nodes busy.
      const writes = dirty.map((node) => {
        if (node.writesPending > 0) return node.lastWrite;
        this.flushed++;
        return this.flusher!.write(node);
      });
      // One is enough to go on with; what goes wrong with the others is known to the fault latch.
      for (const write of writes) write.catch(() => undefined);
      await Promise.race(writes);
    }
  }

  /** Drops up to `count` clean nodes, coldest first, used or not (`prune_cache`). */
  prune(count: number): number {
    let dropped = 0;
    for (let node = this.#coldest; node !== undefined && dropped < count;) {
      const hotter = node.hotter;
      if (this.#nodes.size <= this.reserveNodes) break;
      if (this.#isIdle(node)) {
        this.drop(node);
        dropped++;
      }
      node = hotter;
    }
    this.reaped += dropped;
    return dropped;
  }

  /** Bytes too many, as far as anything may be dropped at all. */
  #excess(): number {
    if (this.shrinkingDisabled || this.#nodes.size <= this.reserveNodes) return 0;
    return this.#bytes + this.#expectedBytes - this.bytesMax;
  }

  /** Drops clean cold nodes until memory is within its bound; returns cold dirty ones, if not. */
  #reap(): BtreeNode[] {
    const dirty: BtreeNode[] = [];
    // Each node is passed at most twice: once for its mark, once to go.
    for (let left = 2 * this.#nodes.size; left > 0 && this.#excess() > 0; left--) {
      const node = this.#coldest!;
      if (node.used) node.used = false;
      else if (this.#isIdle(node)) {
        this.drop(node);
        this.reaped++;
        continue;
      } else if (dirty.length < FLUSH_NODES_MAX && this.#isWritable(node)) {
        if (!dirty.includes(node)) dirty.push(node);
      }
      this.#unlink(node);
      this.#linkHottest(node);
    }
    return dirty;
  }

  #isIdle(node: BtreeNode): boolean {
    return node !== this.#root && !node.dirty && node.delta.count === 0 &&
      node.writesPending === 0 && node.writesHeldBy === undefined && node.holds === 0;
  }

  /** Whether writing the node now would let it be dropped. */
  #isWritable(node: BtreeNode): boolean {
    return this.flusher !== undefined && node !== this.#root && node.holds === 0 &&
      node.writesHeldBy === undefined && (node.dirty || node.writesPending > 0);
  }

  #linkHottest(node: BtreeNode): void {
    node.hotter = undefined;
    node.colder = this.#hottest;
    if (this.#hottest) this.#hottest.hotter = node;
    else this.#coldest = node;
    this.#hottest = node;
  }

  #unlink(node: BtreeNode): void {
    if (node.hotter) node.hotter.colder = node.colder;
    else this.#hottest = node.colder;
    if (node.colder) node.colder.hotter = node.hotter;
    else this.#coldest = node.hotter;
    node.hotter = undefined;
    node.colder = undefined;
  }

  /** For tests: throws when ring, table and sum contradict each other. */
  checkInvariants(): void {
    let bytes = 0;
    let linked = 0;
    let hotter: BtreeNode | undefined;
    for (let node = this.#hottest; node !== undefined; node = node.colder) {
      assert(this.#nodes.get(node.bucket) === node, "a node in the ring is found by its bucket");
      assert(node.hotter === hotter, "the ring is linked both ways");
      assert(node.cachedBytes === node.memoryBytes, "a resident node's memory is counted");
      bytes += node.memoryBytes;
      linked++;
      hotter = node;
    }
    assert(hotter === this.#coldest, "the ring ends at the coldest");
    assert(linked === this.#nodes.size, "every resident node is in the ring");
    assert(bytes === this.#bytes, "the memory of nodes is counted exactly");
  }
}
