/** The commands by which devices come and go, over a fake set. */
import { afterEach, beforeEach, describe, test } from "bun:test";
import { assertEquals, assertMatch } from "@std/assert";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { BcacheError } from "../../../lib/base/errors.ts";
import { readyLine } from "../../../api/cli/mount.ts";
import { statusText } from "../../../api/cli/status.ts";
import { volumeStatus } from "../fake_control.ts";
import { CommandBench } from "./control_support.ts";

let bench: CommandBench;
beforeEach(() => {
  bench = new CommandBench(2);
});
afterEach(() => bench.close());

test("get lists what is there, though a device is stopped while it looks", async () => {
  const { control } = bench;
  const attributes = control.attributes.bind(control);
  control.attributes = (device) =>
    device === "bcache1"
      ? Promise.reject(new BcacheError("NotFound", "there is no device bcache1"))
      : attributes(device);
  const listed = await bench.run("get", bench.mountPoint);
  assertEquals([listed.status, listed.err], [0, ""]);
  assertMatch(listed.out, /^bcache0\/|^\w+ +rw/m);
  control.attributes = (device) =>
    device === undefined
      ? attributes(device)
      : Promise.reject(new BcacheError("DeviceIo", "broken"));
  assertEquals((await bench.run("get", bench.mountPoint)).err, "bcache-fuse: broken\n");
});

test("get lays values of several lines out below each other", async () => {
  const { control } = bench;
  const value = "rate:\t\t4.0k/sec\nnext io:\t\u001b7ms\n";
  const common = { writable: false, help: "" };
  control.attributes = (device) =>
    Promise.resolve(device === undefined ? [{ name: "debug", value, ...common }] : []);
  const { out } = await bench.run("get", bench.mountPoint);
  const indent = " ".repeat("debug  r  ".length);
  assertEquals(out, `debug  r  rate:           4.0k/sec\n${indent}next io:        ?7ms\n`);
});

test("what a mount says when it is ready names devices and volumes", async () => {
  const { control } = bench;
  const ready = async () => readyLine("/mnt", await control.status(), undefined);
  control.devices.splice(1);
  control.volumes.push(volumeStatus("bcache1", 1024 ** 2));
  const volume = "bcache1 1.0 MiB volume; HTTP off";
  const device = "bcache0 1.0 GiB writeback dirty";
  assertEquals(await ready(), `mounted at /mnt: ${device}, ${volume}`);
  control.devices.length = 0;
  assertEquals(await ready(), `mounted at /mnt: ${volume}`);
  control.volumes.length = 0;
  assertMatch(await ready(), /no device yet, add one with bcache-fuse attach \/mnt BACKING/);
});

test("status has devices and volumes by number, labels in brackets at the end", async () => {
  const mount = {
    ...{ pid: 7, mountPoint: "/mnt", cachePath: "/c", backingPaths: [], readOnly: false },
    ...{ httpAddress: null, version: "1" },
  };
  const set = await bench.control.status();
  const devices = ["bcache10", "bcache0", "bcache2"].map((name) => ({
    ...set.devices[0]!,
    ...{ name, backingPath: "/b", label: "mine" },
  }));
  const volumes = [volumeStatus("bcache1", 1 << 20, "scratch")];
  const rows = (change: Partial<typeof set>) =>
    statusText({ mount, set: { ...set, devices, volumes, ...change } }).split("\n").slice(2, -1);
  const names = rows({}).map((row) => row.trim().split(" ")[0]);
  assertEquals(names, ["bcache0", "bcache1", "bcache2", "bcache10"]);
  const [ofDevice, ofVolume] = rows({});
  assertMatch(ofDevice!, / \/b \(mine\)$/);
  assertEquals(ofVolume!.indexOf("(scratch)"), ofDevice!.indexOf("/b"));
  assertMatch(rows({ devices: [] })[0]!, / 0 B used {2}\(scratch\)$/);
});

test("flush of a read-only mount says nothing but why it is refused", async () => {
  bench.readOnly = true;
  const why = "bcache0: 4.0 KiB are dirty, but the cache set is read-only";
  bench.control.flushDirty = () => Promise.reject(new BcacheError("ReadOnly", why));
  const refused = await bench.run("flush", bench.mountPoint);
  assertEquals([refused.status, refused.out, refused.err], [1, "", `bcache-fuse: ${why}\n`]);
  bench.control.flushDirty = () => Promise.resolve();
  assertEquals((await bench.run("flush", bench.mountPoint)).out, "nothing was dirty\n");
});

