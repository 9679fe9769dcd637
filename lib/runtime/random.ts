/** Real randomness, drawn from the system in blocks: one call of it per 256 numbers. */
import type { Random } from "../base/runtime.ts";

export class SystemRandom implements Random {
  #block = new Uint32Array(256);
  #used = 256;

  nextU32(): number {
    if (this.#used === this.#block.length) {
      crypto.getRandomValues(this.#block);
      this.#used = 0;
    }
    return this.#block[this.#used++]!;
  }
}
