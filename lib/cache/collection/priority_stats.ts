/**
 * What the buckets hold and how recently they were used, for people. Answers to the attribute
 * priority_stats of sysfs.c.
 */
import type { BucketTable } from "../../buckets/table.ts";
import { MARK } from "../../buckets/table.ts";
import { PRIO_BTREE, PRIO_INITIAL } from "../../ondisk/prio_set.ts";

const QUANTILES = 31;
/** Of larger caches every n-th bucket is looked at: requests wait meanwhile. */
const SAMPLE_BUCKETS = 262_144;

export interface PriorityStats {
  /** Percent of all buckets: nothing points there; clean data only; dirty; index and the like. */
  readonly unused: number;
  readonly clean: number;
  readonly dirty: number;
  readonly metadata: number;
  /** How far data has aged since its last use, on average: 0 now, 32768 never used again. */
  readonly average: number;
  /** Sectors that each interval between two quantiles stands for. */
  readonly sectorsPerQuantile: number;
  /** The same age, of the youngest 32nd of the buckets with data, of the next, and so on. */
  readonly quantiles: readonly number[];
}

export function priorityStats(table: BucketTable): PriorityStats {
  const { mark, priority, sectorsUsed, bucketCount, firstBucket, bucketSectors } = table;
  const step = Math.ceil(bucketCount / SAMPLE_BUCKETS);
  const marked = [0, 0, 0, 0];
  /** Buckets by age; metadata has none, and what was never used either. */
  const byAge = new Uint32Array(PRIO_INITIAL + 1);
  let unused = 0;
  let seen = 0;
  let withData = 0;
  let ages = 0;
  for (let bucket = firstBucket; bucket < bucketCount; bucket += step) {
    seen++;
    if (sectorsUsed[bucket] === 0) unused++;
    marked[mark[bucket]!]!++;
    const value = priority[bucket]!;
    if (value === 0 || value === PRIO_BTREE) continue;
    const age = Math.max(0, PRIO_INITIAL - value);
    byAge[age]!++;
    ages += age;
    withData++;
  }
  const percent = (count: number): number => Math.floor((count * 100) / Math.max(seen, 1));
  return {
    unused: percent(unused),
    clean: percent(marked[MARK.reclaimable]!),
    dirty: percent(marked[MARK.dirty]!),
    metadata: percent(marked[MARK.metadata]!),
    average: withData === 0 ? 0 : Math.floor(ages / withData),
    sectorsPerQuantile: Math.floor((withData * step * bucketSectors) / (QUANTILES + 1)),
    quantiles: quantilesOf(byAge, withData),
  };
}

function quantilesOf(byAge: Uint32Array, total: number): number[] {
  const quantiles: number[] = [];
  let age = 0;
  let below = byAge[0]!;
  for (let quantile = 1; quantile <= QUANTILES; quantile++) {
    const rank = Math.floor((total * quantile) / (QUANTILES + 1));
    while (below <= rank && age < PRIO_INITIAL) below += byAge[++age]!;
    quantiles.push(total === 0 ? 0 : age);
  }
  return quantiles;
}

/** In the lines that the kernel shows. */
export function priorityStatsText(table: BucketTable): string {
  const stats = priorityStats(table);
  return [
    `Unused:\t\t${stats.unused}%`,
    `Clean:\t\t${stats.clean}%`,
    `Dirty:\t\t${stats.dirty}%`,
    `Metadata:\t${stats.metadata}%`,
    `Average:\t${stats.average}`,
    `Sectors per Q:\t${stats.sectorsPerQuantile}`,
    `Quantiles:\t[${stats.quantiles.join(" ")}]`,
  ].join("\n");
}
