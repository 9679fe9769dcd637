/**
 * The handlers that deal with names, attributes and the agreement with the kernel. They run
 * seldom, and write their replies through the struct tables.
 */
import { ERRNO } from "../lib/base/errors.ts";
import type { Log } from "../lib/base/runtime.ts";
import {
  type AttributeChange,
  type Attributes,
  type DirectoryEntry,
  FILE_ERRNO,
  type Filesystem,
  type Timestamp,
} from "./filesystem.ts";
import {
  ACCESS_IN,
  ATTR,
  ATTR_OUT,
  DIRENT,
  ENTRY_OUT,
  FUSE_MAJOR,
  FUSE_MINOR,
  FUSE_MINOR_OLDEST,
  INIT_FLAG,
  INIT_FLAG2,
  INIT_IN,
  INIT_OUT,
  MAX_TRANSFER_BYTES,
  MAX_TRANSFER_PAGES,
  OPEN_FLAG,
  OPEN_IN,
  OPEN_OUT,
  OPEN_REPLY,
  READ_IN,
  ROOT_NODE,
  SETATTR_IN,
  SETATTR_VALID,
  STATFS_OUT,
} from "./protocol.ts";
import { ARGUMENT_OFFSET, DATA_OFFSET, type Slot, wide } from "./slot.ts";

/** What these handlers need of the session, which is above them. */
export interface MetadataSession {
  readonly filesystem: Filesystem;
  readonly log: Log;
  /** What INIT agreed on. */
  directIo: boolean;
  /** The kernel and we have agreed. */
  becomeReady(): void;
}

/** How long the kernel may remember names and attributes: they hardly ever change. */
const VALID_SECONDS = 1;
/** Reads ahead and asynchronous direct requests that the kernel keeps under way. */
const BACKGROUND_MOST = 128;
const CONGESTED_FROM = 96;
const NAME_BYTES_MOST = 255;
const ACCESS_WRITE = 2;
const READAHEAD_BYTES = MAX_TRANSFER_BYTES;

const WANTED_FLAGS = INIT_FLAG.ASYNC_READ | INIT_FLAG.BIG_WRITES | INIT_FLAG.DO_READDIRPLUS |
  INIT_FLAG.READDIRPLUS_AUTO | INIT_FLAG.ASYNC_DIO | INIT_FLAG.PARALLEL_DIROPS |
  INIT_FLAG.ABORT_ERROR | INIT_FLAG.MAX_PAGES | INIT_FLAG.INIT_EXT;
const WANTED_FLAGS2 = INIT_FLAG2.DIRECT_IO_ALLOW_MMAP;

function argument(slot: Slot, fieldOffset: number): number {
  return slot.words[(ARGUMENT_OFFSET + fieldOffset) / 4]!;
}

function put(slot: Slot, atBytes: number, value: number): void {
  slot.words[atBytes / 4] = value;
}

function putWide(slot: Slot, atBytes: number, value: number): void {
  slot.words[atBytes / 4] = value % 0x1_0000_0000;
  slot.words[atBytes / 4 + 1] = Math.floor(value / 0x1_0000_0000);
}

function clear(slot: Slot, atBytes: number, lengthBytes: number): void {
  slot.bytes.fill(0, atBytes, atBytes + lengthBytes);
}

