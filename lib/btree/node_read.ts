/**
 * Reading a b-tree node: the checks of `bch_btree_node_read_done` (btree.c) and the merge of its
 * sets. The seven faults carry the kernel's names; each message says which bucket and block.
 */
import { BcacheError, DAMAGE_ADVICE } from "../base/errors.ts";
import { KeySet } from "../bset/key_set.ts";
import { mergeAll, mergeExtents, mergePointers } from "../bset/merge.ts";
import type { Device } from "../device/device.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyPointers,
  keySizeSectors,
  keyStart,
  keyText,
  pointerDevice,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { BSET_HEADER_WORDS, bsetBlocks, bsetFault, readBsetHeader } from "../ondisk/bset.ts";
import type { Magic } from "../ondisk/magic.ts";
import { BtreeNode } from "./node.ts";

/** The shape of the cache device, as far as the index needs it. All sizes in sectors. */
export interface BtreeGeometry {
  readonly blockSectors: number;
  readonly bucketSectors: number;
  readonly bucketCount: number;
  readonly firstBucket: number;
  readonly nodeSectors: number;
}

/** Device numbers from here on never name a cache device: such a pointer is a placeholder. */
const DEVICES_MAX = 8;

function fault(node: BtreeNode, block: number, what: string, keys?: number): BcacheError {
  const code = what.startsWith("bad checksum") ? "BadChecksum" : "BadFormat";
  // A count that no node has room for is as damaged as the rest.
  const isPossible = keys !== undefined && bsetBlocks(keys, node.blockBytes) <= node.blocks;
  const count = isPossible ? `, ${keys} keys` : "";
  return new BcacheError(
    code,
    `b-tree node (level ${node.level}) at bucket ${node.bucket}, block ${block}${count}: ${what}`,
  );
}

/** Why a pointer of the index cannot be right on this device; undefined when it can. */
function pointerFault(
  words: Uint32Array,
  at: number,
  sizeSectors: number,
  geometry: BtreeGeometry,
): string | undefined {
  if (pointerDevice(words, at) >= DEVICES_MAX) return undefined;
  const sector = pointerSector(words, at);
  const bucket = Math.floor(sector / geometry.bucketSectors);
  if (bucket < geometry.firstBucket || bucket >= geometry.bucketCount) {
    return `points outside the device's buckets ${geometry.firstBucket}-${
      geometry.bucketCount - 1
    }`;
  }
  if ((sector % geometry.bucketSectors) + sizeSectors > geometry.bucketSectors) {
    return "crosses the end of its bucket";
  }
  return undefined;
}

/**
 * Why a key cannot stand in a node of this level; undefined when it can, "" when it is a leftover
 * to be dropped in silence (size 0). Answers to `__bch_extent_invalid` and
 * `__bch_btree_ptr_invalid`.
 */
export function keyFault(
  words: Uint32Array,
  at: number,
  level: number,
  geometry: BtreeGeometry,
): string | undefined {
  const size = keySizeSectors(words, at);
  if (level === 0) {
    if (size === 0) return "";
    if (size > keyOffset(words, at)) return "begins before sector 0";
    return keyPointers(words, at) === 0 ? undefined : pointerFault(words, at, size, geometry);
  }
  if (keyPointers(words, at) === 0) return "is a node pointer without pointer";
  if (size === 0) return "is a node pointer of size 0";
  if (keyDirty(words, at)) return "is a dirty node pointer";
  if (pointerDevice(words, at) >= DEVICES_MAX) return "is a node pointer to no cache device";
  if (size % geometry.blockSectors !== 0) return `is a node of ${size} sectors, not whole blocks`;
  return pointerFault(words, at, size, geometry);
}

/**
 * Why a dirty key of a leaf cannot have its data; undefined when it can. Nobody writes such a key:
 * dirty data lies on the one cache device of the set, or its key is not dirty. It is apart from
 * `keyFault` because offline tools go on behind it: all else that it says may be true.
 */
export function dirtFault(words: Uint32Array, at: number): string | undefined {
  if (!keyDirty(words, at) || keySizeSectors(words, at) === 0) return undefined;
  if (keyPointers(words, at) === 0) return "has no pointer to its data";
  const device = pointerDevice(words, at);
  if (device === 0) return undefined;
  return `lies on cache device ${device}, expected device 0, the only one of a set`;
}

/**
 * Why a leaf that was read cannot stand where it does: it has an extent that begins before
 * the end of the leaf before it, where no lookup would find it.
 */
export function startFault(
  { base }: BtreeNode,
  before: { inode: number; offset: number },
): string | undefined {
  if (base.count === 0) return undefined;
  // Extents are in order and do not overlap: only the first can begin too early.
  const inode = keyInode(base.words, 0);
  const isEarly = inode < before.inode ||
    (inode === before.inode && keyStart(base.words, 0) < before.offset);
  if (!isEarly) return undefined;
  return `key ${keyText(base.words, 0)} begins before its node, which begins at ` +
    `${before.inode}:${before.offset}`;
}

