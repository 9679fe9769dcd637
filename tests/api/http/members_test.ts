/** The routes by which devices come and go, without a socket. */
import { describe, test } from "bun:test";
import { assertEquals, assertMatch } from "@std/assert";
import { byForce } from "../../../fuse/served_volumes.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { createApp } from "../../../api/http/app.ts";
import { FakeControl, volumeStatus } from "../fake_control.ts";

async function call(
  control: FakeControl,
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; body: Record<string, unknown> }> {
  const app = createApp({
    control: () => control,
    version: "1.2.3",
    log: (level, message) => void control.calls.push(`${level} ${message}`),
  });
  const response = await app.request(`http://localhost:8380${path}`, {
    method,
    ...(body === undefined
      ? {}
      : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json() as Record<string, unknown> };
}

describe("volumes on the cache alone", () => {
  test("are made, shown, resized and destroyed", async () => {
    const control = new FakeControl();
    const sizeBytes = 1024 ** 2;
    const made = await call(control, "POST", "/v1/volumes", { sizeBytes, label: "x" });
    assertEquals([made.status, made.body["name"], made.body["label"]], [201, "bcache1", "x"]);
    assertEquals((await call(control, "GET", "/v1/volumes/bcache1")).body["sizeBytes"], sizeBytes);
    const resized = await call(control, "PUT", "/v1/volumes/bcache1/size", { sizeBytes: 4096 });
    assertEquals([resized.status, resized.body["sizeBytes"]], [200, 4096]);
    assertEquals(control.calls.at(-1), "resize bcache1 to 4096");
    const cut = { sizeBytes: 512, force: true };
    assertEquals((await call(control, "PUT", "/v1/volumes/bcache1/size", cut)).status, 200);
    assertEquals(control.calls.at(-1), "resize bcache1 to 512 by force");
    const attributes = await call(control, "GET", "/v1/devices/bcache1/attributes");
    assertEquals([attributes.status, Array.isArray(attributes.body["attributes"])], [200, true]);
    const unknown = await call(control, "GET", "/v1/devices/bcache9/attributes");
    assertMatch(String(unknown.body["detail"]), /there are: bcache0, bcache1$/);
    control.volumes[0]!.usedBytes = 1;
    const kept = await call(control, "DELETE", "/v1/volumes/bcache1");
    assertEquals([kept.status, kept.body["code"]], [409, "HoldsData"]);
    assertEquals(kept.body["title"], "Holds data that is nowhere else");
    const destroyed = await call(control, "DELETE", "/v1/volumes/bcache1?force=true");
    assertEquals([destroyed.status, destroyed.body["volumes"]], [200, []]);
    assertEquals((await call(control, "GET", "/v1/volumes")).body, { volumes: [] });
  });

  test("what is not one is a problem", async () => {
    const control = new FakeControl();
    for (const body of [{}, { sizeBytes: 1.5 }, { sizeBytes: "1M" }, { sizeBytes: 1, x: 1 }]) {
      assertEquals((await call(control, "POST", "/v1/volumes", body)).status, 400);
    }
    for (const sizeBytes of [-1, 1e300]) {
      const answer = await call(control, "POST", "/v1/volumes", { sizeBytes });
      assertEquals([answer.status, answer.body["code"]], [422, "OutOfRange"]);
      const range = "expected a whole number of bytes from 0 to less than 8 PiB";
      assertEquals(answer.body["detail"], `"sizeBytes": found ${sizeBytes}, ${range}`);
    }
    const both = { sizeBytes: -1, x: 1 };
    assertEquals((await call(control, "POST", "/v1/volumes", both)).status, 400);
    for (const [method, path] of [["GET", ""], ["DELETE", ""], ["PUT", "/size"]] as const) {
      const body = method === "PUT" ? { sizeBytes: 4096 } : undefined;
      const missing = await call(control, method, `/v1/volumes/bcache0${path}`, body);
      assertEquals(missing.status, 404);
      assertMatch(String(missing.body["detail"]), /bcache0 is a cached device, not a volume/);
      const none = await call(control, method, `/v1/volumes/bcache7${path}`, body);
      assertMatch(String(none.body["detail"]), /no volume "bcache7"; the set has none/);
    }
  });
});

describe("whose data the cache has", () => {
  test("is listed, and forgotten only by force while it is dirty", async () => {
    const control = new FakeControl();
    const { body } = await call(control, "GET", "/v1/uuids");
    const uuids = body["uuids"] as { uuid: string; device: string | null }[];
    assertEquals(uuids.map(({ device }) => device), ["bcache0", null]);
    const path = `/v1/uuids/${uuids[1]!.uuid}`;
    assertEquals((await call(control, "DELETE", path)).status, 409);
    const forgotten = await call(control, "DELETE", `${path}?force=true`);
    assertEquals((forgotten.body["uuids"] as unknown[]).length, 1);
    assertEquals(control.calls.at(-1), `forget ${uuids[1]!.uuid} by force`);
  });
});

describe("advice", () => {
  test("names routes, where the command line names commands", async () => {
    const control = new FakeControl();
    control.volumes.push(volumeStatus("bcache1", 1));
    const told = async (method: string, path: string) =>
      String((await call(control, method, path)).body["detail"]);
    assertMatch(await told("GET", "/v1/devices/bcache1"), /; DELETE \/v1\/volumes\/bcache1 gives/);
    assertMatch(
      await told("GET", "/v1/volumes/bcache0"),
      /; POST \/v1\/devices\/bcache0\/detach t/,
    );
    control.volumes.length = 0;
    assertMatch(await told("GET", "/v1/volumes/bcache9"), /none; POST \/v1\/volumes makes one$/);
    control.failure = new BcacheError(
      "Busy",
      "/m/bcache0: in use by cat: close that, or use --force",
    );
    assertMatch(await told("GET", "/v1/devices"), /or use "force":true/);
    control.failure = new BcacheError("HoldsData", "by force only (--force, over HTTP force=true)");
    assertEquals(await told("GET", "/v1/devices"), "by force only (force=true)");
    control.failure = new BcacheError(
      "HoldsData",
      'by force only (bcache-fuse volume resize --force, over HTTP "force":true)',
    );
    assertEquals(
      await told("GET", "/v1/devices"),
      'by force only (PUT /v1/volumes/NAME/size "force":true)',
    );
    for (
      const [call, route] of [
        ["size", 'PUT /v1/volumes/NAME/size "force":true'],
        ["stop", 'POST /v1/devices/NAME/stop "force":true'],
        ["unregister", "DELETE /v1/volumes/NAME?force=true"],
      ] as const
    ) {
      const advice = byForce({ method: "setAttribute", args: ["bcache1", call, "1"] });
      control.failure = new BcacheError("Busy", `/m/bcache1: in use by cat: close that${advice}`);
      const detail = `/m/bcache1: in use by cat: close that, or do it by force (${route})`;
      assertEquals(await told("GET", "/v1/devices"), detail);
    }
  });
  test("what is no fault of the request's form is a conflict", async () => {
    const control = new FakeControl();
    control.failure = new BcacheError("WrongState", "bcache0: has no cache");
    const { status, body } = await call(control, "GET", "/v1/devices");
    assertEquals([status, body["title"]], [409, "Not possible as it is now"]);
  });
});

describe("devices come and go", () => {
  test("attach answers 201 with the new device", async () => {
    const control = new FakeControl();
    const answer = await call(control, "POST", "/v1/devices", { backingPath: "/dev/sdz" });
    assertEquals([answer.status, answer.body["name"]], [201, "bcache1"]);
    assertEquals(control.calls, ["attach /dev/sdz"]);
    await call(control, "POST", "/v1/devices", { backingPath: "/dev/sdy", force: true });
    assertEquals(control.calls[1], "attach /dev/sdy by force");
  });

  test("attach wants an absolute path, and passes refusals on", async () => {
    const control = new FakeControl();
    for (
      const body of [
        {},
        { backingPath: "disk.img" },
        { backingPath: "/a", other: 1 },
        { backingPath: "/\0" },
      ]
    ) {
      const answer = await call(control, "POST", "/v1/devices", body);
      assertEquals([answer.status, answer.body["code"]], [400, "BadRequest"]);
    }
    assertEquals(control.calls, []);
    control.failure = new BcacheError("Busy", "/a: is attached as bcache0 already");
    const refused = await call(control, "POST", "/v1/devices", { backingPath: "/a" });
    assertEquals([refused.status, refused.body["code"]], [409, "Busy"]);
  });

  test("detach answers when the device has no cache any more", async () => {
    const control = new FakeControl();
    const answer = await call(control, "POST", "/v1/devices/bcache0/detach");
    assertEquals([answer.status, answer.body["attached"]], [200, false]);
    assertEquals(answer.body["state"], "no cache");
    const missing = await call(control, "POST", "/v1/devices/bcache9/detach");
    assertEquals(missing.status, 404);
  });

  test("detach without waiting answers 202, and a failure is logged", async () => {
    const control = new FakeControl();
    control.flushGate = Promise.resolve();
    control.flushFailure = new BcacheError("DeviceIo", "no luck");
    const answer = await call(control, "POST", "/v1/devices/bcache0/detach?wait=false");
    assertEquals([answer.status, answer.body["attached"]], [202, true]);
    await new Promise((resolve) => setTimeout(resolve, 0));
    assertEquals(control.calls.at(-1), "error detaching bcache0: no luck");
  });

  test("stop answers with what is left, and 409 while the file is open", async () => {
    const control = new FakeControl(2);
    control.busy = true;
    const refused = await call(control, "POST", "/v1/devices/bcache0/stop", {});
    assertEquals(refused.status, 409);
    assertMatch(String(refused.body["detail"]), /in use by cat/);
    const answer = await call(control, "POST", "/v1/devices/bcache0/stop", { force: true });
    assertEquals(answer.status, 200);
    assertEquals((answer.body["devices"] as { name: string }[]).map((d) => d.name), ["bcache1"]);
  });

  test("the document describes all of them", async () => {
    const { body } = await call(new FakeControl(), "GET", "/openapi.json");
    const paths = Object.keys(body["paths"] as object);
    for (const path of ["/v1/devices/{name}/detach", "/v1/devices/{name}/stop"]) {
      assertEquals(paths.includes(path), true, path);
    }
  });
});
