/** What the attributes of a device and of the set read and change. */
import type { CachedDevice } from "../requests/cached_device.ts";
import type { Engine } from "../engine.ts";
import type { FailurePolicy } from "../members/failure_policy.ts";
import type { VolumeStatus } from "../ports.ts";
import type { RequestTunables } from "../request_parts.ts";
import type { RequestStats } from "../stats.ts";
import type { Writeback } from "../writeback/writeback.ts";
import type { WritebackGroup } from "../writeback/writeback_group.ts";

export interface DeviceTarget {
  readonly dev: CachedDevice;
  readonly writeback: Writeback;
  readonly engine: Engine;
  readonly tunables: RequestTunables;
  /** Lets a device be served again that is disabled. */
  readonly enable: () => Promise<void>;
  readonly detach: () => Promise<void>;
  readonly stop: () => Promise<void>;
}

/** A volume that lives on the cache alone. */
export interface VolumeTarget {
  readonly status: () => VolumeStatus;
  readonly setLabel: (text: string) => Promise<void>;
  readonly resize: (sizeBytes: number) => Promise<void>;
  readonly destroy: () => Promise<void>;
}

export interface SetTarget {
  readonly engine: Engine;
  readonly stats: RequestStats;
  readonly tunables: RequestTunables;
  readonly writebacks: WritebackGroup;
  /** Each attached device and its share of dirty data that is aimed at. */
  readonly percents: () => ReadonlyArray<{ readonly name: string; readonly percent: number }>;
  readonly failure: FailurePolicy;
  readonly createVolume: (sizeBytes: number) => Promise<void>;
  readonly unregister: () => Promise<void>;
  readonly stop: () => Promise<void>;
}

/** The kernel's thresholds. */
export const DEFAULT_TUNABLES: Readonly<RequestTunables> = {
  cutoffWriteback: 40,
  cutoffWritebackSync: 70,
  errors: "unregister",
  ioDisabled: false,
};
