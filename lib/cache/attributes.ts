/**
 * All attributes of cached devices and of the cache set, in one declarative table each. They
 * drive `get` and `set`, the HTTP API and the documentation. Answers to sysfs.c.
 */
import { BcacheError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { decodeLabel, encodeLabel } from "../ondisk/label.ts";
import { type ReplacementPolicy, setReplacementPolicy } from "../ondisk/superblock.ts";
import { formatUuid } from "../ondisk/uuid.ts";
import {
  type Attribute,
  booleanAttribute,
  choiceAttribute,
  numberAttribute,
  shown,
} from "./attribute_table.ts";
import type { CachedDevice } from "./cached_device.ts";
import type { Engine } from "./engine.ts";
import { CACHE_MODES } from "./ports.ts";
import { writeCacheSuperblock } from "./recovery.ts";
import type { RequestTunables } from "./request_parts.ts";
import { STATS_PERIODS } from "./stats.ts";
import type { RequestStats } from "./stats.ts";
import type { Writeback } from "./writeback.ts";
import type { RateTunables } from "./writeback_rate.ts";

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
  readonly cacheIoErrors: () => number;
}

const U31 = 2 ** 31 - 1;
const U32 = 2 ** 32 - 1;

function rateNumber(
  name: string,
  key: {
    [K in keyof RateTunables]: RateTunables[K] extends number ? K : never;
  }[keyof RateTunables],
  range: { min: number; max: number; unit: string },
  help: string,
): Attribute<DeviceTarget> {
  return numberAttribute({
    name,
    help,
    ...range,
    get: (target) => target.writeback.rate.tunables[key],
    set: (target, value) => {
      target.writeback.rate.tunables[key] = value;
      target.writeback.wake();
    },
  });
}

const WRITEBACK: readonly Attribute<DeviceTarget>[] = [
  booleanAttribute({
    name: "writeback_running",
    help: "whether dirty data is written back in the background",
    get: (target) => target.writeback.running,
    set: (target, value) => {
      target.writeback.running = value;
      target.writeback.wake();
    },
  }),
  numberAttribute({
    name: "writeback_delay",
    unit: "seconds",
    help: "pause between two scans for dirty data",
    min: 0,
    max: U32,
    get: (target) => target.writeback.delaySeconds,
    set: (target, value) => {
      target.writeback.delaySeconds = value;
      target.writeback.wake();
    },
  }),
  numberAttribute({
    name: "writeback_percent",
    unit: "percent of the cache",
    help: "share of dirty data that the rate is steered to; 0: no limit to the rate",
    min: 0,
    max: (target) => target.tunables.cutoffWriteback,
    get: (target) => target.writeback.rate.tunables.percent,
    set: (target, value) => {
      target.writeback.rate.tunables.percent = value;
      target.writeback.wake();
    },
  }),
  numberAttribute({
    name: "writeback_rate",
    unit: "sectors per second",
    help: "current rate; the controller changes it at its next step",
    min: 1,
    max: U31,
    get: (target) => target.writeback.rate.rate,
    set: (target, value) => {
      target.writeback.rate.rate = value;
    },
  }),
  rateNumber(
    "writeback_rate_update_seconds",
    "updateSeconds",
    { min: 1, max: 60, unit: "seconds" },
    "time between two steps of the rate controller",
  ),
  rateNumber(
    "writeback_rate_p_term_inverse",
    "pTermInverse",
    { min: 1, max: U32, unit: "seconds" },
    "time in which the proportional term would reach the target",
  ),
  rateNumber(
    "writeback_rate_i_term_inverse",
    "iTermInverse",
    { min: 1, max: U32, unit: "divisor" },
    "weight of the integral term: larger is weaker",
  ),
  rateNumber(
    "writeback_rate_minimum",
    "rateMinimum",
    { min: 1, max: U31, unit: "sectors per second" },
    "the rate never falls below this",
  ),
  booleanAttribute({
    name: "writeback_consider_fragment",
    help: "whether few dirty sectors in many buckets raise the rate",
    get: (target) => target.writeback.rate.tunables.considerFragment,
    set: (target, value) => {
      target.writeback.rate.tunables.considerFragment = value;
    },
  }),
];

/** One line per counter and period: `stats_total/cache_hits`, ... */
function statistics<Target>(stats: (target: Target) => RequestStats): Attribute<Target>[] {
  const counters = [
    ["cache_hits", "cacheHits", "reads served wholly from the cache"],
    ["cache_misses", "cacheMisses", "reads with something not in the cache"],
    ["cache_bypass_hits", "cacheBypassHits", "reads past the cache that it could have served"],
    ["cache_bypass_misses", "cacheBypassMisses", "reads past the cache that it had not"],
    ["cache_hit_ratio", "cacheHitRatio", "hits in percent of hits and misses"],
    ["cache_miss_collisions", "cacheMissCollisions", "fills given up because of a write"],
    ["bypassed", "bypassedBytes", "bytes read and written past the cache"],
  ] as const;
  return STATS_PERIODS.flatMap((period) =>
    counters.map(([name, field, help]) =>
      shown<Target>(
        `stats_${period}/${name}`,
        help,
        (target) => stats(target).snapshot(period)[field],
      )
    )
  );
}

