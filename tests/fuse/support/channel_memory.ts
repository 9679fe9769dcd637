/** Requests and replies as arrays, for tests of the session without a kernel. */
import { assert } from "../../../lib/base/assert.ts";
import { type Channel, ENDED, WOULD_BLOCK } from "../../../fuse/channel.ts";
import { REPLY_OFFSET, REQUEST_OFFSET, type Slot } from "../../../fuse/slot.ts";

export class MemoryChannel implements Channel {
  readonly fd = -1;
  /** Whole messages, oldest first. */
  readonly replies: Uint8Array[] = [];
  #requests: Uint8Array[] = [];
  #ended = false;

  /** Queues a request, however ill-formed. */
  push(request: Uint8Array): void {
    this.#requests.push(request);
  }

  /** As if unmounted, once the queued requests are taken. */
  end(): void {
    this.#ended = true;
  }

  receive(slot: Slot): number {
    const request = this.#requests.shift();
    if (request === undefined) return this.#ended ? ENDED : WOULD_BLOCK;
    slot.bytes.set(request, REQUEST_OFFSET);
    return request.length;
  }

  send(slot: Slot, lengthBytes: number): number {
    assert(REPLY_OFFSET + lengthBytes <= slot.bytes.length, "the reply lies in its slot");
    this.replies.push(slot.bytes.slice(REPLY_OFFSET, REPLY_OFFSET + lengthBytes));
    return 0;
  }

  close(): void {
    this.#ended = true;
  }
}
