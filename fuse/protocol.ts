/**
 * The FUSE kernel protocol, as tables: operation codes, flags, and where each field of each
 * message is. Version 7.38, little-endian (answers to <linux/fuse.h>).
 *
 * Offsets count from the start of the struct. 64-bit fields are two 32-bit words, low word first.
 */
import { assert } from "../lib/base/assert.ts";

export const FUSE_MAJOR = 7;
/** The newest minor version spoken; the kernel adapts to an older one. */
export const FUSE_MINOR = 38;
/** Older kernels (before Linux 4.20) lack max_pages and are refused. */
export const FUSE_MINOR_OLDEST = 28;
export const ROOT_NODE = 1;

/** The largest transfer in one request. */
export const MAX_TRANSFER_BYTES = 1024 * 1024;
export const MAX_TRANSFER_PAGES = 256;

type FieldType = "u16" | "u32" | "i32" | "u64" | `bytes:${number}`;

function fieldBytes(type: FieldType): number {
  if (type === "u16") return 2;
  if (type === "u32" || type === "i32") return 4;
  if (type === "u64") return 8;
  return Number(type.slice("bytes:".length));
}

/** Offsets by name, and the struct's own size. Throws at import when the rows do not add up. */
function struct<const Rows extends readonly (readonly [string, FieldType])[]>(
  sizeBytes: number,
  rows: Rows,
): { readonly [Name in Rows[number][0]]: number } & { readonly sizeBytes: number } {
  const offsets: Record<string, number> = { sizeBytes };
  let at = 0;
  for (const [name, type] of rows) {
    const length = fieldBytes(type);
    assert(type.startsWith("bytes") || at % length === 0, `field ${name} is aligned`);
    offsets[name] = at;
    at += length;
  }
  assert(at === sizeBytes, `the rows add up to ${sizeBytes} bytes, not ${at}`);
  return offsets as ReturnType<typeof struct<Rows>>;
}

export const IN_HEADER = struct(40, [
  ["len", "u32"],
  ["opcode", "u32"],
  ["unique", "u64"],
  ["nodeid", "u64"],
  ["uid", "u32"],
  ["gid", "u32"],
  ["pid", "u32"],
  ["totalExtlen", "u16"],
  ["padding", "u16"],
]);
export const OUT_HEADER = struct(16, [["len", "u32"], ["error", "i32"], ["unique", "u64"]]);

export const ATTR = struct(88, [
  ["ino", "u64"],
  ["size", "u64"],
  ["blocks", "u64"],
  ["atime", "u64"],
  ["mtime", "u64"],
  ["ctime", "u64"],
  ["atimensec", "u32"],
  ["mtimensec", "u32"],
  ["ctimensec", "u32"],
  ["mode", "u32"],
  ["nlink", "u32"],
  ["uid", "u32"],
  ["gid", "u32"],
  ["rdev", "u32"],
  ["blksize", "u32"],
  ["flags", "u32"],
]);
export const ENTRY_OUT = struct(128, [
  ["nodeid", "u64"],
  ["generation", "u64"],
  ["entryValid", "u64"],
  ["attrValid", "u64"],
  ["entryValidNsec", "u32"],
  ["attrValidNsec", "u32"],
  ["attr", "bytes:88"],
]);
export const ATTR_OUT = struct(104, [
  ["attrValid", "u64"],
  ["attrValidNsec", "u32"],
  ["dummy", "u32"],
  ["attr", "bytes:88"],
]);
export const INIT_IN = struct(64, [
  ["major", "u32"],
  ["minor", "u32"],
  ["maxReadahead", "u32"],
  ["flags", "u32"],
  ["flags2", "u32"],
  ["unused", "bytes:44"],
]);
/** What a kernel before 7.36 sends: nothing after `flags`. */
export const INIT_IN_SHORT_BYTES = 16;
export const INIT_OUT = struct(64, [
  ["major", "u32"],
  ["minor", "u32"],
  ["maxReadahead", "u32"],
  ["flags", "u32"],
  ["maxBackground", "u16"],
  ["congestionThreshold", "u16"],
  ["maxWrite", "u32"],
  ["timeGran", "u32"],
  ["maxPages", "u16"],
  ["mapAlignment", "u16"],
  ["flags2", "u32"],
  ["unused", "bytes:28"],
]);
export const SETATTR_IN = struct(88, [
  ["valid", "u32"],
  ["padding", "u32"],
  ["fh", "u64"],
  ["size", "u64"],
  ["lockOwner", "u64"],
  ["atime", "u64"],
  ["mtime", "u64"],
  ["ctime", "u64"],
  ["atimensec", "u32"],
  ["mtimensec", "u32"],
  ["ctimensec", "u32"],
  ["mode", "u32"],
  ["unused4", "u32"],
  ["uid", "u32"],
  ["gid", "u32"],
  ["unused5", "u32"],
]);
export const OPEN_IN = struct(8, [["flags", "u32"], ["openFlags", "u32"]]);
export const OPEN_OUT = struct(16, [["fh", "u64"], ["openFlags", "u32"], ["padding", "u32"]]);
/** READ, READDIR and READDIRPLUS. */
export const READ_IN = struct(40, [
  ["fh", "u64"],
  ["offset", "u64"],
  ["size", "u32"],
  ["readFlags", "u32"],
  ["lockOwner", "u64"],
  ["flags", "u32"],
  ["padding", "u32"],
]);
export const WRITE_IN = struct(40, [
  ["fh", "u64"],
  ["offset", "u64"],
  ["size", "u32"],
  ["writeFlags", "u32"],
  ["lockOwner", "u64"],
  ["flags", "u32"],
  ["padding", "u32"],
]);
export const WRITE_OUT = struct(8, [["size", "u32"], ["padding", "u32"]]);
export const FSYNC_IN = struct(16, [["fh", "u64"], ["fsyncFlags", "u32"], ["padding", "u32"]]);
export const RELEASE_IN = struct(24, [
  ["fh", "u64"],
  ["flags", "u32"],
  ["releaseFlags", "u32"],
  ["lockOwner", "u64"],
]);
export const FLUSH_IN = struct(24, [
  ["fh", "u64"],
  ["unused", "u32"],
  ["padding", "u32"],
  ["lockOwner", "u64"],
]);
export const FALLOCATE_IN = struct(32, [
  ["fh", "u64"],
  ["offset", "u64"],
  ["length", "u64"],
  ["mode", "u32"],
  ["padding", "u32"],
]);
export const STATFS_OUT = struct(80, [
  ["blocks", "u64"],
  ["bfree", "u64"],
  ["bavail", "u64"],
  ["files", "u64"],
  ["ffree", "u64"],
  ["bsize", "u32"],
  ["namelen", "u32"],
  ["frsize", "u32"],
  ["padding", "u32"],
  ["spare", "bytes:24"],
]);
/** Followed by the name, padded to 8 bytes. */
export const DIRENT = struct(24, [
  ["ino", "u64"],
  ["off", "u64"],
  ["namelen", "u32"],
  ["type", "u32"],
]);
export const ACCESS_IN = struct(8, [["mask", "u32"], ["padding", "u32"]]);
/** Followed by {@link FORGET_ONE_BYTES} for each of `count`. */
export const BATCH_FORGET_IN = struct(8, [["count", "u32"], ["dummy", "u32"]]);
export const FORGET_ONE_BYTES = 16;

