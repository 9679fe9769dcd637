/** Routes of the control socket only: what is mounted here, and its end. */
import { createRoute } from "@hono/zod-openapi";
import type { CacheControl } from "../../lib/cache/ports.ts";
import type { App, RouteContext, ServedMount } from "./route_parts.ts";
import { answer, jsonBody, PROBLEM } from "./route_parts.ts";
import { MountSchema, UnmountedSchema, UnmountSchema } from "./schema.ts";

const mountInfo = createRoute({
  method: "get",
  path: "/v1/mount",
  summary: "What is mounted, where, by which process",
  responses: { 200: answer(MountSchema, "The mount"), default: PROBLEM },
});

const unmount = createRoute({
  method: "post",
  path: "/v1/mount/unmount",
  summary: "Unmounts; the process then writes out what it must and ends",
  request: { body: jsonBody(UnmountSchema) },
  responses: { 200: answer(UnmountedSchema, "Unmounted"), default: PROBLEM },
});

/** What the devices are is not waited for longer: an engine that hangs must not hide the mount. */
const STATUS_PATIENCE_MS = 500;

export function addMountRoutes(app: App, mount: ServedMount, context: RouteContext): void {
  app.openapi(mountInfo, async (c) => {
    const info = mount.info();
    const backingPaths = await pathsNow(context.controlIfReady());
    return c.json(backingPaths === undefined ? info : { ...info, backingPaths }, 200);
  });
  app.openapi(unmount, async (c) => {
    const remains = await mount.unmount({ force: c.req.valid("json").force ?? false });
    return c.json({ ...mount.info(), ...(remains === undefined ? {} : { remains }) }, 200);
  });
}

/** Devices come and go after the start; undefined: it starts, ends, or does not answer. */
async function pathsNow(control: CacheControl | undefined): Promise<string[] | undefined> {
  if (control === undefined) return undefined;
  let patience: ReturnType<typeof setTimeout> | undefined;
  const tired = new Promise<undefined>((resolve) => {
    patience = setTimeout(() => resolve(undefined), STATUS_PATIENCE_MS);
  });
  try {
    const status = await Promise.race([control.status(), tired]);
    return status?.devices.map((device) => device.backingPath);
  } catch {
    return undefined;
  } finally {
    clearTimeout(patience);
  }
}
