/**
 * Writing runs of dirty extents to the backing device, several at a time, and making their keys
 * clean. Answers to `read_dirty`, `write_dirty` and `write_dirty_finish` of writeback.c.
 *
 * Order, for each run:
 *   1. its range is held: no other write to the backing device can pass it
 *   2. what is dirty in it is read from the cache
 *   3. it is written to the backing device, in the order in which runs were dispatched: a rotating
 *      disk then gets ascending addresses
 *   4. the backing device is flushed, for many runs at once
 *   5. only then its keys are made clean, where they still say what was written (a newer one wins)
 * Linux leaves out step 4 and can lose data that was flushed long ago. When any step fails, the
 * data stays dirty.
 */
import { endingWith, Shared, Signal } from "../../base/sync.ts";
import { Segment } from "../../btree/btree.ts";
import { BATCH_KEYS_MAX } from "../../btree/insert.ts";
import type { CachedDevice } from "../requests/cached_device.ts";
import type { BufferedKey, KeyBuffer } from "../key_buffer.ts";
import { BatchBuilder, type RequestParts } from "../request_parts.ts";
import type { WritebackGroup } from "./writeback_group.ts";

/** Keys of a run, and sectors after which no further key joins it; as in the kernel. */
const RUN_KEYS_MAX = 5;
const RUN_SECTORS_FULL = 5000;
/** A run is written in chunks of this at most: extents can be 32 MiB long. */
const CHUNK_SECTORS_MAX = 8192;
/** Written and not yet clean: what one flush is shared by. */
const SETTLE_KEYS = 250;
const SETTLE_SECTORS = 32768;
/** When little is written, keys do not wait longer than this for the flush. */
const SETTLE_AFTER_MS = 1000;

/** Contiguous keys of the buffer, in flight. */
interface Run {
  readonly keys: BufferedKey[];
  readonly start: number;
  readonly end: number;
}

/** Dirty sectors that lie together, on both devices; their bucket is pinned. */
interface Piece {
  readonly start: number;
  readonly sectors: number;
  readonly sector: number;
  readonly gen: number;
  readonly bucket: number;
}

/** A run on the backing device, not yet known to stay there. */
interface Written {
  readonly keys: BufferedKey[];
  readonly pieces: Piece[];
  /** Of the backing device, before it was written: after one more the run may be lost. */
  readonly failedFlushes: number;
}

/** A run's place in the order of writes. */
interface Turn {
  /** Resolves when the runs before have issued theirs. */
  readonly before: Promise<void>;
  /** This one has issued its own, or has none. */
  readonly issued: () => void;
}

/** Takes the next run from a buffer; undefined: nothing is pending. */
function takeRun(keys: KeyBuffer): Run | undefined {
  const first = keys.takeNext();
  if (first === undefined) return undefined;
  const run = [first];
  let { end } = first;
  while (run.length < RUN_KEYS_MAX && end - first.start < RUN_SECTORS_FULL) {
    if (keys.peekNext()?.start !== end) break;
    const next = keys.takeNext()!;
    run.push(next);
    end = next.end;
  }
  return { keys: run, start: first.start, end };
}

export class WritebackOutput {
  /** Runs read and written at a time. */
  inFlightMax = 16;
  #dev: CachedDevice;
  #parts: RequestParts;
  #group: WritebackGroup;
  #keys: KeyBuffer;
  #inFlight = new Set<Promise<void>>();
  #changed = new Signal();
  /** Resolves when every run dispatched so far has issued its writes. */
  #issued: Promise<void> = Promise.resolve();
  #written: Written[] = [];
  #writtenKeys = 0;
  #writtenSectors = 0;
  #writtenSinceMs = 0;
  #settles = new Shared(() => this.#settleOnce());
  #settling: Promise<void> | undefined;
  #failure: unknown;
  /** Used by one settling at a time. */
  #builder = new BatchBuilder();
  #cleanSegment = new Segment();
  /** Used within one synchronous step. */
  #dirtySegment = new Segment();
  /** Runs that failed since the last one that did not. */
  failuresInARow = 0;
  /** Extents of this device that were written back since start. */
  keysDone = 0;

  constructor(dev: CachedDevice, parts: RequestParts, keys: KeyBuffer, group: WritebackGroup) {
    this.#dev = dev;
    this.#parts = parts;
    this.#keys = keys;
    this.#group = group;
  }

  /** The first failure since the last call. */
  takeFailure(): unknown {
    const failure = this.#failure;
    this.#failure = undefined;
    this.failuresInARow = 0;
    return failure;
  }

