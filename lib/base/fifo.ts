/**
 * A queue of unsigned 32-bit numbers with a fixed capacity, in one typed array: no allocation
 * after construction. Linux: DECLARE_FIFO in util.h (which rounds its sizes; this one does not).
 */
import { assert } from "./assert.ts";

export class U32Fifo {
  readonly capacity: number;
  readonly #ring: Uint32Array;
  #first = 0;
  #length = 0;

  /** @param capacity how many numbers it holds, exactly. */
  constructor(capacity: number) {
    assert(Number.isInteger(capacity), "a queue's capacity is a whole number");
    assert(capacity >= 0, "a queue's capacity is not negative");
    this.capacity = capacity;
    this.#ring = new Uint32Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  get room(): number {
    return this.capacity - this.#length;
  }

  /** Appends `value`; false when full. */
  push(value: number): boolean {
    if (this.#length === this.capacity) return false;
    this.#ring[(this.#first + this.#length) % this.capacity] = value;
    this.#length++;
    return true;
  }

  /** Removes the oldest value; -1 when empty. */
  shift(): number {
    if (this.#length === 0) return -1;
    const value = this.#ring[this.#first]!;
    this.#first = (this.#first + 1) % this.capacity;
    this.#length--;
    return value;
  }

  /** The value `index` places behind the oldest, for inspection. */
  at(index: number): number {
    assert(index >= 0, "a queue's index is not negative");
    assert(index < this.#length, "a queue's index is below its length");
    return this.#ring[(this.#first + index) % this.capacity]!;
  }
}
