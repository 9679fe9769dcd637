/** A simulated disk as it is now, for who only looks: read without its clock, never changed. */
import type { Device } from "../../lib/device/device.ts";
import { SimDisk } from "./sim_disk.ts";

/** Reads at once what is on a simulated disk; refuses everything else. */
export function still(device: Device): Device {
  if (!(device instanceof SimDisk)) throw new Error("not a simulated disk");
  const refuse = () => Promise.reject(new Error("a check changes nothing"));
  return {
    name: device.name,
    sizeSectors: device.sizeSectors,
    logicalBlockSectors: device.logicalBlockSectors,
    readOnly: true,
    read: (atSector, into) => {
      into.set(device.peek(atSector, into.length / 512));
      return Promise.resolve();
    },
    write: refuse,
    flush: refuse,
    discard: refuse,
    zero: refuse,
    close: refuse,
  };
}
