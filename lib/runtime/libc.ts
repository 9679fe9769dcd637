/**
 * The system calls this program makes itself, through the foreign function interface of the
 * runtime (`libc_bun.ts`, `libc_deno.ts`, chosen when the program starts).
 *
 * Convention: a call returns its result, or the negated errno; nothing here throws but for a
 * runtime without such an interface. Memory is named by an `Address`, made once per buffer: making
 * one costs more than the call. Offsets are 64 bits wide, as safe integers.
 */
import { BcacheError } from "../base/errors.ts";
import type { Address, ForeignInterface, RawCalls } from "./libc_calls.ts";

export type { Address } from "./libc_calls.ts";

/** Flags of the calls below (Linux, generic architectures). */
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  NONBLOCK: 0o4000,
  CLOEXEC: 0o2000000,
} as const;
export const POLL = { IN: 1, ERR: 8, HUP: 16 } as const;
export const MS = { RDONLY: 1, NOSUID: 2, NODEV: 4, NOATIME: 1024 } as const;
export const MNT_DETACH = 2;
const F_SETFL = 4;
const BLKGETSIZE64 = 0x80081272;
/** struct statx: its size, where the time of modification is, and how that is asked for. */
const STATX = { bytes: 256, modified: 0x70, emptyPath: 0x1000, wantModified: 0x40 } as const;
const BLKSSZGET = 0x1268;
const PR_SET_TIMERSLACK = 29;
const PR_SET_IO_FLUSHER = 57;
const CLOCK_THREAD_CPUTIME_ID = 3;

/** A NUL-terminated string for C, and its address. Keep the object while C may look at it. */
export interface CString {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly address: Address;
}

export class Libc {
  /** For hot paths: the C functions themselves. */
  readonly calls: RawCalls;
  #foreign: ForeignInterface;
  /** A struct timespec: seconds and nanoseconds, of 64 bits each. */
  readonly #cpuTime: { readonly words: Uint32Array; readonly address: Address };

  constructor(foreign: ForeignInterface) {
    this.#foreign = foreign;
    this.calls = foreign.calls;
    const words = new Uint32Array(new ArrayBuffer(16));
    this.#cpuTime = { words, address: foreign.addressOf(words.buffer as ArrayBuffer, 0) };
  }

  errno(): number {
    return this.#foreign.errno();
  }

  addressOf(bytes: Uint8Array<ArrayBuffer>, offset = 0): Address {
    return this.#foreign.addressOf(bytes.buffer, bytes.byteOffset + offset);
  }

  addressValue(address: Address): number {
    return this.#foreign.addressValue(address);
  }

  /** @param text must not contain NUL; what follows one would be cut off. */
  cString(text: string): CString {
    const encoded = new TextEncoder().encode(text);
    const bytes = new Uint8Array(encoded.length + 1);
    bytes.set(encoded);
    return { bytes, address: this.addressOf(bytes) };
  }

  /** A file descriptor. */
  open(path: string, flags: number): number {
    const name = this.cString(path);
    return this.#checked(this.calls.open(name.address, flags, 0));
  }

  close(fd: number): number {
    return this.#checked(this.calls.close(fd));
  }

  /** Bytes read into the start of `into`. */
  read(fd: number, into: Uint8Array<ArrayBuffer>): number {
    return this.#checked(this.calls.read(fd, this.addressOf(into), into.length));
  }

  /** Bytes written. */
  write(fd: number, from: Uint8Array<ArrayBuffer>): number {
    return this.#checked(this.calls.write(fd, this.addressOf(from), from.length));
  }

