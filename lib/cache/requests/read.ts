/**
 * Reading a cached device. Answers to `cached_dev_read`, `cache_lookup` and `cached_dev_cache_miss`
 * of request.c.
 *
 * `tryRead` serves what is wholly cached without waiting. `read` goes along the range piece by
 * piece: cached pieces from the cache device, holes from the backing device; what was read from a
 * hole is put into the cache when the request is not to be bypassed and nobody changed the range
 * meanwhile (see Fills). A bucket is pinned while it is read asynchronously.
 */
import { BcacheError, messageOf } from "../../base/errors.ts";
import { Segment } from "../../btree/btree.ts";
import { BATCH_KEYS_MAX } from "../../btree/insert.ts";
import type { CachedDevice } from "./cached_device.ts";
import type { Fill } from "../ranges.ts";
import { BatchBuilder, type RequestParts } from "../request_parts.ts";
import { verifyCleanHit } from "./verify.ts";

/** Pieces one synchronous read may consist of. */
const PIECES_MAX = 256;
/** The longest piece read from the backing device at once, and filled as one. */
const FILL_SECTORS_MAX = 2048;

export class ReadPath {
  #dev: CachedDevice;
  #parts: RequestParts;
  #segment = new Segment();
  #pieceSector = new Float64Array(PIECES_MAX);
  #pieceSectors = new Uint32Array(PIECES_MAX);
  #pieceBucket = new Uint32Array(PIECES_MAX);
  /** Reused for every decision: no allocation on the hit path. */
  #decision = { mode: "none" as CachedDevice["mode"], inUsePercent: 0, detaching: false };

  constructor(dev: CachedDevice, parts: RequestParts) {
    this.#dev = dev;
    this.#parts = parts;
  }

