/**
 * A b-tree node in memory. Answers to `struct btree` of drivers/md/bcache/btree.h.
 *
 * Two sets of keys: `base` is what lies on disk, merged; `delta` is what the next write appends.
 * They never overlap (see bset/extents.ts). A node's life:
 *
 *   read or made -> serving <-> written ... -> being replaced -> freed
 *
 * While the nodes that take its place are written, a leaf goes on serving: what is inserted
 * meanwhile is kept in its delta, never written there, and moves over at the end. A freed node is
 * no longer reachable.
 */
import { KeySet } from "../bset/key_set.ts";
import {
  copySlot,
  keyInode,
  keyOffset,
  pointerGen,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { BSET_HEADER_BYTES, type BsetIdentity } from "../ondisk/bset.ts";
import type { Magic } from "../ondisk/magic.ts";

/** Bytes that a key of this program takes on disk at most. */
const KEY_BYTES_MAX = SLOT_WORDS * 4;
/** Keys that one insert may add to the delta: itself, and the upper part of a split extent. */
export const KEYS_PER_INSERT = 2;

export class BtreeNode {
  /** The key that points to this node: its last position, its sector, generation and size. */
  readonly key: Uint32Array;
  readonly level: number;
  readonly bucket: number;
  readonly sector: number;
  /** The last position that belongs to this node, as a key: (inode, offset). */
  readonly endInode: number;
  readonly endOffset: number;

  base: KeySet = new KeySet(1);
  delta: KeySet = new KeySet();
  /** Identifies the sets of this node among the remains of older ones in its bucket. */
  seqLow = 0;
  seqHigh = 0;
  /** Blocks that sets on disk occupy, those being written included. 0: never written. */
  writtenBlocks = 0;
  readonly blocks: number;
  readonly blockBytes: number;

  /** Grows with every insertion, for who looks at the keys and comes back later. */
  changes = 0;

  /** Something in the delta, or the node itself, is not on disk yet. */
  dirty = false;
  dirtySinceMs = 0;
  /** Oldest journal entry that holds a key of the delta; 0: none. */
  pinSeq = 0;
  /**
   * Being replaced: how many keys may come in until that is done, so that they surely fit into
   * the new nodes. Undefined: it is not.
   */
  replacingKeysMax: number | undefined;
  /** Settles when the replacement is in place, or has failed. */
  replacement: Promise<void> | undefined;
  freed = false;
  /** Of a freed node: settles when its replacement is durable and its pins are let go. */
  replacedBy: Promise<void> | undefined;
  /** Writes wait for this: what makes the node reachable is not durable yet, or it is replaced. */
  writesHeldBy: Promise<void> | undefined;
  /** The last write that was issued; settles when it is durable. Never rejects. */
  lastWrite: Promise<void> = Promise.resolve();
  writesPending = 0;
  /** Who needs the node to stay in memory across an await. */
  holds = 0;

  // The node cache's own (node_cache.ts): the mark of a use, the ring, what is counted.
  used = false;
  hotter: BtreeNode | undefined;
  colder: BtreeNode | undefined;
  /** 0: not resident. */
  cachedBytes = 0;

  /** @param key the slot that points to it (copied) */
  constructor(
    key: Uint32Array,
    at: number,
    shape: { level: number; bucketSectors: number; blocks: number; blockBytes: number },
  ) {
    this.key = new Uint32Array(SLOT_WORDS);
    copySlot(key, at, this.key, 0);
    this.level = shape.level;
    this.blocks = shape.blocks;
    this.blockBytes = shape.blockBytes;
    this.sector = pointerSector(key, at);
    this.bucket = Math.floor(this.sector / shape.bucketSectors);
    this.endInode = keyInode(key, at);
    this.endOffset = keyOffset(key, at);
  }

  get gen(): number {
    return pointerGen(this.key, 0);
  }

  get memoryBytes(): number {
    return this.base.bytes + this.delta.bytes;
  }

  /** Whether `keys` more keys fit into the delta and, with it, behind what is on disk. */
  hasRoom(keys: number): boolean {
    if (this.replacingKeysMax !== undefined) {
      return this.delta.count + keys <= this.replacingKeysMax;
    }
    const left = (this.blocks - this.writtenBlocks) * this.blockBytes - BSET_HEADER_BYTES;
    return (this.delta.count + keys) * KEY_BYTES_MAX <= left;
  }

  /** Whether position (inode, offset), as the last one of a key, belongs to this node. */
  covers(inode: number, offset: number): boolean {
    return inode !== this.endInode ? inode < this.endInode : offset <= this.endOffset;
  }

  /** What this node's sets are recognised and checksummed with. */
  identity(magic: Magic): BsetIdentity {
    return {
      magicLow: magic.low,
      magicHigh: magic.high,
      pointerLow: this.key[4]!,
      pointerHigh: this.key[5]!,
    };
  }

  checkInvariants(): void {
    const kind = this.level === 0 ? "extents" : "pointers";
    this.base.checkInvariants(kind);
    this.delta.checkInvariants(kind);
  }
}
