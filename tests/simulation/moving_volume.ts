/**
 * One volume for a workload, whatever happens to the device under it: while it is stopped requests
 * wait, as those of a person would who opens the file again.
 */
import { BcacheError } from "../../lib/base/errors.ts";
import { Signal } from "../../lib/base/sync.ts";
import type { BlockVolume } from "../../lib/cache/ports.ts";

export class MovingVolume implements BlockVolume {
  readonly name: string;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly readOnly = false;
  #current: BlockVolume | undefined;
  #back = new Signal();
  /** Why it does not come back. */
  #lost: unknown;

  constructor(volume: BlockVolume) {
    this.#current = volume;
    this.name = volume.name;
    this.sizeBytes = volume.sizeBytes;
    this.blockSizeBytes = volume.blockSizeBytes;
  }

  /** From now on requests go to `volume`; undefined: they wait. */
  move(volume: BlockVolume | undefined): void {
    this.#current = volume;
    if (volume !== undefined) this.#back.raise();
  }

  /** It does not come back: requests that wait, and all later ones, fail with `error`. */
  lose(error: unknown): void {
    this.#lost = error;
    this.#back.raise();
  }

  async #there<T>(body: (volume: BlockVolume) => Promise<T>): Promise<T> {
    for (;;) {
      const volume = this.#current;
      if (volume === undefined) {
        if (this.#lost !== undefined) throw this.#lost;
        await this.#back.wait();
        continue;
      }
      try {
        return await body(volume);
      } catch (error) {
        const stopped = error instanceof BcacheError && error.code === "Shutdown";
        if (!stopped || volume === this.#current) throw error;
      }
    }
  }

  tryRead(offsetBytes: number, into: Uint8Array): boolean {
    return this.#current?.tryRead(offsetBytes, into) ?? false;
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#there((volume) => volume.read(offsetBytes, into));
  }

  tryWrite(offsetBytes: number, from: Uint8Array): boolean {
    return this.#current?.tryWrite(offsetBytes, from) ?? false;
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#there((volume) => volume.write(offsetBytes, from));
  }

  flush(): Promise<void> {
    return this.#there((volume) => volume.flush());
  }

  zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#there((volume) => volume.zero(offsetBytes, lengthBytes));
  }
}
