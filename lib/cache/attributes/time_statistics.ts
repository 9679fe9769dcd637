/** Averages of how often something happens and how long it takes: four attributes each. */
import type { TimeStats } from "../../base/time_stats.ts";
import { type Attribute, shown } from "./attribute.ts";
import type { SetTarget } from "./targets.ts";

const UNIT_MS = { sec: 1000, ms: 1, us: 0.001 } as const;
type Unit = keyof typeof UNIT_MS;

/** `NAME_average_frequency_UNIT`, `_average_duration_`, `_max_duration_`, `_last_`: whole units. */
export function timeStatistics(
  name: string,
  what: string,
  units: { readonly frequency: Unit; readonly duration: Unit },
  stats: (target: SetTarget) => TimeStats,
): Attribute<SetTarget>[] {
  const { frequency, duration } = units;
  const whole = (ms: number, unit: Unit): number => ms < 0 ? -1 : Math.floor(ms / UNIT_MS[unit]);
  return [
    shown(
      `${name}_average_frequency_${frequency}`,
      `average time from one ${what} to the next`,
      (target) => whole(stats(target).averageFrequencyMs, frequency),
    ),
    shown(
      `${name}_average_duration_${duration}`,
      `average time that a ${what} takes`,
      (target) => whole(stats(target).averageDurationMs, duration),
    ),
    shown(
      `${name}_max_duration_${duration}`,
      `the longest that a ${what} took`,
      (target) => whole(stats(target).maxDurationMs, duration),
    ),
    shown(
      `${name}_last_${frequency}`,
      `time since the last ${what}; -1: there was none`,
      (target) => whole(stats(target).sinceLastMs(target.engine.world.clock.nowMs()), frequency),
    ),
  ];
}
