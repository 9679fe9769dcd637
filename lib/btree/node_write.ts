/**
 * Writing b-tree nodes: appending the delta of a node as one more set. Answers to
 * `do_btree_node_write` and `bch_btree_leaf_dirty` of btree.c.
 *
 * Order of every write:
 *   before  the data that a leaf's keys point to is stable (preflush), and what makes the node
 *           itself reachable is stable (`writesHeldBy`)
 *   then    the set is written and made stable (fua); the next set of the same node is only
 *           issued after that, or a power cut could leave a gap in the log
 *   after   the journal entries that held these keys are let go
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import type { Clock } from "../base/runtime.ts";
import { allEnded, endingWith, type Faults, type TaskGroup } from "../base/sync.ts";
import { DistrustedInodes } from "../bset/distrusted.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeDelta, mergePointers } from "../bset/merge.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";
import type { PinHolder } from "../journal/pins.ts";
import { SLOT_WORDS } from "../ondisk/bkey.ts";
import {
  BSET_HEADER_BYTES,
  BSET_HEADER_WORDS,
  encodeBset,
  readBsetHeader,
  resealBset,
} from "../ondisk/bset.ts";
import type { Magic } from "../ondisk/magic.ts";
import type { Btree } from "./btree.ts";
import type { BtreeNode } from "./node.ts";
import type { BtreeGeometry } from "./node_read.ts";

/** A dirty leaf is written after this long at the latest, as in the kernel. */
const DIRTY_DELAY_MS = 30_000;
/** A delta longer than this is written at once: one page less the kernel's margin. */
const DELTA_BYTES_MAX = 4048;

/** The journal as the index sees it: who holds which entry. */
export interface PinSource {
  pin(seq: number, holder: PinHolder): void;
  unpin(seq: number, holder: PinHolder): void;
}

interface Writable {
  readonly node: BtreeNode;
  readonly holder: PinHolder;
}

export class NodeWriter {
  #device: Device;
  #geometry: BtreeGeometry;
  #magic: Magic;
  #pins: PinSource;
  #clock: Clock;
  #faults: Faults;
  #tasks: TaskGroup;
  #distrusted: DistrustedInodes;
  /** Dirty leaves, oldest first. */
  #dirty = new Map<BtreeNode, Writable>();
  /** Nodes with writes under way, or waiting for their turn. */
  #writing = new Set<BtreeNode>();
  /** Those that are being replaced; settled when the replacement is durably reachable. */
  #replacements = new Set<Promise<void>>();
  #watching = false;
  #btree: Btree;
  #relieving = false;
  /** Sectors of sets written since start. */
  writtenSectors = 0;
  /** Told of a leaf that will soon have no room. */
  onNearlyFull: ((node: BtreeNode) => void) | undefined;

  constructor(options: {
    device: Device;
    geometry: BtreeGeometry;
    magic: Magic;
    pins: PinSource;
    clock: Clock;
    faults: Faults;
    tasks: TaskGroup;
    /** Its cache of nodes is told when they grow, and asks for writes when room is short. */
    btree: Btree;
    /** Devices no clean key of which may become durable; none if absent. */
    distrusted?: DistrustedInodes;
  }) {
    this.#btree = options.btree;
    this.#btree.cache.flusher = this;
    this.#btree.cache.onPressure = () => this.#relieveSoon();
    this.#device = options.device;
    this.#geometry = options.geometry;
    this.#magic = options.magic;
    this.#pins = options.pins;
    this.#clock = options.clock;
    this.#faults = options.faults;
    this.#tasks = options.tasks;
    this.#distrusted = options.distrusted ?? new DistrustedInodes();
  }

  get dirtyCount(): number {
    return this.#dirty.size;
  }

