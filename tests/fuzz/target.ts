/**
 * What is fuzzed: a target takes bytes or words from outside to pieces. Its attack makes one input
 * out of one seed and gives it to the decoder; what it must not do is thrown as an error: anything
 * thrown but BcacheError, more device operations than the input can ask for, a wrong answer.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import type { Device, WriteOptions } from "../../lib/device/device.ts";
import { ForwardingDevice } from "../../lib/device/forwarding.ts";
import type { SimRandom } from "../simulation/sim_random.ts";

/** Makes one input and judges what becomes of it. What it throws or rejects with is a finding. */
export type Attack = (random: SimRandom) => void | Promise<void>;

export interface FuzzTarget {
  /** One word, for --decoder. */
  readonly name: string;
  /** What is decoded. */
  readonly what: string;
  /** Inputs of this target among 1000 of all. */
  readonly share: number;
  /** Makes the valid input that is mutated; called once. */
  prepare(): Attack | Promise<Attack>;
}

/** The value, or the typed error that it was refused with; anything else is a finding. */
export function attempt<T>(body: () => T): T | BcacheError {
  try {
    return body();
  } catch (error) {
    if (error instanceof BcacheError) return checkedError(error);
    throw error;
  }
}

/** As `attempt`, for what takes its time. */
export async function attemptLater<T>(body: () => Promise<T>): Promise<T | BcacheError> {
  try {
    return await body();
  } catch (error) {
    if (error instanceof BcacheError) return checkedError(error);
    throw error;
  }
}

const MESSAGE_MAX = 4096;

/** A refusal is one line that somebody can read. */
function checkedError(error: BcacheError): BcacheError {
  const { message } = error;
  if (message.length === 0 || message.length > MESSAGE_MAX || /[\n\r]/.test(message)) {
    throw new Error(`a refusal is one line, not ${JSON.stringify(message.slice(0, 200))}`);
  }
  return error;
}

/** Throws unless `holds`: the decoder gave a wrong answer. */
export function expect(holds: boolean, what: string): void {
  if (!holds) throw new Error(`expected: ${what}`);
}

/**
 * Counts operations on a device, and the bytes of memory that are asked for: a decoder that goes
 * round and round, or reads far more than there is, ends here with an error of no type.
 */
export class BoundedDevice extends ForwardingDevice {
  #left: number;
  #bytesLeft: number;

  constructor(inner: Device, limits: { operations: number; bytes: number }) {
    super(
      inner,
      inner.sync === undefined ? {} : {
        sync: {
          read: (atSector, into) => {
            this.#count(into.length);
            inner.sync!.read(atSector, into);
          },
          write: (atSector, from) => {
            this.#count(from.length);
            inner.sync!.write(atSector, from);
          },
        },
      },
    );
    this.#left = limits.operations;
    this.#bytesLeft = limits.bytes;
  }

  override read(atSector: number, into: Uint8Array): Promise<void> {
    this.#count(into.length);
    return super.read(atSector, into);
  }

  override write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    this.#count(from.length);
    return super.write(atSector, from, options);
  }

  #count(bytes: number): void {
    this.#left--;
    this.#bytesLeft -= bytes;
    if (this.#left < 0) throw new Error(`${this.name}: operations without end`);
    if (this.#bytesLeft < 0) throw new Error(`${this.name}: transfers without end`);
  }
}