/** Messages of our own accord: the header's `error` is one of these, its `unique` zero. */
export const NOTIFY = { INVALIDATE_INODE: 2, INVALIDATE_ENTRY: 3 } as const;
export const NOTIFY_INODE_OUT = struct(24, [["ino", "u64"], ["offset", "u64"], ["length", "u64"]]);
/** Followed by the name and a zero. */
export const NOTIFY_ENTRY_OUT = struct(16, [
  ["parent", "u64"],
  ["namelen", "u32"],
  ["flags", "u32"],
]);

/** Every request of protocol 7.38 (and STATX of 7.39, to answer it by name). */
export const OPCODE = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  GETLK: 31,
  SETLK: 32,
  SETLKW: 33,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SETUPMAPPING: 48,
  REMOVEMAPPING: 49,
  SYNCFS: 50,
  TMPFILE: 51,
  STATX: 52,
} as const;

/** INIT flags, by bit. Those from bit 32 on travel in `flags2`. */
export const INIT_FLAG = {
  ASYNC_READ: 1 << 0,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  PARALLEL_DIROPS: 1 << 18,
  ABORT_ERROR: 1 << 21,
  MAX_PAGES: 1 << 22,
  INIT_EXT: 1 << 30,
} as const;
export const INIT_FLAG2 = {
  /** Bit 36, Linux 6.6: mmap of a file opened with FOPEN_DIRECT_IO, coherent with the cache. */
  DIRECT_IO_ALLOW_MMAP: 1 << 4,
} as const;

/** Bits of `SETATTR_IN.valid`. */
export const SETATTR_VALID = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  FH: 1 << 6,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
} as const;

/** Bits of `OPEN_OUT.openFlags`. */
export const OPEN_REPLY = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PARALLEL_DIRECT_WRITES: 1 << 6,
} as const;

/** Bits of `OPEN_IN.flags` and `WRITE_IN.flags`, as in open(2). */
export const OPEN_FLAG = {
  ACCESS_MODE: 0o3,
  TRUNCATE: 0o1000,
  DIRECT: 0o40000,
  /** O_DSYNC, and what O_SYNC has beyond it. */
  SYNC: 0o4010000,
} as const;

/** Modes of fallocate(2). */
export const FALLOCATE_MODE = { KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 0x10 } as const;

export const FILE_TYPE = { DIRECTORY: 0o040000, REGULAR: 0o100000 } as const;
