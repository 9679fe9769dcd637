/** What the attributes of a device and of the set read and change. */
import type { CachedDevice } from "../cached_device.ts";
import type { Engine } from "../engine.ts";
import type { FailurePolicy } from "../failure_policy.ts";
import type { RequestTunables } from "../request_parts.ts";
import type { RequestStats } from "../stats.ts";
import type { Writeback } from "../writeback.ts";
import type { WritebackGroup } from "../writeback_group.ts";

export interface DeviceTarget {
  readonly dev: CachedDevice;
  readonly writeback: Writeback;
  readonly engine: Engine;
  readonly tunables: RequestTunables;
}

export interface SetTarget {
  readonly engine: Engine;
  readonly stats: RequestStats;
  readonly tunables: RequestTunables;
  readonly writebacks: WritebackGroup;
  readonly failure: FailurePolicy;
}

/** The kernel's thresholds. */
export const DEFAULT_TUNABLES: Readonly<RequestTunables> = {
  cutoffWriteback: 40,
  cutoffWritebackSync: 70,
  errors: "unregister",
  ioDisabled: false,
};