describe("attach, detach and stop", () => {
  test("attach asks for an absolute path and says what the device is", async () => {
    const result = await bench.run("attach", bench.mountPoint, "disk.img");
    assertEquals([result.status, result.err], [0, ""]);
    assertMatch(result.out, /disk\.img is bcache2: 1\.0 GiB, writeback, dirty, 3\.0 MiB dirty\n$/);
    assertEquals(bench.control.calls, [`attach ${resolve("disk.img")}`]);
    await bench.run("attach", bench.mountPoint, "/disk", "--force");
    assertEquals(bench.control.calls[1], "attach /disk by force");
    const nameless = await bench.run("attach", bench.mountPoint, "");
    assertEquals([nameless.status, bench.control.calls.length], [2, 2]);
    assertMatch(nameless.err, /<backing> is empty; expected a path/);
  });

  test("status lists the devices that are there now, not those of the start", async () => {
    await bench.run("attach", bench.mountPoint, "/disk");
    const { out } = await bench.run("status", bench.mountPoint, "--json");
    const { mount, set } = JSON.parse(out);
    assertEquals(mount.backingPaths.at(-1), "/disk");
    assertEquals(mount.backingPaths.length, set.devices.length);
  });

  test("a refusal of a read-only set says how to get on", async () => {
    const { control, mountPoint } = bench;
    const why = "attach: the cache set is read-only; nothing was changed";
    control.failure = new BcacheError("ReadOnly", why);
    const { err } = await bench.run("volume", "create", mountPoint, "1M");
    assertEquals(err, `bcache-fuse: ${why}: unmount it, and mount it without --read-only\n`);
  });

  test("status counts errors only where some count, and no 0 B as dirty", async () => {
    const { control, mountPoint } = bench;
    Object.assign(control.devices[0]!, { lastError: "no space", state: "dirty", dirtyBytes: 0 });
    Object.assign(control.devices[1]!, { lastError: "bad sector", ioErrors: 1 });
    const { out } = await bench.run("status", mountPoint);
    assertMatch(out, /^ {2}bcache0: the last error: no space$/m);
    assertMatch(out, /^ {2}bcache1: 1 I\/O error, the last error: bad sector$/m);
    assertMatch(out, /bcache0 .* {2}not marked clean yet {2}0 B dirty/);
  });

  test("status of all leaves out a mount that ends while it is asked", async () => {
    const gone = createServer((socket) => {
      gone.close(); // A process that ends takes no connections any more.
      socket.destroy();
    });
    const path = join(bench.runDirectory, "gone.sock");
    await new Promise<void>((resolve) => gone.listen(path, resolve));
    try {
      const { status, out, err } = await bench.run("status");
      assertEquals([status, err], [0, ""]);
      assertMatch(out, /bcache0 /);
    } finally {
      gone.close();
    }
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
    bench.control.devices.length = 0;
    const none = await bench.run("stop", bench.mountPoint, "bcache7");
    assertMatch(none.err, /no device "bcache7"; the set has none; bcache-fuse attach MOUNTPOINT/);
  });

  test("a volume is no device, a device no volume, and what to do instead is said", async () => {
    bench.control.volumes.push(volumeStatus("bcache2", 1024 ** 2));
    for (const command of ["stop", "detach"]) {
      const { status, err } = await bench.run(command, bench.mountPoint, "bcache2");
      assertEquals(status, 1);
      assertMatch(err, /bcache2 is a volume on .*volume destroy MOUNTPOINT bcache2 gives it up\n$/);
    }
    for (const words of [["resize", "bcache0", "1M"], ["destroy", "bcache0"]]) {
      const [command = "", ...rest] = words;
      const { status, err } = await bench.run("volume", command, bench.mountPoint, ...rest);
      assertEquals(status, 1);
      assertMatch(err, /bcache0 is a cached device, not a volume: .*detach MOUNTPOINT bcache0/);
    }
  });

  test("missing words are a usage error", async () => {
    for (const words of [["attach", "x"], ["detach", "x"], ["stop", "x"]]) {
      assertEquals((await bench.run(...words)).status, 2);
    }
  });
});

