/**
 * The index: finding the leaf of a position, lookup of what is cached there, going along a level.
 * Answers to `bch_btree_node_get` and the map functions of btree.c, and to `bch_btree_ptr_bad` and
 * `bch_extent_bad` of extents.c.
 *
 * Everything is synchronous when the nodes are resident (the hit path); `load…` reads what is
 * missing and the caller then tries again. Pointers whose generation is behind their bucket's are
 * stale and count as absent. The root is always resident.
 */
import { assert } from "../base/assert.ts";
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import type { Clock } from "../base/runtime.ts";
import { endingWith, type Faults } from "../base/sync.ts";
import { TimeStats } from "../base/time_stats.ts";
import type { BucketTable } from "../buckets/table.ts";
import type { KeySet } from "../bset/key_set.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import {
  compareKey,
  INODE_MAX,
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  OFFSET_MAX,
  pointerDevice,
  pointerGen,
  pointerSector,
  setDirty,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import type { Magic } from "../ondisk/magic.ts";
import type { BtreeNode } from "./node.ts";
import { NodeCache } from "./node_cache.ts";
import { type BtreeGeometry, readNode } from "./node_read.ts";

/** What a lookup found at a position. Reused by the caller: no allocation on the hit path. */
export class Segment {
  /** Data in the cache, or a hole. */
  cached = false;
  dirty = false;
  /** The segment reaches to here (exclusive), at most to the end asked for. */
  end = 0;
  /** Sector of the position on the cache device, its bucket and generation; of a cached one. */
  sector = 0;
  bucket = 0;
  gen = 0;
  /** Where the next lookup of a walk along the leaf will probably find its key. */
  baseGuess = 0;
}

/** Siblings that are read ahead of a walk. */
const READ_AHEAD_NODES = 8;

/** The deepest index that can exist: inode and offset bits spread over the smallest nodes. */
const LEVEL_MAX = 32;

export class Btree {
  readonly geometry: BtreeGeometry;
  readonly magic: Magic;
  readonly buckets: BucketTable;
  #device: Device;
  #faults: Faults;
  /** The nodes in memory. */
  readonly cache: NodeCache;
  #loading = new Map<number, Promise<void>>();
  /** Key words and place of the child found last by `#childOf`; used within one call. */
  #foundWords: Uint32Array = new Uint32Array(SLOT_WORDS);
  #foundAt = 0;
  /** Nodes read since start. */
  nodesRead = 0;
  /** How often nodes are read, merged and split, and how long it takes. */
  readonly readTimes: TimeStats = new TimeStats();
  readonly sortTimes: TimeStats = new TimeStats();
  readonly splitTimes: TimeStats = new TimeStats();
  readonly clock: Clock;
  /** Told of every dirty key that `forgetStaleDirt` finds, while somebody wants to know. */
  onStaleDirt: ((words: Uint32Array, at: number) => void) | undefined;

  constructor(options: {
    device: Device;
    geometry: BtreeGeometry;
    magic: Magic;
    buckets: BucketTable;
    faults: Faults;
    /** Nodes are dropped from memory beyond this, dirty ones once they were written. */
    memoryBytesMax: number;
    clock: Clock;
  }) {
    this.clock = options.clock;
    this.#device = options.device;
    this.geometry = options.geometry;
    this.magic = options.magic;
    this.buckets = options.buckets;
    this.#faults = options.faults;
    this.cache = new NodeCache({ faults: options.faults, bytesMax: options.memoryBytesMax });
  }

  get root(): BtreeNode {
    const { root } = this.cache;
    assert(root !== undefined, "the index has a root");
    return root;
  }

  get nodesResident(): number {
    return this.cache.size;
  }

  get residentBytes(): number {
    return this.cache.bytes;
  }

  /** Makes `node` the root. Writing the journal entry that names it is the caller's. */
  setRoot(node: BtreeNode): void {
    this.cache.setRoot(node);
  }

  /** Makes a node findable through the pointer to it. */
  adopt(node: BtreeNode): void {
    this.cache.adopt(node);
  }

  /** Takes a freed node out of memory. */
  drop(node: BtreeNode): void {
    this.cache.drop(node);
  }

