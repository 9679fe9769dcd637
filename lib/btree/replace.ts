/**
 * Replacing a node by one or two new ones in other buckets (compaction, split, growth of the
 * root), and neighbours by one fewer. Answers to `btree_split`, `btree_gc_rewrite_node`,
 * `btree_gc_coalesce`, `bch_btree_set_root` and `make_btree_freeing_key` of btree.c.
 *
 * One replacement is under way at a time. Its order, none of which may be swapped:
 *   1. the buckets are reserved, before anything changes
 *   2. its keys are copied; the new nodes are written and stable. What is inserted meanwhile stays
 *      in the old node's delta, held by the journal
 *   3. in one synchronous step the parent (or the root) comes to name the new nodes, and the old
 *      bucket's generation is raised by a *freed-node key* in the same parent
 *   4. that parent is written (or the journal entry that names the root) and stable; until then
 *      the new nodes are not appended to, so no journal entry their keys need is let go, and the
 *      raised generation is not persisted (`prioBlocked`)
 *   5. the old bucket is released
 * A power cut before 4 finds the old node, complete but for what is in the journal.
 *
 * Inserts wait for buckets; the collector never does, since buckets may only come when it is done.
 * What it asks for (`rewrite`, `coalesce`) is left undone, without effect, when they are short.
 *
 * All this is cut into steps that go over the keys of one node, others having their turn between
 * them: requests wait for one step at the most. The collector's meter is told of each.
 */
