/**
 * Whose bytes are these? Recognises what is commonly found at the beginning or the end of a disk,
 * so that formatting does not silently destroy somebody's data. Pure: the caller reads the first
 * and last bytes of the device and passes them in. Offsets are those that blkid knows.
 */
import { assert } from "../base/assert.ts";
import { viewOf } from "./layout.ts";
import { SUPERBLOCK, SUPERBLOCK_MAGIC } from "./superblock.ts";

/** How much of the beginning is looked at; pass less only when the device is smaller. */
export const SIGNATURE_HEAD_BYTES = 512 * 1024;
/** How much of the end is looked at. */
export const SIGNATURE_TAIL_BYTES = 512 * 1024;

export interface FoundSignature {
  /** For people: `ext4 file system`, `GPT partition table`, ... */
  readonly name: string;
  /** Where the signature is, from the start of the device. */
  readonly offsetBytes: number;
}

export interface DeviceEnds {
  readonly sizeBytes: number;
  /** The first bytes of the device. */
  readonly head: Uint8Array;
  /** The last bytes of the device; may overlap the head. */
  readonly tail: Uint8Array;
}

/** A text or bytes at fixed places: all must be there. Negative offsets count from the end. */
interface Signature {
  readonly name: string;
  readonly offsetBytes: number;
  readonly bytes: string | readonly number[];
}

const BTRFS_AT = 0x10040;
const MD_MAGIC = [0xfc, 0x4e, 0x2b, 0xa9];

const AT_FIXED_PLACES: readonly Signature[] = [
  { name: "bcache device", offsetBytes: 4096 + SUPERBLOCK.magic, bytes: SUPERBLOCK_MAGIC },
  { name: "xfs file system", offsetBytes: 0, bytes: "XFSB" },
  { name: "btrfs file system", offsetBytes: BTRFS_AT, bytes: "_BHRfS_M" },
  { name: "LUKS encrypted volume", offsetBytes: 0, bytes: "LUKS\xba\xbe" },
  { name: "LUKS encrypted volume (second header)", offsetBytes: 0x4000, bytes: "SKUL\xba\xbe" },
  { name: "swap area", offsetBytes: 4096 - 10, bytes: "SWAPSPACE2" },
  { name: "swap area", offsetBytes: 65536 - 10, bytes: "SWAPSPACE2" },
  { name: "suspended system in a swap area", offsetBytes: 4096 - 10, bytes: "S1SUSPEND" },
  { name: "md RAID member", offsetBytes: 0, bytes: MD_MAGIC },
  { name: "md RAID member", offsetBytes: 4096, bytes: MD_MAGIC },
  { name: "ISO 9660 image", offsetBytes: 0x8001, bytes: "CD001" },
  { name: "UDF file system", offsetBytes: 0x8001, bytes: "BEA01" },
  { name: "ntfs file system", offsetBytes: 3, bytes: "NTFS    " },
  { name: "exfat file system", offsetBytes: 3, bytes: "EXFAT   " },
  { name: "vfat file system", offsetBytes: 0x52, bytes: "FAT32   " },
  { name: "vfat file system", offsetBytes: 0x36, bytes: "FAT16   " },
  { name: "vfat file system", offsetBytes: 0x36, bytes: "FAT12   " },
  { name: "BitLocker volume", offsetBytes: 3, bytes: "-FVE-FS-" },
  { name: "f2fs file system", offsetBytes: 1024, bytes: [0x10, 0x20, 0xf5, 0xf2] },
  { name: "squashfs file system", offsetBytes: 0, bytes: "hsqs" },
  { name: "erofs file system", offsetBytes: 1024, bytes: [0xe2, 0xe1, 0xf5, 0xe0] },
  { name: "jfs file system", offsetBytes: 0x8000, bytes: "JFS1" },
  { name: "reiserfs file system", offsetBytes: 0x10034, bytes: "ReIsEr" },
  {
    name: "bcachefs file system",
    offsetBytes: 4096 + 24,
    bytes: [
      ...[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9],
      ...[0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef],
    ],
  },
  { name: "VMDK disk image", offsetBytes: 0, bytes: "KDMV" },
  { name: "qcow2 disk image", offsetBytes: 0, bytes: "QFI\xfb" },
];

/**
 * Everything recognised, in the order of the table; empty for a blank or unknown device. Never
 * throws, whatever the bytes are.
 */
export function findSignatures(ends: DeviceEnds): FoundSignature[] {
  assert(ends.head.length <= ends.sizeBytes, "the head lies inside the device");
  assert(ends.tail.length <= ends.sizeBytes, "the tail lies inside the device");
  const found: FoundSignature[] = AT_FIXED_PLACES
    .filter((signature) => matches(ends.head, signature.offsetBytes, signature.bytes))
    .map(({ name, offsetBytes }) => ({ name, offsetBytes }));
  const others = [ext(ends), lvm(ends), zfs(ends), gpt(ends), mdAtTheEnd(ends)];
  for (const other of others) if (other) found.push(other);
  // A boot sector of a file system also ends like a partition table: only name it alone.
  const table = found.length === 0 ? mbr(ends) : undefined;
  return table ? [table] : found;
}

