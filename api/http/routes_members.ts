/** Routes by which devices come to the running set and leave it. */
import { createRoute, z } from "@hono/zod-openapi";
import { messageOf } from "../../lib/base/errors.ts";
import type { App, RouteContext } from "./route_parts.ts";
import { answer, deviceNamed, jsonBody, NameParameter, PROBLEM } from "./route_parts.ts";
import { AttachSchema, DeviceSchema, StopSchema } from "./schema.ts";

const Wait = z.object({
  wait: z.enum(["true", "false"]).optional().openapi({
    param: { name: "wait", in: "query" },
    description: "false answers 202 at once; watch dirtyBytes and attached for the end",
  }),
});

const attach = createRoute({
  method: "post",
  path: "/v1/devices",
  summary: "Attaches a backing device; its file appears in the mounted directory",
  request: { body: jsonBody(AttachSchema) },
  responses: { 201: answer(DeviceSchema, "The new device"), default: PROBLEM },
});

const detach = createRoute({
  method: "post",
  path: "/v1/devices/{name}/detach",
  summary: "Writes all dirty data back and takes the device out of the set; it goes on uncached",
  request: { params: NameParameter, query: Wait },
  responses: {
    200: answer(DeviceSchema, "Detached"),
    202: answer(DeviceSchema, "Begun"),
    default: PROBLEM,
  },
});

const stop = createRoute({
  method: "post",
  path: "/v1/devices/{name}/stop",
  summary: "Stops serving the device; its dirty data stays in the cache until it is attached again",
  request: { params: NameParameter, body: jsonBody(StopSchema) },
  responses: {
    200: answer(z.object({ devices: z.array(DeviceSchema) }), "The devices that are left"),
    default: PROBLEM,
  },
});

export function addMemberRoutes(app: App, context: RouteContext): void {
  app.openapi(attach, async (c) => {
    const { backingPath, force } = c.req.valid("json");
    return c.json(await context.control().attach(backingPath, { force: force ?? false }), 201);
  });
  app.openapi(detach, async (c) => {
    const control = context.control();
    const { name } = await deviceNamed(control, c.req.valid("param").name);
    const done = control.detach(name);
    // A client that goes away does not stop it, so its failure is logged as well as answered.
    done.catch((error) => context.log("error", `detaching ${name}: ${messageOf(error)}`));
    if (c.req.valid("query").wait === "false") return c.json(await deviceNamed(control, name), 202);
    return c.json(await done, 200);
  });
  app.openapi(stop, async (c) => {
    const control = context.control();
    const { name } = await deviceNamed(control, c.req.valid("param").name);
    await control.stop(name, { force: c.req.valid("json").force ?? false });
    return c.json({ devices: (await control.status()).devices }, 200);
  });
}
