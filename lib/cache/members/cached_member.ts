/** A cached device that the set serves, with all that works for it. */
import type { TaskGroup } from "../../base/sync.ts";
import type { CachedDevice } from "../requests/cached_device.ts";
import type { FailedService } from "../requests/failed_service.ts";
import type { Volume } from "../requests/volume.ts";
import type { Writeback } from "../writeback/writeback.ts";
import type { BackingSource } from "./attach.ts";

export interface CachedMember {
  readonly source: BackingSource;
  readonly dev: CachedDevice;
  readonly volume: Volume;
  readonly writeback: Writeback;
  /** Serves the device once the set has failed. */
  readonly failedService: FailedService;
  /** All that runs by itself for this device. */
  readonly tasks: TaskGroup;
  /** It is on its way out. */
  stopping: boolean;
}
