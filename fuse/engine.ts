/**
 * What the data plane's worker needs of an engine, and what it gives it. The real one is
 * cache_engine.ts; tests and benchmarks name a module of their own in the mount's configuration.
 */
import type { Clock, Log, Random } from "../lib/base/runtime.ts";
import type { BlockVolume, CacheControl, CacheMode, SetRemains } from "../lib/cache/ports.ts";
import type { WhenChanged } from "../lib/cache/members/sidecar.ts";
import type { Libc } from "../lib/runtime/libc.ts";
import type { OperationCounter } from "../lib/device/counting.ts";

/** What to mount. Plain values: it travels to the worker in a message. */
export interface MountConfig {
  readonly cachePath: string;
  /** In the order of their names: bcache0, bcache1, ... */
  readonly backingPaths: readonly string[];
  /** An empty directory. */
  readonly mountPoint: string;
  /** For devices that are attached now; others keep theirs. */
  readonly cacheMode?: CacheMode;
  readonly readOnly: boolean;
  /** What to do with images in `backingPaths` that were changed without their cache. */
  readonly changedImage?: WhenChanged;
  /** Whether other users may look inside, and use the files whose devices they may use. */
  readonly allowOther: boolean;
  /** Attributes to set, by name. */
  readonly settings: readonly (readonly [name: string, value: string])[];
  /** The address of a module that exports `openEngine` instead of the real one. */
  readonly engineModule?: string;
}

export interface EngineWorld {
  readonly config: MountConfig;
  readonly libc: Libc;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Every asynchronous operation that ends through the event loop has to be counted here. */
  readonly operations: OperationCounter;
  /** To be called when `volumes`, or the size of one, has become another. */
  readonly onVolumesChanged: () => void;
}

export interface Engine extends CacheControl {
  readonly volumes: readonly BlockVolume[];
  /** Requests that wait for what may take long are refused from now on; `close` follows. */
  stopWaiting?(): void;
  /** Makes everything durable and lets go of the devices; resolves with what is left, if known. */
  close(): Promise<SetRemains | undefined>;
}

export interface EngineModule {
  openEngine(world: EngineWorld): Promise<Engine>;
}
