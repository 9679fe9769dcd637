/**
 * A tiny log-structured write-back cache, to test the simulator with: it does what it promises,
 * and has one switch per classic mistake. A simulator that lets a mistake pass is broken itself.
 *
 * Cache disk: sector 0 holds the epoch; then a journal of 4 KiB blocks, then data sectors that
 * are handed out one after another. A flush makes the data stable, then writes a journal block
 * that maps sectors to data. When either area is full, everything is written back, the backing
 * disk is flushed, and a new epoch begins, which makes all older journal blocks void.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { Mutex } from "../../lib/base/sync.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { hashOf } from "./sim_random.ts";
import type { Engine, EngineKind, EngineParts } from "./world.ts";

/** The mistakes it can be told to make. */
export const TOY_MISTAKES = [
  "journal before data is stable",
  "acknowledge a flush before the journal",
  "journal without fua",
  "trust a journal block without its checksum",
  "trust a journal block of an older epoch",
  "new epoch without flushing the backing disk",
  "new epoch not stable before data is overwritten",
  "keep zeroed ranges in memory only",
  "change a buffer the disk still has",
  "forget the rest of a partly written sector",
  "answer a partial hit from the cache alone",
  "keep the caller's buffer",
  "never end a flush of nothing",
  "one sector off in the write-back",
  "drain without flushing the backing disk",
  "go on after a failed write",
] as const;
export type ToyMistake = (typeof TOY_MISTAKES)[number];

const MAGIC = 0x70_79_70_70;
const BLOCK_SECTORS = 8;
const BLOCK_BYTES = BLOCK_SECTORS * SECTOR_BYTES;
const JOURNAL_BLOCKS = 5;
const DATA_START = BLOCK_SECTORS * (1 + JOURNAL_BLOCKS);
const HEADER_WORDS = 5; // Checksum, magic, epoch, index, count.
const KEYS_MAX = (BLOCK_BYTES / 4 - HEADER_WORDS) / 2;
const DATA_OFFSET = 16;

class ToyStore implements Engine {
  readonly volume: BlockVolume;
  #parts: EngineParts;
  #mistake: ToyMistake | undefined;
  #lock = new Mutex();
  #epoch = 1;
  #map = new Map<number, number>(); // Volume sector to cache sector.
  #unlogged = new Map<number, number>();
  #nextBlock = 0;
  #nextData = DATA_START;
  #failed = false;
  #kept: Array<{ sector: number; bytes: Uint8Array }> = [];

  constructor(parts: EngineParts, mistake: ToyMistake | undefined) {
    this.#parts = parts;
    this.#mistake = mistake;
    this.volume = {
      name: "toy0",
      sizeBytes: (parts.backing.sizeSectors - DATA_OFFSET) * SECTOR_BYTES,
      blockSizeBytes: SECTOR_BYTES,
      readOnly: false,
      tryRead: () => false,
      tryWrite: () => false,
      read: (offset, into) => this.#lock.run(() => this.#read(offset, into)),
      write: (offset, from) => this.#change(() => this.#write(offset, from)),
      flush: () => this.#change(() => this.#flush()),
      zero: (offset, length) => this.#change(() => this.#zero(offset, length)),
    };
  }

