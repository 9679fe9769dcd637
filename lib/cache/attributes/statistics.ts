/** Counters of requests, by period: one attribute each, for devices and for the set. */
import { type RequestStats, STATS_PERIODS } from "../stats.ts";
import { type Attribute, shown } from "./attribute.ts";

/** One line per counter and period: `stats_total/cache_hits`, ... */
export function statistics<Target>(stats: (target: Target) => RequestStats): Attribute<Target>[] {
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
