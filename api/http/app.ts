/**
 * The HTTP API as a function of a running cache set. No sockets here (serve.ts) and no knowledge
 * of the engine beyond CacheControl, so that every route is tested with `app.request()`.
 *
 * Every answer that is not 2xx is application/problem+json, also those Hono would give itself:
 * unknown paths, wrong methods, malformed or oversized bodies.
 */
import { OpenAPIHono } from "@hono/zod-openapi";
import { bodyLimit } from "hono/body-limit";
import { HTTPException } from "hono/http-exception";
import { BcacheError } from "../../lib/base/errors.ts";
import type { Log } from "../../lib/base/runtime.ts";
import type { CacheControl } from "../../lib/cache/ports.ts";
import { type Binding, refusalOf } from "./guard.ts";
import { problemOf, problemResponse, REQUEST_CODES, requestProblem } from "./problem.ts";
import type { RequestStatus } from "./problem.ts";
import type { App, RouteContext, ServedMount } from "./route_parts.ts";
import { addAttributeRoutes } from "./routes_attributes.ts";
import { addDeviceRoutes } from "./routes_device.ts";
import { addMemberRoutes } from "./routes_members.ts";
import { addMountRoutes } from "./routes_mount.ts";
import { addSetRoutes } from "./routes_set.ts";
import { addVolumeRoutes } from "./routes_volumes.ts";
import { isOutOfRange, validationMessage } from "./schema.ts";
import { httpWording } from "./wording.ts";

/** A request's body is a few words; anything longer is not for us. */
export const BODY_BYTES_MAX = 16 * 1024;

export interface AppOptions {
  /** The running set; undefined while it is starting. */
  control(): CacheControl | undefined;
  /** Where the TCP server is bound; absent on the control socket. */
  binding?: Binding;
  /** Present on the control socket only: who can open it may unmount. */
  mount?: ServedMount;
  log?: Log;
  version: string;
}

/** Builds the application. */
export function createApp(options: AppOptions): App {
  const app: App = new OpenAPIHono({
    defaultHook: (result) => {
      if (result.success) return undefined;
      const { issues } = result.error;
      const detail = validationMessage(issues);
      if (!issues.every(isOutOfRange)) return problemResponse(requestProblem(400, detail));
      return problemResponse(problemOf(new BcacheError("OutOfRange", detail)));
    },
  });
  addRefusals(app, options);
  const context: RouteContext = {
    control: () => {
      const control = options.control();
      if (control) return control;
      throw new BcacheError("Shutdown", "the cache set is still starting; try again in a moment");
    },
    controlIfReady: () => options.control(),
    log: options.log ?? (() => {}),
  };
  addSetRoutes(app, context);
  addDeviceRoutes(app, context);
  addMemberRoutes(app, context);
  addVolumeRoutes(app, context);
  addAttributeRoutes(app, context);
  if (options.mount) addMountRoutes(app, options.mount, context);
  addDescription(app, options.version);
  return app;
}

/** The document takes milliseconds to make, and is the same each time: it is made once. */
function addDescription(app: App, version: string): void {
  let text: string | undefined;
  app.get("/openapi.json", (c) => {
    text ??= JSON.stringify(app.getOpenAPI31Document({
      openapi: "3.1.0",
      info: {
        title: "bcache-fuse",
        version,
        description: "Statistics of a running bcache cache set, and its steering wheel.",
      },
    }));
    return c.body(text, 200, { "content-type": "application/json" });
  });
}

function addRefusals(app: App, options: AppOptions): void {
  app.use("*", async (c, next) => {
    const headers = {
      host: c.req.header("host") ?? new URL(c.req.url).host,
      origin: c.req.header("origin"),
      site: c.req.header("sec-fetch-site"),
    };
    const refusal = refusalOf(c.req.method, headers, options.binding);
    if (refusal !== undefined) return problemResponse(requestProblem(403, refusal));
    await next();
    // A page that frames or caches this API would see figures of the past, or of somebody else.
    c.res.headers.set("cache-control", "no-store");
    c.res.headers.set("x-content-type-options", "nosniff");
    return undefined;
  });
  app.use(
    "*",
    bodyLimit({
      maxSize: BODY_BYTES_MAX,
      onError: () =>
        problemResponse(
          requestProblem(413, `the body is longer than the ${BODY_BYTES_MAX} bytes allowed`),
        ),
    }),
  );
  app.onError((error) => {
    if (!(error instanceof HTTPException)) {
      const told = problemOf(error);
      // The command line is at the other end of the control socket.
      if (options.mount === undefined) told.detail = httpWording(told.detail);
      return problemResponse(told);
    }
    const status = Object.hasOwn(REQUEST_CODES, error.status) ? error.status as RequestStatus : 400;
    const detail = error.message || "the request could not be understood";
    if (status === 415 || /content-type/i.test(detail)) {
      return problemResponse(
        requestProblem(415, "the body must be JSON, with content-type: application/json"),
      );
    }
    return problemResponse(requestProblem(status, detail));
  });
  app.notFound((c) => {
    const allowed = methodsOf(app, c.req.path);
    if (allowed.length > 0) {
      const detail = `${c.req.path} takes ${allowed.join(", ")}, not ${c.req.method}`;
      return problemResponse(requestProblem(405, detail), { allow: allowed.join(", ") });
    }
    const detail = `there is nothing at ${c.req.path}; /openapi.json lists what there is`;
    return problemResponse(requestProblem(404, detail));
  });
}

/** The methods some route takes at `path`. */
function methodsOf(app: App, path: string): string[] {
  const methods = new Set<string>();
  for (const route of app.routes) {
    if (route.method === "ALL") continue;
    const segments = route.path.split("/").map((segment) =>
      segment.startsWith(":") ? "[^/]+" : segment.replaceAll(".", "\\.")
    );
    if (new RegExp(`^${segments.join("/")}$`).test(path)) methods.add(route.method);
  }
  return [...methods].sort();
}
