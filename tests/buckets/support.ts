/** What the tests of buckets share: small parts of a world, each under the test's control. */
import type { Device } from "../../lib/device/device.ts";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Random } from "../../lib/base/runtime.ts";
import type { Faults } from "../../lib/base/sync.ts";
import { BucketTable, type Mark } from "../../lib/buckets/table.ts";

export function smallTable(bucketCount = 64, bucketSectors = 64): BucketTable {
  return new BucketTable({ bucketCount, firstBucket: 1, bucketSectors });
}

/** A table whose first marking is done, with nothing in use. */
export function emptyTable(bucketCount = 64, bucketSectors = 64): BucketTable {
  const table = smallTable(bucketCount, bucketSectors);
  table.finishGc();
  return table;
}

/** Runs a whole collection that finds exactly `found`. */
export function collect(table: BucketTable, found: ReadonlyMap<number, Mark>): void {
  table.beginGc();
  for (const [bucket, mark] of found) table.markPointer(bucket, table.gen[bucket]!, mark, 8);
  table.finishGc();
}

/** A linear congruential generator: good enough to draw buckets. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return {
    nextU32: () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0),
  };
}

export class FakeFaults implements Faults {
  failed: Error | undefined;
  raise(error: unknown): void {
    this.failed ??= error instanceof Error ? error : new Error(String(error));
  }
}

/** Memory as a device; writes can be made to fail or to wait. */
export class TestDevice implements Device {
  readonly name = "test-cache";
  readonly logicalBlockSectors = 1;
  readonly readOnly = false;
  readonly sizeSectors: number;
  readonly bytes: Uint8Array;
  /** Sectors of the writes that were begun, in order. */
  readonly writes: number[] = [];
  /** Asked before each write takes effect. */
  beforeWrite: (atSector: number) => Promise<void> = () => Promise.resolve();

  constructor(sizeSectors: number) {
    this.sizeSectors = sizeSectors;
    this.bytes = new Uint8Array(sizeSectors * 512);
  }

  read(atSector: number, into: Uint8Array): Promise<void> {
    into.set(this.bytes.subarray(atSector * 512, atSector * 512 + into.length));
    return Promise.resolve();
  }

  async write(atSector: number, from: Uint8Array): Promise<void> {
    this.writes.push(atSector);
    const submitted = from.slice();
    await this.beforeWrite(atSector);
    for (let index = 0; index < from.length; index++) {
      if (from[index] !== submitted[index]) throw new Error("a buffer changed during its write");
    }
    this.bytes.set(from, atSector * 512);
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }
  discard(): Promise<void> {
    return Promise.resolve();
  }
  zero(atSector: number, sectors: number): Promise<void> {
    this.bytes.fill(0, atSector * 512, (atSector + sectors) * 512);
    return Promise.resolve();
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

export function ioError(): BcacheError {
  return new BcacheError("DeviceIo", "test-cache: write failed (planted)");
}
