/** Routes of the whole cache set: health, statistics, writing everything back. */
import { createRoute, z } from "@hono/zod-openapi";
import { messageOf } from "../../lib/base/errors.ts";
import type { App, RouteContext } from "./route_parts.ts";
import { answer, PROBLEM } from "./route_parts.ts";
import { DeviceSchema, type Health, HealthSchema, SetSchema } from "./schema.ts";

const health = createRoute({
  method: "get",
  path: "/health",
  summary: "Whether the set serves: 200 if so, 503 while it starts and after it failed",
  responses: {
    200: answer(HealthSchema, "Serving"),
    503: answer(HealthSchema, "Not serving"),
    default: PROBLEM,
  },
});

const stats = createRoute({
  method: "get",
  path: "/v1/stats",
  summary: "The cache set and its devices, in figures",
  responses: { 200: answer(SetSchema, "The set"), default: PROBLEM },
});

const devices = createRoute({
  method: "get",
  path: "/v1/devices",
  summary: "All devices of the set",
  responses: {
    200: answer(z.object({ devices: z.array(DeviceSchema) }), "The devices"),
    default: PROBLEM,
  },
});

export function addSetRoutes(app: App, context: RouteContext): void {
  app.openapi(health, async (c) => {
    const found = await healthOf(context);
    return found.status === "ok" ? c.json(found, 200) : c.json(found, 503);
  });
  app.openapi(stats, async (c) => c.json(await context.control().status(), 200));
  app.openapi(devices, async (c) => {
    const status = await context.control().status();
    return c.json({ devices: status.devices }, 200);
  });
}

/** A probe wants an answer in every case, so here a failure is a value. */
async function healthOf(context: RouteContext): Promise<Health> {
  const control = context.controlIfReady();
  if (!control) return { status: "starting" };
  try {
    const { failed } = await control.status();
    return failed === undefined ? { status: "ok" } : { status: "failed", failed };
  } catch (error) {
    return { status: "failed", failed: messageOf(error) };
  }
}
