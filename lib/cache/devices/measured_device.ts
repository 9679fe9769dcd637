/**
 * The cache device with a watch: tells how long each read and write of data and b-tree nodes takes.
 * Writes that have to be stable at once (of the journal, of a node's header, of the superblock) do
 * not count: what they take is the flush.
 */
import type { Clock } from "../../base/runtime.ts";
import type { Device, WriteOptions } from "../../device/device.ts";
import { ForwardingDevice } from "../../device/forwarding.ts";

export interface DeviceMeter {
  /** An operation has ended, whether it failed or not. The hit path. */
  note(isWrite: boolean, beganMs: number, endedMs: number): void;
}

export class MeasuredDevice extends ForwardingDevice {
  readonly #clock: Clock;
  readonly #meter: DeviceMeter;

  constructor(inner: Device, clock: Clock, meter: DeviceMeter) {
    super(inner, {
      sync: {
        read: (atSector, into) => {
          const beganMs = clock.nowMs();
          inner.sync!.read(atSector, into);
          meter.note(false, beganMs, clock.nowMs());
        },
        write: (atSector, from) => {
          const beganMs = clock.nowMs();
          inner.sync!.write(atSector, from);
          meter.note(true, beganMs, clock.nowMs());
        },
      },
    });
    this.#clock = clock;
    this.#meter = meter;
  }

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    const beganMs = this.#clock.nowMs();
    try {
      await this.inner.read(atSector, into);
    } finally {
      this.#meter.note(false, beganMs, this.#clock.nowMs());
    }
  }

  override async write(
    atSector: number,
    from: Uint8Array,
    options: WriteOptions = {},
  ): Promise<void> {
    if (options.fua || options.preflush) return await this.inner.write(atSector, from, options);
    const beganMs = this.#clock.nowMs();
    try {
      await this.inner.write(atSector, from, options);
    } finally {
      this.#meter.note(true, beganMs, this.#clock.nowMs());
    }
  }
}
