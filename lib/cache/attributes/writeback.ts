/** Attributes of writeback, of one device. */
import { type Attribute, booleanAttribute, numberAttribute } from "./attribute.ts";
import type { DeviceTarget } from "./targets.ts";
import type { RateTunables } from "../writeback_rate.ts";

const U31 = 2 ** 31 - 1;
const U32 = 2 ** 32 - 1;

function rateNumber(
  name: string,
  key: {
    [K in keyof RateTunables]: RateTunables[K] extends number ? K : never;
  }[keyof RateTunables],
  range: { min: number; max: number; initial: number; unit: string },
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

export const WRITEBACK_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  booleanAttribute({
    name: "writeback_running",
    help: "whether dirty data is written back in the background",
    initial: true,
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
    initial: 30,
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
    initial: 10,
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
    initial: 1024,
    get: (target) => target.writeback.rate.rate,
    set: (target, value) => {
      target.writeback.rate.rate = value;
    },
  }),
  rateNumber(
    "writeback_rate_update_seconds",
    "updateSeconds",
    { min: 1, max: 60, initial: 5, unit: "seconds" },
    "time between two steps of the rate controller",
  ),
  rateNumber(
    "writeback_rate_p_term_inverse",
    "pTermInverse",
    { min: 1, max: U32, initial: 40, unit: "seconds" },
    "time in which the proportional term would reach the target",
  ),
  rateNumber(
    "writeback_rate_i_term_inverse",
    "iTermInverse",
    { min: 1, max: U32, initial: 10000, unit: "divisor" },
    "weight of the integral term: larger is weaker",
  ),
  rateNumber(
    "writeback_rate_minimum",
    "rateMinimum",
    { min: 1, max: U31, initial: 8, unit: "sectors per second" },
    "the rate never falls below this",
  ),
  booleanAttribute({
    name: "writeback_consider_fragment",
    help: "whether few dirty sectors in many buckets raise the rate",
    initial: true,
    get: (target) => target.writeback.rate.tunables.considerFragment,
    set: (target, value) => {
      target.writeback.rate.tunables.considerFragment = value;
    },
  }),
];
