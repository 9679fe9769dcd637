/** Attributes by which devices come and go, and those of volumes that live on the cache alone. */
import { parseSizeBytes } from "../../base/units.ts";
import { isSynchronous } from "../../ondisk/superblock.ts";
import { type Attribute, booleanAttribute, shown, triggerAttribute } from "./attribute.ts";
import type { DeviceTarget, SetTarget, VolumeTarget } from "./targets.ts";

export const DEVICE_MEMBERSHIP_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  triggerAttribute<DeviceTarget>(
    "detach",
    "writes everything back and takes the device out of the set; it goes on without a cache",
    (target) => target.detach(),
  ),
  triggerAttribute<DeviceTarget>(
    "stop",
    "stops serving the device; its dirty data stays in the cache",
    (target) => target.stop(),
  ),
  booleanAttribute({
    name: "running",
    help: "whether the device is served; every device of a running set is",
    initial: true,
    neverOff: "; write 1 to stop to end serving the device",
    get: () => true,
    set: () => {},
  }),
];

export const SET_MEMBERSHIP_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  {
    name: "flash_vol_create",
    help: "write a size to make a volume that lives on the cache alone",
    unit: "bytes",
    range: "whole blocks up to the size of the cache",
    read: () => "0",
    check: (_limits, text) => void parseSizeBytes(text, "flash_vol_create"),
    write: (target, text) => target.createVolume(parseSizeBytes(text, "flash_vol_create")),
  },
  triggerAttribute<SetTarget>(
    "unregister",
    "detaches every device, writing everything back, and stops the volumes",
    (target) => target.unregister(),
  ),
  triggerAttribute<SetTarget>(
    "stop",
    "stops serving every device and volume; dirty data stays in the cache",
    (target) => target.stop(),
  ),
  booleanAttribute({
    name: "synchronous",
    help: "whether a restart finds what is cached; a set that ran once always is",
    initial: true,
    neverOff: ": the next start would throw away what is cached, dirty data too; flush, unmount " +
      "and make the cache anew instead",
    get: (target) => isSynchronous(target.engine.superblock),
    set: () => {},
  }),
];

export const VOLUME_ATTRIBUTES: readonly Attribute<VolumeTarget>[] = [
  {
    name: "label",
    help: "name of the volume, at most 32 bytes",
    range: "at most 32 bytes",
    kept: "UUID table",
    read: (target) => target.status().label,
    write: (target, text) => target.setLabel(text),
  },
  {
    name: "size",
    help: "size of the volume; one that would cut data off is refused",
    unit: "bytes",
    range: "whole blocks up to the size of the cache",
    kept: "UUID table",
    read: (target) => String(target.status().sizeBytes),
    write: (target, text) => target.resize(parseSizeBytes(text, "size")),
  },
  triggerAttribute<VolumeTarget>(
    "unregister",
    "gives up the volume with all that is in it",
    (target) => target.destroy(),
  ),
  shown("dirty_data", "bytes of it in the cache", (target) => target.status().usedBytes),
  shown("uuid", "UUID of the volume", (target) => target.status().uuid),
];
