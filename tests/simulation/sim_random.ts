/**
 * Seeded randomness and the trace hash of the simulator. Everything that a simulated run decides
 * comes from one seed; two runs that decided the same have the same trace hash, on any runtime.
 * Only 32-bit integer arithmetic is used, because that is exact everywhere.
 */
import type { Random } from "../../lib/base/runtime.ts";

/** Spreads the bits of a 32-bit number over all of it (the finisher of MurmurHash3). */
export function mix32(value: number): number {
  let mixed = value | 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/** A hash of a few integers, each up to 2^53, in order. */
export function hashOf(...parts: number[]): number {
  let hash = 0x811c_9dc5;
  for (const part of parts) {
    hash = mix32(Math.imul(hash, 31) ^ (part >>> 0));
    hash = mix32(Math.imul(hash, 31) ^ Math.floor(part / 0x1_0000_0000));
  }
  return hash;
}

/** Marsaglia's xorshift128: four words of state, no multiplication. */
export class SimRandom implements Random {
  #x: number;
  #y: number;
  #z: number;
  #w: number;

  constructor(seed: number) {
    this.#x = hashOf(seed, 1);
    this.#y = hashOf(seed, 2);
    this.#z = hashOf(seed, 3);
    this.#w = hashOf(seed, 4) | 1; // The all-zero state would stay there.
  }

  nextU32(): number {
    const t = this.#x ^ (this.#x << 11);
    this.#x = this.#y;
    this.#y = this.#z;
    this.#z = this.#w;
    this.#w = this.#w ^ (this.#w >>> 19) ^ t ^ (t >>> 8);
    return this.#w >>> 0;
  }

  /** A uniform integer in [0, limit); limit at most 2^32. */
  below(limit: number): number {
    return Math.floor(this.nextU32() / 0x1_0000_0000 * limit);
  }

  /** A uniform integer in [from, to], both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  /** True with this probability. */
  chance(probability: number): boolean {
    return this.nextU32() < probability * 0x1_0000_0000;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  /** A stream of its own, so that a new consumer does not shift the numbers of the others. */
  fork(label: number): SimRandom {
    return new SimRandom(hashOf(this.nextU32(), label));
  }
}

/** A running hash of what happened. */
export class Trace {
  #hash = 0x811c_9dc5;
  #length = 0;

  note(...facts: number[]): void {
    for (const fact of facts) {
      const high = Math.floor(fact / 0x1_0000_0000); // Times pass 2^32 microseconds.
      this.#hash = mix32(Math.imul(this.#hash ^ high, 31) ^ (fact >>> 0));
    }
    this.#length++;
  }

  get length(): number {
    return this.#length;
  }

  /** Eight hexadecimal digits. */
  get hash(): string {
    return this.#hash.toString(16).padStart(8, "0");
  }
}
