/** Attributes of writeback, of one device. */
import { BcacheError } from "../../base/errors.ts";
import {
  type Attribute,
  booleanAttribute,
  fieldAttribute,
  numberAttribute,
  shown,
} from "./attribute.ts";
import type { DeviceTarget, SetTarget } from "./targets.ts";
import { STRIPE_SECTORS_NONE } from "../dirty/stripes.ts";
import { RATE_DEFAULTS, type RateTunables } from "../writeback/writeback_rate.ts";

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

/** Each is below the next: a term out of turn would slow down a fuller cache. */
const FRAGMENT_TERMS = ["fpTermLow", "fpTermMid", "fpTermHigh"] as const;

function fragmentTerm(name: string, index: number, range: string): Attribute<DeviceTarget> {
  const key = FRAGMENT_TERMS[index]!;
  return numberAttribute({
    name,
    unit: "factor",
    help: `weight of fragmentation with ${range} percent of the cache in use`,
    min: 1,
    max: U32,
    initial: RATE_DEFAULTS[key],
    get: (target) => target.writeback.rate.tunables[key],
    set: (target, value) => {
      const { tunables } = target.writeback.rate;
      const least = index === 0 ? 1 : tunables[FRAGMENT_TERMS[index - 1]!] + 1;
      const most = index === 2 ? U32 : tunables[FRAGMENT_TERMS[index + 1]!] - 1;
      if (value < least || value > most) {
        throw new BcacheError(
          "OutOfRange",
          `${name}: found ${value}, expected ${least} to ${most}: ` +
            "low, mid and high must rise; set a neighbour first",
        );
      }
      tunables[key] = value;
    },
  });
}

/**
 * A device that knows its best size of writes begins with it. Setting another counts the dirty
 * sectors of each stripe anew.
 */
const STRIPE_SIZE: Attribute<DeviceTarget> = numberAttribute({
  name: "stripe_size",
  unit: "bytes",
  help: "what stripes of the backing device are a multiple of, raised to at least 4 MiB; " +
    "0: it has none",
  min: 0,
  max: 2 ** 40,
  initial: 0,
  size: true,
  get: (target) => {
    const { unitSectors } = target.dev.map.stripes;
    return unitSectors === STRIPE_SECTORS_NONE ? 0 : unitSectors * 512;
  },
  set: async (target, value) => {
    if (value % 512 !== 0) {
      throw new BcacheError(
        "InvalidArgument",
        `stripe_size: found ${value}, expected a multiple of 512 bytes`,
      );
    }
    await target.dev.map.setStripes(value / 512);
  },
});

export const WRITEBACK_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  booleanAttribute({
    name: "writeback_running",
    help: "whether dirty data is written back in the background",
    initial: true,
    get: (target) => target.writeback.running,
    set: (target, value) => {
      if (value && target.writeback.stopped) {
        throw new BcacheError(
          "InvalidArgument",
          `writeback_running: found 1, expected 0: nothing of ${target.dev.name} is written back ` +
            "any more; it was stopped, or its cache set has failed",
        );
      }
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
    max: { attribute: "cutoff_writeback", of: ({ tunables }) => tunables.cutoffWriteback },
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
    help: "current rate, 0 while not running; the controller changes it at its next step",
    min: 1,
    max: U31,
    initial: 1024,
    get: (target) => target.writeback.rateNow,
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
  fragmentTerm("writeback_rate_fp_term_low", 0, "51 to 57"),
  fragmentTerm("writeback_rate_fp_term_mid", 1, "58 to 64"),
  fragmentTerm("writeback_rate_fp_term_high", 2, "more than 64"),
  numberAttribute({
    name: "writeback_rate_maximum",
    unit: "sectors per second",
    help: "neither the rate, an idle set, aged data nor a flush goes beyond this; 0: no maximum",
    min: 0,
    max: U31,
    initial: 0,
    get: (target) => target.writeback.rate.tunables.rateMaximum,
    set: (target, value) => {
      target.writeback.rate.setMaximum(value);
      target.writeback.wake();
    },
  }),
  shown(
    "writeback_rate_debug",
    "the controller's state, seven lines",
    ({ dev, engine, writeback }) =>
      writeback.rate.debugText({
        dirtySectors: dev.dirtySectors,
        nowMs: engine.world.clock.nowMs(),
        running: writeback.running,
      }),
  ),
  fieldAttribute((target) => target.writeback, "inFlightMax", {
    name: "writeback_in_flight",
    unit: "runs",
    help: "runs of contiguous dirty extents read and written at a time",
    min: 1,
    max: 64,
    initial: 16,
  }),
  numberAttribute({
    name: "writeback_age_limit",
    unit: "seconds",
    help: "data dirty for longer is written back whatever the rate; counts from start; 0: no limit",
    min: 0,
    max: U31,
    initial: 0,
    get: (target) => target.writeback.ageLimitSeconds,
    set: (target, value) => {
      target.writeback.setAgeLimit(value);
    },
  }),
  booleanAttribute({
    name: "writeback_metadata",
    help: "kept for the kernel's sake; has no effect, there or here",
    initial: true,
    get: (target) => target.writeback.metadata,
    set: (target, value) => {
      target.writeback.metadata = value;
    },
  }),
  STRIPE_SIZE,
  booleanAttribute({
    name: "partial_stripes_expensive",
    help:
      "whether to keep stripes together: full ones are written back first, and what is written " +
      "to a dirty one stays in the cache. Known of a RAID; to be set for a file on one",
    initial: false,
    get: (target) => target.dev.map.partialStripesExpensive,
    set: (target, value) => {
      target.dev.map.partialStripesExpensive = value;
      target.writeback.wake();
    },
  }),
  shown(
    "writeback_starved_seconds",
    "for how long there has been more dirty data than the target, and none was written back",
    (target) => target.writeback.starvation.seconds,
  ),
];

/** Attributes of the cache set about writeback. */
export const SET_WRITEBACK_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  booleanAttribute({
    name: "idle_max_writeback_rate",
    help: "whether dirty data is written back at full speed while nobody uses the set",
    initial: true,
    get: (target) => target.writebacks.idleMaxRate,
    set: (target, value) => {
      target.writebacks.idleMaxRate = value;
    },
  }),
  shown(
    "writeback_keys_done",
    "extents written back since start",
    (target) => target.writebacks.keysDone,
  ),
  shown(
    "writeback_keys_failed",
    "extents that changed, or could not be written, while they were written back",
    (target) => target.writebacks.keysFailed,
  ),
];
