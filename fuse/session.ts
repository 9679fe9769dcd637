/**
 * One FUSE connection: decodes each request in its slot, dispatches it by the opcode table, and
 * sends exactly one reply to each request that wants one.
 *
 * A handler returns the length of the reply it left at DATA_OFFSET, or a negated errno, or one of
 * the constants below. Lengths, nodes and handles in a request are not believed: what does not
 * add up is answered with an errno. Reads and writes that the volume can do at once are answered
 * before the next request is looked at; others wait for the volume's promise, and keep a slot.
 */
import { BcacheError, ERRNO, errnoOf, messageOf } from "../lib/base/errors.ts";
import type { Log } from "../lib/base/runtime.ts";
import { type BlockVolume, REQUEST_SYNC } from "../lib/cache/ports.ts";
import type { Channel } from "./channel.ts";
import { FILE_ERRNO, type Filesystem } from "./filesystem.ts";
import * as meta from "./session_metadata.ts";
import {
  BATCH_FORGET_IN,
  FALLOCATE_IN,
  FLUSH_IN,
  FSYNC_IN,
  IN_HEADER,
  INIT_IN_SHORT_BYTES,
  MAX_TRANSFER_BYTES,
  OPCODE,
  OPEN_FLAG,
  OPEN_IN,
  OUT_HEADER,
  READ_IN,
  RELEASE_IN,
  SETATTR_IN,
  WRITE_IN,
  WRITE_OUT,
} from "./protocol.ts";
import {
  ARGUMENT_OFFSET,
  DATA_OFFSET,
  REPLY_OFFSET,
  REQUEST_OFFSET,
  type Slot,
  type SlotPool,
  wide,
} from "./slot.ts";

/** The request wants no reply. */
export const NO_REPLY = 0x4000_0000;
/** The reply comes later, from another slot. */
const LATER = 0x4000_0001;
/** The reply comes later, from this slot, which the session keeps. */
const LATER_HERE = 0x4000_0002;

/** The kernel takes no error below this. */
const LEAST_ERRNO = -511;

const WORD = 4;
const HEADER_WORD = REQUEST_OFFSET / WORD;
const OPCODE_WORD = HEADER_WORD + IN_HEADER.opcode / WORD;
const UNIQUE_WORD = HEADER_WORD + IN_HEADER.unique / WORD;
const PID_WORD = HEADER_WORD + IN_HEADER.pid / WORD;
const NODE_WORD = HEADER_WORD + IN_HEADER.nodeid / WORD;
const ARGUMENT_WORD = ARGUMENT_OFFSET / WORD;
const DATA_WORD = DATA_OFFSET / WORD;
const REPLY_WORD = REPLY_OFFSET / WORD;
/** READ, WRITE, FALLOCATE and all that has a handle begin with it, then an offset. */
const HANDLE_WORD = ARGUMENT_WORD + READ_IN.fh / WORD;
const OFFSET_WORD = ARGUMENT_WORD + READ_IN.offset / WORD;
const WRITE_FLAGS_WORD = ARGUMENT_WORD + WRITE_IN.flags / WORD;
const SIZE_WORD = ARGUMENT_WORD + READ_IN.size / WORD;

/** Answers a request whose arguments are `argumentBytes` long and lie at ARGUMENT_OFFSET. */
export type Handler = (
  session: FuseSession,
  slot: Slot,
  node: number,
  argumentBytes: number,
) => number;

interface Operation {
  readonly opcode: number;
  readonly name: string;
  readonly handler: Handler;
  /** Shorter requests are refused. */
  readonly argumentBytes: number;
}

export interface SessionOptions {
  readonly channel: Channel;
  readonly filesystem: Filesystem;
  readonly pool: SlotPool;
  readonly log: Log;
  /** Called once, when the kernel and the session have agreed and files can be used. */
  readonly onReady: () => void;
}

export class FuseSession {
  readonly filesystem: Filesystem;
  readonly log: Log;
  /** What INIT agreed on. */
  directIo = false;
  readonly #channel: Channel;
  readonly #pool: SlotPool;
  readonly #onReady: () => void;
  #ready = false;
  #pending = 0;

  constructor(options: SessionOptions) {
    this.filesystem = options.filesystem;
    this.log = options.log;
    this.#channel = options.channel;
    this.#pool = options.pool;
    this.#onReady = options.onReady;
  }

  /** Requests that wait for their volume. */
  get pending(): number {
    return this.#pending;
  }

  get ready(): boolean {
    return this.#ready;
  }

