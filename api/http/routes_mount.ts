/** Routes of the control socket only: what is mounted here, and its end. */
import { createRoute } from "@hono/zod-openapi";
import type { App, ServedMount } from "./route_parts.ts";
import { answer, jsonBody, PROBLEM } from "./route_parts.ts";
import { MountSchema, UnmountSchema } from "./schema.ts";

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
  responses: { 200: answer(MountSchema, "Unmounted"), default: PROBLEM },
});

export function addMountRoutes(app: App, mount: ServedMount): void {
  app.openapi(mountInfo, (c) => c.json(mount.info(), 200));
  app.openapi(unmount, async (c) => {
    await mount.unmount({ force: c.req.valid("json").force ?? false });
    return c.json(mount.info(), 200);
  });
}