/** The agreement: the kernel's flags and ours, and the sizes of requests. */
export function initialise(
  session: MetadataSession,
  slot: Slot,
  _node: number,
  argumentBytes: number,
): number {
  const major = argument(slot, INIT_IN.major);
  const minor = argument(slot, INIT_IN.minor);
  const readahead = Math.min(argument(slot, INIT_IN.maxReadahead), READAHEAD_BYTES);
  const offered = argument(slot, INIT_IN.flags);
  const extended = (offered & INIT_FLAG.INIT_EXT) !== 0 && argumentBytes >= INIT_IN.sizeBytes;
  const flags2 = extended ? argument(slot, INIT_IN.flags2) & WANTED_FLAGS2 : 0;
  clear(slot, DATA_OFFSET, INIT_OUT.sizeBytes);
  put(slot, DATA_OFFSET + INIT_OUT.major, FUSE_MAJOR);
  put(slot, DATA_OFFSET + INIT_OUT.minor, FUSE_MINOR);
  // A newer major version is asked to come down to ours, and then sends INIT again.
  if (major > FUSE_MAJOR) return INIT_OUT.sizeBytes;
  const tooOld = major < FUSE_MAJOR || minor < FUSE_MINOR_OLDEST;
  if (tooOld || (offered & INIT_FLAG.MAX_PAGES) === 0) {
    session.log("error", `the kernel speaks FUSE ${major}.${minor}; Linux 4.20 or newer is needed`);
    return -FILE_ERRNO.EPROTO;
  }
  session.directIo = (flags2 & INIT_FLAG2.DIRECT_IO_ALLOW_MMAP) !== 0;
  put(slot, DATA_OFFSET + INIT_OUT.maxReadahead, readahead);
  put(slot, DATA_OFFSET + INIT_OUT.flags, offered & WANTED_FLAGS);
  put(slot, DATA_OFFSET + INIT_OUT.maxBackground, BACKGROUND_MOST | (CONGESTED_FROM << 16));
  put(slot, DATA_OFFSET + INIT_OUT.maxWrite, MAX_TRANSFER_BYTES);
  put(slot, DATA_OFFSET + INIT_OUT.timeGran, 1);
  put(slot, DATA_OFFSET + INIT_OUT.maxPages, MAX_TRANSFER_PAGES);
  put(slot, DATA_OFFSET + INIT_OUT.flags2, flags2);
  session.becomeReady();
  return INIT_OUT.sizeBytes;
}

function putAttributes(slot: Slot, atBytes: number, attributes: Attributes): void {
  clear(slot, atBytes, ATTR.sizeBytes);
  putWide(slot, atBytes + ATTR.ino, attributes.node);
  putWide(slot, atBytes + ATTR.size, attributes.sizeBytes);
  putWide(slot, atBytes + ATTR.blocks, Math.ceil(attributes.sizeBytes / 512));
  putWide(slot, atBytes + ATTR.atime, attributes.accessed.seconds);
  putWide(slot, atBytes + ATTR.mtime, attributes.modified.seconds);
  putWide(slot, atBytes + ATTR.ctime, attributes.modified.seconds);
  put(slot, atBytes + ATTR.atimensec, attributes.accessed.nanoseconds);
  put(slot, atBytes + ATTR.mtimensec, attributes.modified.nanoseconds);
  put(slot, atBytes + ATTR.ctimensec, attributes.modified.nanoseconds);
  put(slot, atBytes + ATTR.mode, attributes.mode);
  put(slot, atBytes + ATTR.nlink, attributes.links);
  put(slot, atBytes + ATTR.uid, attributes.ownerUser);
  put(slot, atBytes + ATTR.gid, attributes.ownerGroup);
  put(slot, atBytes + ATTR.blksize, attributes.preferredBytes);
}

function putEntry(slot: Slot, atBytes: number, attributes: Attributes): void {
  clear(slot, atBytes, ENTRY_OUT.sizeBytes);
  putWide(slot, atBytes + ENTRY_OUT.nodeid, attributes.node);
  putWide(slot, atBytes + ENTRY_OUT.entryValid, VALID_SECONDS);
  putWide(slot, atBytes + ENTRY_OUT.attrValid, VALID_SECONDS);
  putAttributes(slot, atBytes + ENTRY_OUT.attr, attributes);
}

function replyAttributes(session: MetadataSession, slot: Slot, node: number): number {
  const attributes = session.filesystem.attributes(node);
  if (attributes === undefined) return -FILE_ERRNO.ESTALE;
  clear(slot, DATA_OFFSET, ATTR_OUT.sizeBytes);
  putWide(slot, DATA_OFFSET + ATTR_OUT.attrValid, VALID_SECONDS);
  putAttributes(slot, DATA_OFFSET + ATTR_OUT.attr, attributes);
  return ATTR_OUT.sizeBytes;
}