function matches(bytes: Uint8Array, at: number, expected: string | readonly number[]): boolean {
  if (at < 0 || at + expected.length > bytes.length) return false;
  for (let i = 0; i < expected.length; i++) {
    const want = typeof expected === "string" ? expected.charCodeAt(i) : expected[i];
    if (bytes[at + i] !== want) return false;
  }
  return true;
}

function ext({ head }: DeviceEnds): FoundSignature | undefined {
  const superblock = 1024;
  const at = superblock + 0x38;
  if (!matches(head, at, [0x53, 0xef])) return undefined;
  const view = viewOf(head);
  if (superblock + 0x68 > head.length) return undefined;
  const compatible = view.getUint32(superblock + 0x5c, true);
  const incompatible = view.getUint32(superblock + 0x60, true);
  // Extents, 64bit, flex_bg and what else came with ext4; a journal makes ext3.
  const isExt4 = (incompatible & ~0x1f) !== 0;
  const name = isExt4 ? "ext4" : (compatible & 4) !== 0 ? "ext3" : "ext2";
  return { name: `${name} file system`, offsetBytes: at };
}

/** The LVM label is in one of the first four sectors. */
function lvm({ head }: DeviceEnds): FoundSignature | undefined {
  for (let at = 0; at < 4 * 512; at += 512) {
    if (matches(head, at, "LABELONE") && matches(head, at + 24, "LVM2 001")) {
      return { name: "LVM physical volume", offsetBytes: at };
    }
  }
  return undefined;
}

/** Uberblocks: 128 of them 128 KiB into each 256 KiB label, one 1 KiB or larger. */
function zfs({ head, tail, sizeBytes }: DeviceEnds): FoundSignature | undefined {
  const little = [0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0];
  const big = [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c];
  const inHead = (at: number) => matches(head, at, little) || matches(head, at, big);
  for (let label = 0; label < 2; label++) {
    for (let i = 0; i < 128; i++) {
      const at = label * 0x4_0000 + 0x2_0000 + i * 1024;
      if (inHead(at)) return { name: "zfs pool member", offsetBytes: at };
    }
  }
  // The two labels at the end lie before the last whole 256 KiB of the device.
  const end = Math.floor(sizeBytes / 0x4_0000) * 0x4_0000;
  for (let label = 1; label <= 2; label++) {
    for (let i = 0; i < 128; i++) {
      const at = end - label * 0x4_0000 + 0x2_0000 + i * 1024;
      const inTail = at - (sizeBytes - tail.length);
      if (matches(tail, inTail, little) || matches(tail, inTail, big)) {
        return { name: "zfs pool member", offsetBytes: at };
      }
    }
  }
  return undefined;
}

/** With sectors of 512 or 4096 bytes; the copy in the last sector counts as well. */
function gpt({ head, tail, sizeBytes }: DeviceEnds): FoundSignature | undefined {
  for (const sectorBytes of [512, 4096]) {
    if (matches(head, sectorBytes, "EFI PART")) {
      return { name: "GPT partition table", offsetBytes: sectorBytes };
    }
    if (matches(tail, tail.length - sectorBytes, "EFI PART")) {
      return { name: "GPT partition table (backup)", offsetBytes: sizeBytes - sectorBytes };
    }
  }
  return undefined;
}

/** Version 0.90 lies in the last whole 64 KiB but one, 1.0 in the last 8 KiB or so. */
function mdAtTheEnd({ tail, sizeBytes }: DeviceEnds): FoundSignature | undefined {
  const places = [
    Math.floor(sizeBytes / 65536) * 65536 - 65536,
    Math.floor((sizeBytes / 512 - 16) / 8) * 8 * 512,
  ];
  for (const at of places) {
    if (matches(tail, at - (sizeBytes - tail.length), MD_MAGIC)) {
      return { name: "md RAID member", offsetBytes: at };
    }
  }
  return undefined;
}

/** 55 aa at the end of sector 0, and at least one entry that is used and has a sane flag. */
function mbr({ head }: DeviceEnds): FoundSignature | undefined {
  if (!matches(head, 510, [0x55, 0xaa])) return undefined;
  for (let at = 446; at < 510; at += 16) {
    const flag = head[at]!;
    if (flag !== 0 && flag !== 0x80) return { name: "boot sector", offsetBytes: 510 };
    if (head[at + 4] !== 0) return { name: "MBR partition table", offsetBytes: 510 };
  }
  return { name: "boot sector", offsetBytes: 510 };
}
