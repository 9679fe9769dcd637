/** Every route of the HTTP API, its answers and its problems, without a socket. */
import { describe, test } from "bun:test";
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { BcacheError } from "../../../lib/base/errors.ts";
import { BODY_BYTES_MAX, createApp } from "../../../api/http/app.ts";
import { refusalOf } from "../../../api/http/guard.ts";
import { DeviceSchema, SetSchema } from "../../../api/http/schema.ts";
import { deviceStatus, FakeControl } from "../fake_control.ts";

const BINDING = { host: "127.0.0.1", machineName: "box" };

function appOver(control: FakeControl | undefined, log: string[] = []) {
  return createApp({
    control: () => control,
    binding: BINDING,
    version: "1.2.3",
    log: (level, message) => void log.push(`${level} ${message}`),
  });
}

async function call(
  control: FakeControl | undefined,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; type: string | null; body: Record<string, unknown> }> {
  const response = await appOver(control).request(`http://localhost:8380${path}`, {
    method,
    headers: body === undefined ? headers : { "content-type": "application/json", ...headers },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  return {
    status: response.status,
    type: response.headers.get("content-type"),
    body: await response.json() as Record<string, unknown>,
  };
}

async function problem(
  control: FakeControl | undefined,
  expected: { status: number; code: string; detail: RegExp; title?: string },
  method: string,
  path: string,
  body?: unknown,
  headers?: Record<string, string>,
): Promise<void> {
  const answer = await call(control, method, path, body, headers);
  assertEquals(answer.status, expected.status);
  assertEquals(answer.type, "application/problem+json");
  assertEquals(answer.body["status"], expected.status);
  assertEquals(answer.body["code"], expected.code);
  assertEquals(answer.body["type"], `urn:bcache-fuse:problem:${expected.code}`);
  assertMatch(String(answer.body["detail"]), expected.detail);
  assertEquals(typeof answer.body["title"], "string");
  if (expected.title !== undefined) assertEquals(answer.body["title"], expected.title);
}

describe("health", () => {
  test("is 200 while the set serves", async () => {
    const answer = await call(new FakeControl(), "GET", "/health");
    assertEquals([answer.status, answer.body], [200, { status: "ok" }]);
  });
  test("is 503 while the set starts", async () => {
    const answer = await call(undefined, "GET", "/health");
    assertEquals([answer.status, answer.body], [503, { status: "starting" }]);
  });
  test("is 503 with the reason after the set failed", async () => {
    const control = new FakeControl();
    control.failed = "cache device lost";
    const answer = await call(control, "GET", "/health");
    assertEquals([answer.status, answer.body], [
      503,
      { status: "failed", failed: "cache device lost" },
    ]);
  });
  test("is 503 when the set does not answer", async () => {
    const control = new FakeControl();
    control.failure = new BcacheError("Shutdown", "stopping");
    const answer = await call(control, "GET", "/health");
    assertEquals([answer.status, answer.body["failed"]], [503, "stopping"]);
  });
});

describe("figures", () => {
  test("stats are the set with its devices, in the documented shape", async () => {
    const control = new FakeControl(2);
    const answer = await call(control, "GET", "/v1/stats");
    assertEquals(answer.status, 200);
    assertEquals(SetSchema.strict().parse(answer.body), answer.body as never);
    assertEquals((answer.body["devices"] as unknown[]).length, 2);
    assertEquals(answer.body["setUuid"], "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee");
  });
  test("the documented shape of a device is what the engine gives, no more and no less", () => {
    assertEquals(DeviceSchema.strict().parse(deviceStatus("x")) as unknown, deviceStatus("x"));
  });
  test("devices are listed, and each is found by its name", async () => {
    const control = new FakeControl(2);
    const list = await call(control, "GET", "/v1/devices");
    assertEquals(
      (list.body["devices"] as Array<{ name: string }>).map((device) => device.name),
      ["bcache0", "bcache1"],
    );
    const one = await call(control, "GET", "/v1/devices/bcache1");
    assertEquals([one.status, one.body["name"]], [200, "bcache1"]);
  });
  test("an unknown device is a problem that names those that exist", async () => {
    await problem(
      new FakeControl(2),
      { status: 404, code: "NotFound", detail: /"sda".*bcache0, bcache1/ },
      "GET",
      "/v1/devices/sda",
    );
  });
  test("while the set starts, figures are 503", async () => {
    const expected = { status: 503, code: "Shutdown", detail: /starting/ };
    await problem(undefined, expected, "GET", "/v1/stats");
  });
});

describe("cache mode", () => {
  test("is set and answered with the device afterwards", async () => {
    const control = new FakeControl();
    const path = "/v1/devices/bcache0/cache-mode";
    const answer = await call(control, "PUT", path, { mode: "writearound" });
    assertEquals([answer.status, answer.body["cacheMode"]], [200, "writearound"]);
    assertEquals(control.devices[0]?.cacheMode, "writearound");
  });
  for (const body of [{ mode: "fast" }, {}, { mode: "none", more: 1 }, [], "null", 3]) {
    test(`refuses ${JSON.stringify(body)} and changes nothing`, async () => {
      const control = new FakeControl();
      const expected = { status: 400, code: "BadRequest", detail: /./ };
      await problem(control, expected, "PUT", "/v1/devices/bcache0/cache-mode", body);
      assertEquals(control.devices[0]?.cacheMode, "writeback");
    });
  }
});

describe("writeback", () => {
  const path = "/v1/devices/bcache0/writeback";
  test("shows its settings and what is dirty", async () => {
    const answer = await call(new FakeControl(), "GET", path);
    assertEquals(answer.body, {
      running: true,
      percent: 10,
      rateBytesPerSecond: 4096,
      state: "dirty",
      dirtyBytes: 3 * 1024 ** 2,
    });
  });
  test("takes running and percent, together or alone", async () => {
    const control = new FakeControl();
    const both = await call(control, "PUT", path, { running: false, percent: 20 });
    assertEquals([both.body["running"], both.body["percent"]], [false, 20]);
    const one = await call(control, "PUT", path, { running: true });
    assertEquals([one.body["running"], one.body["percent"]], [true, 20]);
  });
  test("refuses a body that changes nothing", async () => {
    const expected = { status: 400, code: "BadRequest", detail: /running.*percent/ };
    await problem(new FakeControl(), expected, "PUT", path, {});
  });
  test("a percent that the engine refuses is 422 with its reason", async () => {
    const expected = { status: 422, code: "OutOfRange", detail: /0 to 40/ };
    await problem(new FakeControl(), expected, "PUT", path, { percent: 41 });
  });
  test("a percent that no engine would take is 422 as well", async () => {
    const expected = { status: 422, code: "OutOfRange", detail: /expected 0 to 40$/ };
    for (const percent of [-3, 101]) {
      await problem(new FakeControl(), expected, "PUT", path, { percent });
    }
  });
  test("changes neither setting when the second is refused", async () => {
    const control = new FakeControl();
    control.devices[0]!.state = "no cache";
    const expected = { status: 400, code: "InvalidArgument", detail: /no cache/ };
    await problem(control, expected, "PUT", path, { running: true, percent: 20 });
    assertEquals(control.devices[0]?.writeback.percent, 10);
  });
});

describe("flush", () => {
  test("of a device answers when it is clean", async () => {
    const control = new FakeControl(2);
    const answer = await call(control, "POST", "/v1/devices/bcache1/writeback/flush");
    assertEquals([answer.status, answer.body["state"], answer.body["dirtyBytes"]], [
      200,
      "clean",
      0,
    ]);
    assertEquals(control.flushes, ["bcache1"]);
    assertEquals(control.devices[0]?.state, "dirty");
  });
  test("of the set cleans every device", async () => {
    const control = new FakeControl(2);
    assertEquals((await call(control, "POST", "/v1/writeback/flush")).status, 200);
    assertEquals(control.devices.map((device) => device.dirtyBytes), [0, 0]);
  });
  test("asked for twice is done once, and both are answered at its end", async () => {
    const control = new FakeControl();
    let open = (): void => {};
    control.flushGate = new Promise((resolve) => open = resolve);
    const app = appOver(control);
    const url = "http://localhost/v1/devices/bcache0/writeback/flush";
    const begun = await app.request(`${url}?wait=false`, { method: "POST" });
    assertEquals(begun.status, 202);
    const second = app.request(url, { method: "POST" });
    await new Promise((resolve) => setTimeout(resolve, 20)); // The second has asked by now.
    open();
    assertEquals((await second).status, 200);
    assertEquals(control.flushes, ["bcache0"]);
  });
  test("that fails is answered and logged, and the next one tries again", async () => {
    const control = new FakeControl();
    control.flushFailure = new BcacheError("DeviceIo", "backing: write failed");
    const log: string[] = [];
    const app = appOver(control, log);
    const url = "http://localhost/v1/devices/bcache0/writeback/flush";
    assertEquals((await app.request(url, { method: "POST" })).status, 502);
    assertEquals(log, ["error writing back bcache0: backing: write failed"]);
    control.flushFailure = undefined;
    assertEquals((await app.request(url, { method: "POST" })).status, 200);
  });
});

describe("attributes", () => {
  for (const [owner, name] of [["/v1", "journal_delay_ms"], ["/v1/devices/bcache0", "label"]]) {
    test(`of ${owner} are listed, read and set`, async () => {
      const control = new FakeControl();
      const list = await call(control, "GET", `${owner}/attributes`);
      const names = (list.body["attributes"] as Array<{ name: string }>).map((each) => each.name);
      assertEquals(names.includes(name!), true);
      const set = await call(control, "PUT", `${owner}/attributes/${name}`, { value: "55" });
      assertEquals([set.status, set.body["value"]], [200, "55"]);
      const got = await call(control, "GET", `${owner}/attributes/${name}`);
      assertEquals(got.body, { name, value: "55", writable: true, help: `${name}.` });
      await problem(
        control,
        { status: 404, code: "NotFound", detail: /nonsense/ },
        "GET",
        `${owner}/attributes/nonsense`,
      );
      await problem(
        control,
        { status: 404, code: "NotFound", detail: /nonsense/ },
        "PUT",
        `${owner}/attributes/nonsense`,
        { value: "1" },
      );
    });
  }
  test("a number and a boolean are taken in sysfs form", async () => {
    const control = new FakeControl();
    const owner = "/v1/devices/bcache0/attributes";
    await call(control, "PUT", `${owner}/writeback_running`, { value: false });
    await call(control, "PUT", `${owner}/writeback_percent`, { value: 15 });
    assertEquals(control.devices[0]?.writeback, {
      running: false,
      percent: 15,
      rateBytesPerSecond: 4096,
    });
  });
  test("one that cannot be set is 409", async () => {
    await problem(
      new FakeControl(),
      { status: 409, code: "ReadOnly", detail: /tree_depth/ },
      "PUT",
      "/v1/attributes/tree_depth",
      { value: 1 },
    );
  });
});

describe("requests that are wrong", () => {
  const path = "/v1/devices/bcache0/cache-mode";
  const good = { mode: "none" };
  test("an unknown path is 404 and points to the document", async () => {
    const expected = { status: 404, code: "NotFound", detail: /\/nowhere.*openapi/ };
    await problem(new FakeControl(), expected, "GET", "/nowhere");
  });
  test("a wrong method is 405 and names the right ones", async () => {
    const expected = { status: 405, code: "MethodNotAllowed", detail: /takes PUT, not DELETE/ };
    await problem(new FakeControl(), expected, "DELETE", path);
    const response = await appOver(new FakeControl()).request(
      "http://localhost/v1/devices/bcache0/writeback",
      { method: "PATCH" },
    );
    assertEquals(response.headers.get("allow"), "GET, PUT");
  });
  test("malformed JSON is 400", async () => {
    const expected = { status: 400, code: "BadRequest", detail: /JSON/ };
    await problem(new FakeControl(), expected, "PUT", path, "{");
  });
  const device = "/v1/devices/bcache0";
  const modes = "writethrough, writeback, writearound, none";
  const worded: ReadonlyArray<readonly [string, string, unknown, string]> = [
    ["PUT", `${device}/cache-mode`, {}, `"mode": expected one of ${modes}`],
    ["PUT", `${device}/cache-mode`, { mode: "fast" }, `"mode": expected one of ${modes}`],
    ["PUT", `${device}/cache-mode`, [], "the body: expected an object, found a list"],
    ["POST", "/v1/devices", {}, '"backingPath": missing, expected a text'],
    ["POST", "/v1/devices", { backingPath: 7 }, '"backingPath": expected a text, found a number'],
    ["POST", "/v1/devices", { backingPath: "b" }, '"backingPath": expected an absolute path'],
    ["POST", `${device}/stop`, { force: 1 }, '"force": expected true or false, found a number'],
    ["POST", `${device}/stop`, { farce: true }, 'the body: "farce" means nothing here'],
    ["PUT", "/v1/attributes/x", {}, '"value": expected a text, a number, true or false'],
    [
      "POST",
      "/v1/volumes",
      { sizeBytes: 512, label: "x".repeat(33) },
      '"label": expected at most 32 characters',
    ],
  ];
  for (const [method, path, body, detail] of worded) {
    const shown = JSON.stringify(body).slice(0, 30);
    test(`${method} ${path} ${shown} says what was expected`, async () => {
      const expected = { status: 400, code: "BadRequest", detail: new RegExp(`^${detail}$`) };
      await problem(new FakeControl(), expected, method, path, body);
    });
  }
  test("a body that is not JSON by its type is 415", async () => {
    const control = new FakeControl();
    const headers = { "content-type": "text/plain" };
    const expected = { status: 415, code: "UnsupportedMediaType", detail: /application\/json/ };
    await problem(control, expected, "PUT", path, JSON.stringify(good), headers);
    assertEquals(control.devices[0]?.cacheMode, "writeback");
  });
  test("no body is 400 or 415, never a change", async () => {
    const control = new FakeControl();
    const answer = await call(control, "PUT", path);
    assertEquals([400, 415].includes(answer.status), true);
    assertEquals(answer.type, "application/problem+json");
    assertEquals(control.devices[0]?.cacheMode, "writeback");
  });
  test("a body beyond the bound is 413", async () => {
    const expected = { status: 413, code: "ContentTooLarge", detail: /16384/ };
    const body = { mode: "x".repeat(BODY_BYTES_MAX) };
    await problem(new FakeControl(), expected, "PUT", path, body);
  });
  test("a device whose bytes cannot be used is no failure of the program", async () => {
    const titles = [
      ["BadFormat", "Not what was expected on a device"],
      ["BadChecksum", "Damaged bytes on a device"],
    ] as const;
    for (const [code, title] of titles) {
      const control = new FakeControl();
      control.failure = new BcacheError(code, "img: was changed without its cache");
      const expected = { status: 422, code, detail: /^img: was changed/ };
      await problem(control, { ...expected, title }, "GET", "/v1/stats");
    }
  });
  test("an untyped failure below is 500 with its message", async () => {
    const control = new FakeControl();
    control.failure = new TypeError("boom");
    await problem(
      control,
      { status: 500, code: "Internal", detail: /boom/ },
      "GET",
      "/v1/stats",
    );
  });
});

describe("web pages of others", () => {
  const path = "/v1/devices/bcache0/cache-mode";
  const body = { mode: "none" };
  test("a host name that was pointed at us is refused, also for reading", async () => {
    const expected = { status: 403, code: "Forbidden", detail: /evil\.example/ };
    await problem(new FakeControl(), expected, "GET", "/v1/stats", undefined, {
      host: "evil.example:8380",
    });
  });
  test("a server of every address says that any address and the machine's name will do", () => {
    const refusal = (host: string, bound: string) =>
      refusalOf("GET", { host }, { host: bound, machineName: "box" });
    const said = /not this server; expected localhost, an IP address or box$/;
    assertMatch(refusal("evil.example", "0.0.0.0") ?? "", said);
    for (const host of ["10.1.2.3:8380", "[fe80::1]:80", "BOX:8380", "localhost"]) {
      assertEquals(refusal(host, "0.0.0.0"), undefined);
    }
    assertMatch(refusal("box", "10.0.0.1") ?? "", /expected localhost or 10\.0\.0\.1, the address/);
  });
  for (const origin of ["https://evil.example", "null", "http://localhost:9999"]) {
    test(`a change asked for by a page of ${origin} is refused`, async () => {
      const control = new FakeControl();
      const expected = { status: 403, code: "Forbidden", detail: /page/ };
      const headers = { host: "localhost:8380", origin };
      await problem(control, expected, "PUT", path, body, headers);
      assertEquals(control.devices[0]?.cacheMode, "writeback");
    });
  }
  test("a change asked for by a page of our own is done", async () => {
    const headers = { host: "localhost:8380", origin: "http://localhost:8380" };
    assertEquals((await call(new FakeControl(), "PUT", path, body, headers)).status, 200);
  });
  test("a cross-site request without an origin is refused", async () => {
    const expected = { status: 403, code: "Forbidden", detail: /site/ };
    const headers = { host: "127.0.0.1:8380", "sec-fetch-site": "cross-site" };
    await problem(new FakeControl(), expected, "PUT", path, body, headers);
  });
});

describe("the document", () => {
  test("lists every path with its methods", async () => {
    const answer = await call(new FakeControl(), "GET", "/openapi.json");
    assertEquals(answer.status, 200);
    const paths = answer.body["paths"] as Record<string, Record<string, unknown>>;
    const found = Object.entries(paths).map(([path, methods]) =>
      `${Object.keys(methods).sort().join(",")} ${path}`
    ).sort();
    assertEquals(found, [
      "delete /v1/uuids/{uuid}",
      "delete,get /v1/volumes/{name}",
      "get /health",
      "get /v1/attributes",
      "get /v1/devices/{name}",
      "get /v1/devices/{name}/attributes",
      "get /v1/stats",
      "get /v1/uuids",
      "get,post /v1/devices",
      "get,post /v1/volumes",
      "get,put /v1/attributes/{attribute}",
      "get,put /v1/devices/{name}/attributes/{attribute}",
      "get,put /v1/devices/{name}/writeback",
      "post /v1/devices/{name}/detach",
      "post /v1/devices/{name}/stop",
      "post /v1/devices/{name}/writeback/flush",
      "post /v1/writeback/flush",
      "put /v1/devices/{name}/cache-mode",
      "put /v1/volumes/{name}/size",
    ]);
    assertStringIncludes(JSON.stringify(answer.body["info"]), "1.2.3");
  });
  test("unmounting is not offered over TCP", async () => {
    const expected = { status: 404, code: "NotFound", detail: /unmount/ };
    await problem(new FakeControl(), expected, "POST", "/v1/mount/unmount", { force: true });
  });
});
