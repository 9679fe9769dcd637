/**
 * Buffers for one request and its reply.
 *
 * One page-aligned buffer serves both, so that data moves between kernel and engine without a
 * copy in between, also with O_DIRECT:
 *
 *     byte 4016           4056          4096
 *     request header (40) read_in/write_in (40) data of a WRITE ...
 *     byte                4080          4096
 *     reply               header (16)   data of a READ, or the reply's struct ...
 *
 * The reply header overwrites the end of the request: handlers read all they need first.
 *
 * A slot belongs to the data plane while it receives; a request that waits for the engine keeps
 * its slot, and gives it back when the reply is sent. The pool is bounded: when it is used up,
 * no more requests are taken from the kernel, which then makes its callers wait.
 */
import { assert } from "../lib/base/assert.ts";
import { IN_HEADER, MAX_TRANSFER_BYTES, OUT_HEADER, READ_IN } from "./protocol.ts";

export const PAGE_BYTES = 4096;
export const DATA_OFFSET = 4096;
export const ARGUMENT_OFFSET = DATA_OFFSET - READ_IN.sizeBytes;
export const REQUEST_OFFSET = ARGUMENT_OFFSET - IN_HEADER.sizeBytes;
export const REPLY_OFFSET = DATA_OFFSET - OUT_HEADER.sizeBytes;

/** What the largest request needs from REQUEST_OFFSET on; the kernel refuses to fill less. */
export const RECEIVE_BYTES = DATA_OFFSET - REQUEST_OFFSET + MAX_TRANSFER_BYTES;

const TWO_32 = 0x1_0000_0000;
/** High words from here on make a number that is not exact, or negative as a file offset. */
const HIGH_LIMIT = 0x20_0000;

/** The 64-bit field at word `at` as a number; NaN when it is too large to be one. */
export function wide(words: Uint32Array, at: number): number {
  const high = words[at + 1]!;
  return high < HIGH_LIMIT ? high * TWO_32 + words[at]! : NaN;
}

export class Slot {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: Uint32Array<ArrayBuffer>;
  readonly capacityBytes: number;
  /** Of the request being answered. */
  uniqueLow = 0;
  uniqueHigh = 0;
  /** For the channel: where in memory this slot is, in its own terms. */
  channelData: unknown = undefined;
  #pageViews: Array<Uint8Array<ArrayBuffer> | undefined>;

  /** @param capacityBytes of data, a multiple of the page size. */
  constructor(capacityBytes: number, align: (buffer: ArrayBuffer) => number) {
    const sizeBytes = DATA_OFFSET + capacityBytes;
    const buffer = new ArrayBuffer(sizeBytes + PAGE_BYTES);
    const start = align(buffer);
    assert(start >= 0 && start <= PAGE_BYTES && start % 8 === 0, "the aligned start is inside");
    this.bytes = new Uint8Array(buffer, start, sizeBytes);
    this.words = new Uint32Array(buffer, start, sizeBytes / 4);
    this.capacityBytes = capacityBytes;
    this.#pageViews = new Array(capacityBytes / PAGE_BYTES + 1).fill(undefined);
  }

  /** The first `lengthBytes` of data. Views of whole pages are made once and kept. */
  data(lengthBytes: number): Uint8Array<ArrayBuffer> {
    assert(lengthBytes <= this.capacityBytes, "the data fits the slot");
    if (lengthBytes % PAGE_BYTES !== 0) {
      return this.bytes.subarray(DATA_OFFSET, DATA_OFFSET + lengthBytes);
    }
    const pages = lengthBytes / PAGE_BYTES;
    let view = this.#pageViews[pages];
    if (view === undefined) {
      view = this.bytes.subarray(DATA_OFFSET, DATA_OFFSET + lengthBytes);
      this.#pageViews[pages] = view;
    }
    return view;
  }
}

/** Capacity and greatest number of each class, small first: 35 MiB in all, made on demand. */
const CLASSES: readonly { capacityBytes: number; limit: number }[] = [
  { capacityBytes: 4096, limit: 128 },
  { capacityBytes: 128 * 1024, limit: 64 },
  { capacityBytes: MAX_TRANSFER_BYTES, limit: 26 },
];

export class SlotPool {
  #classes: { capacityBytes: number; limit: number; made: number; free: Slot[] }[];
  #align: (buffer: ArrayBuffer) => number;

  /** @param align gives the offset of the first page-aligned byte of a buffer. */
  constructor(align: (buffer: ArrayBuffer) => number) {
    this.#align = align;
    this.#classes = CLASSES.map((row) => ({ ...row, made: 0, free: [] }));
  }

  /** The smallest free slot for so much data; undefined when all of them are in use. */
  tryTake(dataBytes: number): Slot | undefined {
    for (const group of this.#classes) {
      if (group.capacityBytes < dataBytes) continue;
      const slot = group.free.pop();
      if (slot !== undefined) return slot;
      if (group.made < group.limit) {
        group.made++;
        return new Slot(group.capacityBytes, this.#align);
      }
    }
    return undefined;
  }

  give(slot: Slot): void {
    const group = this.#classes.find((row) => row.capacityBytes === slot.capacityBytes);
    assert(group !== undefined, "the slot is of a known class");
    assert(group.free.length < group.made, "a slot is given back once");
    group.free.push(slot);
  }

  /** Slots in use. */
  get taken(): number {
    return this.#classes.reduce((sum, group) => sum + group.made - group.free.length, 0);
  }
}
