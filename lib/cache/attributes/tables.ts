/**
 * All attributes of cached devices and of the cache set, in one declarative table each. They
 * drive `get` and `set`, the HTTP API and the documentation. Answers to sysfs.c.
 */
import { BcacheError } from "../../base/errors.ts";
import { nearestNames, shownName } from "./attribute.ts";
import { DEVICE_ATTRIBUTES } from "./device.ts";
import { VOLUME_ATTRIBUTES } from "./membership.ts";
import { SET_ATTRIBUTES } from "./set.ts";
import { DEFAULT_TUNABLES, type DeviceTarget, type SetTarget } from "./targets.ts";

export { DEFAULT_TUNABLES, DEVICE_ATTRIBUTES, SET_ATTRIBUTES, VOLUME_ATTRIBUTES };
export type { DeviceTarget, SetTarget };

/**
 * Refuses a setting that no cache set would take: an unknown name, one that can only be read, a
 * value out of range. Needs no cache set, so it can be asked before anything is opened.
 */
export function checkSetting(name: string, value: string): void {
  const known = [...DEVICE_ATTRIBUTES, ...SET_ATTRIBUTES];
  const attribute = known.find((each) => each.name === name);
  if (attribute === undefined) {
    const names = known.filter((each) => each.write !== undefined).map((each) => each.name);
    throw new BcacheError(
      "NotFound",
      `there is no attribute ${shownName(name)}; ${nearestNames(name, names)}` +
        "bcache-fuse get MOUNTPOINT lists all",
    );
  }
  if (attribute.write === undefined) {
    throw new BcacheError("ReadOnly", `${name} can only be read`);
  }
  // Limits depend on thresholds alone, and a set begins with these.
  attribute.check?.({ tunables: DEFAULT_TUNABLES } as DeviceTarget & SetTarget, value);
}
