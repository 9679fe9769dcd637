/**
 * The shapes of the HTTP API, once: they validate what comes in, type what goes out, and make the
 * OpenAPI document. They mirror lib/cache/ports.ts; `schema_test.ts` holds the two together.
 */
import { z } from "@hono/zod-openapi";
import { type Issue, issueWording } from "./wording.ts";
import { CACHE_MODES } from "../../lib/cache/ports.ts";

const bytes = z.number().int().nonnegative();
const count = z.number().int().nonnegative();
const rate = z.number().nonnegative().openapi({ description: "0 while not running" });

/** A size that is asked for. Numbers of JavaScript are exact below 8 PiB. */
const error = expected("a whole number of bytes from 0 to less than 8 PiB");
const sizeBytes = z.number({ error }).int({ error }).min(0, { error });

function expected(what: string): (issue: { input?: unknown }) => string {
  return ({ input }) => `found ${JSON.stringify(input) ?? "nothing"}, expected ${what}`;
}

export const CacheModeSchema = z.enum(CACHE_MODES as [string, ...string[]]).openapi("CacheMode");

export const CacheStatsSchema = z.object({
  cacheHits: count,
  cacheMisses: count,
  cacheBypassHits: count,
  cacheBypassMisses: count,
  cacheHitRatio: z.number().openapi({ description: "percent" }),
  cacheMissCollisions: count,
  bypassedBytes: bytes,
}).openapi("CacheStats");

export const DeviceSchema = z.object({
  name: z.string(),
  backingPath: z.string(),
  attached: z.boolean().openapi({ description: "false once it was detached" }),
  detaching: z.boolean().optional().openapi({ description: "while it is being detached" }),
  uuid: z.string(),
  label: z.string(),
  sizeBytes: bytes,
  blockSizeBytes: bytes,
  cacheMode: CacheModeSchema,
  state: z.enum(["no cache", "clean", "dirty", "inconsistent"]),
  dirtyBytes: bytes,
  writeback: z.object({
    running: z.boolean(),
    percent: z.number(),
    rateBytesPerSecond: rate,
  }),
  ioErrors: count,
  bypassReasons: z.record(z.string(), count).optional(),
  lastError: z.string().optional().openapi({ description: "of the backing device" }),
  disabled: z.string().optional().openapi({ description: "why every request is refused" }),
  service: z.enum(["pass through", "clean ranges only", "refused"]).optional(),
  stats: CacheStatsSchema,
}).openapi("Device");

export const VolumeSchema = z.object({
  name: z.string(),
  uuid: z.string(),
  label: z.string(),
  sizeBytes: bytes,
  blockSizeBytes: bytes,
  usedBytes: bytes,
}).openapi("Volume");

export const VolumeSizeSchema = z.strictObject({
  sizeBytes,
  force: z.boolean().optional().openapi({
    description: "also when that gives up data behind the new end, or the file is open",
  }),
}).openapi("VolumeSize");

export const VolumeCreateSchema = z.strictObject({
  sizeBytes,
  label: z.string().max(32).optional(),
}).openapi("VolumeCreate");

export const UuidSchema = z.object({
  uuid: z.string(),
  label: z.string(),
  kind: z.enum(["cached", "volume"]),
  device: z.string().nullable().openapi({ description: "null: it is not here" }),
  dirtyBytes: bytes,
  cachedBytes: bytes,
  firstRegisteredSeconds: count,
  lastRegisteredSeconds: count,
}).openapi("Uuid");

export const SetSchema = z.object({
  setUuid: z.string(),
  cachePath: z.string(),
  sizeBytes: bytes,
  bucketSizeBytes: bytes,
  blockSizeBytes: bytes,
  bucketCount: count,
  replacementPolicy: z.enum(["lru", "fifo", "random"]),
  failed: z.string().optional(),
  warnings: z.array(z.string()).optional().openapi({
    description: "what to do something about before the set ends",
  }),
  lastError: z.string().optional().openapi({ description: "of the cache device" }),
  inUsePercent: z.number(),
  availablePercent: z.number(),
  btree: z.object({ depth: count, nodes: count, cachedBytes: bytes }),
  journal: z.object({ sequence: count, activeEntries: count }),
  writtenBytes: bytes,
  btreeWrittenBytes: bytes,
  metadataWrittenBytes: bytes,
  ioErrors: count,
  uptimeSeconds: z.number(),
  devices: z.array(DeviceSchema),
  volumes: z.array(VolumeSchema),
}).openapi("CacheSet");

