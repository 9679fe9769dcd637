/**
 * A Device that counts its operations under way: the data plane must not block while one of them
 * has a result to deliver through the event loop.
 */
import type { Device, WriteOptions } from "../lib/device/device.ts";

export interface OperationCounter {
  begin(): void;
  end(): void;
}

export class CountingDevice implements Device {
  readonly sync?: NonNullable<Device["sync"]>;
  #inner: Device;
  #counter: OperationCounter;

  constructor(inner: Device, counter: OperationCounter) {
    this.#inner = inner;
    this.#counter = counter;
    // These do not wait, so there is nothing to count.
    if (inner.sync !== undefined) this.sync = inner.sync;
  }

  get name(): string {
    return this.#inner.name;
  }

  get sizeSectors(): number {
    return this.#inner.sizeSectors;
  }

  /** What a file has beyond its last whole sector; 0 where the device does not say. */
  get tailBytes(): number {
    return (this.#inner as { tailBytes?: number }).tailBytes ?? 0;
  }

  get logicalBlockSectors(): number {
    return this.#inner.logicalBlockSectors;
  }

  get readOnly(): boolean {
    return this.#inner.readOnly;
  }

  read(atSector: number, into: Uint8Array): Promise<void> {
    return this.#count(() => this.#inner.read(atSector, into));
  }

  write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#count(() => this.#inner.write(atSector, from, options));
  }

  flush(): Promise<void> {
    return this.#count(() => this.#inner.flush());
  }

  discard(atSector: number, sectors: number): Promise<void> {
    return this.#count(() => this.#inner.discard(atSector, sectors));
  }

  zero(atSector: number, sectors: number): Promise<void> {
    return this.#count(() => this.#inner.zero(atSector, sectors));
  }

  close(): Promise<void> {
    return this.#count(() => this.#inner.close());
  }

  async #count(operation: () => Promise<void>): Promise<void> {
    this.#counter.begin();
    try {
      await operation();
    } finally {
      this.#counter.end();
    }
  }
}
