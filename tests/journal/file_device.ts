/** A read-only device over a file, for the images the kernel wrote. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { type Device, SECTOR_BYTES } from "../../lib/device/device.ts";

export function openReadOnly(path: string): Device {
  const file = openSync(path, "r");
  const refuse = () => Promise.reject(new Error("a fixture is never written"));
  return {
    name: path,
    sizeSectors: fstatSync(file).size / SECTOR_BYTES,
    logicalBlockSectors: 1,
    readOnly: true,
    read(atSector, into) {
      const length = readSync(file, into, 0, into.length, atSector * SECTOR_BYTES);
      return length === into.length ? Promise.resolve() : Promise.reject(new Error("short read"));
    },
    write: refuse,
    flush: refuse,
    discard: refuse,
    zero: refuse,
    close() {
      closeSync(file);
      return Promise.resolve();
    },
  };
}