export const WritebackSchema = z.object({
  running: z.boolean(),
  percent: z.number(),
  rateBytesPerSecond: rate,
  state: z.string(),
  dirtyBytes: bytes,
}).openapi("Writeback");

export const WritebackChangeSchema = z.strictObject({
  running: z.boolean().optional(),
  // Its limit is an attribute of the set: the engine knows it.
  percent: z.number().int({ error: expected("a whole number of percent") }).optional(),
}).refine((change) => change.running !== undefined || change.percent !== undefined, {
  message: 'expected "running", "percent" or both',
}).openapi("WritebackChange");

export const CacheModeChangeSchema = z.strictObject({ mode: CacheModeSchema })
  .openapi("CacheModeChange");

export const AttributeSchema = z.object({
  name: z.string(),
  value: z.string(),
  writable: z.boolean(),
  help: z.string(),
  unit: z.string().optional(),
  range: z.string().optional(),
  initial: z.string().optional(),
  kept: z.string().optional(),
}).openapi("Attribute");

export const AttributeChangeSchema = z.strictObject({
  value: z.union([z.string().max(4096), z.number(), z.boolean()]),
}).openapi("AttributeChange");

export const MountSchema = z.object({
  pid: z.number().int(),
  mountPoint: z.string(),
  cachePath: z.string(),
  backingPaths: z.array(z.string()).openapi({ description: "of the devices there are now" }),
  readOnly: z.boolean(),
  httpAddress: z.string().nullable(),
  version: z.string(),
}).openapi("Mount");

export const UnmountSchema = z.strictObject({
  force: z.boolean().optional(),
}).openapi("Unmount");

export const UnmountedSchema = MountSchema.extend({
  remains: z.object({ dirtyBytes: bytes, detachesBrokenOff: z.array(z.string()) }).optional()
    .openapi({ description: "what the cache set left" }),
}).openapi("Unmounted");

export const AttachSchema = z.strictObject({
  backingPath: z.string().max(4096).startsWith("/", "expected an absolute path")
    .refine((path) => !path.includes("\0"), "expected a path without NUL"),
  force: z.boolean().optional().openapi({
    description: "takes a device that was made for another set and never had a cache",
  }),
}).openapi("Attach");

export const StopSchema = z.strictObject({
  force: z.boolean().optional().openapi({ description: "also while its file is open" }),
}).openapi("Stop");

export const HealthSchema = z.object({
  status: z.enum(["ok", "starting", "failed"]),
  failed: z.string().optional(),
}).openapi("Health");

export const ProblemSchema = z.object({
  type: z.string(),
  title: z.string(),
  status: z.number().int(),
  detail: z.string(),
  code: z.string(),
}).openapi("Problem");

export type Health = z.infer<typeof HealthSchema>;
export type Writeback = z.infer<typeof WritebackSchema>;
export type MountInfo = z.infer<typeof MountSchema>;
export type Unmounted = z.infer<typeof UnmountedSchema>;

/** Whether all that is wrong with a value is its size: it is a number, but not one of the range. */
export function isOutOfRange(issue: { code: string; origin?: unknown }): boolean {
  return (issue.code === "too_small" || issue.code === "too_big") &&
    (issue.origin === "number" || issue.origin === "int");
}

/** What a failed validation says: where, and what was expected. One line. */
export function validationMessage(issues: readonly Issue[]): string {
  const said = issues.map((issue) => {
    const where = issue.path.length === 0 ? "the body" : `"${issue.path.map(String).join(".")}"`;
    return `${where}: ${issueWording(issue)}`;
  });
  return [...new Set(said)].join("; ");
}
