/** What a cache set leaves when it is closed, for whoever unmounted it. */
import type { SetRemains, SetStatus } from "../lib/cache/ports.ts";

/**
 * @param before while all was still served
 * @param after when the set was closed
 */
export function remainsOf(before: SetStatus, after: SetStatus): SetRemains {
  const attached = after.devices.filter((device) => device.attached);
  const detaching = before.devices.filter((device) => device.detaching).map(({ name }) => name);
  return {
    dirtyBytes: attached.reduce((sum, device) => sum + device.dirtyBytes, 0),
    detachesBrokenOff: attached.map(({ name }) => name).filter((name) => detaching.includes(name)),
  };
}