import { assert } from "../base/assert.ts";
import type { Random } from "../base/runtime.ts";
import { allEnded, endingWith, Mutex, Signal, type TaskGroup } from "../base/sync.ts";
import { NO_METER, type WorkMeter } from "../base/work_meter.ts";
import type { Allocator } from "../buckets/allocator.ts";
import { RESERVE } from "../buckets/reserves.ts";
import { insertPointer } from "../bset/extents.ts";
import { KeySet } from "../bset/key_set.ts";
import {
  INODE_MAX,
  OFFSET_MAX,
  setMaxKey,
  setOffset,
  setPointerGen,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { BSET_HEADER_BYTES, bsetBlocks } from "../ondisk/bset.ts";
import type { Btree } from "./btree.ts";
import { coalesceKeys } from "./coalesce.ts";
import { CopyMaker, isCurrent, type NodeSnapshot } from "./copies.ts";
import { LateKeys } from "./late_keys.ts";
import { type BtreeNode, KEYS_PER_INSERT } from "./node.ts";
import type { NodeWriter } from "./node_write.ts";
import { BATCH_KEYS_MAX, type NodeReplacer } from "./insert.ts";

/** Keys that one replacement adds to the parent: two new nodes and the freed one. */
const PARENT_KEYS = 3;
/** Buckets one replacement takes at most: two nodes, and a new root. */
const BUCKETS_MAX = 3;

/** How often the collector looks whether it is its turn to replace something. */
const TURN_TRIES_MAX = 64;

/** How often the keys of neighbours are gathered anew because some came in meanwhile. */
const SNAPSHOT_ROUNDS_MAX = 3;

/** A leaf with less than this part of its blocks left is replaced. */
const NEARLY_FULL_SHARE = 8;

/** Keys that surely fit into each of the nodes, once they are written, whatever they overlap. */
function keysForAll(copies: readonly BtreeNode[]): number {
  let least = Infinity;
  for (const copy of copies) {
    const used = bsetBlocks(copy.delta.diskWords() / 2, copy.blockBytes);
    const bytes = (copy.blocks - used) * copy.blockBytes - BSET_HEADER_BYTES;
    least = Math.min(least, Math.floor(bytes / (SLOT_WORDS * 4) / (KEYS_PER_INSERT + 1)));
  }
  return Math.max(least, 0);
}

/** Everything one replacement makes and what it takes the place of. */
interface Replacement {
  readonly nodes: readonly BtreeNode[];
  /** Held; undefined: the root is replaced. */
  readonly parent: BtreeNode | undefined;
  readonly copies: BtreeNode[];
  /** The new root above two copies, if any. */
  readonly root: BtreeNode[];
  /** Resolved at its end, for those who wait for it. */
  readonly done: PromiseWithResolvers<void>;
  readonly meter: WorkMeter;
}

/** Writes the journal entry that names the current root; resolves when it is durable. */
export type CommitRoot = () => Promise<void>;

export class Replacer implements NodeReplacer {
  #btree: Btree;
  #writer: NodeWriter;
  #allocator: Allocator;
  #commitRoot: CommitRoot;
  #tasks: TaskGroup;
  #mutex = new Mutex();
  #queued = new Map<BtreeNode, Promise<void>>();
  /** A leaf that waited takes keys again, or was replaced. */
  #begun = new Signal();
  #lateKeys: LateKeys;
  /** Somebody who inserts waits for buckets, and has the right to replace meanwhile. */
  #starved = false;
  /** What is left out of copies is for others to say. */
  readonly copyMaker: CopyMaker;
  splits = 0;
  compactions = 0;
  coalesced = 0;

  constructor(options: {
    btree: Btree;
    writer: NodeWriter;
    allocator: Allocator;
    random: Random;
    commitRoot: CommitRoot;
    tasks: TaskGroup;
  }) {
    this.#btree = options.btree;
    this.#writer = options.writer;
    this.#allocator = options.allocator;
    this.copyMaker = new CopyMaker(options);
    this.#commitRoot = options.commitRoot;
    this.#tasks = options.tasks;
    this.#lateKeys = new LateKeys(options.writer, options.btree.geometry.bucketSectors);
    this.#writer.onNearlyFull = (leaf) => void this.replaceSoon(leaf);
  }

  /**
   * Resolves as soon as the leaf takes keys again, or is replaced: usually when its replacement
   * has only begun.
   */
  async makeRoom(leaf: BtreeNode): Promise<void> {
    this.#writer.assertServing();
    if (leaf.replacingKeysMax !== undefined) {
      // It took as many keys as the new nodes have room for.
      return await leaf.replacement;
    }
    await Promise.race([this.#begun.wait(), this.replaceSoon(leaf)]);
  }

  /** Replaces the leaf in the background, unless that is under way. Resolves when it is done. */
  replaceSoon(leaf: BtreeNode): Promise<void> {
    const underWay = this.#queued.get(leaf);
    if (underWay !== undefined) return underWay;
    // Held while it waits for its turn: dropped and read again meanwhile, it would be another
    // node, with newer keys, that this one's replacement would lose.
    leaf.holds++;
    const run = endingWith(this.#mutex.run(() => this.#replaceIfFull(leaf)), () => {
      leaf.holds--;
      this.#queued.delete(leaf);
      this.#begun.raise();
    });
    this.#queued.set(leaf, run);
    this.#tasks.start(() => run);
    return run;
  }

  async #replaceIfFull(leaf: BtreeNode): Promise<void> {
    // await: it may have been replaced meanwhile, by the collector.
    if (leaf.freed) return;
    const left = leaf.blocks - leaf.writtenBlocks;
    const spacious = left * NEARLY_FULL_SHARE >= leaf.blocks;
    if (spacious && leaf.hasRoom(BATCH_KEYS_MAX * KEYS_PER_INSERT)) return;
    await this.#replace(leaf, true);
  }

  /**
   * Writes a node anew without its bad keys, for the collector. False: not now. Never waits for
   * buckets. `meter` is told of every step.
   */
  async rewrite(node: BtreeNode, meter: WorkMeter = NO_METER): Promise<boolean> {
    if (!this.#hasReserve(node.level, BUCKETS_MAX)) return false;
    return await this.#withTurn([node], async () => {
      // await: while others had their turn it may have been replaced, or buckets been taken.
      if (node.freed || !this.#hasReserve(node.level, BUCKETS_MAX)) return false;
      return await this.#replace(node, false, meter);
    });
  }

  /**
   * Replaces neighbours, children of one parent and in order, by one fewer, for the collector.
   * False: their good keys do not fit, something is short or has changed; nothing has happened.
   */
  async coalesce(
    nodes: readonly BtreeNode[],
    meter: WorkMeter = NO_METER,
  ): Promise<boolean> {
    const { level } = nodes[0]!;
    if (!this.#hasReserve(level, nodes.length)) return false;
    return await this.#withTurn(nodes, () => this.#coalesceLocked(nodes, meter));
  }

  async #coalesceLocked(nodes: readonly BtreeNode[], meter: WorkMeter): Promise<boolean> {
    const first = nodes[0]!;
    if (first.freed || first === this.#btree.root) return false;
    // Their keys, and a freed-node key for each.
    const parent = await this.#parentWithRoom(first, 2 * nodes.length - 1, false);
    if (parent === undefined) return false;
    const snapshots = await this.#snapshots(nodes, parent, meter);
    meter.begin();
    const copies = snapshots && this.#coalescedCopies(snapshots, parent);
    meter.end();
    if (copies === undefined) {
      parent.holds--;
      return false;
    }
    const done = Promise.withResolvers<void>();
    await this.#carryOut({ nodes, parent, copies, root: [], done, meter });
    this.coalesced += 1;
    return true;
  }

  /**
   * What the nodes hold at one moment, gathered node by node with others having their turn;
   * undefined when they are no neighbours, or keys come in all the time: such nodes are not empty
   * for long.
   */
  async #snapshots(
    nodes: readonly BtreeNode[],
    parent: BtreeNode,
    meter: WorkMeter,
  ): Promise<NodeSnapshot[] | undefined> {
    const snapshots = new Map<BtreeNode, NodeSnapshot>();
    for (let round = 0; round < SNAPSHOT_ROUNDS_MAX; round++) {
      for (const node of nodes) {
        const present = snapshots.get(node);
        if (present !== undefined && isCurrent(present)) continue;
        // await: they may have been replaced, or lost their place to others.
        if (!this.#areNeighbours(nodes, parent)) return undefined;
        const snapshot = await this.#gather(node, meter);
        if (snapshot !== undefined) snapshots.set(node, snapshot);
        await this.#btree.clock.turn();
      }
      const all = nodes.map((node) => snapshots.get(node)).filter((each) => each !== undefined);
      if (all.length === nodes.length && all.every(isCurrent)) return all;
    }
    return undefined;
  }

  /**
   * What a node holds, others having their turn whenever the meter says so; undefined when a key
   * came in meanwhile.
   */
  async #gather(node: BtreeNode, meter: WorkMeter): Promise<NodeSnapshot | undefined> {
    meter.begin();
    const gathering = this.copyMaker.gather(node);
    while (!gathering.step(meter.stepUnits)) {
      if (!meter.spend(meter.stepUnits)) continue;
      meter.end();
      await this.#btree.clock.turn();
      if (!isCurrent(gathering)) return undefined;
      meter.begin();
    }
    meter.spend(Math.min(meter.stepUnits, node.base.count));
    meter.end();
    return gathering;
  }

  #areNeighbours(nodes: readonly BtreeNode[], parent: BtreeNode): boolean {
    return nodes.every((node, index) => {
      if (node.freed || node.replacement !== undefined) return false;
      if (!parent.covers(node.endInode, node.endOffset)) return false;
      if (index === 0) return true;
      const { endInode, endOffset } = nodes[index - 1]!;
      return this.#btree.findNode(node.level, endInode, endOffset) === node;
    });
  }

  /**
   * The new nodes; undefined, with nothing taken, when the keys do not fit or something is short.
   * The snapshots are of this moment.
   */
  #coalescedCopies(
    snapshots: readonly NodeSnapshot[],
    parent: BtreeNode,
  ): BtreeNode[] | undefined {
    const nodes = snapshots.map(({ node }) => node);
    const { level, blocks, blockBytes } = nodes[0]!;
    if (!this.#areNeighbours(nodes, parent) || !this.#hasReserve(level, nodes.length)) {
      return undefined;
    }
    const plan = coalesceKeys(
      snapshots.map(({ keys }) => keys),
      nodes.map((node) => node.key),
      { blocks, blockBytes },
    );
    if (plan === undefined) return undefined;
    for (const snapshot of snapshots) this.copyMaker.take(snapshot);
    return plan.map(({ keys, end }) => this.copyMaker.make(level, end, keys));
  }

  /** Whether buckets for `count` nodes of a level are there, and for all that may follow above. */
  #hasReserve(level: number, count: number): boolean {
    const above = (this.#btree.root.level - level) * BUCKETS_MAX;
    return this.#allocator.available(RESERVE.btree) >= count + above;
  }

  /**
   * Runs `body` with the right to replace, the nodes held; false, without it, when whoever has that
   * right waits for buckets, or others are always first.
   */
  async #withTurn(
    nodes: readonly BtreeNode[],
    body: () => Promise<boolean>,
  ): Promise<boolean> {
    for (const node of nodes) node.holds++;
    try {
      for (let tries = 0; !this.#mutex.tryLock(); tries++) {
        if (this.#starved || tries === TURN_TRIES_MAX) return false;
        await this.#begun.wait();
      }
      try {
        return await body();
      } finally {
        this.#mutex.unlock();
        this.#begun.raise();
      }
    } finally {
      for (const node of nodes) node.holds--;
    }
  }

  /** An empty leaf as the root of a new cache set, written and stable. */
  async makeFirstRoot(): Promise<void> {
    const key = new Uint32Array(SLOT_WORDS);
    setMaxKey(key, 0, this.#btree.geometry.nodeSectors);
    const node = this.copyMaker.make(0, key, new KeySet(1));
    await this.#writer.write(node);
    this.#btree.setRoot(node);
    this.#btree.buckets.unpin(node.bucket);
  }

  /**
   * The caller holds the node, and has since it looked at it. False, with nothing changed, only
   * for who may not wait for buckets.
   */
  async #replace(node: BtreeNode, mayWait: boolean, meter = NO_METER): Promise<boolean> {
    assert(this.#btree.cache.get(node.bucket) === node, "a replaced node is the one in memory");
    const { clock, splitTimes } = this.#btree;
    const began = clock.nowMs();
    const isRoot = node === this.#btree.root;
    const parent = isRoot ? undefined : await this.#parentWithRoom(node, PARENT_KEYS, mayWait);
    if (!isRoot && parent === undefined) return false;
    const done = Promise.withResolvers<void>();
    node.replacement = done.promise;
    let gathered: NodeSnapshot | undefined;
    let isReady = false;
    try {
      // Who is measured lets others have their turn meanwhile; all else is in a hurry.
      if (meter !== NO_METER) gathered = await this.#gather(node, meter);
      isReady = await this.#reserve(node, isRoot && node.level === 0, mayWait);
    } finally {
      // Also when there is no space, or the set has failed: whoever waits must come to know.
      if (!isReady) this.#giveUp(node, parent, done);
    }
    if (!isReady) return false;
    meter.begin();
    // await: keys may have come in; then all are looked at in this step.
    const isStill = gathered !== undefined && isCurrent(gathered);
    const snapshot = isStill ? gathered! : this.copyMaker.snapshot(node);
    meter.spend(snapshot.keys.count);
    const { copies, root } = this.copyMaker.copies(snapshot, isRoot);
    meter.end();
    await this.#carryOut({ nodes: [node], parent, copies, root, done, meter });
    if (copies.length === 1) this.compactions++;
    else {
      this.splits++;
      splitTimes.record(began, clock.nowMs());
    }
    return true;
  }

  /** The node stays as it is, and takes keys again. */
  #giveUp(
    node: BtreeNode,
    parent: BtreeNode | undefined,
    done: PromiseWithResolvers<void>,
  ): void {
    node.replacement = undefined;
    node.replacingKeysMax = undefined;
    if (parent) parent.holds--;
    done.resolve();
    this.#begun.raise();
  }

  /** Steps 2 to 5 of the file's header, the copies being made. */
  async #carryOut({ nodes, parent, copies, root, done, meter }: Replacement): Promise<void> {
    const { buckets } = this.#btree;
    const all = [...copies, ...root];
    // Late keys are held by the journal; a root's journal entry must not wait for room in it.
    const lateKeysMax = parent === undefined ? 0 : Math.floor(keysForAll(copies) / nodes.length);
    const releases = nodes.map((node) => {
      // A collection that ends before the release must not find the old bucket free already.
      buckets.pin(node.bucket);
      node.replacement = done.promise;
      node.writesHeldBy = done.promise;
      node.replacingKeysMax = lateKeysMax;
      return this.#writer.detach(node, done.promise);
    });
    this.#begun.raise();
    try {
      await this.#writeCopies(all, meter);
      if (parent) await this.#commitToParent(nodes, parent, copies);
      else await this.#commitAsRoot(nodes, copies, root);
      // The keys of the old nodes are durable in nodes that are durably reachable.
      for (const release of releases) release();
    } finally {
      if (parent) parent.holds--;
      for (const node of nodes) node.writesHeldBy = undefined;
      done.resolve();
    }
    for (const copy of all) buckets.unpin(copy.bucket);
    // A set that was on its way to an old bucket when this began must not come to a reused one.
    await Promise.all(nodes.map((node) => node.lastWrite));
    for (const node of nodes) {
      this.#allocator.release(node.bucket);
      buckets.unpin(node.bucket);
    }
  }

  /** Writes new nodes; others have their turn before each, since to sum one up takes a while. */
  async #writeCopies(copies: readonly BtreeNode[], meter: WorkMeter): Promise<void> {
    const writes: Array<Promise<void>> = [];
    for (const copy of copies) {
      await this.#btree.clock.turn();
      meter.begin();
      const write = this.#writer.writeNew(copy);
      meter.spend(copy.base.count);
      meter.end();
      // It is looked at below, when all have begun.
      write.catch(() => undefined);
      writes.push(write);
    }
    await allEnded(writes);
  }

  /**
   * Resolves when the buckets for a replacement are there; false when they are not and the caller
   * may not wait. The only leaf is also made to let go of the journal and to take no keys: its
   * replacement needs a journal entry, and a full journal would need this leaf to be written.
   */
  async #reserve(node: BtreeNode, isOnlyLeaf: boolean, mayWait: boolean): Promise<boolean> {
    for (;;) {
      while (this.#allocator.available(RESERVE.btree) < BUCKETS_MAX) {
        if (!mayWait) return false;
        await this.#whenBuckets();
      }
      if (!isOnlyLeaf) return true;
      node.replacingKeysMax = 0;
      await this.#writer.write(node);
      assert(!node.dirty, "a leaf that takes no keys stays clean");
      // await: somebody else may have taken the buckets.
      if (this.#allocator.available(RESERVE.btree) >= BUCKETS_MAX) return true;
      node.replacingKeysMax = undefined;
      this.#begun.raise();
    }
  }

  async #whenBuckets(): Promise<void> {
    this.#starved = true;
    // Whoever is in line behind and may not wait for buckets looks again, and gives up.
    this.#begun.raise();
    try {
      await this.#allocator.whenAvailable(RESERVE.btree, BUCKETS_MAX);
    } finally {
      this.#starved = false;
    }
  }

  /**
   * The parent of a node that is not the root, with room for `keys` more, held; undefined when it
   * has none, and there are no buckets to make it anew that the caller may wait for.
   */
  async #parentWithRoom(
    node: BtreeNode,
    keys: number,
    mayWait: boolean,
  ): Promise<BtreeNode | undefined> {
    for (;;) {
      // The position just before the node's last one; MAX_KEY stands apart from real offsets.
      const offset = node.endOffset >= OFFSET_MAX ? Number.MAX_SAFE_INTEGER : node.endOffset - 0.5;
      const parent = await this.#btree.loadNode(node.level + 1, node.endInode, offset);
      parent.holds++;
      if (parent.hasRoom(keys)) return parent;
      try {
        if (!await this.#replace(parent, mayWait)) return undefined;
      } finally {
        parent.holds--;
      }
    }
  }

  async #commitToParent(
    nodes: readonly BtreeNode[],
    parent: BtreeNode,
    made: readonly BtreeNode[],
  ): Promise<void> {
    const btree = this.#btree;
    for (const copy of made) insertPointer(parent.delta, copy.key, 0);
    for (const node of nodes) {
      const freed = node.key.slice();
      freed[0]! &= ~INODE_MAX;
      setOffset(freed, 0, 0);
      this.#allocator.blockPrios();
      setPointerGen(freed, 0, btree.buckets.bumpGen(node.bucket));
      insertPointer(parent.delta, freed, 0);
    }
    btree.cache.resized(parent);
    parent.dirty = true;
    const durable = this.#writer.write(parent);
    this.#swap(nodes, made, durable);
    // await: from here on the new nodes serve; they are appended to once the parent is stable.
    try {
      await durable;
    } finally {
      this.#release(made);
      nodes.forEach(() => this.#allocator.unblockPrios());
    }
  }

  async #commitAsRoot(
    nodes: readonly BtreeNode[],
    copies: BtreeNode[],
    above: BtreeNode[],
  ): Promise<void> {
    const made = [...copies, ...above];
    this.#btree.setRoot(made[made.length - 1]!);
    const commit = this.#commitRoot();
    this.#swap(nodes, copies, commit);
    for (const root of above) root.writesHeldBy = commit;
    try {
      await commit;
    } finally {
      this.#release(made);
    }
  }

  /**
   * The new nodes take the old ones' place in memory. Synchronous with the change that names them.
   */
  #swap(
    nodes: readonly BtreeNode[],
    made: readonly BtreeNode[],
    durable: Promise<void>,
  ): void {
    for (const copy of made) {
      copy.writesHeldBy = durable;
      this.#btree.adopt(copy);
    }
    // Whoever waits for an old node's keys to be durable waits for this. When it fails the set has
    // failed, and nothing is let go any more.
    durable.catch(() => undefined);
    for (const node of nodes) {
      node.freed = true;
      this.#btree.drop(node);
      this.#lateKeys.move(node, made);
      node.replacedBy = durable;
    }
  }

  #release(made: readonly BtreeNode[]): void {
    for (const copy of made) copy.writesHeldBy = undefined;
  }
}
