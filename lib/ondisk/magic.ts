/**
 * The magic numbers of a cache set's own structures: a constant, XOR the first eight bytes of the
 * set's UUID. So nothing left over from an older set on the same device is ever taken for ours.
 * Kernel: jset_magic, pset_magic, bset_magic in include/uapi/linux/bcache.h.
 */
import { assert } from "../base/assert.ts";
import { viewOf } from "./layout.ts";
import { UUID_BYTES } from "./uuid.ts";

/** A 64-bit value in two unsigned halves. */
export interface Magic {
  readonly low: number;
  readonly high: number;
}

/** The magics of one cache set. */
export interface SetMagics {
  readonly jset: Magic;
  readonly prioSet: Magic;
  readonly bset: Magic;
}

const JSET: Magic = { high: 0x245235c1, low: 0xa3625032 };
const PRIO_SET: Magic = { high: 0x6750e15f, low: 0x87337f91 };
const BSET: Magic = { high: 0x90135c78, low: 0xb99e07f5 };

/** The magics of the set with this UUID. */
export function magicsOf(setUuid: Uint8Array): SetMagics {
  assert(setUuid.length === UUID_BYTES, "a set UUID is 16 bytes");
  const view = viewOf(setUuid);
  const low = view.getUint32(0, true);
  const high = view.getUint32(4, true);
  const mix = (magic: Magic) => ({ low: (magic.low ^ low) >>> 0, high: (magic.high ^ high) >>> 0 });
  return { jset: mix(JSET), prioSet: mix(PRIO_SET), bset: mix(BSET) };
}
