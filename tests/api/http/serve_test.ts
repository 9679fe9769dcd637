/** Serving on TCP and on Unix sockets, and the control client at the other end. */
import { afterAll, beforeAll, describe, test } from "bun:test";
import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { ControlClient } from "../../../api/control/client.ts";
import { createApp } from "../../../api/http/app.ts";
import { hostNameOf } from "../../../api/http/guard.ts";
import {
  isAnswered,
  listenTcp,
  listenUnix,
  parseHostPort,
  removeDeadSocket,
  urlOf,
} from "../../../api/http/serve.ts";
import { holderOfName, isListening, tryLockName } from "../../../api/http/socket_lock.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { FakeControl } from "../fake_control.ts";

let directory = "";
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "bcache-fuse-serve-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const LOCAL = { host: "127.0.0.1", port: 0 };

function appOver(control: FakeControl, unmounts: boolean[] = []) {
  const mount = {
    info: () => ({
      pid: 12,
      mountPoint: "/mnt/x",
      cachePath: "/c",
      backingPaths: ["/b"],
      readOnly: false,
      httpAddress: null,
      version: "1",
    }),
    unmount: ({ force }: { force: boolean }) => {
      unmounts.push(force);
      if (force) return Promise.resolve({ dirtyBytes: 512, detachesBrokenOff: ["bcache0"] });
      return Promise.reject(new BcacheError("Busy", "in use"));
    },
  };
  return createApp({ control: () => control, mount, version: "1" });
}

describe("TCP", () => {
  test("answers over a real connection, and no more after close", async () => {
    const control = new FakeControl();
    const binding = { host: "127.0.0.1", machineName: "box" };
    const app = createApp({ control: () => control, binding, version: "1" });
    const listening = await listenTcp(app, LOCAL);
    assertMatch(listening.address, /^http:\/\/127\.0\.0\.1:\d+$/);
    const answer = await fetch(`${listening.address}/health`);
    assertEquals(await answer.json(), { status: "ok" });
    const change = await fetch(`${listening.address}/v1/devices/bcache0/cache-mode`, {
      method: "PUT",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ mode: "none" }),
    });
    assertEquals(change.status, 200);
    await change.body?.cancel();
    await listening.close();
    await assertRejects(() => fetch(`${listening.address}/health`));
  });
  test("a port in use is one line that says what to do", async () => {
    const first = await listenTcp(appOver(new FakeControl()), LOCAL);
    const at = parseHostPort(first.address.replace("http://", ""));
    const error = await assertRejects(
      () => listenTcp(appOver(new FakeControl()), at),
      BcacheError,
      "is in use by another program; choose another with --http HOST:PORT",
    );
    assertEquals(error.code, "AddressInUse");
    await first.close();
  });
  test("an address that is not this machine's is refused with the same advice", async () => {
    const at = { host: "192.0.2.1", port: 8380 };
    const listen = (host: string) => () => listenTcp(appOver(new FakeControl()), { ...at, host });
    await assertRejects(listen(at.host), BcacheError, "this machine has no address 192.0.2.1");
    await assertRejects(listen("no.invalid"), BcacheError, "knows no host no.invalid; choose");
  });
  test("HOST:PORT is read strictly", () => {
    assertEquals(parseHostPort("127.0.0.1:8380"), { host: "127.0.0.1", port: 8380 });
    assertEquals(parseHostPort("[::1]:80"), { host: "::1", port: 80 });
    assertEquals(urlOf({ host: "::1", port: 80 }), "http://[::1]:80");
    for (const bad of ["", "8380", ":8380", "host:", "host:99999", "::1:80", "[x]:1", "a b:1"]) {
      assertThrows(() => parseHostPort(bad), BcacheError, "expected HOST:PORT");
    }
    const wrong = () => parseHostPort("300.1.1.1:1");
    assertThrows(wrong, BcacheError, "the host 300.1.1.1 is wrong");
  });
  test("a Host header is read strictly", () => {
    assertEquals(hostNameOf("LocalHost:1"), "localhost");
    assertEquals(hostNameOf("[::1]:1"), "::1");
    for (const bad of ["", "a b", "a:b", "user@host", "[::1", "::1"]) {
      assertEquals(hostNameOf(bad), undefined);
    }
  });
});

/** A process that listens and is killed leaves exactly such a file. */
async function deadSocket(name: string): Promise<string> {
  const path = join(directory, name);
  const code = `import("node:net").then((net) => net.createServer().listen(` +
    `${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL")))`;
  const words = "Deno" in globalThis
    ? ["eval", `import process from "node:process";${code}`]
    : ["-e", code];
  spawnSync(process.execPath, words);
  assertEquals([existsSync(path), await isAnswered(path)], [true, false]);
  return path;
}