  /** Whether the request goes past the cache; counts it. */
  #bypass(start: number, sectors: number): boolean {
    const decision = this.#decision;
    decision.mode = this.#dev.mode;
    decision.inUsePercent = this.#parts.buckets.inUsePercent();
    decision.detaching = this.#dev.detaching;
    const { bypass, stats, dataOffset } = this.#dev;
    const reason = bypass.reason(start - dataOffset, sectors, false, decision);
    bypass.count(reason);
    if (reason === "none") return false;
    stats.bypassed(sectors);
    return true;
  }

  /**
   * Fills `into` with what lies from sector `start` of the backing device on, if all of it is
   * cached and can be had at once. False: nothing happened, `into` is undefined.
   */
  tryRead(start: number, into: Uint8Array): boolean {
    const { btree, cache, buckets } = this.#parts;
    const sync = cache.sync;
    if (sync === undefined || this.#dev.verify) return false;
    const sectors = into.length / 512;
    const end = start + sectors;
    const { inode } = this.#dev;
    const segment = this.#segment;
    let pieces = 0;
    for (let at = start; at < end;) {
      const leaf = btree.findLeaf(inode, at);
      if (leaf === undefined) return false;
      do {
        btree.lookup(leaf, inode, at, end, segment);
        if (!segment.cached || pieces === PIECES_MAX) return false;
        this.#pieceSector[pieces] = segment.sector;
        this.#pieceSectors[pieces] = segment.end - at;
        this.#pieceBucket[pieces] = segment.bucket;
        pieces++;
        at = segment.end;
      } while (at < end && (leaf.endInode > inode || leaf.endOffset > at));
    }
    let byte = 0;
    for (let piece = 0; piece < pieces; piece++) {
      const bytes = this.#pieceSectors[piece]! * 512;
      const whole = bytes === into.length;
      try {
        sync.read(this.#pieceSector[piece]!, whole ? into : into.subarray(byte, byte + bytes));
      } catch {
        // The asynchronous path reads again, counts the error and knows what to do about it.
        return false;
      }
      buckets.touch(this.#pieceBucket[piece]!);
      byte += bytes;
    }
    const bypass = this.#bypass(start, sectors);
    if (!bypass) buckets.rescale(sectors);
    this.#dev.stats.read(true, bypass);
    return true;
  }

  /** The same for anything. Rejects with BcacheError DeviceIo. */
  async read(start: number, into: Uint8Array): Promise<void> {
    const sectors = into.length / 512;
    const end = start + sectors;
    const bypass = this.#bypass(start, sectors);
    if (!bypass) this.#parts.buckets.rescale(sectors);
    let hit = true;
    for (let at = start; at < end;) {
      const piece = await this.#readPiece(at, end, bypass, {
        into: into.subarray((at - start) * 512),
      });
      if (!piece.hit) hit = false;
      at = piece.end;
    }
    this.#dev.stats.read(hit, bypass);
  }

  /** Reads from `at` to the end of what is alike, at most to `end`. */
  async #readPiece(
    at: number,
    end: number,
    bypass: boolean,
    target: { into: Uint8Array },
  ): Promise<{ end: number; hit: boolean }> {
    const { btree } = this.#parts;
    const { inode } = this.#dev;
    const segment = new Segment();
    let leaf = btree.findLeaf(inode, at);
    // await: the tree may change while a node is read, so it is walked anew.
    while (leaf === undefined) {
      await btree.loadLeaf(inode, at);
      leaf = btree.findLeaf(inode, at);
    }
    btree.lookup(leaf, inode, at, end, segment);
    let stop = segment.end;
    if (segment.cached) {
      await this.#readCached(at, segment, target.into.subarray(0, (stop - at) * 512));
      return { end: stop, hit: true };
    }
    // A hole may go on behind keys that say so; read it as one.
    while (stop < end && stop - at < FILL_SECTORS_MAX) {
      const next = btree.findLeaf(inode, stop);
      if (next === undefined) break;
      btree.lookup(next, inode, stop, end, segment);
      if (segment.cached) break;
      stop = segment.end;
    }
    stop = Math.min(stop, at + FILL_SECTORS_MAX);
    await this.#readMiss(at, stop, bypass, target.into.subarray(0, (stop - at) * 512));
    return { end: stop, hit: false };
  }

  async #readCached(at: number, segment: Segment, into: Uint8Array): Promise<void> {
    const { cache, buckets, log } = this.#parts;
    const { bucket, sector, gen, dirty } = segment;
    buckets.pin(bucket);
    try {
      if (cache.sync) cache.sync.read(sector, into);
      else await cache.read(sector, into);
      buckets.touch(bucket);
    } catch (error) {
      this.#parts.noteCacheError(error);
      const extent = `${this.#dev.name}: sectors ${at}-${at + into.length / 512 - 1} ` +
        `(cache device sector ${sector})`;
      if (dirty) {
        const message = `${extent} cannot be read and are dirty: ${messageOf(error)}`;
        log("error", message);
        throw new BcacheError("DeviceIo", message, { cause: error });
      }
      log(
        "warning",
        `${extent} cannot be read, served from the backing device: ${messageOf(error)}`,
      );
      this.#parts.noteReadRetry();
      await this.#dev.readBacking(at, into);
    } finally {
      buckets.unpin(bucket);
    }
    if (this.#dev.verify && !dirty) {
      await verifyCleanHit(this.#dev, this.#parts, { at, sector, gen, bytes: into });
    }
  }

  /** Reads a hole from the backing device, and puts it into the cache if that is wanted. */
  async #readMiss(at: number, end: number, bypass: boolean, into: Uint8Array): Promise<void> {
    const { fills, blockSectors } = this.#parts;
    const { inode, dataOffset } = this.#dev;
    const aligned = (at - dataOffset) % blockSectors === 0 && (end - at) % blockSectors === 0;
    // What a write has under way may still fail, or not become stable.
    const mayFill = !bypass && aligned && this.#parts.mayFill &&
      !this.#dev.locks.isChanging(at, end);
    const fill = mayFill ? fills.begin(inode, at, end) : undefined;
    if (fill === undefined) return await this.#dev.readBacking(at, into);
    try {
      await this.#dev.readBacking(at, into);
    } catch (error) {
      fills.end(fill);
      throw error;
    }
    if (fill.valid) this.#fill(fill, into);
    else {
      this.#dev.stats.missCollision();
      fills.end(fill);
    }
  }

  /**
   * Writes what was read to the cache and inserts its keys. Never fails the read: when there is
   * no space, or the write fails, it is simply not cached. Where the device writes synchronously
   * `from` is not used after the call; else it is copied.
   */
  #fill(fill: Fill, from: Uint8Array): void {
    const { open, cache, tasks } = this.#parts;
    const placed: PlacedFill = { batches: [], writes: [], pinned: [] };
    let at = fill.start;
    while (at < fill.end && open.tryAllocate(fill.end - at, false, fill.inode, at)) {
      const { grant } = open;
      const byte = (at - fill.start) * 512;
      const bytes = from.subarray(byte, byte + grant.sectors * 512);
      batchWithRoom(placed.batches).addData(fill.inode, at, grant, false);
      placed.pinned.push(grant.bucket);
      placed.writes.push({ sector: grant.sector, bytes: cache.sync ? bytes : bytes.slice() });
      at += grant.sectors;
    }
    this.#parts.noteCached(at - fill.start);
    if (cache.sync) {
      try {
        for (const { sector, bytes } of placed.writes) cache.sync.write(sector, bytes);
      } catch (error) {
        this.#parts.noteCacheError(error);
        return this.#endFill(fill, placed.pinned);
      }
      placed.writes.length = 0;
      const { batches } = placed;
      while (batches.length > 0 && this.#parts.committer.tryInsertVolatile(batches[0]!.batch)) {
        batches.shift();
      }
      if (batches.length === 0) return this.#endFill(fill, placed.pinned);
    }
    tasks.start(() => this.#finishFill(fill, placed));
  }

  async #finishFill(fill: Fill, placed: PlacedFill): Promise<void> {
    try {
      for (const { sector, bytes } of placed.writes) await this.#parts.cache.write(sector, bytes);
      for (const { batch } of placed.batches) {
        // await: a write may have come in between; its key must not be covered.
        if (await this.#parts.committer.insertVolatile(batch, () => fill.valid)) continue;
        this.#dev.stats.missCollision();
        break;
      }
    } catch (error) {
      if (!this.#parts.faults.failed) this.#parts.noteCacheError(error);
    } finally {
      this.#endFill(fill, placed.pinned);
    }
  }

  #endFill(fill: Fill, pinned: number[]): void {
    for (const bucket of pinned) this.#parts.open.settle(bucket);
    this.#parts.fills.end(fill);
  }
}

/** A hole's data on its way into the cache. */
interface PlacedFill {
  /** Keys that are not in the index yet. */
  readonly batches: BatchBuilder[];
  /** Data that is not on the cache device yet. */
  readonly writes: Array<{ sector: number; bytes: Uint8Array }>;
  readonly pinned: number[];
}

/** The last batch, or a new one when that is full. */
function batchWithRoom(batches: BatchBuilder[]): BatchBuilder {
  const last = batches.at(-1);
  if (last !== undefined && last.batch.count < BATCH_KEYS_MAX) return last;
  const fresh = new BatchBuilder();
  batches.push(fresh);
  return fresh;
}
