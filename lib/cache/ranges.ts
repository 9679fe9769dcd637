/**
 * Ranges of sectors of one device that something asynchronous is going on in.
 *
 * RangeLocks keeps overlapping changes of a backing device apart: two writes, or a write and a
 * writeback, would otherwise reach it in another order than their keys reach the index.
 * Fills are reads that want to put what they read into the cache. Whoever changes their range,
 * on the backing device or in the index, cancels them, and none begins while somebody does: so a
 * fill never brings back what a write replaced (the place of the kernel's placeholder keys; a real
 * corruption of 2021 came from this race), nor keeps what a write brought that failed after all,
 * or that a power cut takes away.
 */
import { assert } from "../base/assert.ts";
import { Signal } from "../base/sync.ts";

export interface Range {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
}

interface Held extends Range {
  /** Held by writeback: a write to the cache alone need not wait for it. */
  readonly writeback: boolean;
}

export class RangeLocks {
  #held: Held[] = [];
  #released = new Signal();

  get count(): number {
    return this.#held.length;
  }

  /**
   * Whether a foreground change is under way in [start, end): nothing else may change the cache
   * there. No allocation: the hit path.
   */
  isChanging(start: number, end: number): boolean {
    for (let index = 0; index < this.#held.length; index++) {
      const held = this.#held[index]!;
      if (!held.writeback && held.start < end && held.end > start) return true;
    }
    return false;
  }

  tryAcquire(start: number, end: number, writeback: boolean): Held | undefined {
    for (const held of this.#held) {
      if (held.start < end && held.end > start) return undefined;
    }
    const range = { start, end, writeback };
    this.#held.push(range);
    return range;
  }

  async acquire(start: number, end: number, writeback: boolean = false): Promise<Held> {
    for (;;) {
      const range = this.tryAcquire(start, end, writeback);
      if (range) return range;
      await this.#released.wait();
    }
  }

  /**
   * Holds the whole device: nobody gets a range from now on, and this resolves when nobody holds
   * one any more. One caller at a time.
   */
  async acquireAll(): Promise<Held> {
    const all = { start: 0, end: Infinity, writeback: false };
    this.#held.push(all);
    while (this.#held.length > 1) await this.#released.wait();
    return all;
  }

  release(range: Range): void {
    const index = this.#held.indexOf(range as Held);
    assert(index >= 0, "a released range was held");
    this.#held.splice(index, 1);
    this.#released.raise();
  }
}

/** A read whose data may be put into the cache while `valid`. */
export interface Fill extends Range {
  readonly inode: number;
  valid: boolean;
}

export class Fills {
  #active: Fill[] = [];

  get count(): number {
    return this.#active.length;
  }

  /** Registers a fill; undefined when another one is under way there (it will do). */
  begin(inode: number, start: number, end: number): Fill | undefined {
    for (const fill of this.#active) {
      if (fill.valid && fill.inode === inode && fill.start < end && fill.end > start) {
        return undefined;
      }
    }
    const fill = { inode, start, end, valid: true };
    this.#active.push(fill);
    return fill;
  }

  end(fill: Fill): void {
    fill.valid = false;
    const index = this.#active.indexOf(fill);
    if (index >= 0) this.#active.splice(index, 1);
  }

  /** The backing device or a key changes in [start, end). Returns whether a fill was cancelled. */
  cancel(inode: number, start: number, end: number): boolean {
    let cancelled = false;
    for (let index = 0; index < this.#active.length; index++) {
      const fill = this.#active[index]!;
      if (fill.valid && fill.inode === inode && fill.start < end && fill.end > start) {
        fill.valid = false;
        cancelled = true;
      }
    }
    return cancelled;
  }
}
