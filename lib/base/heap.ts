/**
 * Chooses the `capacity` cheapest of many: a bounded max-heap in typed arrays, whose root is the
 * dearest one kept and the next to be thrown out. No allocation after construction.
 *
 * Equal costs are ordered by item, so the choice never depends on the order of offers.
 * Linux: heap_add / heap_full / heap_peek in util.h, as invalidate_buckets_lru uses them.
 */
import { assert } from "./assert.ts";

export class CheapestHeap {
  readonly capacity: number;
  readonly #costs: Float64Array;
  readonly #items: Uint32Array;
  #length = 0;

  constructor(capacity: number) {
    assert(Number.isInteger(capacity), "a heap's capacity is a whole number");
    assert(capacity >= 0, "a heap's capacity is not negative");
    this.capacity = capacity;
    this.#costs = new Float64Array(capacity);
    this.#items = new Uint32Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  /** Keeps `item` (an unsigned 32-bit number) if it is among the cheapest so far. */
  offer(item: number, cost: number): void {
    if (this.#length < this.capacity) {
      this.#siftUp(item, cost);
      return;
    }
    if (this.capacity === 0) return;
    const dearest = this.#costs[0]!;
    if (cost > dearest || (cost === dearest && item > this.#items[0]!)) return;
    this.#siftDown(item, cost, this.#length);
  }

  /** The kept items, cheapest first. Empties the heap. */
  drain(): Uint32Array {
    const sorted = new Uint32Array(this.#length);
    while (this.#length > 0) {
      this.#length--;
      const last = this.#length;
      sorted[last] = this.#items[0]!;
      if (last > 0) this.#siftDown(this.#items[last]!, this.#costs[last]!, last);
    }
    return sorted;
  }

  #siftUp(item: number, cost: number): void {
    let at = this.#length++;
    while (at > 0) {
      const parent = (at - 1) >>> 1;
      if (!this.#dearer(cost, item, parent)) break;
      this.#move(parent, at);
      at = parent;
    }
    this.#costs[at] = cost;
    this.#items[at] = item;
  }

  /** Puts an entry at the root and lets it sink among the first `length` entries. */
  #siftDown(item: number, cost: number, length: number): void {
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      const right = child + 1;
      if (right < length && this.#dearer(this.#costs[right]!, this.#items[right]!, child)) {
        child = right;
      }
      if (this.#dearer(cost, item, child)) break;
      this.#move(child, at);
      at = child;
    }
    this.#costs[at] = cost;
    this.#items[at] = item;
  }

  #dearer(cost: number, item: number, than: number): boolean {
    const other = this.#costs[than]!;
    return cost > other || (cost === other && item > this.#items[than]!);
  }

  #move(from: number, to: number): void {
    this.#costs[to] = this.#costs[from]!;
    this.#items[to] = this.#items[from]!;
  }
}
