/**
 * Watches whether writeback gets anywhere: the kernel's list of things to do (at the head of
 * btree.c) asks for something to see starvation by.
 */
export class StarvationWatch {
  #starvedMs = 0;
  #lastMs: number;
  #keysDone = 0;

  constructor(nowMs: number) {
    this.#lastMs = nowMs;
  }

  /** How long there has been more dirty data than wanted while none was written back. */
  get seconds(): number {
    return Math.floor(this.#starvedMs / 1000);
  }

  /** Looks again; any rhythm will do. @param keysDone written back since start */
  tick(
    nowMs: number,
    now: { dirtySectors: number; targetSectors: number; keysDone: number },
  ): void {
    const elapsedMs = Math.max(0, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    const stands = now.keysDone === this.#keysDone;
    this.#keysDone = now.keysDone;
    const starves = stands && now.dirtySectors > now.targetSectors;
    this.#starvedMs = starves ? this.#starvedMs + elapsedMs : 0;
  }
}
