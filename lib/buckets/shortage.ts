/**
 * Whether another collection may find a bucket for data, once the replacement policy has found too
 * little: what those who wait are told, and whether a collection is asked for.
 *
 * - A collection was worth while when it brought a bucket to light that held data. Those that nodes
 *   and priorities were in are no progress: a collection writes nodes anew, so it gives back what
 *   it took, again and again (`gc_always_rewrite`).
 * - One that brought none is the last word, unless something moved since it began: dirty data was
 *   dropped, written back or copied together, nodes became fewer, or leaves were due to be written
 *   anew (`changes`). What it passed too early the next one finds.
 * - Both end. After UNSETTLED_MAX in a row that brought none, whatever moves, and after
 *   `inVainMax` since data could last have a bucket, all being swallowed by the reserves, it is
 *   over; until something moves.
 *
 * A collection is over when what it asked to be moved has moved (moving_gc.ts), which is later than
 * the moment from which its marks are valid.
 */

/** Collections in a row that find nothing while something moves all the time. */
const UNSETTLED_MAX = 3;

export class Shortage {
  readonly #changes: () => number;
  readonly #inVainMax: number;
  #changesAtBegin = 0;
  /** Collections that are over, and how many of them were concluded from. */
  #over = 0;
  #concluded = 0;
  /** Of data, by what collections have found since the last conclusion. */
  #bucketsFound = 0;
  #unsettled = 0;
  #inVain = 0;
  #exhausted = false;
  #changesWhenExhausted = 0;

  /**
   * @param changes another number whenever a collection may find more than the last one did
   * @param inVainMax collections that may pass without a bucket for data
   */
  constructor(changes: () => number, inVainMax: number) {
    this.#changes = changes;
    this.#inVainMax = inVainMax;
  }

  /** The last conclusion was that collections do not help. */
  get exhausted(): boolean {
    return this.#exhausted;
  }

  /** The same, and nothing has moved since. */
  get isHopeless(): boolean {
    return this.#exhausted && this.#changes() === this.#changesWhenExhausted;
  }

  /** A collection is over that nothing was concluded from. */
  get isOpen(): boolean {
    return this.#over > this.#concluded;
  }

  gcBegan(): void {
    this.#changesAtBegin = this.#changes();
  }

  gcOver(): void {
    this.#over++;
  }

  /** The policy looks at what a collection has just found. */
  beginLook(): void {
    this.#bucketsFound = 0;
  }

  /** The policy took a bucket that held data, or nothing yet. */
  noteFound(): void {
    this.#bucketsFound++;
  }

  /** The policy found all that it was asked for. */
  noteEnough(): void {
    this.#exhausted = false;
    this.#unsettled = 0;
    this.#inVain = 0;
    this.#bucketsFound = 0;
    this.#concluded = this.#over;
  }

  /** Data may have a bucket. */
  noteServed(): void {
    this.#inVain = 0;
  }

  /**
   * Concludes from the collections that are over, what they found having been looked at. True: no
   * collection helps, as of now.
   */
  conclude(): boolean {
    if (!this.isOpen) return false;
    this.#inVain += this.#over - this.#concluded;
    this.#concluded = this.#over;
    const changes = this.#changes();
    if (this.#bucketsFound > 0) this.#unsettled = 0;
    else if (changes !== this.#changesAtBegin) this.#unsettled++;
    else this.#unsettled = Infinity;
    this.#bucketsFound = 0;
    this.#exhausted = this.#unsettled > UNSETTLED_MAX || this.#inVain > this.#inVainMax;
    if (!this.#exhausted) return false;
    this.#unsettled = 0;
    this.#inVain = 0;
    this.#changesWhenExhausted = changes;
    return true;
  }
}