export function lookup(
  session: MetadataSession,
  slot: Slot,
  parent: number,
  argumentBytes: number,
): number {
  const end = slot.bytes.indexOf(0, ARGUMENT_OFFSET);
  if (end < 0 || end >= ARGUMENT_OFFSET + argumentBytes) return -ERRNO.EINVAL;
  const name = new TextDecoder().decode(slot.bytes.subarray(ARGUMENT_OFFSET, end));
  const node = session.filesystem.lookup(parent, name);
  if (node < 0) return node;
  const attributes = session.filesystem.attributes(node);
  if (attributes === undefined) return -FILE_ERRNO.ESTALE;
  putEntry(slot, DATA_OFFSET, attributes);
  return ENTRY_OUT.sizeBytes;
}

export function getAttributes(session: MetadataSession, slot: Slot, node: number): number {
  return replyAttributes(session, slot, node);
}

export function setAttributes(session: MetadataSession, slot: Slot, node: number): number {
  const valid = argument(slot, SETATTR_IN.valid);
  const { MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_NOW, MTIME_NOW } = SETATTR_VALID;
  const time = (now: number, set: number, seconds: number, nanoseconds: number) => {
    if ((valid & now) !== 0) return "now" as const;
    if ((valid & set) === 0) return undefined;
    return timestamp(slot, seconds, nanoseconds);
  };
  const accessed = time(ATIME_NOW, ATIME, SETATTR_IN.atime, SETATTR_IN.atimensec);
  const modified = time(MTIME_NOW, MTIME, SETATTR_IN.mtime, SETATTR_IN.mtimensec);
  const change: AttributeChange = {
    modeOrOwner: (valid & (MODE | UID | GID)) !== 0,
    ...((valid & SIZE) !== 0 && { sizeBytes: wideArgument(slot, SETATTR_IN.size) }),
    ...(accessed !== undefined && { accessed }),
    ...(modified !== undefined && { modified }),
  };
  const failed = session.filesystem.change(node, change);
  return failed < 0 ? failed : replyAttributes(session, slot, node);
}

function wideArgument(slot: Slot, fieldOffset: number): number {
  return wide(slot.words, (ARGUMENT_OFFSET + fieldOffset) / 4);
}

function timestamp(slot: Slot, secondsField: number, nanosecondsField: number): Timestamp {
  const seconds = wideArgument(slot, secondsField);
  const nanoseconds = argument(slot, nanosecondsField);
  // Times before 1970 (negative, so not a number here) and nonsense become zero.
  return {
    seconds: Number.isNaN(seconds) ? 0 : seconds,
    nanoseconds: nanoseconds < 1e9 ? nanoseconds : 0,
  };
}

function replyOpen(slot: Slot, handle: number, flags: number): number {
  clear(slot, DATA_OFFSET, OPEN_OUT.sizeBytes);
  putWide(slot, DATA_OFFSET + OPEN_OUT.fh, handle);
  put(slot, DATA_OFFSET + OPEN_OUT.openFlags, flags);
  return OPEN_OUT.sizeBytes;
}

/**
 * Only this file system changes its files, so the kernel may keep their pages from one open to
 * the next. Files opened with O_DIRECT go past the page cache, several writes at once, where the
 * kernel keeps such files coherent with mapped and cached ones (Linux 6.6); older ones serve
 * O_DIRECT one write at a time, which needs no word from us.
 */
export function open(session: MetadataSession, slot: Slot, node: number): number {
  const flags = argument(slot, OPEN_IN.flags);
  const handle = session.filesystem.open(node, flags);
  if (handle < 0) return handle;
  const direct = session.directIo && (flags & OPEN_FLAG.DIRECT) !== 0;
  const extra = direct ? OPEN_REPLY.DIRECT_IO | OPEN_REPLY.PARALLEL_DIRECT_WRITES : 0;
  return replyOpen(slot, handle, OPEN_REPLY.KEEP_CACHE | extra);
}