  /**
   * Keys came into the node's delta. @param seq the journal entry that holds them; 0: none does
   * (a clean key that may be lost).
   */
  markDirty(node: BtreeNode, seq: number): void {
    node.changes++;
    this.#btree.cache.resized(node);
    let entry = this.#dirty.get(node);
    if (entry === undefined) {
      entry = { node, holder: { flushForJournal: () => this.write(node) } };
      this.#dirty.set(node, entry);
      node.dirty = true;
      node.dirtySinceMs = this.#clock.nowMs();
      if (!this.#watching) this.#tasks.start((signal) => this.#watch(signal));
    }
    if (seq > 0 && node.pinSeq === 0) {
      node.pinSeq = seq;
      this.#pins.pin(seq, entry.holder);
    }
    const long = node.delta.count * SLOT_WORDS * 4 + BSET_HEADER_BYTES > DELTA_BYTES_MAX;
    if (long && node.writesPending === 0 && node.writesHeldBy === undefined) {
      this.#tasks.start(() => this.write(node));
    }
  }

  /**
   * The node's keys will be made durable by other means: it is not dirty any more. The result
   * lets go of the journal entry that held them; to be called once they are durable.
   * @param over resolves after that, or when the set has failed; absent: they are durable now
   */
  detach(node: BtreeNode, over?: Promise<void>): () => void {
    const entry = this.#dirty.get(node);
    const { pinSeq } = node;
    this.#dirty.delete(node);
    node.dirty = false;
    node.pinSeq = 0;
    if (over !== undefined) {
      this.#replacements.add(over);
      void over.then(() => this.#replacements.delete(over));
    }
    return () => {
      if (pinSeq > 0) this.#pins.unpin(pinSeq, entry!.holder);
    };
  }

  /** Resolves when every key that is in the node now is durable. Rejects when the set failed. */
  write(node: BtreeNode): Promise<void> {
    return this.#track(node, () => this.#writeAfter(node, node.lastWrite));
  }

  #track(node: BtreeNode, work: () => Promise<void>): Promise<void> {
    node.writesPending++;
    this.#writing.add(node);
    const run = endingWith(work(), () => {
      node.writesPending--;
      if (node.writesPending === 0) this.#writing.delete(node);
    });
    node.lastWrite = run.catch((error) => this.#faults.raise(error));
    return run;
  }

  /**
   * Begins at once to write a node that was just made and that nobody can reach yet. Resolves when
   * it is durable.
   */
  writeNew(node: BtreeNode): Promise<void> {
    assert(node.writtenBlocks === 0 && node.writesPending === 0, "a new node is written once");
    assert(node.pinSeq === 0, "the journal does not wait for a new node");
    return this.#track(node, () => this.#writeFirst(node));
  }

  async #writeFirst(node: BtreeNode): Promise<void> {
    this.assertServing();
    const { atSector, bytes } = this.#seal(node);
    await this.#append(node, atSector, bytes);
  }

  /**
   * Writes every node that is dirty now. Resolves when all that is in the index now is durable
   * there, also what was being written or replaced already: that is not dirty any more, but its
   * keys are still in the journal alone.
   */
  async writeAllDirty(): Promise<void> {
    for (;;) {
      const replacements = [...this.#replacements];
      const underWay = [...this.#writing].map((node) => node.lastWrite).concat(replacements);
      await allEnded([...[...this.#dirty.keys()].map((node) => this.write(node)), ...underWay]);
      if (underWay.length > 0) this.assertServing(); // These do not say that they failed.
      // A leaf that was replaced passed on, dirty, what it took meanwhile.
      if (replacements.length === 0) return;
    }
  }

  /** @throws BcacheError SetFailed when nothing is written any more. */
  assertServing(): void {
    const { failed } = this.#faults;
    if (failed) throw new BcacheError("SetFailed", `the cache set has failed: ${failed.message}`);
  }

  async #writeAfter(node: BtreeNode, previous: Promise<void>): Promise<void> {
    await previous;
    while (node.writesHeldBy !== undefined) await node.writesHeldBy;
    this.assertServing();
    // A replaced node's keys are in its replacement; they are let go when that is reachable.
    if (node.replacedBy !== undefined) return await node.replacedBy;
    if (!node.dirty && node.writtenBlocks > 0) return;
    const holder = this.#dirty.get(node)?.holder;
    const pinSeq = node.pinSeq;
    const { atSector, bytes } = this.#seal(node);
    await this.#append(node, atSector, bytes);
    if (pinSeq > 0) this.#pins.unpin(pinSeq, holder!);
  }

  /**
   * Writes a set so that a power cut leaves all of it or none: what is behind its first sector
   * goes first. Without the header, in that sector, it is no set; the header is written once the
   * rest, and the data that the keys point to, are stable. (Linux writes both at once; torn, such
   * a node stops it from starting, although the journal has all the keys.)
   */
  async #append(node: BtreeNode, atSector: number, bytes: Uint8Array): Promise<void> {
    let additions: number;
    this.#makeStale(node, bytes);
    do {
      ({ additions } = this.#distrusted);
      if (bytes.length > SECTOR_BYTES) {
        await this.#device.write(atSector + 1, bytes.subarray(SECTOR_BYTES));
      }
      await this.#device.flush();
      // A backing device may have failed that flush: then some keys are others.
    } while (this.#makeStale(node, bytes, additions));
    await this.#device.write(atSector, bytes.subarray(0, SECTOR_BYTES), { fua: true });
  }

  /** Makes keys of a sealed leaf stale that must not become durable; see DistrustedInodes. */
  #makeStale(node: BtreeNode, bytes: Uint8Array, after: number = 0): boolean {
    if (node.level > 0) return false;
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const end = BSET_HEADER_WORDS + 2 * readBsetHeader(words, 0).keyWords64;
    if (!this.#distrusted.makeStale(words, BSET_HEADER_WORDS, end, after)) return false;
    resealBset(bytes, node.identity(this.#magic));
    return true;
  }

  /** Takes the delta into a buffer for the device and merges it into the base: synchronous. */
  #seal(node: BtreeNode): { atSector: number; bytes: Uint8Array } {
    const { blockSectors, bucketSectors } = this.#geometry;
    const delta = node.delta;
    const blocks = Math.ceil((BSET_HEADER_BYTES + delta.diskWords() * 4) / node.blockBytes);
    assert(node.writtenBlocks + blocks <= node.blocks, "the delta of a node fits behind its sets");
    assert(node.writtenBlocks === 0 || delta.count > 0, "an appended set has keys");
    const bytes = new Uint8Array(blocks * node.blockBytes);
    encodeBset(bytes, {
      identity: node.identity(this.#magic),
      seqLow: node.seqLow,
      seqHigh: node.seqHigh,
      slots: delta.words,
      slotWords: SLOT_WORDS,
      count: delta.count,
    });
    const atSector = node.sector + node.writtenBlocks * blockSectors;
    node.writtenBlocks += blocks;
    this.writtenSectors += bytes.length / SECTOR_BYTES;
    // In time: a leaf that is being replaced still takes keys, a full one does not.
    const nearlyFull = (node.blocks - node.writtenBlocks) * 8 < node.blocks;
    if (node.level === 0 && nearlyFull) this.onNearlyFull?.(node);
    if (delta.count > 0) {
      const began = this.#clock.nowMs();
      node.base = node.level === 0
        ? mergeDelta(node.base, delta, bucketSectors)
        : mergePointers(node.base, delta);
      node.delta = new KeySet();
      this.#btree.sortTimes.record(began, this.#clock.nowMs());
      this.#btree.cache.resized(node);
    }
    this.#dirty.delete(node);
    node.dirty = false;
    node.pinSeq = 0; // The pin itself stays until the write is durable.
    return { atSector, bytes };
  }

  /**
   * Nodes grew beyond the bound of memory. What is to be dropped is chosen in a turn of its own:
   * whoever made them grow counts on finding them.
   */
  #relieveSoon(): void {
    if (this.#relieving) return;
    this.#relieving = true;
    this.#tasks.start(async () => {
      try {
        await this.#clock.turn();
        await this.#btree.cache.makeRoom();
      } finally {
        this.#relieving = false;
      }
    });
  }

  /** Writes leaves that have been dirty for long; ends when none is dirty. */
  async #watch(signal: AbortSignal): Promise<void> {
    this.#watching = true;
    try {
      while (!signal.aborted && !this.#faults.failed) {
        const oldest = this.#dirty.keys().next();
        if (oldest.done) return;
        const waitMs = oldest.value.dirtySinceMs + DIRTY_DELAY_MS - this.#clock.nowMs();
        if (waitMs > 0) await this.#clock.sleep(waitMs, signal);
        else await this.write(oldest.value);
      }
    } finally {
      this.#watching = false;
    }
  }
}
