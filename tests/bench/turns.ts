/**
 * How long background work keeps others waiting: the longest time until a timer of a millisecond
 * had its turn while it runs, everything that became ready meanwhile included. Time of the
 * processor is what the work itself takes; time of the clock has in it whatever else the machine
 * did.
 */
import { setImmediate } from "node:timers";
import type { WriteOptions } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { RealClock } from "../../lib/runtime/clock.ts";
import type { Libc } from "../../lib/runtime/libc.ts";

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A device in memory that answers, when told so, in a later turn of the event loop. */
export class TurnDevice extends MemoryDevice {
  /** As a real device does; else at once, so that only the work itself is measured. */
  late = false;

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    if (this.late) await turn();
    await super.read(atSector, into);
  }

  override async write(
    atSector: number,
    from: Uint8Array,
    options?: WriteOptions,
  ): Promise<void> {
    if (this.late) await turn();
    await super.write(atSector, from, options);
  }

  override async flush(): Promise<void> {
    if (this.late) await turn();
    await super.flush();
  }
}

/** Measures in time of this thread on a processor: what else the machine does is not counted. */
export class ProcessorClock extends RealClock {
  readonly #libc: Libc;

  constructor(libc: Libc) {
    super();
    this.#libc = libc;
  }

  override nowMs(): number {
    return this.#libc.threadCpuMs();
  }
}

/** From one look to the next, when nobody is in the way. */
const LOOK_MS = 1;

export interface TurnTimes {
  /** The longest from one look to the next: of this thread on a processor, and of the clock. */
  readonly cpuMs: number;
  readonly wallMs: number;
  readonly tookMs: number;
}

export class SlowestTurn {
  readonly #libc: Libc;

  constructor(libc: Libc) {
    this.#libc = libc;
  }

  /** Runs `work`, and looks how long each turn takes meanwhile. */
  async during(work: () => Promise<void>): Promise<TurnTimes> {
    const began = performance.now();
    let cpuMs = 0;
    let wallMs = 0;
    let cpu = this.#libc.threadCpuMs();
    let wall = began;
    let over = false;
    // Few and without promises: what this leaves behind would keep the runtime's garbage collector
    // busy, and that be measured too.
    const look = () => {
      const cpuNow = this.#libc.threadCpuMs();
      const wallNow = performance.now();
      cpuMs = Math.max(cpuMs, cpuNow - cpu);
      wallMs = Math.max(wallMs, wallNow - wall);
      cpu = cpuNow;
      wall = wallNow;
      if (!over) setTimeout(look, LOOK_MS);
    };
    setTimeout(look, LOOK_MS);
    await work();
    over = true;
    look(); // The last turn, or the only one.
    return { cpuMs, wallMs, tookMs: performance.now() - began };
  }
}
