/** Reading b-tree nodes: each of the seven faults, by name and place; and any bytes at all. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BcacheError } from "../../lib/base/errors.ts";
import { type BtreeGeometry, decodeNode, keyFault, newNode } from "../../lib/btree/node_read.ts";
import { KeySet } from "../../lib/bset/key_set.ts";
import {
  type KeyFields,
  keyOffset,
  setExtent,
  setKey,
  setMaxKey,
  setPointer,
  SLOT_WORDS,
} from "../../lib/ondisk/bkey.ts";
import { encodeBset } from "../../lib/ondisk/bset.ts";

const GEOMETRY: BtreeGeometry = {
  blockSectors: 1,
  bucketSectors: 16,
  bucketCount: 1024,
  firstBucket: 2,
  nodeSectors: 16,
};
const MAGIC = { low: 0x1234, high: 0x5678 };
const BLOCK = 512;

function pointerTo(bucket: number, end?: number): Uint32Array {
  const key = new Uint32Array(SLOT_WORDS);
  if (end === undefined) setMaxKey(key, 0, GEOMETRY.nodeSectors);
  else setExtent(key, 0, 0, end, GEOMETRY.nodeSectors);
  setPointer(key, 0, bucket * GEOMETRY.bucketSectors, 5);
  return key;
}

function node(end?: number, level = 0) {
  return newNode({ key: pointerTo(40, end), at: 0, level }, GEOMETRY);
}

function extent(offset: number, more: Partial<KeyFields> = {}): KeyFields {
  return { inode: 0, offset, sizeSectors: 8, pointer: { sector: 800 + offset, gen: 1 }, ...more };
}

interface SetOptions {
  readonly seq?: number;
}

/** A node's bytes with one set per list of keys, each from the next block on. */
function nodeBytes(lists: KeyFields[][], options: SetOptions = {}): Uint8Array {
  const bytes = new Uint8Array(GEOMETRY.nodeSectors * 512);
  let block = 0;
  for (const list of lists) {
    const keys = new KeySet(list.length);
    const slot = new Uint32Array(SLOT_WORDS);
    for (const key of list) {
      setKey(slot, 0, key);
      keys.push(slot, 0);
    }
    const set = new Uint8Array(8 * BLOCK);
    const used = encodeBset(set, {
      identity: node().identity(MAGIC),
      seqLow: options.seq ?? 99,
      seqHigh: 0,
      slots: keys.words,
      slotWords: SLOT_WORDS,
      count: keys.count,
    });
    bytes.set(set.subarray(0, used), block * BLOCK);
    block += Math.ceil(used / BLOCK);
  }
  return bytes;
}

function decode(bytes: Uint8Array, end?: number, level = 0) {
  const read = node(end, level);
  decodeNode(read, bytes, { geometry: GEOMETRY, magic: MAGIC });
  return read;
}

function refuses(bytes: Uint8Array, words: string, end?: number, level = 0): void {
  const error = assertThrows(() => decode(bytes, end, level), BcacheError, words);
  assert(error.message.includes("bucket 40"), error.message);
}

describe("reading a b-tree node", () => {
  test("sets are merged, the newer winning, and the log goes on behind them", () => {
    const read = decode(nodeBytes([[extent(8), extent(16)], [extent(12, { sizeSectors: 4 })]]));
    const ends = Array.from(
      { length: read.base.count },
      (_, index) => keyOffset(read.base.words, index * SLOT_WORDS),
    );
    assertEquals(ends, [8, 12, 16]);
    assertEquals(read.writtenBlocks, 2);
  });

  test("an empty first set is a fresh root", () => {
    assertEquals(decode(nodeBytes([[]])).base.count, 0);
  });

  test("bad btree header: no sequence number, or a set longer than the node", () => {
    refuses(nodeBytes([[extent(8)]], { seq: 0 }), "bad btree header");
    const bytes = nodeBytes([[extent(8)]]);
    new DataView(bytes.buffer).setUint32(28, 0xffff_ffff, true);
    refuses(bytes, "bad btree header");
  });

  test("unsupported bset version", () => {
    const bytes = nodeBytes([[extent(8)]]);
    bytes[24] = 2;
    refuses(bytes, "unsupported bset version: found 2");
  });

  test("bad magic", () => {
    const bytes = nodeBytes([[extent(8)]]);
    bytes[8]! ^= 1;
    refuses(bytes, "bad magic");
  });

  test("bad checksum, in any byte of any set, with the block it is in", () => {
    const bytes = nodeBytes([[extent(8)], [extent(16)]]);
    for (const at of [0, 33, BLOCK, BLOCK + 40]) {
      const damaged = bytes.slice();
      damaged[at]! ^= 0x80;
      refuses(damaged, at < BLOCK ? "block 0" : "block 1");
    }
  });

  test("empty set: a later set without keys", () => {
    refuses(nodeBytes([[extent(8)], []]), "empty set");
  });

  test("corrupted btree: a set of this node behind a gap", () => {
    const bytes = nodeBytes([[extent(8)], [extent(16)], [extent(24)]]);
    bytes.fill(0, BLOCK, 2 * BLOCK);
    refuses(bytes, "corrupted btree");
  });

  test("short btree key: a key behind the node's last position", () => {
    refuses(nodeBytes([[extent(8), extent(32)]]), "short btree key", 24);
  });

  test("keys that cannot be: crossing a bucket, outside the device, two pointers, disorder", () => {
    const wrong: Array<[KeyFields[], string]> = [
      [[extent(8, { pointer: { sector: 16 * 50 + 12, gen: 1 } })], "crosses the end"],
      [[extent(8, { pointer: { sector: 16 * 1024, gen: 1 } })], "outside the device"],
      [[extent(8, { pointer: { sector: 8, gen: 1 } })], "outside the device"],
      [[extent(4)], "begins before sector 0"],
      [[extent(16), extent(8)], "out of order"],
      [[extent(8), extent(12, { pointer: { sector: 816, gen: 1 } })], "out of order"],
    ];
    for (const [keys, words] of wrong) refuses(nodeBytes([keys]), words);
    const leafKeys = nodeBytes([[extent(16, { sizeSectors: 16, dirty: true })]]);
    refuses(leafKeys, "dirty node pointer", undefined, 1);
  });

  test("size-0 leftovers and placeholders of the kernel are passed over", () => {
    const leftover = extent(4, { sizeSectors: 0, pointer: { sector: 1, gen: 3, device: 0xfff } });
    const placeholder = extent(16, { pointer: { sector: 7777777, gen: 3, device: 0xfff } });
    const read = decode(nodeBytes([[leftover, placeholder]]));
    assertEquals(read.base.count, 1);
  });

  test("a pointer to a node on no cache device is refused before it is followed", () => {
    const key = pointerTo(40);
    assertEquals(keyFault(key, 0, 1, GEOMETRY), undefined);
    key[5]! |= 8 << 19;
    assertEquals(keyFault(key, 0, 1, GEOMETRY), "is a node pointer to no cache device");
  });

  test("no bytes do more than be refused with a typed error", () => {
    const good = nodeBytes([[extent(8), extent(24)], [extent(16)]]);
    fc.assert(fc.property(
      fc.array(fc.record({ at: fc.nat(good.length - 1), to: fc.nat(255) }), { maxLength: 6 }),
      (changes) => {
        const bytes = good.slice();
        for (const { at, to } of changes) bytes[at] = to;
        try {
          decode(bytes);
        } catch (error) {
          assert(error instanceof BcacheError, String(error));
        }
      },
    ));
  });
});