/** Decodes the keys of one verified set, checking each. */
function decodeKeys(
  node: BtreeNode,
  place: { words: Uint32Array; from: number; to: number; block: number },
  geometry: BtreeGeometry,
): KeySet {
  const set = new KeySet(Math.ceil((place.to - place.from) / 4));
  const slot = new Uint32Array(SLOT_WORDS);
  let at = place.from;
  while (at < place.to) {
    const pointers = at + 4 <= place.to ? keyPointers(place.words, at) : 0;
    const length = 4 + 2 * pointers;
    if (at + length > place.to) {
      throw fault(node, place.block, "a key runs over the end of its set");
    }
    if (pointers > 1) {
      throw fault(
        node,
        place.block,
        `key ${keyText(place.words, at)} has ${pointers} pointers, expected at most 1`,
      );
    }
    slot.fill(0);
    slot.set(place.words.subarray(at, at + length));
    at += length;
    const why = keyFault(slot, 0, node.level, geometry) ??
      (node.level === 0 ? dirtFault(slot, 0) : undefined);
    if (why === "") continue;
    if (why !== undefined) throw fault(node, place.block, `key ${keyText(slot, 0)} ${why}`);
    const last = (set.count - 1) * SLOT_WORDS;
    if (set.count > 0 && !inOrder(set.words, last, slot, node.level)) {
      throw fault(node, place.block, `key ${keyText(slot, 0)} is out of order`);
    }
    set.push(slot, 0);
  }
  return set;
}

/** Whether slot `next` may follow the key at `last` within one set. */
function inOrder(words: Uint32Array, last: number, next: Uint32Array, level: number): boolean {
  const inodes = (words[last]! & 0xf_ffff) - (next[0]! & 0xf_ffff);
  if (inodes !== 0) return inodes < 0;
  const start = keyOffset(next, 0) - (level === 0 ? keySizeSectors(next, 0) : 0);
  return keyOffset(words, last) <= start;
}

/** Checks all sets of a node's bytes and fills `node` with the merge of their keys. */
export function decodeNode(
  node: BtreeNode,
  bytes: Uint8Array,
  options: { geometry: BtreeGeometry; magic: Magic },
): void {
  const { geometry, magic } = options;
  const { blockBytes, blocks } = node;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const first = readBsetHeader(words, 0);
  if (first.seqLow === 0 && first.seqHigh === 0) {
    throw fault(node, 0, "bad btree header: found sequence number 0", first.keyWords64);
  }
  node.seqLow = first.seqLow;
  node.seqHigh = first.seqHigh;
  const identity = node.identity(magic);
  const sets: KeySet[] = [];
  const ours = (block: number): boolean => {
    const at = (block * blockBytes) / 4;
    return words[at + 4] === first.seqLow && words[at + 5] === first.seqHigh;
  };
  let block = 0;
  while (block < blocks && ours(block)) {
    const startByte = block * blockBytes;
    const header = readBsetHeader(words, startByte / 4);
    const blocksLeft = blocks - block;
    const why = bsetFault(bytes, startByte, {
      identity,
      blockBytes,
      blocksLeft,
      first: block === 0,
    });
    if (why !== undefined) throw fault(node, block, why, header.keyWords64);
    const from = startByte / 4 + BSET_HEADER_WORDS;
    const to = from + header.keyWords64 * 2;
    sets.push(decodeKeys(node, { words, from, to, block }, geometry));
    block += bsetBlocks(header.keyWords64, blockBytes);
  }
  node.writtenBlocks = block;
  for (; block < blocks; block++) {
    if (ours(block)) throw fault(node, block, "corrupted btree: a set behind a gap in the log");
  }
  const { bucketSectors } = geometry;
  node.base = node.level === 0
    ? mergeAll(sets, (a, b) => mergeExtents(a, b, { bucketSectors }))
    : mergeAll(sets, (a, b) => mergePointers(a, b));
  node.base.trim();
  if (node.base.count > 0) {
    const last = (node.base.count - 1) * SLOT_WORDS;
    const inode = node.base.words[last]! & 0xf_ffff;
    if (!node.covers(inode, keyOffset(node.base.words, last))) {
      throw fault(node, 0, `short btree key: holds ${keyText(node.base.words, last)}`);
    }
  }
}

/**
 * Reads the node that the slot at `at` of `key` points to.
 * @throws BcacheError DeviceIo, BadFormat or BadChecksum
 */
export async function readNode(
  device: Device,
  pointer: { key: Uint32Array; at: number; level: number },
  options: { geometry: BtreeGeometry; magic: Magic },
): Promise<BtreeNode> {
  const node = newNode(pointer, options.geometry);
  const bytes = new Uint8Array(node.blocks * node.blockBytes);
  await device.read(node.sector, bytes);
  try {
    decodeNode(node, bytes, options);
  } catch (error) {
    if (!(error instanceof BcacheError)) throw error;
    throw new BcacheError(error.code, `${device.name}: ${error.message}; ${DAMAGE_ADVICE}`);
  }
  return node;
}

/** A node without keys at the place the slot names. */
export function newNode(
  pointer: { key: Uint32Array; at: number; level: number },
  geometry: BtreeGeometry,
): BtreeNode {
  return new BtreeNode(pointer.key, pointer.at, {
    level: pointer.level,
    bucketSectors: geometry.bucketSectors,
    blocks: keySizeSectors(pointer.key, pointer.at) / geometry.blockSectors,
    blockBytes: geometry.blockSectors * 512,
  });
}
