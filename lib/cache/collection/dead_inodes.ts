/**
 * Keys that nobody will ever ask for again, because the device they belong to was detached or
 * destroyed: collections leave them out of the nodes they write anew. (Linux keeps them until they
 * are overwritten, and never uses a slot of the UUID table twice.)
 *
 * Only what the UUID table says decides, in memory and on disk alike:
 *   - the slot is invalidated: all its keys are dead, dirty ones too
 *   - the slot was never used: its clean keys are dead; dirty ones are left for a person to look at
 *   - anything else, a device that is merely away above all: none is
 * What is left of a slot when it is to be used again is dropped then, at once (slots.ts).
 *
 * While a set starts no key is dead. The first buckets are given out before their generations are
 * on disk, so they must be such as no key on disk points to.
 */
import { keyDirty, keyInode } from "../../ondisk/bkey.ts";
import type { UuidTable } from "../uuids.ts";

const KEEP = 0;
const DROP_CLEAN = 1;
const DROP_ALL = 2;

export class DeadInodes {
  readonly #uuids: UuidTable;
  /** What is dead of each inode, as of `#version` of the table. */
  readonly #dead: Uint8Array;
  #version = -1;
  #started = false;

  constructor(uuids: UuidTable) {
    this.#uuids = uuids;
    this.#dead = new Uint8Array(uuids.capacity);
  }

  /** The set has started: from now on every bucket's generation is on disk before it is used. */
  begin(): void {
    this.#started = true;
  }

  /** Whether the key in a slot is dead. Allocates nothing. */
  isDead(words: Uint32Array, at: number): boolean {
    if (!this.#started) return false;
    if (this.#version !== this.#uuids.version) this.#refresh();
    const dead = this.#dead[keyInode(words, at)] ?? KEEP;
    return dead === DROP_ALL || (dead === DROP_CLEAN && !keyDirty(words, at));
  }

  #refresh(): void {
    this.#version = this.#uuids.version;
    for (let inode = 0; inode < this.#dead.length; inode++) {
      const state = this.#uuids.slotState(inode);
      this.#dead[inode] = state === "invalidated"
        ? DROP_ALL
        : state === "unused"
        ? DROP_CLEAN
        : KEEP;
    }
  }
}