  /** INIT succeeded. */
  becomeReady(): void {
    if (this.#ready) return;
    this.#ready = true;
    this.#onReady();
  }

  /**
   * Handles the request of `lengthBytes` in `slot`. Returns true when the session keeps the slot
   * for a later reply (it then goes back to the pool by itself).
   */
  handle(slot: Slot, lengthBytes: number): boolean {
    const words = slot.words;
    if (lengthBytes < IN_HEADER.sizeBytes) return this.#drop(lengthBytes);
    slot.uniqueLow = words[UNIQUE_WORD]!;
    slot.uniqueHigh = words[UNIQUE_WORD + 1]!;
    const opcode = words[OPCODE_WORD]!;
    let result: number;
    if (words[HEADER_WORD] !== lengthBytes) {
      result = -ERRNO.EINVAL;
    } else {
      result = this.#dispatch(slot, opcode, lengthBytes - IN_HEADER.sizeBytes);
    }
    if (result >= NO_REPLY) return result === LATER_HERE;
    this.#reply(slot, result);
    return false;
  }

  #dispatch(slot: Slot, opcode: number, argumentBytes: number): number {
    const operation = OPERATIONS[opcode];
    if (operation === undefined) return -ERRNO.ENOSYS;
    if (argumentBytes < operation.argumentBytes) return refusal(operation, -ERRNO.EINVAL);
    if (!this.#ready && opcode !== OPCODE.INIT) return refusal(operation, -ERRNO.ENOTCONN);
    const words = slot.words;
    const node = words[NODE_WORD + 1] === 0 ? words[NODE_WORD]! : 0;
    try {
      return operation.handler(this, slot, node, argumentBytes);
    } catch (error) {
      this.log("error", `${operation.name}: ${messageOf(error)}`);
      return refusal(operation, -errnoOf(error));
    }
  }

  /** Sends the reply `result` (as a handler returns it) to the request that `slot` remembers. */
  #reply(slot: Slot, result: number): void {
    const failed = this.#send(slot, result);
    // ENOENT: the request was given up. ENODEV: unmounted meanwhile. Nobody waits in either case.
    if (failed === 0 || failed === -ERRNO.ENOENT || failed === -ERRNO.ENODEV) return;
    this.log("error", `the kernel refused the reply ${result} (errno ${-failed}): failing it`);
    this.#send(slot, -ERRNO.EIO);
  }

  #send(slot: Slot, result: number): number {
    const words = slot.words;
    const lengthBytes = OUT_HEADER.sizeBytes + (result > 0 ? result : 0);
    words[REPLY_WORD] = lengthBytes;
    words[REPLY_WORD + 1] = result >= 0 ? 0 : result >= LEAST_ERRNO ? result : -ERRNO.EIO;
    words[REPLY_WORD + 2] = slot.uniqueLow;
    words[REPLY_WORD + 3] = slot.uniqueHigh;
    return this.#channel.send(slot, lengthBytes);
  }

  #drop(lengthBytes: number): boolean {
    this.log("warning", `a request of ${lengthBytes} bytes is too short to be answered`);
    return false;
  }

  /** Replies from `slot` when `work` is done, with `replyBytes` of its data or the error. */
  #replyLater(slot: Slot, work: Promise<void>, replyBytes: number): void {
    this.#pending++;
    work.then(
      () => this.#complete(slot, replyBytes),
      (error) => {
        if (!(error instanceof BcacheError && error.isLogged)) this.log("error", messageOf(error));
        this.#complete(slot, -errnoOf(error));
      },
    );
  }

  #complete(slot: Slot, result: number): void {
    this.#pending--;
    this.#reply(slot, result);
    this.#pool.give(slot);
  }

  /** Read that has to wait: moves to the smallest slot there is, so that a large one stays free. */
  readLater(slot: Slot, volume: BlockVolume, offsetBytes: number, lengthBytes: number): number {
    const own = this.#ownSlot(slot, lengthBytes);
    this.#replyLater(own, volume.read(offsetBytes, own.data(lengthBytes)), lengthBytes);
    return own === slot ? LATER_HERE : LATER;
  }

  /** @param durably the answer waits until the write would survive a power cut */
  writeLater(
    slot: Slot,
    volume: BlockVolume,
    range: { readonly offset: number; readonly length: number },
    durably: boolean,
  ): number {
    const { offset, length } = range;
    const own = this.#ownSlot(slot, length);
    const data = own.data(length);
    if (own !== slot) data.set(slot.data(length));
    const written = volume.write(offset, data);
    const work = durably ? written.then(() => volume.flush()) : written;
    this.#replyLater(own, work.then(() => putWriteReply(own, length)), WRITE_OUT.sizeBytes);
    return own === slot ? LATER_HERE : LATER;
  }

  /** The answer to a write that is done, once it would survive a power cut. */
  flushLater(slot: Slot, volume: BlockVolume, lengthBytes: number): number {
    const own = this.#ownSlot(slot, 0);
    const work = volume.flush().then(() => putWriteReply(own, lengthBytes));
    this.#replyLater(own, work, WRITE_OUT.sizeBytes);
    return own === slot ? LATER_HERE : LATER;
  }

  /** An answer without data, once `work` is done. */
  emptyLater(slot: Slot, work: Promise<void>): number {
    const own = this.#ownSlot(slot, 0);
    this.#replyLater(own, work, 0);
    return own === slot ? LATER_HERE : LATER;
  }

  #ownSlot(slot: Slot, dataBytes: number): Slot {
    const small = dataBytes * 2 <= MAX_TRANSFER_BYTES ? this.#pool.tryTake(dataBytes) : undefined;
    if (small === undefined) return slot;
    small.uniqueLow = slot.uniqueLow;
    small.uniqueHigh = slot.uniqueHigh;
    return small;
  }
}

