/**
 * The UUID table: which devices have keys in the index. 128 bytes per entry in one meta area,
 * without header or checksum; an entry's index is the INODE of that device's keys.
 *
 * A slot is never used again once it was invalidated, since keys with its number may remain in
 * the index: only slots that are all zero are free.
 * Kernel: struct uuid_entry in bcache_ondisk.h; uuid_read in super.c.
 */
import { assert } from "../base/assert.ts";
import { decodeLabel, LABEL_BYTES } from "./label.ts";
import { layout, readU64, viewOf, writeU64 } from "./layout.ts";
import { equalUuids, UUID_BYTES } from "./uuid.ts";

export const UUID_ENTRY_BYTES = 128;
/** Entries of tables whose journal entry has version 0. */
export const OLD_UUID_ENTRY_BYTES = 64;
/** Flag of a volume that lives on the cache alone. */
export const UUID_FLASH_ONLY = 1;

/** Byte offsets in an entry. */
export const UUID_ENTRY = layout("uuid_entry", UUID_ENTRY_BYTES, [
  ["uuid", "bytes:16"],
  ["label", "bytes:32"],
  ["first_reg", "u32"],
  ["last_reg", "u32"],
  ["invalidated", "u32"],
  ["flags", "u32"],
  ["sectors", "u64"],
  ["pad", "bytes:56"],
]);

/** The entry as it was before flash-only volumes. Its fields keep their offsets. */
export const OLD_UUID_ENTRY = layout("uuid_entry_v0", OLD_UUID_ENTRY_BYTES, [
  ["uuid", "bytes:16"],
  ["label", "bytes:32"],
  ["first_reg", "u32"],
  ["last_reg", "u32"],
  ["invalidated", "u32"],
  ["pad", "u32"],
]);

/** The UUID of a slot whose device was detached or destroyed. */
export const INVALID_UUID: readonly number[] = [
  0xa0,
  0x3e,
  0xf8,
  0xed,
  0x3e,
  0xe1,
  0xb8,
  0x78,
  0xc8,
  0x50,
  0xfc,
  0x5e,
  0xcb,
  0x16,
  0xcd,
  0x99,
];

/** One slot of the table. All zero: never used. Times are seconds since 1970, 32 bits. */
export interface UuidEntry {
  uuid: Uint8Array;
  /** Raw, 32 bytes: the kernel may leave a newline and rubbish here. See `decodeLabel`. */
  label: Uint8Array;
  firstRegistered: number;
  lastRegistered: number;
  /** When it was detached; 0 while it is attached. */
  invalidated: number;
  flags: number;
  /** The size of a flash-only volume; at most 2^53 - 1, whatever the disk says. */
  sectors: number;
}

/** A slot that was never used. */
export function emptyUuidEntry(): UuidEntry {
  return {
    uuid: new Uint8Array(UUID_BYTES),
    label: new Uint8Array(LABEL_BYTES),
    firstRegistered: 0,
    lastRegistered: 0,
    invalidated: 0,
    flags: 0,
    sectors: 0,
  };
}

/** Whether the slot belongs to a device that was detached or destroyed. */
export function isInvalidated(entry: UuidEntry): boolean {
  return equalUuids(entry.uuid, Uint8Array.from(INVALID_UUID));
}

/** Slot `index` of a table. A copy: the buffer stays the caller's. */
export function readUuidEntry(table: Uint8Array, index: number): UuidEntry {
  const at = index * UUID_ENTRY_BYTES;
  assert(at + UUID_ENTRY_BYTES <= table.length, "a slot lies inside the UUID table");
  const bytes = table.subarray(at, at + UUID_ENTRY_BYTES);
  const view = viewOf(bytes);
  return {
    uuid: bytes.slice(UUID_ENTRY.uuid, UUID_ENTRY.uuid + UUID_BYTES),
    label: bytes.slice(UUID_ENTRY.label, UUID_ENTRY.label + LABEL_BYTES),
    firstRegistered: view.getUint32(UUID_ENTRY.first_reg, true),
    lastRegistered: view.getUint32(UUID_ENTRY.last_reg, true),
    invalidated: view.getUint32(UUID_ENTRY.invalidated, true),
    flags: view.getUint32(UUID_ENTRY.flags, true),
    // The table has no checksum: anything may be here, and must be writable again.
    sectors: Math.min(readU64(view, UUID_ENTRY.sectors), Number.MAX_SAFE_INTEGER),
  };
}

/** Writes slot `index`; its padding becomes zero. */
export function writeUuidEntry(table: Uint8Array, index: number, entry: UuidEntry): void {
  const at = index * UUID_ENTRY_BYTES;
  assert(at + UUID_ENTRY_BYTES <= table.length, "a slot lies inside the UUID table");
  assert(entry.uuid.length === UUID_BYTES, "a slot's UUID is 16 bytes");
  assert(entry.label.length === LABEL_BYTES, "a slot's label is 32 bytes");
  const bytes = table.subarray(at, at + UUID_ENTRY_BYTES);
  const view = viewOf(bytes);
  bytes.set(entry.uuid, UUID_ENTRY.uuid);
  bytes.set(entry.label, UUID_ENTRY.label);
  view.setUint32(UUID_ENTRY.first_reg, entry.firstRegistered, true);
  view.setUint32(UUID_ENTRY.last_reg, entry.lastRegistered, true);
  view.setUint32(UUID_ENTRY.invalidated, entry.invalidated, true);
  view.setUint32(UUID_ENTRY.flags, entry.flags, true);
  writeU64(view, UUID_ENTRY.sectors, entry.sectors);
  bytes.fill(0, UUID_ENTRY.pad);
}

/** The label for people: without what the kernel may have left behind it. */
export function uuidEntryLabel(entry: UuidEntry): string {
  return decodeLabel(entry.label);
}

/**
 * Turns a table of old 64-byte entries into 128-byte ones, in place. `table` is the whole meta
 * area with room for half as many old entries as it could hold. From the highest index downwards:
 * a new entry lies over two old ones of higher index, which have moved by then.
 */
export function convertOldUuidTable(table: Uint8Array): void {
  const count = Math.floor(table.length / UUID_ENTRY_BYTES);
  for (let index = count - 1; index >= 0; index--) {
    const old = table.slice(index * OLD_UUID_ENTRY_BYTES, (index + 1) * OLD_UUID_ENTRY_BYTES);
    const at = index * UUID_ENTRY_BYTES;
    table.fill(0, at, at + UUID_ENTRY_BYTES);
    // uuid, label and the three times; what follows was padding and becomes flags: zero.
    table.set(old.subarray(0, OLD_UUID_ENTRY.pad), at);
  }
}
