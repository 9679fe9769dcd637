/** Which requests make what is in the cache older. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { BucketTable } from "../../../lib/buckets/table.ts";
import type { CacheMode } from "../../../lib/cache/ports.ts";
import { oneDevice } from "../one_device.ts";

/** Sectors that the requests of `body` counted towards ageing. */
async function aged(body: () => Promise<void>): Promise<number> {
  const original = Object.getOwnPropertyDescriptor(BucketTable.prototype, "rescale")!;
  let sum = 0;
  BucketTable.prototype.rescale = function (sectors: number): void {
    sum += sectors;
    original.value.call(this, sectors);
  };
  try {
    await body();
  } finally {
    Object.defineProperty(BucketTable.prototype, "rescale", original);
  }
  return sum;
}

for (const sync of [true, false]) {
  test(`requests age the cache by their sectors, others do not (sync: ${sync})`, async () => {
    // Write, read of it, read of something else: what of it counts in each mode.
    const expected: Array<[CacheMode, number]> = [
      ["writeback", 8 + 8 + 16],
      ["writethrough", 8 + 8 + 16],
      ["writearound", 8 + 16],
      ["none", 0],
    ];
    for (const [mode, sectors] of expected) {
      const one = await oneDevice({ mode, sync });
      const found = await aged(async () => {
        await one.write(0, 8, 1);
        await one.read(0, 8);
        await one.read(64, 16);
        await one.settle();
      });
      assertEquals(found, sectors, mode);
      await one.close();
    }
  });
}