export function openDirectory(session: MetadataSession, slot: Slot, node: number): number {
  const handle = session.filesystem.openDirectory(node);
  return handle < 0 ? handle : replyOpen(slot, handle, 0);
}

export function readDirectory(session: MetadataSession, slot: Slot, node: number): number {
  return listDirectory(session, slot, node, false);
}

export function readDirectoryPlus(session: MetadataSession, slot: Slot, node: number): number {
  return listDirectory(session, slot, node, true);
}

/** Entries from `offset` (an index) on, as many as fit into what the kernel asked for. */
function listDirectory(session: MetadataSession, slot: Slot, node: number, plus: boolean): number {
  const handle = session.filesystem.openDirectory(node);
  if (handle < 0) return handle;
  if (wideArgument(slot, READ_IN.fh) !== handle) return -FILE_ERRNO.EBADF;
  const first = wideArgument(slot, READ_IN.offset);
  if (Number.isNaN(first)) return -ERRNO.EINVAL;
  const room = Math.min(argument(slot, READ_IN.size), slot.capacityBytes);
  let used = 0;
  for (let index = first;; index++) {
    const entry = session.filesystem.entry(index);
    if (entry === undefined) return used;
    const name = new TextEncoder().encode(entry.name);
    const prefix = plus ? ENTRY_OUT.sizeBytes : 0;
    const length = prefix + Math.ceil((DIRENT.sizeBytes + name.length) / 8) * 8;
    if (used + length > room) return used;
    clear(slot, DATA_OFFSET + used, length);
    if (plus) putDirectoryEntryPlus(session, slot, DATA_OFFSET + used, entry);
    putDirectoryEntry(slot, DATA_OFFSET + used + prefix, { ...entry, index }, name);
    used += length;
  }
}

/** "." and ".." stay without attributes: node 0 tells the kernel to take none. */
function putDirectoryEntryPlus(
  session: MetadataSession,
  slot: Slot,
  atBytes: number,
  entry: DirectoryEntry,
): void {
  const attributes = session.filesystem.attributes(entry.node);
  if (entry.node !== ROOT_NODE && attributes !== undefined) putEntry(slot, atBytes, attributes);
}

function putDirectoryEntry(
  slot: Slot,
  atBytes: number,
  entry: DirectoryEntry & { index: number },
  name: Uint8Array,
): void {
  putWide(slot, atBytes + DIRENT.ino, entry.node);
  putWide(slot, atBytes + DIRENT.off, entry.index + 1);
  put(slot, atBytes + DIRENT.namelen, name.length);
  // The d_type of readdir(3) is the file type's four bits.
  put(slot, atBytes + DIRENT.type, entry.type >>> 12);
  slot.bytes.set(name, atBytes + DIRENT.sizeBytes);
}

export function statistics(session: MetadataSession, slot: Slot): number {
  const volumes = session.filesystem.volumes;
  const blockBytes = 4096;
  const total = volumes.reduce((sum, volume) => sum + volume.sizeBytes, 0);
  clear(slot, DATA_OFFSET, STATFS_OUT.sizeBytes);
  putWide(slot, DATA_OFFSET + STATFS_OUT.blocks, Math.floor(total / blockBytes));
  putWide(slot, DATA_OFFSET + STATFS_OUT.files, volumes.length + 1);
  put(slot, DATA_OFFSET + STATFS_OUT.bsize, blockBytes);
  put(slot, DATA_OFFSET + STATFS_OUT.namelen, NAME_BYTES_MOST);
  put(slot, DATA_OFFSET + STATFS_OUT.frsize, blockBytes);
  return STATFS_OUT.sizeBytes;
}

export function access(session: MetadataSession, slot: Slot, node: number): number {
  return session.filesystem.access(node, (argument(slot, ACCESS_IN.mask) & ACCESS_WRITE) !== 0);
}