export const DEVICE_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  choiceAttribute({
    name: "cache_mode",
    help: "what happens to writes; kept in the backing device's superblock",
    choices: CACHE_MODES,
    get: (target) => target.dev.mode,
    set: async (target, value) => {
      await target.dev.setMode(value);
      target.writeback.wake();
    },
  }),
  shown("state", "state in the superblock", (target) => target.dev.state),
  shown("dirty_data", "bytes that only the cache has", (target) => target.dev.dirtySectors * 512),
  ...WRITEBACK,
  numberAttribute({
    name: "sequential_cutoff",
    unit: "bytes",
    help: "a sequential stream longer than this goes past the cache; 0: never",
    min: 0,
    max: U32,
    size: true,
    get: (target) => target.dev.bypass.sequentialCutoffBytes,
    set: (target, value) => {
      target.dev.bypass.sequentialCutoffBytes = value;
    },
  }),
  {
    name: "label",
    help: "name of the device, at most 32 bytes; kept in its superblock and in the cache",
    read: (target) => decodeLabel(target.dev.superblock.label),
    write: async (target, text) => {
      const label = encodeLabel(text);
      const { uuids, allocator } = target.engine;
      uuids.set(target.dev.inode, { ...uuids.entry(target.dev.inode), label });
      await uuids.write(allocator, () => target.engine.commitMetadata());
      await target.dev.setLabel(label);
    },
  },
  shown("backing_dev_name", "path of the backing device", (target) => target.dev.path),
  shown(
    "backing_dev_uuid",
    "UUID of the backing device",
    (target) => formatUuid(target.dev.superblock.uuid),
  ),
  shown("io_errors", "errors of the backing device since start", (target) => target.dev.ioErrors),
  ...statistics<DeviceTarget>((target) => target.dev.stats),
];

export const SET_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  choiceAttribute<SetTarget, ReplacementPolicy>({
    name: "cache_replacement_policy",
    help: "which bucket is dropped first; kept in the cache's superblock",
    choices: ["lru", "fifo", "random"],
    get: (target) => target.engine.allocator.policy,
    set: async (target, value) => {
      target.engine.allocator.policy = value;
      setReplacementPolicy(target.engine.superblock, value);
      await writeCacheSuperblock(target.engine);
    },
  }),
  numberAttribute({
    name: "journal_delay_ms",
    unit: "milliseconds",
    help: "how long a key may wait for company before its journal entry is written",
    min: 0,
    max: 65535,
    get: (target) => target.engine.journal.delayMs,
    set: (target, value) => {
      target.engine.journal.delayMs = value;
    },
  }),
  numberAttribute({
    name: "cutoff_writeback",
    unit: "percent of buckets",
    help: "with more than this in use, writes go through to the backing device",
    min: 1,
    max: 70,
    get: (target) => target.tunables.cutoffWriteback,
    set: (target, value) => {
      if (value > target.tunables.cutoffWritebackSync) {
        throw new BcacheError(
          "OutOfRange",
          `cutoff_writeback: found ${value}, expected at most cutoff_writeback_sync ` +
            `(${target.tunables.cutoffWritebackSync})`,
        );
      }
      target.tunables.cutoffWriteback = value;
    },
  }),
  shown(
    "bucket_size",
    "unit of allocation",
    ({ engine }) => formatSize(engine.geometry.bucketBytes),
  ),
  shown("block_size", "unit of writes", ({ engine }) => formatSize(engine.geometry.blockBytes)),
  shown("nbuckets", "buckets of the cache device", ({ engine }) => engine.geometry.bucketCount),
  shown(
    "cache_available_percent",
    "buckets that can be reused at once",
    ({ engine }) => 100 - engine.buckets.inUsePercent(),
  ),
  shown(
    "tree_depth",
    "levels of the b-tree above its leaves",
    ({ engine }) => engine.btree.root.level,
  ),
  shown("btree_nodes", "b-tree nodes in memory", ({ engine }) => engine.btree.nodesResident),
  shown("btree_cache_size", "bytes of them", ({ engine }) => engine.btree.residentBytes),
  shown(
    "active_journal_entries",
    "entries a restart would replay",
    ({ engine }) => engine.journal.counters.activeEntries,
  ),
  shown("gc_runs", "collections since start", ({ engine }) => engine.collector.collections),
  {
    name: "trigger_gc",
    help: "write 1 to start a garbage collection",
    read: () => "0",
    write: (target) => target.engine.collector.wake(),
  },
  {
    name: "clear_stats",
    help: "write 1 to set the total statistics back to zero",
    read: () => "0",
    write: (target) => target.stats.clear(),
  },
  shown("io_errors", "errors of the cache device since start", (target) => target.cacheIoErrors()),
  ...statistics<SetTarget>((target) => target.stats),
];

/** The kernel's thresholds. */
export const DEFAULT_TUNABLES: Readonly<RequestTunables> = {
  cutoffWriteback: 40,
  cutoffWritebackSync: 70,
};

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
      `there is no attribute ${JSON.stringify(name)}; to be set there are: ${names.join(", ")}`,
    );
  }
  if (attribute.write === undefined) {
    throw new BcacheError("InvalidArgument", `${name} can only be read`);
  }
  // Limits depend on thresholds alone, and a set begins with these.
  attribute.check?.({ tunables: DEFAULT_TUNABLES } as DeviceTarget & SetTarget, value);
}
