/**
 * What is known of every bucket when a cache is looked at offline: its generation, who uses it,
 * and which of its sectors the index points to. Eleven bytes and a bit a bucket, and a bounded
 * number of sector maps. Answers to `struct bucket` of bcache.h and the marks of `bch_btree_gc`.
 */
import { genAfter } from "../buckets/table.ts";

/** Who a bucket belongs to. */
export const USE = { none: 0, data: 1, journal: 2, priorities: 3, uuids: 4, node: 5 } as const;
export type Use = (typeof USE)[keyof typeof USE];
export const USE_NAMES: readonly string[] = [
  "nothing",
  "cached data",
  "the journal",
  "priorities",
  "the UUID table",
  "a b-tree node",
];

/** Memory for sector maps. Beyond it only the sum of a bucket's sectors is compared. */
const MAPS_BYTES_MAX = 64 * 1024 * 1024;
const SLAB_WORDS = 65536;

export class BucketView {
  readonly bucketCount: number;
  readonly bucketSectors: number;
  readonly gen: Uint8Array;
  /** 1 where priorities or a pointer told the generation. */
  readonly genKnown: Uint8Array;
  readonly use: Uint8Array;
  /** Sectors that the index points to. */
  readonly sectors: Uint32Array;
  /** Pointers that were ahead of the generation on disk. */
  adopted = 0;
  /** A bit for each bucket: all may be doubtful, and a Set takes fewer than an image may have. */
  #doubtful: Uint8Array;
  #mapWords: number;
  /** The place of a bucket's map, plus one; 0: none yet. */
  #mapOf: Uint32Array;
  #slabs: Uint32Array[] = [];
  #maps = 0;
  #mapsMax: number;

  constructor(bucketCount: number, bucketSectors: number) {
    this.bucketCount = bucketCount;
    this.bucketSectors = bucketSectors;
    this.gen = new Uint8Array(bucketCount);
    this.genKnown = new Uint8Array(bucketCount);
    this.use = new Uint8Array(bucketCount);
    this.sectors = new Uint32Array(bucketCount);
    this.#doubtful = new Uint8Array(Math.ceil(bucketCount / 8));
    this.#mapOf = new Uint32Array(bucketCount);
    this.#mapWords = Math.ceil(bucketSectors / 32);
    this.#mapsMax = Math.floor(MAPS_BYTES_MAX / (this.#mapWords * 4));
  }

  /** Notes that an error was found of a bucket: no extent in it can be believed. */
  doubt(bucket: number): void {
    this.#doubtful[bucket >>> 3]! |= 1 << (bucket & 7);
  }

  isDoubtful(bucket: number): boolean {
    return (this.#doubtful[bucket >>> 3]! & (1 << (bucket & 7))) !== 0;
  }

  /** Takes over the generation of a pointer that is ahead of what is known. */
  adopt(bucket: number, gen: number): void {
    if (this.genKnown[bucket] === 1) {
      if (genAfter(gen, this.gen[bucket]!) === 0) return;
      this.adopted++;
    }
    this.gen[bucket] = gen;
    this.genKnown[bucket] = 1;
  }

  /** How stale a pointer with generation `gen` is; 0: it is good. */
  staleness(bucket: number, gen: number): number {
    return genAfter(this.gen[bucket]!, gen);
  }

  /** Gives a bucket to a structure; returns who had it before, `USE.none` when that is right. */
  claim(bucket: number, use: Use): Use {
    const before = this.use[bucket] as Use;
    if (before === USE.none) this.use[bucket] = use;
    return before;
  }

  /**
   * Counts sectors that a pointer names, `within` its bucket. False: one of them is named by
   * another pointer already, or the bucket is more than full.
   */
  refer(bucket: number, within: number, sectors: number): boolean {
    const sum = this.sectors[bucket]! + sectors;
    this.sectors[bucket] = Math.min(sum, 0xffff_ffff);
    if (sum > this.bucketSectors) return false;
    const map = this.#mapFor(bucket);
    if (map === undefined) return true;
    let free = true;
    for (let at = within; at < within + sectors;) {
      const word = at >>> 5;
      const bit = at & 31;
      const count = Math.min(32 - bit, within + sectors - at);
      const mask = (count === 32 ? 0xffff_ffff : ((1 << count) - 1) << bit) >>> 0;
      if ((map[word]! & mask) !== 0) free = false;
      map[word] = map[word]! | mask;
      at += count;
    }
    return free;
  }

  #mapFor(bucket: number): Uint32Array | undefined {
    const words = this.#mapWords;
    const perSlab = Math.max(1, Math.floor(SLAB_WORDS / words));
    let place = this.#mapOf[bucket]!;
    if (place === 0) {
      if (this.#maps >= this.#mapsMax) return undefined;
      place = ++this.#maps;
      this.#mapOf[bucket] = place;
      if ((place - 1) % perSlab === 0) this.#slabs.push(new Uint32Array(perSlab * words));
    }
    const slab = this.#slabs[Math.floor((place - 1) / perSlab)]!;
    const start = ((place - 1) % perSlab) * words;
    return slab.subarray(start, start + words);
  }
}
