/**
 * A cache device that was cut short, seen at the length its superblock tells of: what is there is
 * read, and reads behind the end fail like sectors that cannot be read. Answers to nothing in the
 * kernel, which refuses such a device.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { type Device, SECTOR_BYTES } from "../device/device.ts";

/** Only to be read. `inner` stays the caller's, and open. */
export class ShortDevice implements Device {
  readonly sizeSectors: number;
  readonly readOnly = true;
  readonly #inner: Device;

  constructor(inner: Device, sizeSectors: number) {
    assert(sizeSectors > inner.sizeSectors, "a device that is long enough is no short one");
    this.#inner = inner;
    this.sizeSectors = sizeSectors;
  }

  get name(): string {
    return this.#inner.name;
  }

  get logicalBlockSectors(): number {
    return this.#inner.logicalBlockSectors;
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    const end = this.#inner.sizeSectors;
    if (atSector + into.length / SECTOR_BYTES <= end) return await this.#inner.read(atSector, into);
    throw new BcacheError("DeviceIo", `${this.name}: cut short, it ends at sector ${end}`);
  }

  write(): Promise<void> {
    return this.#refuse();
  }

  flush(): Promise<void> {
    return this.#refuse();
  }

  discard(): Promise<void> {
    return this.#refuse();
  }

  zero(): Promise<void> {
    return this.#refuse();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #refuse(): Promise<void> {
    return Promise.reject(new BcacheError("ReadOnly", `${this.name}: is only looked at`));
  }
}
