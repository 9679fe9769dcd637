/** Requests over `/dev/fuse`: one read(2) each, one write(2) for each reply. */
import { BcacheError, ERRNO } from "../lib/base/errors.ts";
import { type Address, type Libc, POLL } from "../lib/runtime/libc.ts";
import { type Channel, ENDED, WOULD_BLOCK } from "./channel.ts";
import { MAX_TRANSFER_BYTES } from "./protocol.ts";
import { PAGE_BYTES, RECEIVE_BYTES, REPLY_OFFSET, REQUEST_OFFSET, type Slot } from "./slot.ts";

/** Interrupted requests may vanish while they are read: this many in a row are no accident. */
const RETRIES_MOST = 1000;
const ECONNABORTED = 103;

interface SlotAddresses {
  readonly request: Address;
  readonly reply: Address;
}

/** For SlotPool: the offset of the first page of `buffer`. */
export function alignToPage(libc: Libc): (buffer: ArrayBuffer) => number {
  return (buffer) => {
    const address = libc.addressValue(libc.addressOf(new Uint8Array(buffer)));
    return (PAGE_BYTES - address % PAGE_BYTES) % PAGE_BYTES;
  };
}

export class DevFuseChannel implements Channel {
  readonly fd: number;
  #libc: Libc;
  #read: Libc["calls"]["read"];
  #write: Libc["calls"]["write"];

  /** @param fd of a mounted /dev/fuse, non-blocking; closed by `close`. */
  constructor(libc: Libc, fd: number) {
    this.fd = fd;
    this.#libc = libc;
    this.#read = libc.calls.read;
    this.#write = libc.calls.write;
  }

  receive(slot: Slot): number {
    if (slot.capacityBytes < MAX_TRANSFER_BYTES) {
      throw new BcacheError("InvalidArgument", "a slot that receives must hold any request");
    }
    const address = this.#addresses(slot).request;
    for (let attempt = 0; attempt < RETRIES_MOST; attempt++) {
      const length = this.#read(this.fd, address, RECEIVE_BYTES);
      if (length >= 0) return length === 0 ? ENDED : length;
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return WOULD_BLOCK;
      if (errno === ERRNO.ENODEV) return ENDED;
      if (errno === ECONNABORTED) {
        throw new BcacheError(
          "Shutdown",
          "the connection to the kernel was aborted (/sys/fs/fuse/connections): requests under " +
            "way have failed; all that was acknowledged is kept, and the next mount has it",
        );
      }
      // ENOENT: the request was interrupted before it could be read.
      if (errno !== ERRNO.EINTR && errno !== ERRNO.ENOENT) {
        throw new BcacheError("DeviceIo", `/dev/fuse: read failed (errno ${errno})`, { errno });
      }
    }
    return WOULD_BLOCK;
  }

  send(slot: Slot, lengthBytes: number): number {
    const sent = this.#write(this.fd, this.#addresses(slot).reply, lengthBytes);
    return sent < 0 ? -this.#libc.errno() : 0;
  }

  close(): void {
    this.#libc.close(this.fd);
  }

  #addresses(slot: Slot): SlotAddresses {
    const known = slot.channelData as SlotAddresses | undefined;
    if (known !== undefined) return known;
    const made = {
      request: this.#libc.addressOf(slot.bytes, REQUEST_OFFSET),
      reply: this.#libc.addressOf(slot.bytes, REPLY_OFFSET),
    };
    slot.channelData = made;
    return made;
  }
}

/** One ppoll(2) over a few descriptors, its arguments laid out once. */
export class Poller {
  #ppoll: Libc["calls"]["ppoll"];
  #entries: Int32Array<ArrayBuffer>;
  #events: Int16Array<ArrayBuffer>;
  #entriesAddress: Address;
  #timeout: Uint32Array<ArrayBuffer>;
  #timeoutAddress: Address;
  #count: number;

  /** @param count of descriptors; each is set by `watch`, -1 (ignored) until then. */
  constructor(libc: Libc, count: number) {
    this.#ppoll = libc.calls.ppoll;
    this.#count = count;
    // struct pollfd: int fd, short events, short revents.
    this.#entries = new Int32Array(new ArrayBuffer(8 * count));
    this.#events = new Int16Array(this.#entries.buffer);
    for (let index = 0; index < count; index++) this.watch(index, -1);
    this.#entriesAddress = libc.addressOf(new Uint8Array(this.#entries.buffer));
    // struct timespec: seconds and nanoseconds, 64 bits each.
    this.#timeout = new Uint32Array(new ArrayBuffer(16));
    this.#timeoutAddress = libc.addressOf(new Uint8Array(this.#timeout.buffer));
  }

  watch(index: number, fd: number): void {
    this.#entries[index * 2] = fd;
    this.#events[index * 4 + 2] = POLL.IN;
  }

  /** Waits until a descriptor is ready, or for `timeoutMs` (Infinity is allowed). */
  wait(timeoutMs: number): void {
    if (timeoutMs === Infinity) {
      this.#ppoll(this.#entriesAddress, this.#count, null, null);
      return;
    }
    const seconds = Math.min(Math.floor(timeoutMs / 1000), 1_000_000);
    this.#timeout[0] = seconds;
    this.#timeout[2] = Math.floor((timeoutMs - Math.floor(timeoutMs / 1000) * 1000) * 1e6);
    this.#ppoll(this.#entriesAddress, this.#count, this.#timeoutAddress, null);
  }

  /** Whether the last `wait` found `index` readable, or broken. */
  ready(index: number): boolean {
    return this.#events[index * 4 + 3] !== 0;
  }
}
