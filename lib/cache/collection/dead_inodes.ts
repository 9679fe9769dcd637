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

const UNKNOWN = 0;
const KEEP = 1;
const DROP_CLEAN = 2;
const DROP_ALL = 3;

export class DeadInodes {
  readonly #uuids: UuidTable;
  /** What is dead of each inode that was asked for, as of `#version` of the table. */
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
    if (this.#version !== this.#uuids.version) {
      this.#version = this.#uuids.version;
      this.#dead.fill(UNKNOWN);
    }
    const inode = keyInode(words, at);
    const known = this.#dead[inode] ?? KEEP;
    const dead = known === UNKNOWN ? this.#lookUp(inode) : known;
    return dead === DROP_ALL || (dead === DROP_CLEAN && !keyDirty(words, at));
  }

  #lookUp(inode: number): number {
    const state = this.#uuids.slotState(inode);
    const dead = state === "invalidated" ? DROP_ALL : state === "unused" ? DROP_CLEAN : KEEP;
    this.#dead[inode] = dead;
    return dead;
  }
}
