/** Pieces that the route files share: parameters, bodies, answers, and the look-up of a device. */
import { type OpenAPIHono, z } from "@hono/zod-openapi";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Log } from "../../lib/base/runtime.ts";
import type {
  CacheControl,
  DeviceStatus,
  SetRemains,
  VolumeStatus,
} from "../../lib/cache/ports.ts";
import { type MountInfo, ProblemSchema } from "./schema.ts";

export const NameParameter = z.object({
  name: z.string().max(64).openapi({ param: { name: "name", in: "path" }, example: "bcache0" }),
});

/** The mount that is served, for those who may end it. */
export interface ServedMount {
  info(): MountInfo;
  /**
   * Unmounts; resolves with what is left, if that is known. Rejects with Busy while somebody has a
   * file open, unless `force`.
   */
  unmount(options: { force: boolean }): Promise<SetRemains | undefined>;
}

/** What the routes need: a control that is there, or Shutdown. */
export interface RouteContext {
  control(): CacheControl;
  controlIfReady(): CacheControl | undefined;
  log: Log;
}

export type App = OpenAPIHono;

/** A JSON answer in a route's table. */
export function answer<S extends z.ZodType>(
  schema: S,
  description: string,
): { content: { "application/json": { schema: S } }; description: string } {
  return { content: { "application/json": { schema } }, description };
}

/** A JSON body that must be there, in a route's table. */
export function jsonBody<S extends z.ZodType>(
  schema: S,
): { content: { "application/json": { schema: S } }; required: true } {
  return { content: { "application/json": { schema } }, required: true };
}

/** Every route may answer with a problem. */
export const PROBLEM = {
  content: { "application/problem+json": { schema: ProblemSchema } },
  description: "What went wrong, and what to do",
};

/** The name, if a cached device or a volume has it. @throws BcacheError NotFound */
export async function memberNamed(control: CacheControl, name: string): Promise<string> {
  const { devices, volumes } = await control.status();
  const names = [...devices, ...volumes].map((candidate) => candidate.name);
  if (names.includes(name)) return name;
  throw new BcacheError(
    "NotFound",
    `there is no device ${JSON.stringify(name)}; there are: ${names.join(", ") || "none"}`,
  );
}

/** The status of the device called `name`; NotFound names those that exist. */
export async function deviceNamed(control: CacheControl, name: string): Promise<DeviceStatus> {
  const { devices, volumes } = await control.status();
  const device = devices.find((candidate) => candidate.name === name);
  if (device) return device;
  if (volumes.some((volume) => volume.name === name)) {
    throw new BcacheError(
      "NotFound",
      `${name} is a volume on the cache alone, it has no backing device; ` +
        `bcache-fuse volume destroy MOUNTPOINT ${name} gives it up`,
    );
  }
  throw unknownOf("device", name, devices, "bcache-fuse attach MOUNTPOINT BACKING adds one");
}

/** The status of the volume called `name`; NotFound names those that exist. */
export async function volumeNamed(control: CacheControl, name: string): Promise<VolumeStatus> {
  const { devices, volumes } = await control.status();
  const volume = volumes.find((candidate) => candidate.name === name);
  if (volume) return volume;
  if (devices.some((device) => device.name === name)) {
    throw new BcacheError(
      "NotFound",
      `${name} is a cached device, not a volume: its size and data are its backing device's; ` +
        `bcache-fuse detach MOUNTPOINT ${name} takes it out of the set`,
    );
  }
  throw unknownOf("volume", name, volumes, "bcache-fuse volume create MOUNTPOINT SIZE makes one");
}

function unknownOf(
  kind: "device" | "volume",
  name: string,
  all: readonly { readonly name: string }[],
  adviceIfNone: string,
): BcacheError {
  const names = all.map((each) => each.name).join(", ");
  const advice = names === "" ? `the set has none; ${adviceIfNone}` : `there is: ${names}`;
  return new BcacheError("NotFound", `there is no ${kind} ${JSON.stringify(name)}; ${advice}`);
}
