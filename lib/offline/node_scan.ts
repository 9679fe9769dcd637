/**
 * Decodes a b-tree node as far as it is sound: all sets before the first that is damaged. The
 * index itself refuses such a node whole (lib/btree/node_read.ts, whose checks these are); to
 * find and to rescue things, what can be read is wanted.
 *
 * Answers to `bch_btree_node_read_done` of btree.c.
 */
import { keyFault } from "../btree/node_read.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeAll, mergeExtents, mergePointers } from "../bset/merge.ts";
import {
  INODE_MAX,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyText,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { BSET_HEADER_WORDS, bsetBlocks, bsetFault, readBsetHeader } from "../ondisk/bset.ts";
import { hex64 } from "../base/crc64.ts";
import type { CacheImage } from "./cache_image.ts";
import { DirtFaults } from "./dirt_faults.ts";

export interface ScannedNode {
  /** Keys of all sound sets, the newer winning; what was overwritten is gone. */
  readonly keys: KeySet;
  /** Keys as they lie in the sound sets. */
  readonly keysOnDisk: number;
  readonly sets: number;
  /** Blocks that the sound sets occupy. */
  readonly usedBlocks: number;
  readonly seq: string;
  /** The first thing wrong, and the block it is in. */
  readonly fault: { readonly what: string; readonly block: number } | undefined;
  /** Of a leaf: what is wrong with dirty keys that cannot have their data; they are in `keys`. */
  readonly dirtFault: string | undefined;
}

/** What is wrong with keys, while their set is decoded. */
class KeyDecoder {
  fault: string | undefined;
  readonly #dirt: DirtFaults;
  #slot = new Uint32Array(SLOT_WORDS);
  #level: number;
  #image: CacheImage;

  /** @param dirt takes the dirty keys of a leaf that cannot have their data */
  constructor(image: CacheImage, level: number, dirt: DirtFaults) {
    this.#image = image;
    this.#level = level;
    this.#dirt = dirt;
  }

  /** The keys of words [from, to), up to the first that cannot be. */
  decode(words: Uint32Array, from: number, to: number): KeySet {
    const set = new KeySet(Math.ceil((to - from) / 4));
    const slot = this.#slot;
    for (let at = from; at < to;) {
      const pointers = at + 4 <= to ? keyPointers(words, at) : 0;
      const length = 4 + 2 * pointers;
      if (at + length > to) return this.#stop(set, "a key runs over the end of its set");
      if (pointers > 1) {
        const text = keyText(words, at);
        return this.#stop(set, `key ${text} has ${pointers} pointers, expected at most 1`);
      }
      slot[4] = 0;
      slot[5] = 0;
      for (let word = 0; word < length; word++) slot[word] = words[at + word]!;
      at += length;
      const why = keyFault(slot, 0, this.#level, this.#image.geometry);
      if (why === "") continue;
      if (why !== undefined) return this.#stop(set, `key ${keyText(slot, 0)} ${why}`);
      if (set.count > 0 && !this.#follows(set)) {
        return this.#stop(set, `key ${keyText(slot, 0)} is out of order`);
      }
      if (this.#level === 0) this.#dirt.note(slot, 0);
      set.push(slot, 0);
    }
    return set;
  }

  #stop(set: KeySet, fault: string): KeySet {
    this.fault = fault;
    return set;
  }

  /** Whether the key in the slot may stand behind the last of `set`. */
  #follows(set: KeySet): boolean {
    const slot = this.#slot;
    const last = (set.count - 1) * SLOT_WORDS;
    const inodes = keyInode(set.words, last) - keyInode(slot, 0);
    if (inodes !== 0) return inodes < 0;
    const start = keyOffset(slot, 0) - (this.#level === 0 ? keySizeSectors(slot, 0) : 0);
    return keyOffset(set.words, last) <= start;
  }
}

/** Decodes the bytes of the node that the slot `key` points to. Never throws, for any bytes. */
export function scanNode(
  image: CacheImage,
  key: Uint32Array,
  level: number,
  bytes: Uint8Array,
): ScannedNode {
  const { blockBytes } = image.geometry;
  const { bset: magic } = image.magics;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const identity = {
    magicLow: magic.low,
    magicHigh: magic.high,
    pointerLow: key[4]!,
    pointerHigh: key[5]!,
  };
  const blocks = bytes.length / blockBytes;
  const [seqLow, seqHigh] = [words[4]!, words[5]!];
  const ours = (block: number): boolean => {
    const at = (block * blockBytes) / 4;
    return words[at + 4] === seqLow && words[at + 5] === seqHigh;
  };
  const sets: KeySet[] = [];
  const dirt = new DirtFaults();
  let what = seqLow === 0 && seqHigh === 0
    ? "bad btree header: found sequence number 0"
    : undefined;
  let keysOnDisk = 0;
  let block = 0;
  while (what === undefined && block < blocks && ours(block)) {
    const start = block * blockBytes;
    const blocksLeft = blocks - block;
    what = bsetFault(bytes, start, { identity, blockBytes, blocksLeft, first: block === 0 });
    if (what !== undefined) break;
    const { keyWords64 } = readBsetHeader(words, start / 4);
    const from = start / 4 + BSET_HEADER_WORDS;
    const decoder = new KeyDecoder(image, level, dirt);
    const set = decoder.decode(words, from, from + keyWords64 * 2);
    sets.push(set);
    keysOnDisk += set.count;
    what = decoder.fault;
    if (what === undefined) block += bsetBlocks(keyWords64, blockBytes);
  }
  const usedBlocks = block;
  for (; what === undefined && block < blocks; block++) {
    if (!ours(block)) continue;
    what = "corrupted btree: a set behind a gap in the log";
    break;
  }
  return {
    keys: merged(sets, level, image.geometry.bucketSectors),
    keysOnDisk,
    sets: sets.length,
    usedBlocks,
    seq: hex64(seqLow, seqHigh),
    fault: what === undefined ? undefined : { what, block },
    dirtFault: dirt.text,
  };
}

function merged(sets: readonly KeySet[], level: number, bucketSectors: number): KeySet {
  const all = level === 0
    ? mergeAll(sets, (a, b) => mergeExtents(a, b, { bucketSectors }))
    : mergeAll(sets, (a, b) => mergePointers(a, b));
  all.trim();
  return all;
}

/** A position in the index: behind all keys that end at (inode, offset). */
export interface Position {
  readonly inode: number;
  readonly offset: number;
}

/** `inode:offset`, for people. */
export function positionText(position: Position): string {
  const { inode, offset } = position;
  return `${inode === INODE_MAX ? "max" : inode}:${offset >= 2 ** 63 ? "max" : offset}`;
}

export function comparePositions(a: Position, b: Position): number {
  return a.inode !== b.inode ? a.inode - b.inode : a.offset - b.offset;
}

export function positionOf(words: Uint32Array, at: number): Position {
  return { inode: keyInode(words, at), offset: keyOffset(words, at) };
}

/** The last position of all: MAX_KEY. */
export const LAST_POSITION: Position = { inode: INODE_MAX, offset: 2 ** 63 };