/** Requests without reply stay without one when they are refused. */
function refusal(operation: Operation, errno: number): number {
  return NEVER_ANSWERED.has(operation.opcode) ? NO_REPLY : errno;
}

const NEVER_ANSWERED: ReadonlySet<number> = new Set([
  OPCODE.FORGET,
  OPCODE.BATCH_FORGET,
  OPCODE.INTERRUPT,
  OPCODE.NOTIFY_REPLY,
]);

function putWriteReply(slot: Slot, lengthBytes: number): void {
  slot.words[DATA_WORD] = lengthBytes;
  slot.words[DATA_WORD + 1] = 0;
}

/** Whether the handle in the request is one that OPEN gave for `node`. */
function handleFits(words: Uint32Array, node: number): boolean {
  return words[HANDLE_WORD] === node && words[HANDLE_WORD + 1] === 0;
}

function read(session: FuseSession, slot: Slot, node: number): number {
  const words = slot.words;
  const filesystem = session.filesystem;
  const volume = filesystem.volume(node);
  if (volume === undefined) return filesystem.notAFile(node);
  if (!handleFits(words, node)) return -FILE_ERRNO.EBADF;
  const offset = wide(words, OFFSET_WORD);
  const asked = words[SIZE_WORD]!;
  if (!(offset >= 0) || asked > MAX_TRANSFER_BYTES) return -ERRNO.EINVAL;
  const length = filesystem.readable(volume, offset, asked);
  if (length === 0) return 0;
  // Of read-ahead the kernel says nothing.
  volume.describeNext?.(words[PID_WORD]!, 0);
  if (volume.tryRead(offset, slot.data(length))) return length;
  return session.readLater(slot, volume, offset, length);
}

/**
 * A write with O_DSYNC or O_SYNC is durable when it is answered. For most of them the kernel asks
 * for a flush besides, which then finds nothing to do; for files opened with O_DIRECT too, and for
 * asynchronous writes, it leaves that to us.
 */
function write(session: FuseSession, slot: Slot, node: number, argumentBytes: number): number {
  const words = slot.words;
  const filesystem = session.filesystem;
  const volume = filesystem.volume(node);
  if (volume === undefined) return filesystem.notAFile(node);
  if (!handleFits(words, node)) return -FILE_ERRNO.EBADF;
  const offset = wide(words, OFFSET_WORD);
  const asked = words[SIZE_WORD]!;
  if (!(offset >= 0) || asked > MAX_TRANSFER_BYTES) return -ERRNO.EINVAL;
  if (asked > argumentBytes - WRITE_IN.sizeBytes) return -ERRNO.EINVAL;
  const length = filesystem.writable(volume, offset, asked);
  if (length < 0) return length;
  if (length > 0) {
    filesystem.touch(node);
    const isSync = (words[WRITE_FLAGS_WORD]! & OPEN_FLAG.SYNC) !== 0;
    volume.describeNext?.(words[PID_WORD]!, isSync ? REQUEST_SYNC : 0);
    if (!volume.tryWrite(offset, slot.data(length))) {
      return session.writeLater(slot, volume, { offset, length }, isSync);
    }
    if (isSync) return session.flushLater(slot, volume, length);
  }
  putWriteReply(slot, length);
  return WRITE_OUT.sizeBytes;
}

function fsync(session: FuseSession, slot: Slot, node: number): number {
  const volume = session.filesystem.volume(node);
  if (volume === undefined) return session.filesystem.notAFile(node);
  if (!handleFits(slot.words, node)) return -FILE_ERRNO.EBADF;
  return session.emptyLater(slot, volume.flush());
}

function syncFilesystem(session: FuseSession, slot: Slot): number {
  const flushes = session.filesystem.volumes.map((volume) => volume.flush());
  return session.emptyLater(slot, Promise.all(flushes).then(() => {}));
}