  /** Reads the root at start-up. */
  async loadRoot(key: Uint32Array, level: number): Promise<void> {
    if (level > LEVEL_MAX) {
      throw new BcacheError(
        "BadFormat",
        `${this.deviceName}: journal: b-tree root at level ${level}, expected at most ` +
          `${LEVEL_MAX}; ${DAMAGE_ADVICE}`,
      );
    }
    this.setRoot(await this.#read(key, 0, level));
  }

  /** Whether a key of this node counts as absent; see the file's header. */
  isBad(words: Uint32Array, at: number, level: number): boolean {
    if (keyPointers(words, at) === 0 || keySizeSectors(words, at) === 0) return true;
    if (level > 0 && keyOffset(words, at) === 0 && keyInode(words, at) === 0) return true;
    if (pointerDevice(words, at) !== 0) return true;
    const bucket = Math.floor(pointerSector(words, at) / this.geometry.bucketSectors);
    return this.buckets.staleness(bucket, pointerGen(words, at)) > 0;
  }

  /**
   * Finds the pointer to the child that holds what comes after (inode, offset): the first good
   * key behind that position, newer sets first. False: there is none (a damaged index).
   */
  #childOf(node: BtreeNode, inode: number, offset: number): boolean {
    const { base, delta, level } = node;
    let inBase = base.upperBound(inode, offset);
    let inDelta = delta.upperBound(inode, offset);
    for (;;) {
      const baseAt = inBase * SLOT_WORDS;
      const deltaAt = inDelta * SLOT_WORDS;
      let takeDelta = inDelta < delta.count;
      if (takeDelta && inBase < base.count) {
        const words = base.words;
        takeDelta =
          compareKey(delta.words, deltaAt, keyInode(words, baseAt), keyOffset(words, baseAt)) <= 0;
      } else if (!takeDelta && inBase >= base.count) return false;
      this.#foundWords = takeDelta ? delta.words : base.words;
      this.#foundAt = takeDelta ? deltaAt : baseAt;
      if (!this.isBad(this.#foundWords, this.#foundAt, level)) return true;
      if (takeDelta) inDelta++;
      else inBase++;
    }
  }

  /**
   * The node at `level` that holds what comes directly after (inode, offset); undefined when a
   * node on the way is not in memory (see `loadNode`).
   */
  findNode(level: number, inode: number, offset: number): BtreeNode | undefined {
    let node = this.root;
    while (node.level > level) {
      if (!this.#childOf(node, inode, offset)) return this.#noChild(node, inode, offset);
      const bucket = Math.floor(
        pointerSector(this.#foundWords, this.#foundAt) / this.geometry.bucketSectors,
      );
      const child = this.cache.get(bucket);
      if (child === undefined) return undefined;
      if (!this.#isNamedByFound(node, child)) this.#wrongChild(node, child);
      child.used = true;
      node = child;
    }
    return node;
  }

  /** The leaf that holds the extent which begins at or covers sector `start` of `inode`. */
  findLeaf(inode: number, start: number): BtreeNode | undefined {
    return this.findNode(0, inode, start);
  }

  /**
   * Whether the key found last is the one that names this child. In a sound index it is; in one
   * whose keys name a node twice, or lead in a circle, a walk would never end.
   */
  #isNamedByFound(node: BtreeNode, child: BtreeNode): boolean {
    const words = this.#foundWords;
    const at = this.#foundAt;
    return child.level === node.level - 1 && child.endInode === keyInode(words, at) &&
      child.endOffset === keyOffset(words, at);
  }

  #wrongChild(node: BtreeNode, child: BtreeNode): never {
    const end = `${keyInode(this.#foundWords, this.#foundAt)}:` +
      `${keyOffset(this.#foundWords, this.#foundAt)}`;
    this.#refuse(
      node,
      `the key of the child that ends at ${end} names bucket ${child.bucket}, which is a node of ` +
        `level ${child.level} that ends at ${child.endInode}:${child.endOffset} already`,
    );
  }

  #noChild(node: BtreeNode, inode: number, offset: number): never {
    this.#refuse(node, `no child for position ${inode}:${offset}`);
  }

  /** @throws BcacheError BadFormat: the index cannot be used, for what is wrong with this node */
  #refuse(node: BtreeNode, what: string): never {
    const error = new BcacheError(
      "BadFormat",
      `${this.deviceName}: b-tree node (level ${node.level}) at bucket ${node.bucket}: ${what}; ` +
        DAMAGE_ADVICE,
    );
    this.#faults.raise(error);
    throw error;
  }

