/** The commands by which devices come and go, over a fake set. */
import { afterEach, beforeEach, describe, test } from "bun:test";
import { assertEquals, assertMatch } from "@std/assert";
import { resolve } from "node:path";
import { BcacheError } from "../../../lib/base/errors.ts";
import { CommandBench } from "./control_support.ts";

let bench: CommandBench;
beforeEach(() => {
  bench = new CommandBench(2);
});
afterEach(() => bench.close());

describe("attach, detach and stop", () => {
  test("attach asks for an absolute path and says what the device is", async () => {
    const result = await bench.run("attach", bench.mountPoint, "disk.img");
    assertEquals([result.status, result.err], [0, ""]);
    assertMatch(result.out, /disk\.img is bcache2: 1\.0 GiB, writeback, dirty, 3\.0 MiB dirty\n$/);
    assertEquals(bench.control.calls, [`attach ${resolve("disk.img")}`]);
    await bench.run("attach", bench.mountPoint, "/disk", "--force");
    assertEquals(bench.control.calls[1], "attach /disk by force");
  });

  test("a refusal is one line and status 1", async () => {
    bench.control.failure = new BcacheError("Busy", "/disk: is attached as bcache0 already");
    const result = await bench.run("attach", bench.mountPoint, "/disk");
    assertEquals(result.status, 1);
    assertEquals(result.err, "bcache-fuse: /disk: is attached as bcache0 already\n");
  });

  test("detach shows its progress and says how the device goes on", async () => {
    const result = await bench.run("detach", bench.mountPoint, "bcache1");
    assertEquals(result.status, 0);
    assertEquals(result.err, "writing back 3.0 MiB\n");
    assertMatch(result.out, /^bcache1 is detached and goes on without a cache; .* stop /);
    assertEquals(bench.control.calls, ["detach bcache1"]);
  });

  test("stop tells of dirty data that stays in the cache", async () => {
    bench.control.busy = true;
    const refused = await bench.run("stop", bench.mountPoint, "bcache0");
    assertEquals(refused.status, 1);
    assertMatch(refused.err, /in use by cat \(process 7\)/);
    const result = await bench.run("stop", bench.mountPoint, "bcache0", "--force");
    assertEquals(result.status, 0);
    assertMatch(result.out, /^stopped bcache0; 3\.0 MiB of it are only in the cache/);
    const missing = await bench.run("stop", bench.mountPoint, "bcache7");
    assertMatch(missing.err, /there is no device "bcache7"; there is: bcache1\n$/);
  });

  test("missing words are a usage error", async () => {
    for (const words of [["attach", "x"], ["detach", "x"], ["stop", "x"]]) {
      assertEquals((await bench.run(...words)).status, 2);
    }
  });
});