  async recover(): Promise<void> {
    const first = new Uint8Array(SECTOR_BYTES);
    await this.#parts.cache.read(0, first);
    this.#epoch = new DataView(first.buffer).getUint32(0, true);
    for (; this.#nextBlock < JOURNAL_BLOCKS; this.#nextBlock++) {
      const words = new Uint32Array(BLOCK_BYTES / 4);
      await this.#parts.cache.read(BLOCK_SECTORS * (1 + this.#nextBlock), bytesOf(words));
      if (!this.#trusts(words)) break;
      const count = Math.min(words[4]!, KEYS_MAX);
      for (let key = 0; key < count; key++) {
        const at = HEADER_WORDS + key * 2;
        const cacheSector = Math.min(words[at + 1]!, this.#parts.cache.sizeSectors - 1);
        this.#map.set(words[at]!, cacheSector);
        this.#nextData = Math.max(this.#nextData, cacheSector + 1);
      }
    }
    // Starting afresh makes recovery write, so that a cut in the middle of it means something.
    if (this.#nextBlock > 0) await this.#newEpoch();
  }

  drain(): Promise<void> {
    return this.#change(() => this.#writeBack("drain without flushing the backing disk"));
  }

  async close(): Promise<void> {
    if (!this.#failed) await this.#change(() => this.#flush());
    await this.#parts.cache.close();
    await this.#parts.backing.close();
  }

  /** One change at a time; after a failed one no more, for nobody knows what is on the disk. */
  #change(body: () => Promise<void>): Promise<void> {
    return this.#lock.run(async () => {
      if (this.#failed) throw new BcacheError("SetFailed", "the toy has failed");
      try {
        await body();
      } catch (error) {
        this.#failed = !this.#makes("go on after a failed write");
        throw error;
      }
    });
  }

  #makes(mistake: ToyMistake): boolean {
    return this.#mistake === mistake;
  }

  #trusts(words: Uint32Array): boolean {
    if (words[1] !== MAGIC || words[3] !== this.#nextBlock) return false;
    const unchecked = this.#makes("trust a journal block without its checksum");
    if (!unchecked && words[0] !== hashOf(...words.subarray(1))) return false;
    return words[2] === this.#epoch || this.#makes("trust a journal block of an older epoch");
  }

  async #read(offset: number, into: Uint8Array): Promise<void> {
    const first = Math.floor(offset / SECTOR_BYTES);
    const end = Math.ceil((offset + into.length) / SECTOR_BYTES);
    const whole = new Uint8Array((end - first) * SECTOR_BYTES);
    let cached = 0;
    for (let sector = first; sector < end; sector++) {
      if (this.#map.has(sector)) cached++;
    }
    const partial = this.#makes("answer a partial hit from the cache alone") && cached > 0;
    if (cached < end - first && !partial) {
      await this.#parts.backing.read(DATA_OFFSET + first, whole);
    }
    for (let sector = first; sector < end; sector++) {
      const from = this.#map.get(sector);
      if (from === undefined) continue;
      const at = (sector - first) * SECTOR_BYTES;
      await this.#parts.cache.read(from, whole.subarray(at, at + SECTOR_BYTES));
    }
    const inFirst = offset - first * SECTOR_BYTES;
    into.set(whole.subarray(inFirst, inFirst + into.length));
  }

  async #write(offset: number, from: Uint8Array): Promise<void> {
    const first = Math.floor(offset / SECTOR_BYTES);
    const end = Math.ceil((offset + from.length) / SECTOR_BYTES);
    const inFirst = offset - first * SECTOR_BYTES;
    let whole = from;
    if (from.length !== (end - first) * SECTOR_BYTES) {
      whole = new Uint8Array((end - first) * SECTOR_BYTES);
      const forget = this.#makes("forget the rest of a partly written sector");
      if (!forget) await this.#read(first * SECTOR_BYTES, whole);
      whole.set(from, inFirst);
    }
    await this.#put(first, whole);
  }

  async #zero(offset: number, length: number): Promise<void> {
    await this.#write(offset, new Uint8Array(length));
    if (!this.#makes("keep zeroed ranges in memory only")) return;
    const end = Math.ceil((offset + length) / SECTOR_BYTES);
    for (let at = Math.floor(offset / SECTOR_BYTES); at < end; at++) this.#unlogged.delete(at);
  }