  /** Of the cache device, for messages. */
  get deviceName(): string {
    return this.#device.name;
  }

  /** Reads the nodes on the way to one, and returns it. Rejects when one cannot be read. */
  async loadNode(level: number, inode: number, offset: number): Promise<BtreeNode> {
    for (;;) {
      const found = this.findNode(level, inode, offset);
      if (found !== undefined) return found;
      await this.#loadNext(level, inode, offset);
    }
  }

  loadLeaf(inode: number, start: number): Promise<BtreeNode> {
    return this.loadNode(0, inode, start);
  }

  /** Reads the first missing node on the way. */
  async #loadNext(level: number, inode: number, offset: number): Promise<void> {
    let node = this.root;
    while (node.level > level) {
      if (!this.#childOf(node, inode, offset)) this.#noChild(node, inode, offset);
      const words = this.#foundWords;
      const at = this.#foundAt;
      const bucket = Math.floor(pointerSector(words, at) / this.geometry.bucketSectors);
      const child = this.cache.get(bucket);
      if (child === undefined) return await this.#loadChild(words, at, node.level - 1, false);
      if (!this.#isNamedByFound(node, child)) this.#wrongChild(node, child);
      node = child;
    }
  }

  /** Reads a node once, whoever asks for it meanwhile. */
  #loadChild(words: Uint32Array, at: number, level: number, ahead: boolean): Promise<void> {
    const key = words.slice(at, at + SLOT_WORDS);
    const bucket = Math.floor(pointerSector(key, 0) / this.geometry.bucketSectors);
    const underWay = this.#loading.get(bucket);
    if (underWay !== undefined) return underWay;
    const loaded = this.#load(key, level, ahead);
    const loading = endingWith(loaded, () => this.#loading.delete(bucket));
    this.#loading.set(bucket, loading);
    return loading;
  }

  /** `ahead`: nobody needs it yet, so when it cannot be read nothing is wrong yet either. */
  async #load(key: Uint32Array, level: number, ahead: boolean): Promise<void> {
    const bucket = Math.floor(pointerSector(key, 0) / this.geometry.bucketSectors);
    const gen = pointerGen(key, 0);
    const bytes = keySizeSectors(key, 0) * SECTOR_BYTES;
    this.cache.expect(bytes);
    let node: BtreeNode;
    try {
      if (!ahead) await this.cache.makeRoom();
      node = await this.#read(key, 0, level);
    } catch (error) {
      // await: the node may have been freed and its bucket reused; then nothing is wrong.
      if (ahead || this.buckets.staleness(bucket, gen) > 0) return;
      this.#faults.raise(error);
      throw error;
    } finally {
      this.cache.arrived(bytes);
    }
    if (this.buckets.staleness(bucket, gen) > 0) return;
    this.adopt(node);
  }