function fallocate(session: FuseSession, slot: Slot, node: number): number {
  const words = slot.words;
  const filesystem = session.filesystem;
  const volume = filesystem.volume(node);
  if (volume === undefined) return filesystem.notAFile(node);
  if (!handleFits(words, node)) return -FILE_ERRNO.EBADF;
  const offset = wide(words, OFFSET_WORD);
  const length = wide(words, ARGUMENT_WORD + FALLOCATE_IN.length / WORD);
  const mode = words[ARGUMENT_WORD + FALLOCATE_IN.mode / WORD]!;
  if (!(offset >= 0) || !(length >= 0)) return -ERRNO.EINVAL;
  const bytes = filesystem.zeroable(volume, mode, offset, length);
  if (bytes <= 0) return bytes;
  filesystem.touch(node);
  return session.emptyLater(slot, volume.zero(offset, bytes));
}

/** Closing does not flush: what close(2) promises is less than what fsync(2) does. */
function accept(session: FuseSession, _slot: Slot, node: number): number {
  return session.filesystem.exists(node) ? 0 : -FILE_ERRNO.ESTALE;
}

function release(session: FuseSession, _slot: Slot, node: number): number {
  return session.filesystem.release(node);
}

const ignore: Handler = () => NO_REPLY;
const done: Handler = () => 0;
const refuseChange: Handler = (session) => session.filesystem.refuseChange();
const noSuchThing: Handler = () => -ERRNO.ENOSYS;
const noControl: Handler = () => -FILE_ERRNO.ENOTTY;
const notALink: Handler = () => -ERRNO.EINVAL;

/** A name takes a byte and its NUL; what has no arguments takes none. */
const TABLE: readonly [opcode: keyof typeof OPCODE, handler: Handler, argumentBytes: number][] = [
  ["READ", read, READ_IN.sizeBytes],
  ["WRITE", write, WRITE_IN.sizeBytes],
  ["INIT", meta.initialise, INIT_IN_SHORT_BYTES],
  ["LOOKUP", meta.lookup, 2],
  ["FORGET", ignore, 0],
  ["BATCH_FORGET", ignore, BATCH_FORGET_IN.sizeBytes],
  ["GETATTR", meta.getAttributes, 0],
  ["SETATTR", meta.setAttributes, SETATTR_IN.sizeBytes],
  ["OPEN", meta.open, OPEN_IN.sizeBytes],
  ["RELEASE", release, RELEASE_IN.sizeBytes],
  ["FLUSH", accept, FLUSH_IN.sizeBytes],
  ["FSYNC", fsync, FSYNC_IN.sizeBytes],
  ["OPENDIR", meta.openDirectory, OPEN_IN.sizeBytes],
  ["READDIR", meta.readDirectory, READ_IN.sizeBytes],
  ["READDIRPLUS", meta.readDirectoryPlus, READ_IN.sizeBytes],
  ["RELEASEDIR", accept, RELEASE_IN.sizeBytes],
  ["FSYNCDIR", accept, FSYNC_IN.sizeBytes],
  ["STATFS", meta.statistics, 0],
  ["ACCESS", meta.access, 8],
  ["FALLOCATE", fallocate, FALLOCATE_IN.sizeBytes],
  ["SYNCFS", syncFilesystem, 0],
  ["INTERRUPT", ignore, 0],
  ["NOTIFY_REPLY", ignore, 0],
  ["DESTROY", done, 0],
  ["READLINK", notALink, 0],
  ["SYMLINK", refuseChange, 0],
  ["MKNOD", refuseChange, 0],
  ["MKDIR", refuseChange, 0],
  ["UNLINK", refuseChange, 0],
  ["RMDIR", refuseChange, 0],
  ["RENAME", refuseChange, 0],
  ["RENAME2", refuseChange, 0],
  ["LINK", refuseChange, 0],
  ["CREATE", refuseChange, 0],
  ["TMPFILE", refuseChange, 0],
  ["IOCTL", noControl, 0],
  // The kernel does these by itself, or tells its caller, once it hears that we do not.
  ["SETXATTR", noSuchThing, 0],
  ["GETXATTR", noSuchThing, 0],
  ["LISTXATTR", noSuchThing, 0],
  ["REMOVEXATTR", noSuchThing, 0],
  ["GETLK", noSuchThing, 0],
  ["SETLK", noSuchThing, 0],
  ["SETLKW", noSuchThing, 0],
  ["BMAP", noSuchThing, 0],
  ["POLL", noSuchThing, 0],
  ["LSEEK", noSuchThing, 0],
  ["COPY_FILE_RANGE", noSuchThing, 0],
  ["SETUPMAPPING", noSuchThing, 0],
  ["REMOVEMAPPING", noSuchThing, 0],
  ["STATX", noSuchThing, 0],
];

/** By opcode. */
const OPERATIONS: readonly (Operation | undefined)[] = (() => {
  const operations: (Operation | undefined)[] = new Array(64).fill(undefined);
  for (const [name, handler, argumentBytes] of TABLE) {
    operations[OPCODE[name]] = { opcode: OPCODE[name], name, handler, argumentBytes };
  }
  return operations;
})();