  #noteFailure(error: unknown): void {
    this.#failure ??= error;
  }

  /**
   * Begins to write the next run of the buffer, when one more may be in flight. Returns its
   * sectors; 0: nothing is pending. Never rejects.
   */
  async dispatch(): Promise<number> {
    while (this.#inFlight.size >= this.inFlightMax) await this.#changed.wait();
    const run = takeRun(this.#keys);
    if (run === undefined) return 0;
    const before = this.#issued;
    let issued = () => {};
    this.#issued = new Promise((resolve) => {
      issued = resolve;
    });
    const writing: Promise<void> = endingWith(this.#carryOut(run, { before, issued }), () => {
      this.#inFlight.delete(writing);
      this.#changed.raise();
    });
    this.#inFlight.add(writing);
    this.settleIfDue();
    return run.end - run.start;
  }

  /** Never rejects. */
  async #carryOut(run: Run, turn: Turn): Promise<void> {
    try {
      await this.#writeRun(run, turn);
    } catch (error) {
      this.failuresInARow++;
      this.#noteFailure(error);
      this.#finish(run.keys, false);
    }
    // Whatever came of this run: the ones behind it are not before the ones ahead of it.
    await turn.before;
    turn.issued();
  }

  #finish(keys: readonly BufferedKey[], clean: boolean): void {
    for (const key of keys) this.#keys.finish(key);
    if (clean) {
      this.keysDone += keys.length;
      this.#group.keysDone += keys.length;
    } else this.#group.keysFailed += keys.length;
  }

  /** Waits until a run or a settling has ended, having begun a settling if nothing else goes on. */
  async progress(): Promise<void> {
    if (this.#inFlight.size > 0) await this.#changed.wait();
    else await this.#settle();
  }

  /** Waits until everything dispatched is written and its keys are clean, or has failed. */
  async finish(): Promise<void> {
    while (this.#inFlight.size > 0) await this.#changed.wait();
    await this.#settle();
  }

  // --- One run ---

  async #writeRun(run: Run, turn: Turn): Promise<void> {
    const { locks } = this.#dev;
    const written: Piece[] = [];
    const { failedFlushes } = this.#dev;
    const range = await locks.acquire(run.start, run.end, true);
    try {
      for (let at = run.start; at < run.end;) {
        // await: keys change all the time, so each chunk is looked up just before it is read.
        const pieces = await this.#takeDirty(at, run.end);
        const last = pieces.at(-1);
        if (last === undefined) break;
        await this.#copy(pieces, turn);
        written.push(...pieces);
        at = last.start + last.sectors;
      }
    } finally {
      locks.release(range);
    }
    this.failuresInARow = 0;
    this.#noteWritten(run, { keys: run.keys, pieces: written, failedFlushes });
  }

  /** The first dirty sectors in [at, end), as far as they are contiguous; pins their buckets. */
  async #takeDirty(at: number, end: number): Promise<Piece[]> {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    for (;;) {
      const { pieces, next } = this.#gather(at, end);
      if (pieces.length > 0 || next >= end) return pieces;
      at = next;
      await btree.loadLeaf(inode, at);
    }
  }

  /** As much of it as the leaves in memory say. `next` is where the first missing one begins. */
  #gather(at: number, end: number): { pieces: Piece[]; next: number } {
    const { btree, buckets } = this.#parts;
    const { inode } = this.#dev;
    const segment = this.#dirtySegment;
    const pieces: Piece[] = [];
    let limit = end;
    for (; at < limit; at = segment.end) {
      const leaf = btree.findLeaf(inode, at);
      if (leaf === undefined) break;
      btree.lookup(leaf, inode, at, limit, segment);
      if (!segment.cached || !segment.dirty) {
        if (pieces.length > 0) break;
        continue;
      }
      if (pieces.length === 0) limit = Math.min(end, at + CHUNK_SECTORS_MAX);
      const { sector, gen, bucket } = segment;
      const sectors = Math.min(segment.end, limit) - at;
      pieces.push({ start: at, sectors, sector, gen, bucket });
      buckets.pin(bucket);
    }
    return { pieces, next: at };
  }

  /** Copies contiguous pieces to the backing device, and unpins their buckets. */
  async #copy(pieces: readonly Piece[], turn: Turn): Promise<void> {
    const { buckets } = this.#parts;
    const first = pieces[0]!;
    const last = pieces.at(-1)!;
    const bytes = new Uint8Array((last.start + last.sectors - first.start) * 512);
    try {
      await this.#readPieces(pieces, bytes);
    } finally {
      for (const { bucket } of pieces) buckets.unpin(bucket);
    }
    await turn.before;
    const writing = this.#dev.writeBacking(first.start, bytes);
    turn.issued();
    await writing;
  }

  /** Reads what lies together on the cache device in one go, all at the same time. */
  async #readPieces(pieces: readonly Piece[], into: Uint8Array): Promise<void> {
    const { cache } = this.#parts;
    const base = pieces[0]!.start;
    const reads: Array<Promise<void>> = [];
    for (let index = 0; index < pieces.length;) {
      const { start, sector } = pieces[index]!;
      let { sectors } = pieces[index]!;
      for (index++; pieces[index]?.sector === sector + sectors; index++) {
        sectors += pieces[index]!.sectors;
      }
      const at = (start - base) * 512;
      reads.push(cache.read(sector, into.subarray(at, at + sectors * 512)));
    }
    // All of them, before the buckets are let go.
    for (const result of await Promise.allSettled(reads)) {
      if (result.status === "fulfilled") continue;
      this.#parts.noteCacheError(result.reason);
      throw result.reason;
    }
  }

  // --- Making clean ---

  #noteWritten(run: Run, written: Written): void {
    if (this.#written.length === 0) this.#writtenSinceMs = this.#parts.clock.nowMs();
    this.#written.push(written);
    this.#writtenKeys += run.keys.length;
    this.#writtenSectors += run.end - run.start;
  }

  /** Begins to flush and to make clean in the background, when it is time. */
  settleIfDue(): void {
    if (this.#written.length === 0 || this.#settling !== undefined) return;
    const ageMs = this.#parts.clock.nowMs() - this.#writtenSinceMs;
    const due = this.#writtenKeys >= SETTLE_KEYS || this.#writtenSectors >= SETTLE_SECTORS ||
      ageMs >= SETTLE_AFTER_MS;
    if (!due) return;
    this.#settling = endingWith(this.#settles.run(), () => {
      this.#settling = undefined;
    });
  }

  async #settle(): Promise<void> {
    if (this.#settling !== undefined) await this.#settling;
    await this.#settles.run();
  }

  /** Never rejects: a failure is noted, and the keys stay dirty. */
  async #settleOnce(): Promise<void> {
    const written = this.#written;
    if (written.length === 0) return;
    this.#written = [];
    this.#writtenKeys = 0;
    this.#writtenSectors = 0;
    let at = 0;
    try {
      // The index of a failed set goes nowhere any more, and says what its journal says.
      if (this.#parts.faults.failed !== undefined) throw this.#parts.faults.failed;
      // Before any key says clean: the data must be on the backing device to stay.
      await this.#dev.flushWrites();
      const { failedFlushes } = this.#dev;
      for (; at < written.length; at++) {
        const run = written[at]!;
        const stable = run.failedFlushes === failedFlushes;
        this.#finish(run.keys, stable && await this.#markClean(run.pieces));
      }
    } catch (error) {
      this.failuresInARow++;
      this.#noteFailure(error);
      for (; at < written.length; at++) this.#finish(written[at]!.keys, false);
    }
  }

  /**
   * Inserts clean keys for what nobody changed since it was read. Not journaled: were they lost,
   * the dirty keys would come back and be written once more. False: something changed.
   */
  async #markClean(pieces: readonly Piece[]): Promise<boolean> {
    const { committer, btree } = this.#parts;
    const builder = this.#builder;
    let unchanged = pieces.length > 0;
    for (const piece of pieces) {
      const end = piece.start + piece.sectors;
      for (let at = piece.start; at < end;) {
        const { next, cleaned } = this.#addClean(builder, piece, at);
        if (next === at) {
          await btree.loadLeaf(this.#dev.inode, at);
        } else if (cleaned === 0 || committer.tryInsertVolatile(builder.batch)) {
          unchanged &&= cleaned === next - at;
          at = next;
        } else await committer.whenInsertable(builder.batch);
        // await: after waiting, the same place is looked at once more.
      }
    }
    return unchanged;
  }

  /**
   * Fills the batch with keys for the part of a piece from `at` on that is as it was. Looked at up
   * to `next`: `at` itself when the leaf is not in memory.
   */
  #addClean(builder: BatchBuilder, piece: Piece, at: number): { next: number; cleaned: number } {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    const end = piece.start + piece.sectors;
    const segment = this.#cleanSegment;
    let cleaned = 0;
    builder.clear();
    for (; at < end && builder.batch.count < BATCH_KEYS_MAX; at = segment.end) {
      const leaf = btree.findLeaf(inode, at);
      if (leaf === undefined) break;
      btree.lookup(leaf, inode, at, end, segment);
      const same = segment.cached && segment.dirty && segment.gen === piece.gen &&
        segment.sector === piece.sector + (at - piece.start);
      if (!same) continue;
      const { bucket, gen, sector } = segment;
      builder.addData(inode, at, { bucket, gen, sector, sectors: segment.end - at }, false);
      cleaned += segment.end - at;
    }
    return { next: at, cleaned };
  }
}
