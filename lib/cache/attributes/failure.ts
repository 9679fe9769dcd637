/** Attributes of I/O errors and of what they lead to, of a device and of the set. */
import { BcacheError } from "../../base/errors.ts";
import { BACKING_ERROR_LIMIT, CACHE_ERROR_LIMIT } from "../devices/io_errors.ts";
import {
  type Attribute,
  booleanAttribute,
  choiceAttribute,
  fieldAttribute,
  shown,
} from "./attribute.ts";
import type { DeviceTarget, SetTarget } from "./targets.ts";

const U31 = 2 ** 31 - 1;
const U32 = 2 ** 32 - 1;

export const DEVICE_FAILURE_ATTRIBUTES: readonly Attribute<DeviceTarget>[] = [
  choiceAttribute({
    name: "stop_when_cache_set_failed",
    help: "auto: without dirty data the device goes on when its set fails, with some it refuses " +
      "what could be old; always: it refuses everything",
    choices: ["auto", "always"],
    initial: "auto",
    get: ({ dev }) => dev.stopWhenFailed,
    set: ({ dev }, value) => {
      dev.stopWhenFailed = value;
    },
  }),
  shown("io_errors", "errors of the backing device since start", ({ dev }) => dev.errors.count),
  fieldAttribute(({ dev }) => dev.errors, "limit", {
    name: "io_error_limit",
    unit: "errors",
    help: "with so many errors of the backing device, io_disable is set",
    min: 0,
    max: U31,
    initial: BACKING_ERROR_LIMIT,
  }),
  booleanAttribute({
    name: "io_disable",
    help:
      "whether every request to the device is refused; set at io_error_limit, and when a flush " +
      "of the backing device fails; after that, 0 tries a flush first and drops what is cached " +
      "and not dirty",
    initial: false,
    get: ({ dev }) => dev.ioDisabled,
    set: async ({ dev, writeback, enable }, value) => {
      if (value) dev.ioDisabled = true;
      else await enable();
      writeback.wake();
    },
  }),
];

export const SET_FAILURE_ATTRIBUTES: readonly Attribute<SetTarget>[] = [
  choiceAttribute({
    name: "errors",
    help: "what a failure of the set means. unregister: each device goes on as its " +
      "stop_when_cache_set_failed says; panic: every request to every device is refused, and the " +
      "program's exit status says failed",
    choices: ["unregister", "panic"],
    initial: "unregister",
    get: ({ tunables }) => tunables.errors,
    set: ({ tunables }, value) => {
      tunables.errors = value;
    },
  }),
  shown(
    "io_errors",
    "errors of the cache device that are not forgotten yet",
    ({ failure }) => failure.errors.count,
  ),
  fieldAttribute(({ failure }) => failure.errors, "limit", {
    name: "io_error_limit",
    unit: "errors",
    help: "with so many errors of the cache device, the set fails",
    min: 0,
    max: U32,
    initial: CACHE_ERROR_LIMIT,
  }),
  fieldAttribute(({ failure }) => failure.errors, "halflifeOperations", {
    name: "io_error_halflife",
    unit: "operations",
    help: "in so many operations half of the errors is forgotten, in steps of 88; 0: none ever is",
    min: 0,
    max: U32,
    initial: 0,
  }),
  booleanAttribute({
    name: "io_disable",
    help: "whether every request to every device of the set is refused",
    initial: false,
    get: ({ tunables, engine }) => tunables.ioDisabled || engine.faults.failed !== undefined,
    set: ({ tunables, engine }, value) => {
      if (!value && engine.faults.failed !== undefined) {
        throw new BcacheError(
          "SetFailed",
          `io_disable: the cache set has failed: ${engine.faults.failed.message}; mount it again`,
        );
      }
      tunables.ioDisabled = value;
    },
  }),
  shown(
    "read_retries",
    "reads of clean data that the backing device did after an error of the cache device",
    ({ failure }) => failure.readRetries,
  ),
  shown(
    "cache_read_races",
    "reads whose bucket was reused meanwhile; none, as buckets being read are kept",
    () => 0,
  ),
];