  async #read(key: Uint32Array, at: number, level: number): Promise<BtreeNode> {
    const began = this.clock.nowMs();
    const node = await readNode(this.#device, { key, at, level }, {
      geometry: this.geometry,
      magic: this.magic,
    });
    this.readTimes.record(began, this.clock.nowMs());
    this.nodesRead++;
    if (level === 0) this.forgetStaleDirt(node.base);
    return node;
  }

  /**
   * A dirty key whose pointer is stale: an old journal entry brought it back. Its data is gone
   * and was superseded; it must not count as dirty. (A bucket with dirty data never goes stale
   * while we run.)
   */
  forgetStaleDirt(set: KeySet): void {
    for (let at = 0; at < set.count * SLOT_WORDS; at += SLOT_WORDS) {
      if (!keyDirty(set.words, at) || !this.isBad(set.words, at, 0)) continue;
      this.onStaleDirt?.(set.words, at);
      setDirty(set.words, at, false);
    }
  }

  /**
   * What is cached at sector `start` of `inode`: fills `segment`, which ends at `end` at the
   * latest, and at the leaf's end. `leaf` is the one that `findLeaf(inode, start)` gave.
   */
  lookup(
    leaf: BtreeNode,
    inode: number,
    start: number,
    end: number,
    segment: Segment,
  ): void {
    segment.cached = false;
    segment.dirty = false;
    segment.end = leaf.endInode === inode && leaf.endOffset < end ? leaf.endOffset : end;
    // Live extents of the two sets do not overlap: at most one of them covers `start`.
    const inBase = leaf.base.upperBoundNear(inode, start, segment.baseGuess);
    segment.baseGuess = inBase + 1;
    if (!this.#lookupIn(leaf.base, inBase, inode, start, segment) && leaf.delta.count > 0) {
      const inDelta = leaf.delta.upperBound(inode, start);
      this.#lookupIn(leaf.delta, inDelta, inode, start, segment);
    }
  }

  /** Narrows `segment` by the first good extent from key `first` on; true: it covers start. */
  #lookupIn(
    set: KeySet,
    first: number,
    inode: number,
    start: number,
    segment: Segment,
  ): boolean {
    const words = set.words;
    for (let index = first; index < set.count; index++) {
      const at = index * SLOT_WORDS;
      if (keyInode(words, at) !== inode) return false;
      const keyEnd = keyOffset(words, at);
      const size = keySizeSectors(words, at);
      const begin = keyEnd - size;
      if (begin >= segment.end) return false;
      if (size === 0 || keyPointers(words, at) === 0 || pointerDevice(words, at) !== 0) continue;
      const sector = pointerSector(words, at);
      const bucket = Math.floor(sector / this.geometry.bucketSectors);
      const gen = pointerGen(words, at);
      if (this.buckets.staleness(bucket, gen) > 0) continue;
      if (begin > start) {
        segment.end = begin;
        return false;
      }
      segment.cached = true;
      segment.dirty = keyDirty(words, at);
      if (keyEnd < segment.end) segment.end = keyEnd;
      segment.sector = sector + (start - begin);
      segment.bucket = bucket;
      segment.gen = gen;
      return true;
    }
    return false;
  }

  /**
   * Visits every node of `level` in key order, from the node behind (inode, offset) on. `visit`
   * sees each node synchronously, complete and reachable; it returns false to stop, or a promise
   * to be waited for before going on. The next siblings are read meanwhile.
   */
  async walk(
    level: number,
    from: { inode: number; offset: number },
    visit: (node: BtreeNode) => boolean | Promise<boolean>,
  ): Promise<void> {
    let { inode, offset } = from;
    const ahead = new Set<Promise<void>>();
    try {
      for (;;) {
        const node = await this.loadNode(level, inode, offset);
        const { endInode, endOffset } = node;
        this.#readAhead(level, endInode, endOffset, ahead);
        const goOn = visit(node);
        if (!(typeof goOn === "boolean" ? goOn : await goOn)) return;
        if (endInode === INODE_MAX && endOffset >= OFFSET_MAX) return;
        inode = endInode;
        offset = endOffset;
      }
    } finally {
      // Nobody is left behind who still uses the device.
      await Promise.all(ahead);
    }
  }

  /**
   * Begins to read the nodes behind a position that are not in memory, as far as their parent
   * there is and memory has room. What goes wrong is found out by who comes to need them.
   */
  #readAhead(level: number, inode: number, offset: number, ahead: Set<Promise<void>>): void {
    if (level >= this.root.level || (inode === INODE_MAX && offset >= OFFSET_MAX)) return;
    const parent = this.findNode(level + 1, inode, offset);
    if (parent === undefined) return;
    const { base } = parent;
    const nodeBytes = this.geometry.nodeSectors * SECTOR_BYTES;
    let index = base.upperBound(inode, offset);
    for (let nodes = 0; nodes < READ_AHEAD_NODES && index < base.count; index++) {
      const at = index * SLOT_WORDS;
      if (this.isBad(base.words, at, level + 1)) continue;
      nodes++;
      const bucket = Math.floor(pointerSector(base.words, at) / this.geometry.bucketSectors);
      if (this.cache.get(bucket) !== undefined || this.#loading.has(bucket)) continue;
      if (ahead.size >= READ_AHEAD_NODES || !this.cache.hasRoom(nodeBytes)) return;
      const child = this.#loadChild(base.words, at, level, true);
      const loading: Promise<void> = endingWith(child, () => ahead.delete(loading));
      ahead.add(loading);
    }
  }
}