  async #put(first: number, whole: Uint8Array): Promise<void> {
    const sectors = whole.length / SECTOR_BYTES;
    const full = this.#nextData + sectors > this.#parts.cache.sizeSectors;
    if (full || this.#unlogged.size + sectors > KEYS_MAX * 2) await this.#newEpoch();
    const at = this.#nextData;
    this.#nextData += sectors;
    if (this.#nextData > this.#parts.cache.sizeSectors) {
      throw new BcacheError("NoSpace", `a write of ${sectors} sectors is larger than the toy`);
    }
    if (this.#makes("keep the caller's buffer")) this.#kept.push({ sector: at, bytes: whole });
    else await this.#parts.cache.write(at, whole);
    for (let sector = 0; sector < sectors; sector++) {
      this.#map.set(first + sector, at + sector);
      this.#unlogged.set(first + sector, at + sector);
    }
  }

  async #flush(): Promise<void> {
    for (const { sector, bytes } of this.#kept) await this.#parts.cache.write(sector, bytes);
    this.#kept = [];
    if (this.#unlogged.size === 0) {
      if (this.#makes("never end a flush of nothing")) await new Promise<void>(() => {});
      return;
    }
    if (!this.#makes("journal before data is stable")) await this.#parts.cache.flush();
    const keys = [...this.#unlogged];
    this.#unlogged.clear();
    if (this.#nextBlock + Math.ceil(keys.length / KEYS_MAX) > JOURNAL_BLOCKS) {
      await this.#newEpoch();
      return;
    }
    for (let at = 0; at < keys.length; at += KEYS_MAX) {
      await this.#log(keys.slice(at, at + KEYS_MAX));
    }
  }

  async #log(keys: Array<[number, number]>): Promise<void> {
    const words = new Uint32Array(BLOCK_BYTES / 4);
    words.set([MAGIC, this.#epoch, this.#nextBlock, keys.length], 1);
    keys.forEach((key, index) => words.set(key, HEADER_WORDS + index * 2));
    words[0] = hashOf(...words.subarray(1));
    const at = BLOCK_SECTORS * (1 + this.#nextBlock++);
    const fua = !this.#makes("journal without fua");
    const written = this.#parts.cache.write(at, bytesOf(words), { fua });
    if (this.#makes("change a buffer the disk still has")) words[5] = 0;
    if (this.#makes("acknowledge a flush before the journal")) return;
    await written;
  }

  async #newEpoch(): Promise<void> {
    await this.#writeBack("new epoch without flushing the backing disk");
    this.#epoch++;
    const sector = new Uint8Array(SECTOR_BYTES);
    new DataView(sector.buffer).setUint32(0, this.#epoch, true);
    const fua = !this.#makes("new epoch not stable before data is overwritten");
    await this.#parts.cache.write(0, sector, { fua });
    this.#map.clear();
    this.#unlogged.clear();
    this.#nextBlock = 0;
    this.#nextData = DATA_START;
  }

  async #writeBack(withoutFlush: ToyMistake): Promise<void> {
    const off = this.#makes("one sector off in the write-back") ? 1 : 0;
    await this.#flushKept();
    for (const { sector, from, sectors } of runsOf(this.#map)) {
      const bytes = new Uint8Array(sectors * SECTOR_BYTES);
      await this.#parts.cache.read(from, bytes);
      const last = this.#parts.backing.sizeSectors - sectors;
      await this.#parts.backing.write(Math.min(DATA_OFFSET + sector + off, last), bytes);
    }
    if (!this.#makes(withoutFlush)) await this.#parts.backing.flush();
  }

  async #flushKept(): Promise<void> {
    for (const { sector, bytes } of this.#kept) await this.#parts.cache.write(sector, bytes);
    this.#kept = [];
  }
}

/** Mapped sectors that follow each other on both disks, as one run each. */
function runsOf(
  map: Map<number, number>,
): Array<{ sector: number; from: number; sectors: number }> {
  const runs: Array<{ sector: number; from: number; sectors: number }> = [];
  for (const [sector, from] of [...map].sort(([a], [b]) => a - b)) {
    const last = runs.at(-1);
    const follows = last && last.sector + last.sectors === sector;
    if (follows && last.from + last.sectors === from) last.sectors++;
    else runs.push({ sector, from, sectors: 1 });
  }
  return runs;
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** The toy as the simulator runs it, with one mistake or none. */
export function toyKind(mistake?: ToyMistake): EngineKind {
  return {
    name: mistake === undefined ? "toy" : `toy that makes the mistake "${mistake}"`,
    isForeign: true,
    cacheSectors: DATA_START + 600,
    backingSectors: DATA_OFFSET + 1024,
    dataOffsetSectors: DATA_OFFSET,
    format: (cache) => {
      const first = new Uint8Array(SECTOR_BYTES);
      new DataView(first.buffer).setUint32(0, 1, true);
      cache.patch(0, first);
      return Promise.resolve();
    },
    open: async (parts) => {
      const store = new ToyStore(parts, mistake);
      await store.recover();
      return store;
    },
  };
}
