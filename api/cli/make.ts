/**
 * `make`: the options of make-bcache, checked against each other before any device is opened.
 * The format itself, and what it refuses to overwrite, is lib/device's.
 */
import { parseSizeBytes } from "../../lib/base/units.ts";
import type { MakeRequest } from "./program.ts";
import { asUsage, UsageError } from "./program.ts";

/** The option values as the argument parser leaves them. */
export interface MakeOptions {
  cache?: string[];
  bdev?: string[];
  bucket?: string;
  block?: string;
  dataOffset?: string;
  csetUuid?: string;
  writeback?: boolean;
  discard?: boolean;
  cacheReplacementPolicy?: string;
  label?: string;
  sidecar?: boolean;
  size?: string;
  force?: boolean;
}

const POLICIES = ["lru", "fifo", "random"] as const;
const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;
const LABEL_BYTES_MAX = 32;

/** The request behind the options. Throws UsageError for what contradicts itself. */
export function makeRequest(options: MakeOptions): MakeRequest {
  const caches = options.cache ?? [];
  const backingPaths = options.bdev ?? [];
  if (caches.length + backingPaths.length === 0) {
    throw new UsageError("nothing to make; give -C CACHE, -B BACKING, or both");
  }
  if (caches.length > 1) {
    throw new UsageError(
      `a cache set has one cache device, ${caches.length} were given (${caches.join(", ")}); ` +
        "join them first (RAID, LVM), or make a set of each",
    );
  }
  const paths = [...caches, ...backingPaths];
  const twice = paths.find((path, at) => paths.indexOf(path) !== at);
  if (twice !== undefined) throw new UsageError(`${twice} is named twice; name each device once`);
  for (const option of ["sidecar", "writeback", "label", "dataOffset"] as const) {
    if (options[option] !== undefined && backingPaths.length === 0) {
      throw new UsageError(`--${dashed(option)} is about a backing device; add -B BACKING`);
    }
  }
  for (const option of ["discard", "cacheReplacementPolicy"] as const) {
    if (options[option] !== undefined && caches.length === 0) {
      throw new UsageError(`--${dashed(option)} is about a cache device; add -C CACHE`);
    }
  }
  if (options.sidecar && options.dataOffset !== undefined) {
    throw new UsageError("--sidecar keeps the image as it is: leave out --data-offset");
  }
  return {
    cachePath: caches[0],
    backingPaths,
    bucketSizeBytes: powerOfTwo(options.bucket, "--bucket", { least: "4k", most: "1G" }),
    blockSizeBytes: powerOfTwo(options.block, "--block", {
      least: "512",
      most: caches.length > 0 ? "4k" : largestBlock(options.bucket ?? "512k"),
    }),
    dataOffsetSectors: sectorsOf(options.dataOffset),
    setUuid: uuidOf(options.csetUuid),
    writeback: options.writeback ?? false,
    discard: options.discard ?? false,
    replacementPolicy: policyOf(options.cacheReplacementPolicy),
    label: labelOf(options.label),
    sidecar: options.sidecar ?? false,
    sizeBytes: sizeOf(options.size, "--size"),
    force: options.force ?? false,
  };
}

function dashed(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function sizeOf(text: string | undefined, option: string): number | undefined {
  if (text === undefined) return undefined;
  const bytes = asUsage(() => parseSizeBytes(text, option));
  if (bytes > 0) return bytes;
  throw new UsageError(`${option} ${text}: a size above zero is needed, like 512k`);
}

/** A size that is a power of two in a range; what else is asked depends on the device. */
function powerOfTwo(
  text: string | undefined,
  option: string,
  { least, most }: { least: string; most: string },
): number | undefined {
  const bytes = sizeOf(text, option);
  if (bytes === undefined) return undefined;
  const fits = bytes >= parseSizeBytes(least) && bytes <= parseSizeBytes(most);
  if (fits && Number.isInteger(Math.log2(bytes))) return bytes;
  throw new UsageError(`${option} ${text}: expected a power of two from ${least} to ${most}`);
}

/** A backing device's blocks are no larger than the buckets, and never more than 16 MiB. */
function largestBlock(bucket: string): string {
  return parseSizeBytes(bucket) > parseSizeBytes("16M") ? "16M" : bucket;
}

function sectorsOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const sectors = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(sectors * 512)) return sectors;
  throw new UsageError(`--data-offset ${text}: expected a number of sectors of 512 bytes, like 16`);
}

function uuidOf(text: string | undefined): string | undefined {
  if (text === undefined || UUID.test(text)) return text;
  throw new UsageError(
    `--cset-uuid ${text}: expected a UUID such as 01234567-89ab-cdef-0123-456789abcdef`,
  );
}

function policyOf(text: string | undefined): MakeRequest["replacementPolicy"] {
  if (text === undefined) return undefined;
  const policy = POLICIES.find((candidate) => candidate === text);
  if (policy !== undefined) return policy;
  throw new UsageError(`--cache-replacement-policy ${text}: expected ${POLICIES.join(", ")}`);
}

function labelOf(text: string | undefined): string | undefined {
  if (text === undefined) return undefined;
  const length = new TextEncoder().encode(text).length;
  if (length <= LABEL_BYTES_MAX) return text;
  throw new UsageError(`--label is ${length} bytes long; at most ${LABEL_BYTES_MAX} fit`);
}
