/** Routes of the attributes, the kernel's sysfs files by name: of the set, and of each device. */
import { createRoute, z } from "@hono/zod-openapi";
import { BcacheError } from "../../lib/base/errors.ts";
import type { AttributeInfo, CacheControl } from "../../lib/cache/ports.ts";
import type { App, RouteContext } from "./route_parts.ts";
import { answer, jsonBody, memberNamed, NameParameter, PROBLEM } from "./route_parts.ts";
import { AttributeChangeSchema, AttributeSchema } from "./schema.ts";

const AttributeParameter = z.object({
  attribute: z.string().max(128).openapi({ param: { name: "attribute", in: "path" } }),
});
const DeviceAttributeParameters = NameParameter.extend(AttributeParameter.shape);
const ListSchema = z.object({ attributes: z.array(AttributeSchema) });

const listOfSet = createRoute({
  method: "get",
  path: "/v1/attributes",
  summary: "All attributes of the cache set",
  responses: { 200: answer(ListSchema, "The attributes"), default: PROBLEM },
});
const oneOfSet = createRoute({
  method: "get",
  path: "/v1/attributes/{attribute}",
  summary: "One attribute of the cache set",
  request: { params: AttributeParameter },
  responses: { 200: answer(AttributeSchema, "The attribute"), default: PROBLEM },
});
const changeOfSet = createRoute({
  method: "put",
  path: "/v1/attributes/{attribute}",
  summary: "Sets an attribute of the cache set",
  request: { params: AttributeParameter, body: jsonBody(AttributeChangeSchema) },
  responses: { 200: answer(AttributeSchema, "The attribute afterwards"), default: PROBLEM },
});
const listOfDevice = createRoute({
  method: "get",
  path: "/v1/devices/{name}/attributes",
  summary: "All attributes of a device or volume",
  request: { params: NameParameter },
  responses: { 200: answer(ListSchema, "The attributes"), default: PROBLEM },
});
const oneOfDevice = createRoute({
  method: "get",
  path: "/v1/devices/{name}/attributes/{attribute}",
  summary: "One attribute of a device or volume",
  request: { params: DeviceAttributeParameters },
  responses: { 200: answer(AttributeSchema, "The attribute"), default: PROBLEM },
});
const changeOfDevice = createRoute({
  method: "put",
  path: "/v1/devices/{name}/attributes/{attribute}",
  summary: "Sets an attribute of a device or volume",
  request: { params: DeviceAttributeParameters, body: jsonBody(AttributeChangeSchema) },
  responses: { 200: answer(AttributeSchema, "The attribute afterwards"), default: PROBLEM },
});

export function addAttributeRoutes(app: App, context: RouteContext): void {
  app.openapi(listOfSet, async (c) => {
    return c.json({ attributes: await context.control().attributes(undefined) }, 200);
  });
  app.openapi(oneOfSet, async (c) => {
    const { attribute } = c.req.valid("param");
    return c.json(await attributeNamed(context.control(), undefined, attribute), 200);
  });
  app.openapi(changeOfSet, async (c) => {
    const { attribute } = c.req.valid("param");
    const value = attributeText(c.req.valid("json").value);
    return c.json(await context.control().setAttribute(undefined, attribute, value), 200);
  });
  app.openapi(listOfDevice, async (c) => {
    const control = context.control();
    const name = await memberNamed(control, c.req.valid("param").name);
    return c.json({ attributes: await control.attributes(name) }, 200);
  });
  app.openapi(oneOfDevice, async (c) => {
    const control = context.control();
    const { name, attribute } = c.req.valid("param");
    await memberNamed(control, name);
    return c.json(await attributeNamed(control, name, attribute), 200);
  });
  app.openapi(changeOfDevice, async (c) => {
    const control = context.control();
    const { name, attribute } = c.req.valid("param");
    await memberNamed(control, name);
    const value = attributeText(c.req.valid("json").value);
    return c.json(await control.setAttribute(name, attribute, value), 200);
  });
}

/** The attribute called `name`; NotFound if there is none. */
export async function attributeNamed(
  control: CacheControl,
  device: string | undefined,
  name: string,
): Promise<AttributeInfo> {
  const [found] = await control.attributes(device, name);
  if (found) return found;
  const owner = device ?? "the cache set";
  throw new BcacheError("NotFound", `${owner} has no attribute ${JSON.stringify(name)}`);
}

/** A JSON value in the form `set` takes: booleans are 1 and 0, as in sysfs. */
function attributeText(value: string | number | boolean): string {
  if (typeof value === "boolean") return value ? "1" : "0";
  return String(value);
}
