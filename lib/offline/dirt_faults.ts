/**
 * Dirty keys of one place that cannot have their data. The first is told in words; the others are
 * counted, since a journal or a node may be full of them.
 */
import { dirtFault } from "../btree/node_read.ts";
import { keyText } from "../ondisk/bkey.ts";

export class DirtFaults {
  #count = 0;
  #first = "";

  /** Takes the key in slot `at` if it is one. */
  note(words: Uint32Array, at: number): void {
    const fault = dirtFault(words, at);
    if (fault === undefined) return;
    if (this.#count === 0) this.#first = `key ${keyText(words, at)} ${fault}`;
    this.#count++;
  }

  /** What is wrong, as part of a sentence; undefined when there is no such key. */
  get text(): string | undefined {
    if (this.#count === 0) return undefined;
    const of = this.#count === 1 ? "" : ` (the first of ${this.#count} such keys)`;
    return `${this.#first}${of}`;
  }
}
