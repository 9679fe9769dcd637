/**
 * Counting the I/O errors of a device up to a limit. Answers to io.c (`bch_count_io_errors`,
 * `bch_count_backing_io_errors`).
 *
 * Of the cache device, errors may be forgotten again: each step of `halflife / 88` operations
 * takes 1/128 of the count away, so that it halves in about that many operations. The limit makes
 * the set fail. Of a backing device nothing is forgotten; the limit disables the device.
 */
import { BcacheError, messageOf } from "../../base/errors.ts";

/** log(1/2) / log(127/128) is about 88: so many steps halve the count. */
const STEPS_PER_HALFLIFE = 88;
/** Errors are counted in fixed point, as in the kernel. */
const ONE = 2 ** 20;

export const CACHE_ERROR_LIMIT = 8;
export const BACKING_ERROR_LIMIT = 64;

export class IoErrors {
  /** With so many errors it is enough. 0 is as 1: the first error is too many. */
  limit: number;
  #count = 0;
  #stepOperations = 0;
  #operations = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Errors that are not forgotten yet, in whole ones. */
  get count(): number {
    return Math.floor(this.#count / ONE);
  }

  get halflifeOperations(): number {
    return this.#stepOperations * STEPS_PER_HALFLIFE;
  }

  /** Kept in steps, rounded down: 1000 reads back as 968. 0: nothing is forgotten. */
  set halflifeOperations(operations: number) {
    this.#stepOperations = Math.floor(operations / STEPS_PER_HALFLIFE);
    this.#operations = 0;
  }

  /** An operation was done, failed or not. The hit path. */
  noteOperation(): void {
    if (this.#stepOperations === 0) return;
    if (++this.#operations <= this.#stepOperations) return;
    this.#operations -= this.#stepOperations;
    this.#count = Math.floor(this.#count * 127 / 128);
  }

  /** Counts an error. True: the limit is reached. */
  note(): boolean {
    this.#count += ONE;
    return this.count >= this.limit;
  }

  /** For a message: `error 3 of 8`. */
  get text(): string {
    return `error ${this.count} of ${this.limit}`;
  }
}

/**
 * Whether an error speaks of the device: a lack of room is no wear, and being refused by a set that
 * has failed or stops is not the device's doing.
 */
export function isDeviceError(error: unknown): boolean {
  return !(error instanceof BcacheError) || error.code === "DeviceIo";
}

export function tooManyErrors(device: string, errors: IoErrors, last: unknown): BcacheError {
  return new BcacheError(
    "DeviceIo",
    `${device}: too many I/O errors (${errors.text}, io_error_limit); the last: ${messageOf(last)}`,
    { cause: last },
  );
}
