/** Routes of one device: its figures, cache mode and writeback. */
import { createRoute, z } from "@hono/zod-openapi";
import { messageOf } from "../../lib/base/errors.ts";
import type { CacheControl, DeviceStatus } from "../../lib/cache/ports.ts";
import type { App, RouteContext } from "./route_parts.ts";
import { answer, deviceNamed, jsonBody, NameParameter, PROBLEM } from "./route_parts.ts";
import { CacheModeChangeSchema, DeviceSchema, SetSchema } from "./schema.ts";
import { type Writeback, WritebackChangeSchema, WritebackSchema } from "./schema.ts";

const device = createRoute({
  method: "get",
  path: "/v1/devices/{name}",
  summary: "One device, in figures",
  request: { params: NameParameter },
  responses: { 200: answer(DeviceSchema, "The device"), default: PROBLEM },
});

const cacheMode = createRoute({
  method: "put",
  path: "/v1/devices/{name}/cache-mode",
  summary: "Sets the cache mode, also in the superblock",
  request: { params: NameParameter, body: jsonBody(CacheModeChangeSchema) },
  responses: { 200: answer(DeviceSchema, "The device afterwards"), default: PROBLEM },
});

const writeback = createRoute({
  method: "get",
  path: "/v1/devices/{name}/writeback",
  summary: "How writing back goes",
  request: { params: NameParameter },
  responses: { 200: answer(WritebackSchema, "Writeback"), default: PROBLEM },
});

const changeWriteback = createRoute({
  method: "put",
  path: "/v1/devices/{name}/writeback",
  summary: "Starts or stops background writeback, and sets how much may stay dirty",
  request: { params: NameParameter, body: jsonBody(WritebackChangeSchema) },
  responses: { 200: answer(WritebackSchema, "Writeback afterwards"), default: PROBLEM },
});

const Wait = z.object({
  wait: z.enum(["true", "false"]).optional().openapi({
    param: { name: "wait", in: "query" },
    description: "false answers 202 at once; watch dirtyBytes for the end",
  }),
});

const flushDevice = createRoute({
  method: "post",
  path: "/v1/devices/{name}/writeback/flush",
  summary: "Writes all dirty data of the device back; answers when it is clean",
  request: { params: NameParameter, query: Wait },
  responses: {
    200: answer(WritebackSchema, "Clean"),
    202: answer(WritebackSchema, "Begun"),
    default: PROBLEM,
  },
});

const flushSet = createRoute({
  method: "post",
  path: "/v1/writeback/flush",
  summary: "Writes all dirty data of all devices back; answers when they are clean",
  request: { query: Wait },
  responses: {
    200: answer(SetSchema, "Clean"),
    202: answer(SetSchema, "Begun"),
    default: PROBLEM,
  },
});

export function addDeviceRoutes(app: App, context: RouteContext): void {
  const flushes = new Flushes(context);
  app.openapi(device, async (c) => {
    return c.json(await deviceNamed(context.control(), c.req.valid("param").name), 200);
  });
  app.openapi(cacheMode, async (c) => {
    const control = context.control();
    const { name } = await deviceNamed(control, c.req.valid("param").name);
    await control.setAttribute(name, "cache_mode", c.req.valid("json").mode);
    return c.json(await deviceNamed(control, name), 200);
  });
  app.openapi(writeback, async (c) => {
    return c.json(
      writebackOf(await deviceNamed(context.control(), c.req.valid("param").name)),
      200,
    );
  });
  app.openapi(changeWriteback, async (c) => {
    const control = context.control();
    const before = await deviceNamed(control, c.req.valid("param").name);
    await changeWritebackOf(control, before, c.req.valid("json"));
    return c.json(writebackOf(await deviceNamed(control, before.name)), 200);
  });
  app.openapi(flushDevice, async (c) => {
    const control = context.control();
    const { name } = await deviceNamed(control, c.req.valid("param").name);
    const done = flushes.start(control, name);
    if (c.req.valid("query").wait === "false") {
      return c.json(writebackOf(await deviceNamed(control, name)), 202);
    }
    await done;
    return c.json(writebackOf(await deviceNamed(control, name)), 200);
  });
  app.openapi(flushSet, async (c) => {
    const control = context.control();
    const done = flushes.start(control, undefined);
    if (c.req.valid("query").wait === "false") return c.json(await control.status(), 202);
    await done;
    return c.json(await control.status(), 200);
  });
}

function writebackOf(status: DeviceStatus): Writeback {
  return { ...status.writeback, state: status.state, dirtyBytes: status.dirtyBytes };
}

/** Both settings or neither: when the second is refused, the first is put back. */
async function changeWritebackOf(
  control: CacheControl,
  before: DeviceStatus,
  change: { running?: boolean | undefined; percent?: number | undefined },
): Promise<void> {
  if (change.percent !== undefined) {
    await control.setAttribute(before.name, "writeback_percent", String(change.percent));
  }
  if (change.running === undefined) return;
  try {
    await control.setAttribute(before.name, "writeback_running", change.running ? "1" : "0");
  } catch (error) {
    if (change.percent !== undefined) {
      await control.setAttribute(
        before.name,
        "writeback_percent",
        String(before.writeback.percent),
      );
    }
    throw error;
  }
}

/**
 * One flush per device at a time, shared by all who ask for it. A client that goes away does not
 * stop it, so its failure is logged as well as answered.
 */
class Flushes {
  #running = new Map<string | undefined, Promise<void>>();
  #context: RouteContext;

  constructor(context: RouteContext) {
    this.#context = context;
  }

  start(control: CacheControl, name: string | undefined): Promise<void> {
    const running = this.#running.get(name);
    if (running) return running;
    const flush = control.flushDirty(name).finally(() => this.#running.delete(name));
    this.#running.set(name, flush);
    flush.catch((error) =>
      this.#context.log("error", `writing back ${name ?? "the set"}: ${messageOf(error)}`)
    );
    return flush;
  }
}