  mount(
    options: { source: string; target: string; type: string; flags: number; data: string },
  ): number {
    const source = this.cString(options.source);
    const target = this.cString(options.target);
    const type = this.cString(options.type);
    const data = this.cString(options.data);
    return this.#checked(
      this.calls.mount(source.address, target.address, type.address, options.flags, data.address),
    );
  }

  umount2(target: string, flags: number): number {
    const name = this.cString(target);
    return this.#checked(this.calls.umount2(name.address, flags));
  }

  fallocate(fd: number, mode: number, offsetBytes: number, lengthBytes: number): number {
    return this.#checked(this.calls.fallocate(fd, mode, offsetBytes, lengthBytes));
  }

  flock(fd: number, operation: number): number {
    return this.#checked(this.calls.flock(fd, operation));
  }

  /** A non-blocking event counter, closed on exec. */
  eventfd(): number {
    return this.#checked(this.calls.eventfd(0, O.NONBLOCK | O.CLOEXEC));
  }

  setNonBlocking(fd: number): void {
    this.calls.fcntl(fd, F_SETFL, O.RDWR | O.NONBLOCK);
  }

  /** The size of a block device in bytes. */
  blockDeviceBytes(fd: number): number {
    const size = new BigUint64Array(1);
    const failed = this.#ioctl(fd, BLKGETSIZE64, new Uint8Array(size.buffer));
    return failed < 0 ? failed : Number(size[0]);
  }

  /** When the file was last modified, in nanoseconds since 1970; undefined: it is not told. */
  modifiedNs(fd: number): bigint | undefined {
    const found = new Uint8Array(new ArrayBuffer(STATX.bytes));
    const path = this.cString("");
    const { emptyPath, wantModified } = STATX;
    const result = this.calls.statx(
      fd,
      path.address,
      emptyPath,
      wantModified,
      this.addressOf(found),
    );
    const view = new DataView(found.buffer);
    if (result < 0 || (view.getUint32(0, true) & wantModified) === 0) return undefined;
    const seconds = view.getBigInt64(STATX.modified, true);
    return seconds * 1_000_000_000n + BigInt(view.getUint32(STATX.modified + 8, true));
  }

  /** The logical sector size of a block device in bytes. */
  blockDeviceSectorBytes(fd: number): number {
    const size = new Int32Array(1);
    const failed = this.#ioctl(fd, BLKSSZGET, new Uint8Array(size.buffer));
    return failed < 0 ? failed : size[0]!;
  }

  /**
   * Lets short waits of the calling thread end after as little as `slackNs` (50 µs as a rule).
   * Best effort.
   */
  setTimerSlackNs(slackNs: number): void {
    this.calls.prctl(PR_SET_TIMERSLACK, slackNs, 0, 0, 0);
  }

  /**
   * Tells the kernel that the calling thread serves a block device, so that its allocations do
   * not wait for dirty pages that only it could write. Best effort: needs CAP_SYS_RESOURCE.
   */
  setIoFlusher(): void {
    this.calls.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  }

  /** For how long the calling thread has run on a processor since it began. */
  threadCpuMs(): number {
    const { words, address } = this.#cpuTime;
    this.#checked(this.calls.clock_gettime(CLOCK_THREAD_CPUTIME_ID, address));
    return words[0]! * 1000 + words[2]! / 1e6;
  }

  effectiveUserId(): number {
    return this.calls.geteuid();
  }

  effectiveGroupId(): number {
    return this.calls.getegid();
  }

  #ioctl(fd: number, request: number, into: Uint8Array<ArrayBuffer>): number {
    return this.#checked(this.calls.ioctl(fd, request, this.addressOf(into)));
  }

  #checked(result: number): number {
    return result < 0 ? -this.#foreign.errno() : result;
  }
}

/** Opens libc in this thread. Throws BcacheError NotSupported outside Bun and Deno. */
export async function openLibc(): Promise<Libc> {
  const name = "libc.so.6";
  if ("Bun" in globalThis) {
    return new Libc(await (await import("./libc_bun.ts")).openForeignInterface(name));
  }
  if ("Deno" in globalThis) {
    return new Libc((await import("./libc_deno.ts")).openForeignInterface(name));
  }
  throw new BcacheError(
    "NotSupported",
    "mounting needs Bun or Deno (this runtime cannot call libc): run the command with one of them",
  );
}