describe("the control socket", () => {
  test("is for this user only, and gone after close", async () => {
    const path = join(directory, "a.sock");
    const listening = await listenUnix(appOver(new FakeControl()), path);
    assertEquals(statSync(path).mode & 0o777, 0o600);
    assertEquals(await isAnswered(path), true);
    await listening.close();
    assertEquals(existsSync(path), false);
  });
  test("that answers is not taken over", async () => {
    const path = join(directory, "b.sock");
    const first = await listenUnix(appOver(new FakeControl()), path);
    const second = () => listenUnix(appOver(new FakeControl()), path);
    const error = await assertRejects(second, BcacheError, path);
    assertEquals(error.code, "AddressInUse");
    assertEquals(await isAnswered(path), true);
    await first.close();
  });
  test("that a dead process left is replaced", async () => {
    const path = await deadSocket("c.sock");
    const listening = await listenUnix(appOver(new FakeControl()), path);
    assertEquals(await isAnswered(path), true);
    await listening.close();
  });
  test("that a dead process left is taken by one of many who want it at once", async () => {
    const path = await deadSocket("many.sock");
    const attempts = Array.from(
      { length: 8 },
      () => listenUnix(appOver(new FakeControl()), path),
    );
    const results = await Promise.allSettled(attempts);
    const won = results.filter((result) => result.status === "fulfilled");
    assertEquals(won.length, 1);
    for (const result of results) {
      if (result.status === "rejected") assertEquals(result.reason.code, "AddressInUse");
    }
    await removeDeadSocket(path);
    assertEquals(await isAnswered(path), true);
    await won[0]!.value.close();
    assertEquals([existsSync(path), existsSync(`${path}.lock`)], [false, false]);
  });
  test("is held by who locked its name, not a file of that number elsewhere", async () => {
    const path = join(directory, "held.sock");
    const unlock = await tryLockName(path);
    assertEquals(holderOfName(path), process.pid);
    const { ino } = statSync(`${path}.lock`);
    const list = join(directory, "locks");
    const ours = readFileSync("/proc/locks", "utf8").split("\n")
      .find((line) => line.includes(` ${process.pid} `) && line.includes(`:${ino} `));
    const line = (pid: number) => `1: FLOCK  ADVISORY  WRITE ${pid} ee:ee:${ino} 0 EOF\n`;
    writeFileSync(list, `${line(1)}${ours}\n`);
    assertEquals(holderOfName(path, list), process.pid);
    writeFileSync(list, line(1)); // Some file systems show another device number there.
    assertEquals(holderOfName(path, list), 1);
    writeFileSync(list, line(2 ** 30)); // It has ended.
    assertEquals(holderOfName(path, list), undefined);
    unlock!();
    assertEquals(holderOfName(path), undefined);
  });
  test("is looked for in the list of sockets, which may be closed to us", async () => {
    const path = join(directory, "listed.sock");
    const listening = await listenUnix(appOver(new FakeControl()), path);
    assertEquals([isListening(path), isListening(`${path}x`)], [true, false]);
    assertEquals(isListening(path, join(directory, "no-such-list")), false);
    await listening.close();
    assertEquals(isListening(path), false);
  });
  test("is removed for the dead, and kept for who is about to take it", async () => {
    const path = await deadSocket("taken.sock");
    const unlock = await tryLockName(path);
    await removeDeadSocket(path);
    assertEquals(existsSync(path), true);
    unlock!();
    await removeDeadSocket(path);
    assertEquals([existsSync(path), existsSync(`${path}.lock`)], [false, false]);
  });
});

describe("the control client", () => {
  test("is a CacheControl like the one behind the socket", async () => {
    const control = new FakeControl(2);
    const listening = await listenUnix(appOver(control), join(directory, "d.sock"));
    const client = new ControlClient(listening.address);
    assertEquals(await client.status(), await control.status());
    assertEquals(await client.attributes(undefined), await control.attributes(undefined));
    assertEquals(
      await client.attributes("bcache1", "label"),
      await control.attributes("bcache1", "label"),
    );
    const text = "a/b ü % ?";
    assertEquals((await client.setAttribute("bcache1", "label", text)).value, text);
    assertEquals(control.devices[1]?.label, text);
    await client.flushDirty("bcache1");
    await client.flushDirty(undefined);
    assertEquals(control.flushes, ["bcache1", undefined]);
    await listening.close();
  });
  test("throws the error that was thrown behind the socket", async () => {
    const listening = await listenUnix(appOver(new FakeControl()), join(directory, "e.sock"));
    const client = new ControlClient(listening.address);
    const cases: Array<[() => Promise<unknown>, string]> = [
      [() => client.attributes("bcache0", "nonsense"), "NotFound"],
      [() => client.setAttribute("bcache0", "writeback_percent", "41"), "OutOfRange"],
      [() => client.setAttribute(undefined, "tree_depth", "1"), "ReadOnly"],
      [() => client.unmount({ force: false }), "Busy"],
    ];
    for (const [call, code] of cases) {
      assertEquals((await assertRejects(call, BcacheError)).code, code as BcacheError["code"]);
    }
    await listening.close();
  });
  test("unmounts, and is told what was mounted, and what is left", async () => {
    const unmounts: boolean[] = [];
    const path = join(directory, "f.sock");
    const listening = await listenUnix(appOver(new FakeControl(), unmounts), path);
    const client = new ControlClient(path);
    const { mountPoint, backingPaths } = await client.mountInfo();
    assertEquals([mountPoint, backingPaths], ["/mnt/x", ["/data/bcache0.img"]]);
    const remains = await client.unmount({ force: true });
    assertEquals(remains, { dirtyBytes: 512, detachesBrokenOff: ["bcache0"] });
    assertEquals(unmounts, [true]);
    await listening.close();
  });
  test("is told the devices of now, and while the engine hangs those of the start", async () => {
    const control = new FakeControl(2);
    const path = join(directory, "hangs.sock");
    const listening = await listenUnix(appOver(control), path);
    const client = new ControlClient(path);
    await client.stop("bcache0");
    assertEquals((await client.mountInfo()).backingPaths, ["/data/bcache1.img"]);
    control.status = () => new Promise(() => {});
    assertEquals((await client.mountInfo()).backingPaths, ["/b"]);
    await listening.close();
  });
  test("says so when nobody answers", async () => {
    const client = new ControlClient(join(directory, "none.sock"));
    const error = await assertRejects(() => client.status(), BcacheError, "has ended");
    assertEquals(error.code, "Shutdown");
  });
  test("a directory that cannot be written is an error, not a crash", async () => {
    const path = join(directory, "no-such-directory", "g.sock");
    await assertRejects(() => listenUnix(appOver(new FakeControl()), path), BcacheError, path);
  });
});
