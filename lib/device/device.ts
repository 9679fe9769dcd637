/**
 * The contract of everything that stores sectors. A wrapper is a Device over another Device.
 *
 * Sectors are 512 bytes; every buffer's length is a multiple of 512 and lies inside the device
 * (anything else is an assertion failure, a bug of the caller).
 */

export const SECTOR_BYTES = 512;

export interface WriteOptions {
  /** Writes that completed before this call are stable before this one begins. */
  readonly preflush?: boolean;
  /** The write is stable when the promise resolves. */
  readonly fua?: boolean;
}

export interface Device {
  /** For messages: a path or what stands in for one. */
  readonly name: string;
  readonly sizeSectors: number;
  /** The smallest write the device does without reading first, in sectors (1 or 8). */
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  /** The size of writes that suit the device best (a RAID's stripe), in sectors; 0: any will do. */
  readonly optimalIoSectors?: number;
  /** Writing less than that costs far more: the device reads the rest of the stripe first. */
  readonly partialStripesExpensive?: boolean;

  /** Fills `into` completely or rejects with BcacheError DeviceIo; never short. */
  read(atSector: number, into: Uint8Array): Promise<void>;

  /**
   * Writes all of `from`. The buffer belongs to the device until the promise settles: nobody may
   * change it. Without `fua` the data may be lost at a power cut until the next `flush`.
   */
  write(atSector: number, from: Uint8Array, options?: WriteOptions): Promise<void>;

  /**
   * Every write that completed before the call is stable when this resolves. Flushes asked for
   * while one is under way share the next.
   */
  flush(): Promise<void>;

  /** A hint: afterwards the range reads as anything until written again. */
  discard(atSector: number, sectors: number): Promise<void>;

  /** Afterwards the range reads as zeroes; gives space back where it can. */
  zero(atSector: number, sectors: number): Promise<void>;

  /**
   * The same read and write without waiting for the event loop, for the hit path: they may block
   * the thread for as long as the storage takes. Throw BcacheError DeviceIo. Absent where the
   * device cannot do it; callers then use the promises.
   */
  readonly sync?: {
    read(atSector: number, into: Uint8Array): void;
    write(atSector: number, from: Uint8Array): void;
  };

  /** Lets go of the device. No other call may be under way or follow. Does not flush. */
  close(): Promise<void>;
}
