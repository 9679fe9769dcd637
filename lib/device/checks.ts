/**
 * What every device asserts of its callers (see device.ts): ranges of whole sectors inside the
 * device, and no call after `close`.
 */
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { type Device, SECTOR_BYTES } from "./device.ts";

/** Asserts that a transfer of `lengthBytes` at `atSector` is whole sectors inside the device. */
export function assertTransfer(device: Device, atSector: number, lengthBytes: number): void {
  assert(lengthBytes % SECTOR_BYTES === 0, "a transfer is whole sectors");
  assertRange(device, atSector, lengthBytes / SECTOR_BYTES);
}

/** Asserts that `sectors` at `atSector` lie inside the device. */
export function assertRange(device: Device, atSector: number, sectors: number): void {
  assert(Number.isSafeInteger(atSector) && atSector >= 0, "a sector number is a natural number");
  assert(Number.isSafeInteger(sectors) && sectors >= 0, "a length is a natural number");
  assert(atSector + sectors <= device.sizeSectors, "a range lies inside its device");
}

/** Refuses changes to a device that was opened to be read. */
export function refuseReadOnly(device: Device): void {
  if (!device.readOnly) return;
  throw new BcacheError("ReadOnly", `${device.name} is open for reading only; nothing was written`);
}
