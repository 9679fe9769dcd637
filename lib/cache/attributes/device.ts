/** Attributes of a cached device, but for writeback and statistics. */
import { LOAD_PERIODS_MINUTES } from "../../base/load.ts";
import { decodeLabel, encodeLabel } from "../../ondisk/label.ts";
import { formatUuid } from "../../ondisk/uuid.ts";
import { CACHE_MODES } from "../ports.ts";
import {
  type Attribute,
  booleanAttribute,
  choiceAttribute,
  shown,
  triggerAttribute,
} from "./attribute.ts";
import { DEVICE_FAILURE_ATTRIBUTES } from "./failure.ts";
import { DEVICE_MEMBERSHIP_ATTRIBUTES } from "./membership.ts";
import { DEVICE_REQUEST_ATTRIBUTES } from "./requests.ts";
import { statistics } from "./statistics.ts";
import type { DeviceTarget } from "./targets.ts";
import { WRITEBACK_ATTRIBUTES } from "./writeback.ts";

export const DEVICE_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  choiceAttribute({
    name: "cache_mode",
    help: "what happens to writes",
    choices: CACHE_MODES,
    initial: "writethrough",
    kept: "backing superblock",
    get: (target) => target.dev.mode,
    set: async (target, value) => {
      await target.dev.setMode(value);
      target.writeback.wake();
    },
  }),
  shown("state", "state in the superblock", (target) => target.dev.state),
  shown("dirty_data", "bytes that only the cache has", (target) => target.dev.dirtySectors * 512),
  ...DEVICE_MEMBERSHIP_ATTRIBUTES,
  ...WRITEBACK_ATTRIBUTES,
  ...DEVICE_REQUEST_ATTRIBUTES,
  {
    name: "label",
    help: "name of the device",
    range: "at most 32 bytes",
    initial: "",
    kept: "backing superblock and UUID table",
    read: (target) => decodeLabel(target.dev.superblock.label),
    write: async (target, text) => {
      const label = encodeLabel(text.replace(/\n$/, ""));
      const { dev, engine } = target;
      await dev.setLabel(label, async () => {
        // A device without a cache has no entry there any more.
        if (!dev.attached) return;
        const entry = { ...engine.uuids.entry(dev.inode), label };
        const commit = () => engine.commitMetadata();
        await engine.uuids.update([[dev.inode, entry]], engine.allocator, commit);
      });
    },
  },
  shown("backing_dev_name", "path of the backing device", (target) => target.dev.path),
  shown(
    "backing_dev_uuid",
    "UUID of the backing device",
    (target) => formatUuid(target.dev.superblock.uuid),
  ),
  booleanAttribute({
    name: "verify",
    help:
      "whether clean data from the cache is compared with the backing device's; slow. After a " +
      "power cut they may differ where a write had not been flushed",
    initial: false,
    get: (target) => target.dev.verify,
    set: (target, value) => {
      target.dev.verify = value;
    },
  }),
  ...LOAD_PERIODS_MINUTES.map((minutes) =>
    shown<DeviceTarget>(
      `backing_load_${minutes}m`,
      `percent of the last ${
        minutes === 1 ? "minute" : `${minutes} minutes`
      } in which the backing device was busy`,
      (target) => target.dev.load.percent(minutes),
    )
  ),
  triggerAttribute<DeviceTarget>(
    "clear_stats",
    "sets the device's total statistics back to zero",
    (target) => target.dev.stats.clear(),
  ),
  ...DEVICE_FAILURE_ATTRIBUTES,
  ...statistics<DeviceTarget>((target) => target.dev.stats),
];
