/** Routes of the volumes that live on the cache alone, and of whose data the cache has. */
import { createRoute, z } from "@hono/zod-openapi";
import type { App, RouteContext } from "./route_parts.ts";
import { answer, jsonBody, NameParameter, PROBLEM, volumeNamed } from "./route_parts.ts";
import { UuidSchema, VolumeCreateSchema, VolumeSchema, VolumeSizeSchema } from "./schema.ts";

const VolumesSchema = z.object({ volumes: z.array(VolumeSchema) });
const UuidsSchema = z.object({ uuids: z.array(UuidSchema) });
const Force = z.object({
  force: z.enum(["true", "false"]).optional().openapi({
    param: { name: "force", in: "query" },
    description: "also when that gives up data that is nowhere else",
  }),
});
const UuidParameter = z.object({
  uuid: z.string().max(64).openapi({ param: { name: "uuid", in: "path" } }),
});

const list = createRoute({
  method: "get",
  path: "/v1/volumes",
  summary: "All volumes that live on the cache alone",
  responses: { 200: answer(VolumesSchema, "The volumes"), default: PROBLEM },
});
const create = createRoute({
  method: "post",
  path: "/v1/volumes",
  summary: "Makes a volume; its file appears in the mounted directory",
  request: { body: jsonBody(VolumeCreateSchema) },
  responses: { 201: answer(VolumeSchema, "The new volume"), default: PROBLEM },
});
const one = createRoute({
  method: "get",
  path: "/v1/volumes/{name}",
  summary: "One volume",
  request: { params: NameParameter },
  responses: { 200: answer(VolumeSchema, "The volume"), default: PROBLEM },
});
const resize = createRoute({
  method: "put",
  path: "/v1/volumes/{name}/size",
  summary: "Sets its size; data behind the end of a smaller one is given up by force only",
  request: { params: NameParameter, body: jsonBody(VolumeSizeSchema) },
  responses: { 200: answer(VolumeSchema, "The volume afterwards"), default: PROBLEM },
});
const destroy = createRoute({
  method: "delete",
  path: "/v1/volumes/{name}",
  summary: "Gives up the volume and all that is in it",
  request: { params: NameParameter, query: Force },
  responses: { 200: answer(VolumesSchema, "The volumes that are left"), default: PROBLEM },
});
const uuids = createRoute({
  method: "get",
  path: "/v1/uuids",
  summary: "Whose data the cache has, and how much; looks at the whole index",
  responses: { 200: answer(UuidsSchema, "The devices it knows"), default: PROBLEM },
});
const forget = createRoute({
  method: "delete",
  path: "/v1/uuids/{uuid}",
  summary: "Gives up all that is cached of a device that will not return",
  request: { params: UuidParameter, query: Force },
  responses: { 200: answer(UuidsSchema, "The devices it still knows"), default: PROBLEM },
});

export function addVolumeRoutes(app: App, context: RouteContext): void {
  app.openapi(list, async (c) => {
    return c.json({ volumes: (await context.control().status()).volumes }, 200);
  });
  app.openapi(create, async (c) => {
    const { sizeBytes, label } = c.req.valid("json");
    const volume = await context.control().createVolume({ sizeBytes, label: label ?? "" });
    return c.json(volume, 201);
  });
  app.openapi(one, async (c) => {
    return c.json(await volumeNamed(context.control(), c.req.valid("param").name), 200);
  });
  app.openapi(resize, async (c) => {
    const control = context.control();
    const { name } = await volumeNamed(control, c.req.valid("param").name);
    const { sizeBytes, force = false } = c.req.valid("json");
    return c.json(await control.resizeVolume(name, sizeBytes, { force }), 200);
  });
  app.openapi(destroy, async (c) => {
    const control = context.control();
    const { name } = await volumeNamed(control, c.req.valid("param").name);
    await control.destroyVolume(name, { force: c.req.valid("query").force === "true" });
    return c.json({ volumes: (await control.status()).volumes }, 200);
  });
  app.openapi(uuids, async (c) => c.json({ uuids: await context.control().uuids() }, 200));
  app.openapi(forget, async (c) => {
    const control = context.control();
    const force = c.req.valid("query").force === "true";
    await control.forget(c.req.valid("param").uuid, { force });
    return c.json({ uuids: await control.uuids() }, 200);
  });
}