describe("volume", () => {
  test("creates, resizes and destroys, in sizes people write", async () => {
    const { control, mountPoint } = bench;
    const made = await bench.run("volume", "create", mountPoint, "16M", "--label", "scratch");
    assertEquals([made.status, made.out], [0, "bcache2: 16.0 MiB on the cache alone\n"]);
    assertEquals(control.volumes[0]!.label, "scratch");
    const shown = await bench.run("status", mountPoint);
    assertMatch(shown.out, /bcache2 +16\.0 MiB +volume +on the cache alone +0 B used +\(scratch\)/);
    const label = await bench.run("get", mountPoint, "bcache2/label");
    assertEquals([label.status, label.out], [0, "of a volume\n"]);
    assertEquals((await bench.run("get", mountPoint)).status, 0);
    const resized = await bench.run("volume", "resize", mountPoint, "bcache2", "1G");
    assertEquals(resized.out, "bcache2: 1.0 GiB\n");
    assertEquals(control.calls.at(-1), `resize bcache2 to ${1024 ** 3}`);
    await bench.run("volume", "resize", mountPoint, "bcache2", "1M", "--force");
    assertEquals(control.calls.at(-1), `resize bcache2 to ${1024 ** 2} by force`);
    control.volumes[0]!.usedBytes = 4096;
    const kept = await bench.run("volume", "destroy", mountPoint, "bcache2");
    assertEquals([kept.status, control.volumes.length], [1, 1]);
    assertMatch(kept.err, /holds data; --force/);
    const gone = await bench.run("volume", "destroy", mountPoint, "bcache2", "--force");
    assertEquals([gone.out, control.volumes.length], ["destroyed bcache2\n", 0]);
  });

  test("refuses sizes that are none, before anything is asked", async () => {
    const result = await bench.run("volume", "create", bench.mountPoint, "12q");
    assertEquals(result.status, 2);
    assertMatch(result.err, /^bcache-fuse: size "12q"[^\n]*\n$/);
    assertEquals((await bench.run("volume", "create", bench.mountPoint)).status, 2);
    assertEquals((await bench.run("volume", "explode", bench.mountPoint)).status, 2);
  });
});

describe("uuids and forget", () => {
  test("lists whose data the cache has, safe for a terminal, or as JSON", async () => {
    const { out } = await bench.run("uuids", bench.mountPoint);
    const lines = out.split("\n");
    assertMatch(lines[0]!, /^11111111-\S+ +bcache0 +4\.0 KiB dirty +3\.0 MiB cached +first 2020-/);
    assertMatch(lines[1]!, /^99999999-\S+ +not here .* last 2023-11-14 22:13 {2}away\?$/);
    const json = await bench.run("uuids", bench.mountPoint, "--json");
    assertEquals(JSON.parse(json.out)[1].device, null);
  });

  test("forgets what is dirty only by force", async () => {
    const uuid = bench.control.known[1]!.uuid;
    const kept = await bench.run("forget", bench.mountPoint, uuid);
    assertEquals([kept.status, bench.control.known.length], [1, 2]);
    const gone = await bench.run("forget", bench.mountPoint, uuid, "--force");
    assertEquals([gone.out, bench.control.known.length], [`forgot ${uuid}\n`, 1]);
  });
});

test("unmount says what is left, and which detach it broke off", async () => {
  // Not what is dirty before: until the end it goes on being written back.
  bench.control.devices[0]!.dirtyBytes = 40 * 1024 ** 2;
  bench.control.devices[0]!.detaching = true;
  assertMatch((await bench.run("status", bench.mountPoint)).out, /bcache0 .* dirty, detaching /);
  bench.unmount = () => Promise.resolve({ dirtyBytes: 4096, detachesBrokenOff: ["bcache0"] });
  const { status, out } = await bench.run("unmount", bench.mountPoint);
  const left = "4.0 KiB stay dirty in the cache; the detach of bcache0 was broken off: mount it " +
    "again with this cache, then detach it once more";
  assertEquals([status, out], [0, `unmounted ${bench.mountPoint}; ${left}\n`]);
  bench.unmount = () => Promise.resolve({ dirtyBytes: 0, detachesBrokenOff: [] });
  const clean = await bench.run("unmount", bench.mountPoint);
  assertEquals(clean.out, `unmounted ${bench.mountPoint}\n`);
});

test("unmount that fails says whether the mount is gone", async () => {
  bench.unmount = () => Promise.reject(new BcacheError("DeviceIo", "/ssd: cannot flush"));
  const result = await bench.run("unmount", bench.mountPoint);
  assertEquals(result.status, 1);
  assertEquals(
    result.err,
    `bcache-fuse: /ssd: cannot flush; ${bench.mountPoint} is unmounted all the same\n`,
  );
});
