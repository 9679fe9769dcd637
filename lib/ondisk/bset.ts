/**
 * bset: one sorted set of keys as it lies on disk in a b-tree node. Answers to `struct bset` of
 * include/uapi/linux/bcache.h and the checks of `bch_btree_node_read_done` in btree.c.
 *
 *   0 u64 csum   8 u64 magic   16 u64 seq   24 u32 version   28 u32 keys (in 64-bit words)
 *
 * A node is a log of sets, each from a block boundary on. Version 1 seeds the checksum with the
 * pointer to the node; version 0 is the general checksum of old kernels.
 */
import { crc64, crc64Seeded, hex64 } from "../base/crc64.ts";
import { keyDiskWords } from "./bkey.ts";

export const BSET_HEADER_BYTES = 32;
export const BSET_HEADER_WORDS = BSET_HEADER_BYTES / 4;
export const BSET_VERSION = 1;

const CSUM = 0;
const MAGIC = 2;
const SEQ = 4;
const VERSION = 6;
const KEYS = 7;

/** What identifies the sets of one node: the b-tree's magic and the first pointer of the node. */
export interface BsetIdentity {
  magicLow: number;
  magicHigh: number;
  pointerLow: number;
  pointerHigh: number;
}

export interface BsetHeader {
  seqLow: number;
  seqHigh: number;
  version: number;
  /** 64-bit words of keys. */
  keyWords64: number;
}

export function readBsetHeader(words: Uint32Array, at: number): BsetHeader {
  return {
    seqLow: words[at + SEQ]!,
    seqHigh: words[at + SEQ + 1]!,
    version: words[at + VERSION]!,
    keyWords64: words[at + KEYS]!,
  };
}

/** Blocks that a set with `keyWords64` words of keys occupies. */
export function bsetBlocks(keyWords64: number, blockBytes: number): number {
  return Math.ceil((BSET_HEADER_BYTES + keyWords64 * 8) / blockBytes);
}

function checksum(
  bytes: Uint8Array,
  startByte: number,
  header: { version: number; keyWords64: number },
  identity: BsetIdentity,
  out: Uint32Array,
): void {
  const end = startByte + BSET_HEADER_BYTES + header.keyWords64 * 8;
  if (header.version === 0) crc64(bytes, startByte + 8, end, out);
  else crc64Seeded(bytes, startByte + 8, end, identity.pointerLow, identity.pointerHigh, out);
}

/**
 * Checks one set of a node, in the kernel's order and with its words. Undefined: it is sound, and
 * its keys may be walked. `blocksLeft` is what the node has from here on.
 */
export function bsetFault(
  bytes: Uint8Array,
  startByte: number,
  options: {
    identity: BsetIdentity;
    blockBytes: number;
    blocksLeft: number;
    first: boolean;
  },
): string | undefined {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const at = startByte / 4;
  const header = readBsetHeader(words, at);
  const { identity } = options;
  if (header.version > BSET_VERSION) {
    return `unsupported bset version: found ${header.version}, expected at most ${BSET_VERSION}`;
  }
  if (bsetBlocks(header.keyWords64, options.blockBytes) > options.blocksLeft) {
    return `bad btree header: ${header.keyWords64} words of keys in ${options.blocksLeft} blocks`;
  }
  if (words[at + MAGIC] !== identity.magicLow || words[at + MAGIC + 1] !== identity.magicHigh) {
    return `bad magic: found ${hex64(words[at + MAGIC]!, words[at + MAGIC + 1]!)}, expected ${
      hex64(identity.magicLow, identity.magicHigh)
    }`;
  }
  const sum = new Uint32Array(2);
  checksum(bytes, startByte, header, identity, sum);
  if (words[at + CSUM] !== sum[0] || words[at + CSUM + 1] !== sum[1]) {
    return `bad checksum: found ${hex64(words[at + CSUM]!, words[at + CSUM + 1]!)}, expected ${
      hex64(sum[0]!, sum[1]!)
    }`;
  }
  if (!options.first && header.keyWords64 === 0) return "empty set: found no keys";
  return undefined;
}

/** Corrects the checksum of the set at the start of `bytes`, whose keys were changed in place. */
export function resealBset(bytes: Uint8Array, identity: BsetIdentity): void {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  checksum(bytes, 0, readBsetHeader(words, 0), identity, words);
}

/**
 * Writes a whole set: header, then keys given as slots (six words each) in on-disk form.
 * `bytes` must be 4-byte aligned, zero-filled and large enough. Returns the bytes used.
 */
export function encodeBset(
  bytes: Uint8Array,
  options: {
    identity: BsetIdentity;
    seqLow: number;
    seqHigh: number;
    slots: Uint32Array;
    slotWords: number;
    count: number;
  },
): number {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  let at = BSET_HEADER_WORDS;
  for (let index = 0; index < options.count; index++) {
    const from = index * options.slotWords;
    const length = keyDiskWords(options.slots, from);
    for (let word = 0; word < length; word++) words[at + word] = options.slots[from + word]!;
    at += length;
  }
  const keyWords64 = (at - BSET_HEADER_WORDS) / 2;
  words[MAGIC] = options.identity.magicLow;
  words[MAGIC + 1] = options.identity.magicHigh;
  words[SEQ] = options.seqLow;
  words[SEQ + 1] = options.seqHigh;
  words[VERSION] = BSET_VERSION;
  words[KEYS] = keyWords64;
  checksum(bytes, 0, { version: BSET_VERSION, keyWords64 }, options.identity, words);
  return at * 4;
}
