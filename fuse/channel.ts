/**
 * Where requests come from and replies go to: `/dev/fuse` (channel_dev_fuse.ts), or memory, in
 * tests. A transport that does not speak the kernel's protocol, such as a binding to libfuse,
 * belongs beside the session instead, on top of filesystem.ts.
 */
import type { Slot } from "./slot.ts";

/** `receive` found no request; wait for the descriptor to become readable. */
export const WOULD_BLOCK = -1;
/** The file system was unmounted, or the connection was aborted. */
export const ENDED = -2;

export interface Channel {
  /** Becomes readable when a request is there; -1 when there is no such thing. */
  readonly fd: number;
  /**
   * Takes a request into `slot`, from REQUEST_OFFSET on. Returns its length, WOULD_BLOCK or
   * ENDED; never waits. Throws BcacheError DeviceIo for what should not happen.
   */
  receive(slot: Slot): number;
  /**
   * Sends `lengthBytes` from REPLY_OFFSET on, as one reply. Returns 0 or a negated errno (ENOENT:
   * nobody waits for it any more). `slot` is the caller's again at once.
   */
  send(slot: Slot, lengthBytes: number): number;
  close(): void;
}
