/**
 * bkey: one key of the index, and all bit arithmetic on it. Answers to `struct bkey` of
 * include/uapi/linux/bcache.h.
 *
 * In memory every key occupies a *slot* of six 32-bit words, so that a sorted set is searched by
 * plain index arithmetic; on disk a key without pointer is four words long, one with a pointer
 * six. The first words of a slot are the on-disk words, so copying `keyDiskWords` of them encodes
 * it. Keys with more than one pointer never occur in a set of one cache device and are refused.
 *
 *   word 0   INODE bits 0-19, SIZE bits 20-31 (its low 12 bits)
 *   word 1   SIZE bits 0-3 (its high 4 bits), DIRTY bit 4, PTRS bits 28-30, header bit 31
 *   word 2,3 OFFSET: the sector at which the extent *ends*
 *   word 4   GEN bits 0-7, sector of the pointer bits 8-31 (its low 24 bits)
 *   word 5   sector of the pointer bits 0-18 (its high 19 bits), DEV bits 19-30
 *
 * An extent covers [offset - size, offset). Sectors are exact in a double up to 2^53; only
 * MAX_KEY's offset (2^63 - 1) is larger, and reads as 2^63, above everything else.
 */

/** 32-bit words of a key in memory. */
export const SLOT_WORDS = 6;
/** 64-bit words of the longest key on disk that is accepted. */
export const KEY_SIZE_MAX_SECTORS = 0xffff;
export const INODE_MAX = 0xf_ffff;
/** Above every real offset: what MAX_KEY's offset reads as. */
export const OFFSET_MAX = 2 ** 63;

const HEADER_BIT = 0x8000_0000;
const DIRTY_BIT = 0x10;
const POINTER_BITS = 0x7000_0000;
const ONE_POINTER = 0x1000_0000;
const TWO_32 = 0x1_0000_0000;

export function keyInode(words: Uint32Array, at: number): number {
  return words[at]! & INODE_MAX;
}

export function keySizeSectors(words: Uint32Array, at: number): number {
  return (words[at]! >>> 20) | ((words[at + 1]! & 0xf) << 12);
}

export function keyDirty(words: Uint32Array, at: number): boolean {
  return (words[at + 1]! & DIRTY_BIT) !== 0;
}

/** How many pointers follow: 0 or 1 in a slot, up to 7 in unverified bytes. */
export function keyPointers(words: Uint32Array, at: number): number {
  return (words[at + 1]! >>> 28) & 7;
}

/** Where the extent ends, exclusive. */
export function keyOffset(words: Uint32Array, at: number): number {
  return words[at + 3]! * TWO_32 + words[at + 2]!;
}

/** Where the extent begins. */
export function keyStart(words: Uint32Array, at: number): number {
  return keyOffset(words, at) - keySizeSectors(words, at);
}

export function pointerGen(words: Uint32Array, at: number): number {
  return words[at + 4]! & 0xff;
}

/** The sector on the cache device. 24 bits in the low word, 19 in the high one. */
export function pointerSector(words: Uint32Array, at: number): number {
  // A product, not a shift: shifts stop at 32 bits.
  return (words[at + 4]! >>> 8) + (words[at + 5]! & 0x7_ffff) * 0x100_0000;
}

export function pointerDevice(words: Uint32Array, at: number): number {
  return (words[at + 5]! >>> 19) & 0xfff;
}

/** 32-bit words this key occupies on disk. */
export function keyDiskWords(words: Uint32Array, at: number): number {
  return 4 + 2 * keyPointers(words, at);
}

export interface KeyFields {
  inode: number;
  /** End of the extent, exclusive. */
  offset: number;
  sizeSectors: number;
  dirty?: boolean;
  /** Absent: a key without pointer ("nothing cached here"). */
  pointer?: { sector: number; gen: number; device?: number };
}

/** Writes a whole slot. The fields must be in range (the caller's duty on the hot path). */
export function setKey(words: Uint32Array, at: number, key: KeyFields): void {
  setExtent(words, at, key.inode, key.offset, key.sizeSectors);
  if (key.dirty) words[at + 1]! |= DIRTY_BIT;
  if (key.pointer) {
    setPointer(words, at, key.pointer.sector, key.pointer.gen);
    words[at + 5]! |= (key.pointer.device ?? 0) << 19;
  }
}

/** A slot for a clean extent without pointer. */
export function setExtent(
  words: Uint32Array,
  at: number,
  inode: number,
  offset: number,
  sizeSectors: number,
): void {
  words[at] = inode | ((sizeSectors & 0xfff) << 20);
  words[at + 1] = HEADER_BIT | (sizeSectors >>> 12);
  setOffset(words, at, offset);
  words[at + 4] = 0;
  words[at + 5] = 0;
}

