/** Attributes of how requests are treated: what goes past the cache, and why. */
import { BcacheError } from "../../base/errors.ts";
import { BYPASS_REASONS, type BypassReason, READAHEAD_POLICIES } from "../requests/bypass.ts";
import { READ_THRESHOLD_US, WRITE_THRESHOLD_US } from "../devices/congestion.ts";
import {
  type Attribute,
  booleanAttribute,
  choiceAttribute,
  fieldAttribute,
  numberAttribute,
  shown,
} from "./attribute.ts";
import { DEFAULT_TUNABLES, type DeviceTarget, type SetTarget } from "./targets.ts";

const U32 = 2 ** 32 - 1;

const WHY: Record<Exclude<BypassReason, "none">, string> = {
  detaching: "the device was being detached",
  discard: "they gave up a range",
  full: "more than 95 percent of the cache were in use",
  mode: "the cache mode is none, or writearound and they were writes",
  readahead: "they were ahead of need, and readahead_cache_policy is meta-only",
  unaligned: "they were not whole blocks",
  torture: "bypass_torture_test is on",
  sequential: "their stream had come to sequential_cutoff",
  congested: "the cache device was slow, and their stream long",
};

/** A threshold of buckets in use; 0 stands for the one that holds at start, as in the kernel. */
function cutoff(field: {
  readonly name: string;
  readonly help: string;
  readonly max: number;
  readonly key: "cutoffWriteback" | "cutoffWritebackSync";
  /** What is expected instead, when it would be the wrong way round with another attribute. */
  readonly refuse: (value: number, target: SetTarget) => string | undefined;
}): Attribute<SetTarget> {
  const { key } = field;
  const initial = DEFAULT_TUNABLES[key];
  return numberAttribute({
    ...field,
    unit: "percent of buckets",
    min: 0,
    initial,
    get: ({ tunables }) => tunables[key],
    set: (target, value) => {
      const wanted = value === 0 ? initial : value;
      const expected = field.refuse(wanted, target);
      if (expected !== undefined) {
        throw new BcacheError("OutOfRange", `${field.name}: found ${value}, expected ${expected}`);
      }
      target.tunables[key] = wanted;
    },
  });
}

/** It lies between what writeback of each device aims at and the other threshold. */
function refuseCutoff(value: number, { tunables, percents }: SetTarget): string | undefined {
  const { cutoffWritebackSync } = tunables;
  if (value > cutoffWritebackSync) {
    return `at most cutoff_writeback_sync (${cutoffWritebackSync})`;
  }
  const above = percents().find(({ percent }) => percent > value);
  if (above === undefined) return undefined;
  const { name, percent } = above;
  return `at least the writeback_percent of ${name} (${percent}); set ${name}/writeback_percent ` +
    "lower first";
}

export const DEVICE_REQUEST_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  fieldAttribute((target) => target.dev.bypass, "sequentialCutoffBytes", {
    name: "sequential_cutoff",
    unit: "bytes",
    help: "a sequential stream longer than this goes past the cache; 0: never",
    min: 0,
    max: U32,
    initial: 4 * 1024 * 1024,
    size: true,
  }),
  choiceAttribute({
    name: "readahead_cache_policy",
    help:
      "whether reads that are told to be ahead of need are cached, or only those of metadata; " +
      "FUSE does not tell them from others",
    choices: READAHEAD_POLICIES,
    initial: "all",
    get: (target) => target.dev.bypass.readaheadPolicy,
    set: (target, value) => {
      target.dev.bypass.readaheadPolicy = value;
    },
  }),
  booleanAttribute({
    name: "bypass_torture_test",
    help: "whether every fourth request goes past the cache by chance, for tests",
    initial: false,
    get: (target) => target.dev.bypass.torture,
    set: (target, value) => {
      target.dev.bypass.torture = value;
    },
  }),
  ...BYPASS_REASONS.filter((reason) => reason !== "none").map((reason) =>
    shown<DeviceTarget>(
      `bypass_reasons/${reason}`,
      `requests that went past the cache: ${WHY[reason]}`,
      (target) => target.dev.bypass.counts[reason],
    )
  ),
];

export const SET_REQUEST_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  fieldAttribute(({ engine }) => engine.congestion, "readThresholdUs", {
    name: "congested_read_threshold_us",
    unit: "microseconds",
    help: "reads of the cache device that take longer make streams go past it; 0: none does",
    min: 0,
    max: U32,
    initial: READ_THRESHOLD_US,
  }),
  fieldAttribute(({ engine }) => engine.congestion, "writeThresholdUs", {
    name: "congested_write_threshold_us",
    unit: "microseconds",
    help: "writes to the cache device that take longer make streams go past it; 0: none does",
    min: 0,
    max: U32,
    initial: WRITE_THRESHOLD_US,
  }),
  shown(
    "congested",
    "bytes after which a stream goes past the cache as that is slow; 0: it is not",
    ({ engine }) => engine.congestion.limitSectors(engine.world.clock.nowMs()) * 512,
  ),
  cutoff({
    name: "cutoff_writeback",
    help: "with more than this in use, only synchronous writes and those of metadata stay in the " +
      "cache alone (FUSE does not tell the latter from others); not below a device's " +
      "writeback_percent; 0 stands for 40",
    max: 70,
    key: "cutoffWriteback",
    refuse: refuseCutoff,
  }),
  cutoff({
    name: "cutoff_writeback_sync",
    help: "with more than this in use, every write goes through to the backing device; 0 stands " +
      "for 70",
    max: 90,
    key: "cutoffWritebackSync",
    refuse: (value, { tunables: { cutoffWriteback } }) =>
      value < cutoffWriteback ? `at least cutoff_writeback (${cutoffWriteback})` : undefined,
  }),
];
