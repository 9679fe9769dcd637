/**
 * A Device over another one that passes everything on. Wrappers extend it and override what they
 * are about. The synchronous calls are the inner device's own, without a detour on the hit path;
 * a wrapper that has to see them gives its own to the constructor.
 */
import type { Device, WriteOptions } from "./device.ts";

export class ForwardingDevice implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  readonly optimalIoSectors: number;
  readonly partialStripesExpensive: boolean;
  readonly sync?: NonNullable<Device["sync"]>;
  protected readonly inner: Device;

  /**
   * @param own what differs from `inner`. A `sync` here stands in for the inner device's; where
   * that has none the wrapper has none either.
   */
  constructor(
    inner: Device,
    own: { readonly readOnly?: boolean; readonly sync?: NonNullable<Device["sync"]> } = {},
  ) {
    this.inner = inner;
    this.name = inner.name;
    this.sizeSectors = inner.sizeSectors;
    this.logicalBlockSectors = inner.logicalBlockSectors;
    this.readOnly = own.readOnly ?? inner.readOnly;
    this.optimalIoSectors = inner.optimalIoSectors ?? 0;
    this.partialStripesExpensive = inner.partialStripesExpensive ?? false;
    if (inner.sync !== undefined) this.sync = own.sync ?? inner.sync;
  }

  read(atSector: number, into: Uint8Array): Promise<void> {
    return this.inner.read(atSector, into);
  }

  write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.inner.write(atSector, from, options);
  }

  flush(): Promise<void> {
    return this.inner.flush();
  }

  discard(atSector: number, sectors: number): Promise<void> {
    return this.inner.discard(atSector, sectors);
  }

  zero(atSector: number, sectors: number): Promise<void> {
    return this.inner.zero(atSector, sectors);
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}