/** Gives the slot one pointer, to cache device 0. */
export function setPointer(words: Uint32Array, at: number, sector: number, gen: number): void {
  words[at + 1] = (words[at + 1]! & ~POINTER_BITS) | ONE_POINTER;
  setPointerWords(words, at, sector, gen);
}

function setPointerWords(words: Uint32Array, at: number, sector: number, gen: number): void {
  const high = Math.floor(sector / 0x100_0000);
  words[at + 4] = gen | ((sector - high * 0x100_0000) << 8);
  words[at + 5] = (words[at + 5]! & ~0x7_ffff) | high;
}

/** Changes the generation of the pointer. */
export function setPointerGen(words: Uint32Array, at: number, gen: number): void {
  words[at + 4] = (words[at + 4]! & ~0xff) | gen;
}

/** Takes the pointer away: the key then says "nothing cached here". Clears DIRTY too. */
export function clearPointer(words: Uint32Array, at: number): void {
  words[at + 1]! &= ~(POINTER_BITS | DIRTY_BIT);
  words[at + 4] = 0;
  words[at + 5] = 0;
}

export function setDirty(words: Uint32Array, at: number, dirty: boolean): void {
  if (dirty) words[at + 1]! |= DIRTY_BIT;
  else words[at + 1]! &= ~DIRTY_BIT;
}

export function setSize(words: Uint32Array, at: number, sizeSectors: number): void {
  words[at] = (words[at]! & INODE_MAX) | ((sizeSectors & 0xfff) << 20);
  words[at + 1] = (words[at + 1]! & ~0xf) | (sizeSectors >>> 12);
}

export function setOffset(words: Uint32Array, at: number, offset: number): void {
  if (offset >= OFFSET_MAX) {
    words[at + 2] = 0xffff_ffff;
    words[at + 3] = 0x7fff_ffff;
    return;
  }
  const high = Math.floor(offset / TWO_32);
  words[at + 2] = offset - high * TWO_32;
  words[at + 3] = high;
}

/**
 * Drops the part before `start`; the pointer advances with it. Drops all when `start` is at the
 * end.
 */
export function cutFront(words: Uint32Array, at: number, start: number): void {
  const end = keyOffset(words, at);
  const size = keySizeSectors(words, at);
  const dropped = Math.min(start - (end - size), size);
  if (dropped <= 0) return;
  setSize(words, at, size - dropped);
  if (keyPointers(words, at) > 0) {
    setPointerWords(words, at, pointerSector(words, at) + dropped, pointerGen(words, at));
  }
}

/** Drops the part from `end` on. Leaves size 0 when nothing is before it. */
export function cutBack(words: Uint32Array, at: number, end: number): void {
  const start = keyStart(words, at);
  if (end >= keyOffset(words, at)) return;
  setSize(words, at, Math.max(end - start, 0));
  setOffset(words, at, Math.max(end, start));
}

/**
 * Negative, zero or positive as key (inode, offset) of the slot is before, at or after the given.
 */
export function compareKey(words: Uint32Array, at: number, inode: number, offset: number): number {
  const difference = keyInode(words, at) - inode;
  return difference !== 0 ? difference : keyOffset(words, at) - offset;
}

export function copySlot(
  from: Uint32Array,
  fromAt: number,
  into: Uint32Array,
  intoAt: number,
): void {
  into[intoAt] = from[fromAt]!;
  into[intoAt + 1] = from[fromAt + 1]!;
  into[intoAt + 2] = from[fromAt + 2]!;
  into[intoAt + 3] = from[fromAt + 3]!;
  into[intoAt + 4] = from[fromAt + 4]!;
  into[intoAt + 5] = from[fromAt + 5]!;
}

/** MAX_KEY: the upper end of every level of the b-tree, with room for a pointer. */
export function setMaxKey(words: Uint32Array, at: number, sizeSectors: number): void {
  setExtent(words, at, INODE_MAX, OFFSET_MAX, sizeSectors);
}

/** `inode:start len size -> [sector gen g] dirty`, as the kernel's debugfs shows keys. */
export function keyText(words: Uint32Array, at: number): string {
  const end = keyOffset(words, at);
  const place = end >= OFFSET_MAX ? "max" : String(keyStart(words, at));
  let text = `${keyInode(words, at)}:${place} len ${keySizeSectors(words, at)}`;
  if (keyPointers(words, at) > 0) {
    text += ` -> [${pointerDevice(words, at)}:${pointerSector(words, at)} gen ${
      pointerGen(words, at)
    }]`;
  }
  return keyDirty(words, at) ? `${text} dirty` : text;
}
