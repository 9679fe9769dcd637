/**
 * The cache device with small synchronous writes gathered: what goes to the sectors directly
 * behind the last write is kept in memory and written as one. Data of small random writes goes to
 * consecutive sectors of a bucket, so this spares most of their system calls.
 *
 * To everybody above it is a device with a volatile write cache, which it is anyway: gathered
 * bytes are written before anything else is asked of the device that could tell the difference (a
 * flush, a read of them, any other write), and at the latest by the journal's next preflush. When
 * they cannot be written they stay here, and the flush that needs them fails. At `close` they are
 * given up, as a disk's cache is: who wants them flushes before.
 */
import { type Device, SECTOR_BYTES, type WriteOptions } from "../../device/device.ts";
import { ForwardingDevice } from "../../device/forwarding.ts";

/** Gathered at most. */
const GATHER_BYTES = 128 * 1024;
/** Longer writes gain nothing. */
const SMALL_BYTES = 32 * 1024;

export class GatheringDevice extends ForwardingDevice {
  #bytes = new Uint8Array(GATHER_BYTES);
  #start = 0;
  #length = 0;

  constructor(inner: Device) {
    super(inner, {
      sync: {
        read: (atSector, into) => this.#readSync(atSector, into),
        write: (atSector, from) => this.#writeSync(atSector, from),
      },
    });
  }

  get #end(): number {
    return this.#start + this.#length / SECTOR_BYTES;
  }

  /** Writes what was gathered. Throws what the device throws, and then still has it. */
  #settle(): void {
    if (this.#length === 0) return;
    this.inner.sync!.write(this.#start, this.#bytes.subarray(0, this.#length));
    this.#length = 0;
  }

  #overlaps(atSector: number, sectors: number): boolean {
    return this.#length > 0 && atSector < this.#end && atSector + sectors > this.#start;
  }

  #readSync(atSector: number, into: Uint8Array): void {
    if (this.#overlaps(atSector, into.length / SECTOR_BYTES)) this.#settle();
    this.inner.sync!.read(atSector, into);
  }

  #writeSync(atSector: number, from: Uint8Array): void {
    const follows = this.#length > 0 && atSector === this.#end;
    if (!follows || this.#length + from.length > GATHER_BYTES) this.#settle();
    if (from.length > SMALL_BYTES) {
      this.#settle();
      return this.inner.sync!.write(atSector, from);
    }
    if (this.#length === 0) this.#start = atSector;
    this.#bytes.set(from, this.#length);
    this.#length += from.length;
  }

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    if (this.#overlaps(atSector, into.length / SECTOR_BYTES)) this.#settle();
    await this.inner.read(atSector, into);
  }

  override async write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    this.#settle();
    await this.inner.write(atSector, from, options);
  }

  override async flush(): Promise<void> {
    this.#settle();
    await this.inner.flush();
  }

  override async discard(atSector: number, sectors: number): Promise<void> {
    this.#settle();
    await this.inner.discard(atSector, sectors);
  }

  override async zero(atSector: number, sectors: number): Promise<void> {
    this.#settle();
    await this.inner.zero(atSector, sectors);
  }
}
