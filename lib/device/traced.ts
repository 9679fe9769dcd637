/**
 * A device that tells somebody of every operation on the device inside it. For tests that ask what
 * was written in which order, and for looking at a running engine.
 */
import type { Device, WriteOptions } from "./device.ts";
import { SECTOR_BYTES } from "./device.ts";
import { ForwardingDevice } from "./forwarding.ts";

export interface TracedOperation {
  readonly kind: "read" | "write" | "flush" | "discard" | "zero" | "close";
  readonly atSector: number;
  readonly sectors: number;
  readonly preflush: boolean;
  readonly fua: boolean;
  /** Through the device's `sync` member. */
  readonly isSync: boolean;
}

export interface TraceListener {
  /** Before the operation begins. What it throws becomes the outcome: a fault can be injected. */
  readonly begin?: (operation: TracedOperation) => void;
  /** When it has ended; `error` is what it failed with. The same object as in `begin`. */
  readonly end?: (operation: TracedOperation, error: unknown) => void;
}

export class TracedDevice extends ForwardingDevice {
  #listener: TraceListener;
  #inFlight = 0;

  constructor(inner: Device, listener: TraceListener) {
    super(inner, {
      sync: {
        read: (atSector, into) => {
          const operation = described("read", atSector, into.length / SECTOR_BYTES, {}, true);
          this.#traceSync(operation, () => inner.sync!.read(atSector, into));
        },
        write: (atSector, from) => {
          const operation = described("write", atSector, from.length / SECTOR_BYTES, {}, true);
          this.#traceSync(operation, () => inner.sync!.write(atSector, from));
        },
      },
    });
    this.#listener = listener;
  }

  /** Operations that began and have not ended. */
  get inFlight(): number {
    return this.#inFlight;
  }

  override read(atSector: number, into: Uint8Array): Promise<void> {
    const operation = described("read", atSector, into.length / SECTOR_BYTES);
    return this.#trace(operation, () => this.inner.read(atSector, into));
  }

  override write(atSector: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const operation = described("write", atSector, from.length / SECTOR_BYTES, options);
    return this.#trace(operation, () => this.inner.write(atSector, from, options));
  }

  override flush(): Promise<void> {
    return this.#trace(described("flush", 0, 0), () => this.inner.flush());
  }

  override discard(atSector: number, sectors: number): Promise<void> {
    const operation = described("discard", atSector, sectors);
    return this.#trace(operation, () => this.inner.discard(atSector, sectors));
  }

  override zero(atSector: number, sectors: number): Promise<void> {
    const operation = described("zero", atSector, sectors);
    return this.#trace(operation, () => this.inner.zero(atSector, sectors));
  }

  override close(): Promise<void> {
    return this.#trace(described("close", 0, 0), () => this.inner.close());
  }

  async #trace(operation: TracedOperation, body: () => Promise<void>): Promise<void> {
    this.#inFlight++;
    let error: unknown;
    try {
      this.#listener.begin?.(operation);
      await body();
    } catch (caught) {
      error = caught;
      throw caught;
    } finally {
      this.#inFlight--;
      this.#listener.end?.(operation, error);
    }
  }

  #traceSync(operation: TracedOperation, body: () => void): void {
    let error: unknown;
    try {
      this.#listener.begin?.(operation);
      body();
    } catch (caught) {
      error = caught;
      throw caught;
    } finally {
      this.#listener.end?.(operation, error);
    }
  }
}

function described(
  kind: TracedOperation["kind"],
  atSector: number,
  sectors: number,
  options: WriteOptions = {},
  isSync: boolean = false,
): TracedOperation {
  const { preflush = false, fua = false } = options;
  return { kind, atSector, sectors, preflush, fua, isSync };
}
