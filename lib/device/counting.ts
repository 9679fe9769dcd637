/**
 * A Device whose operations somebody counts while they are under way: the data plane, which must
 * not block while one of them has a result to deliver, and the load averages of backing devices.
 */
import type { Device, WriteOptions } from "./device.ts";
import { ForwardingDevice } from "./forwarding.ts";
import type { FileState } from "./host.ts";

/** Every `begin` is followed by an `end`, also when the operation fails. */
export interface OperationCounter {
  begin(): void;
  end(): void;
}

/** Synchronous calls do not wait, so there is nothing to count. */
export class CountingDevice extends ForwardingDevice {
  #counter: OperationCounter;

  constructor(inner: Device, counter: OperationCounter) {
    super(inner);
    this.#counter = counter;
  }

  /** What a file has beyond its last whole sector; 0 where the device does not say. */
  get tailBytes(): number {
    return (this.inner as { tailBytes?: number }).tailBytes ?? 0;
  }

  /** Where the path of a file leads; undefined where the device does not say. */
  get filePath(): string | undefined {
    return (this.inner as { filePath?: string }).filePath;
  }

  /** As `fileState` of a file device; undefined where the device has none. */
  async fileState(options: { settled: boolean }): Promise<FileState | undefined> {
    const { inner } = this;
    if (!("fileState" in inner) || typeof inner.fileState !== "function") return undefined;
    const file = inner as Device & {
      fileState(options: { settled: boolean }): Promise<FileState | undefined>;
    };
    let state: FileState | undefined;
    await this.#count(async () => {
      state = await file.fileState(options);
    });
    return state;
  }

  override read(atSector: number, into: Uint8Array): Promise<void> {
    return this.#count(() => this.inner.read(atSector, into));
  }

  override write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#count(() => this.inner.write(atSector, from, options));
  }

  override flush(): Promise<void> {
    return this.#count(() => this.inner.flush());
  }

  override discard(atSector: number, sectors: number): Promise<void> {
    return this.#count(() => this.inner.discard(atSector, sectors));
  }

  override zero(atSector: number, sectors: number): Promise<void> {
    return this.#count(() => this.inner.zero(atSector, sectors));
  }

  override close(): Promise<void> {
    return this.#count(() => this.inner.close());
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
