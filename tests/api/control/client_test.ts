/** The client of a control socket, against processes that do not answer. */
import { afterEach, test } from "bun:test";
import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import process from "node:process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ControlClient, ProcessGoneError } from "../../../api/control/client.ts";
import { CONNECTIONS_MAX } from "../../../api/http/connections.ts";
import { listenUnix } from "../../../api/http/serve.ts";
import { tryLockName } from "../../../api/http/socket_lock.ts";
import { BcacheError } from "../../../lib/base/errors.ts";

let server: Server | undefined;
let folder = "";
afterEach(() => {
  server?.close();
  if (folder !== "") rmSync(folder, { recursive: true, force: true });
});

/** Takes connections, as the kernel does for a process that is stopped, and never answers. */
async function silent(): Promise<string> {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-client-"));
  const path = join(folder, "socket");
  const listening = server = createServer();
  await new Promise<void>((resolve) => listening.listen(path, resolve));
  return path;
}

test("a process that does not answer is given up, in one clear line", async () => {
  const client = new ControlClient(await silent(), { patienceMs: 60 });
  const calls = [
    () => client.status(),
    () => client.flushDirty(undefined),
    () => client.detach("bcache0"),
    () => client.unmount({ force: false }),
  ];
  for (const call of calls) {
    const error = await assertRejects(call, BcacheError, "nothing came within 0.06 seconds");
    assertEquals(error.code, "Shutdown");
    assertEquals(/does not answer.*kill -CONT/.test(error.message), true, error.message);
  }
});

test("a process that does not answer is named, if it can be seen", async () => {
  const path = await silent();
  const unlock = await tryLockName(path);
  const client = new ControlClient(path, { patienceMs: 60 });
  const error = await assertRejects(() => client.status(), BcacheError);
  unlock!();
  const line = `process ${process.pid} does not answer: nothing came within 0.06 seconds; ` +
    `if it is stopped, kill -CONT ${process.pid} goes on with it`;
  assertEquals(error.message, line);
});

test("a process that ends while it is asked is told from one that is silent", async () => {
  const path = await silent();
  server!.on("connection", (socket) => {
    server!.close(); // After that nobody takes connections.
    socket.destroy();
  });
  const client = new ControlClient(path);
  for (let turn = 0; turn < 2; turn++) {
    const error = await assertRejects(() => client.status(), ProcessGoneError, "or is ending");
    assertEquals(error.code, "Shutdown");
  }
});

test("a process that has too many connections is told from one that has ended", async () => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-client-"));
  const app = { fetch: () => new Response("{}") };
  const listening = await listenUnix(app, join(folder, "socket"));
  const client = new ControlClient(listening.address);
  const clients: Socket[] = [];
  try {
    for (let count = 0; count < CONNECTIONS_MAX; count++) {
      const held = connect(listening.address);
      clients.push(held);
      await new Promise((resolve) => held.once("connect", resolve));
    }
    const error = await assertRejects(() => client.status(), BcacheError, "too many connections");
    assertEquals([error.code, error instanceof ProcessGoneError], ["Shutdown", false]);
    assertStringIncludes(error.message, `process ${process.pid} took no question: it has too many`);
  } finally {
    for (const held of clients) held.destroy();
    await listening.close();
  }
});
