/** What a client that sends too much, reads too little or makes no sense can do to a server. */
import { afterEach, describe, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import process from "node:process";
import { createApp } from "../../../api/http/app.ts";
import { Connections, CONNECTIONS_MAX, WAITING_MAX } from "../../../api/http/connections.ts";
import { refuseUnread } from "../../../api/http/refusals.ts";
import { type Listening, listenTcp, parseHostPort } from "../../../api/http/serve.ts";
import { FakeControl } from "../fake_control.ts";

/** More than the kernel keeps of one connection. */
const BIG_ANSWER = "x".repeat(16 * 1024 * 1024);

let listening: Listening | undefined;
let apart: ChildProcess | undefined;
const clients: Socket[] = [];
afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  await listening?.close();
  listening = undefined;
  apart?.kill("SIGKILL");
  apart = undefined;
});

/** An app that counts what it is asked, and answers when it is told to. */
class Counting {
  paths: string[] = [];
  #answers: Array<() => void> = [];
  isHeld = false;
  answer = "done";

  async fetch(request: Request): Promise<Response> {
    this.paths.push(new URL(request.url).pathname);
    if (this.isHeld) await new Promise<void>((resolve) => this.#answers.push(resolve));
    return new Response(this.answer);
  }

  release(): void {
    this.isHeld = false;
    for (const answer of this.#answers.splice(0)) answer();
  }
}

interface Client {
  socket: Socket;
  text: () => string;
  closed: Promise<void>;
}

/** Sends `text`; `isReading` false: never reads. */
async function client(
  text: string,
  isReading = true,
  address = listening!.address,
): Promise<Client> {
  const at = parseHostPort(address.replace("http://", ""));
  const socket = connect({ host: at.host, port: at.port });
  clients.push(socket);
  let got = "";
  socket.on("error", () => {}); // The server's end of it is what is looked at.
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  if (isReading) socket.setEncoding("latin1").on("data", (part: string) => got += part);
  else socket.pause();
  await Promise.race([new Promise((resolve) => socket.once("connect", resolve)), closed]);
  socket.write(text);
  return { socket, text: () => got, closed };
}

/**
 * A server in a process of its own: that an error which nobody takes ends the process can only be
 * seen there. Resolves with its address.
 */
async function serveApart(): Promise<string> {
  const serving = new URL("../../../api/http/serve.ts", import.meta.url).href;
  const code = `import(${JSON.stringify(serving)}).then(async ({ listenTcp }) => {
    const app = { fetch: () => new Response("done") };
    console.log((await listenTcp(app, { host: "127.0.0.1", port: 0 })).address);
  })`;
  const words = "Deno" in globalThis ? ["eval", code] : ["-e", code];
  apart = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "ignore"] });
  const [said] = await once(apart.stdout!, "data") as [Uint8Array];
  return new TextDecoder().decode(said).trim();
}

function requests(count: number): string {
  return Array.from({ length: count }, (_, at) => `GET /${at} HTTP/1.1\r\nHost: a\r\n\r\n`).join(
    "",
  );
}

async function until(isTrue: () => boolean, what: string): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    if (isTrue()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert(isTrue(), what);
}

/** Long enough for whatever would happen by itself. */
const moment = () => new Promise((resolve) => setTimeout(resolve, 100));

async function serve(app: { fetch(request: Request): Response | Promise<Response> }, takeMs = 9e4) {
  listening = await listenTcp(app, { host: "127.0.0.1", port: 0 }, { takeMs });
}

describe("requests that are sent together", () => {
  test("are answered one after the other, in their order", async () => {
    const app = new Counting();
    app.isHeld = true;
    await serve(app);
    const all = WAITING_MAX + 1;
    const { text } = await client(requests(all));
    await until(() => app.paths.length === 1, "the first began");
    await moment();
    assertEquals(app.paths, ["/0"]);
    app.release();
    await until(() => text().split("done").length === all + 1, "all answers came");
    assertEquals(app.paths, Array.from({ length: all }, (_, at) => `/${at}`));
  });
  test("end the connection when there are many: of a thousand one began", async () => {
    const app = new Counting();
    app.isHeld = true;
    await serve(app);
    const { closed } = await client(requests(1000));
    await closed;
    app.release();
    await moment();
    assertEquals(app.paths, ["/0"]);
  });
  test("are forgotten with the client that sent them", async () => {
    const app = new Counting();
    app.isHeld = true;
    await serve(app);
    const { socket } = await client(requests(10));
    await until(() => app.paths.length === 1, "the first began");
    socket.destroy();
    await moment();
    app.release();
    await moment();
    assertEquals(app.paths, ["/0"]);
  });
  test("wait for the answer before them to be taken", async () => {
    const app = new Counting();
    app.answer = BIG_ANSWER;
    await serve(app);
    const { socket } = await client(requests(3), false);
    await until(() => app.paths.length === 1, "the first began");
    await moment();
    assertEquals(app.paths, ["/0"]);
    socket.on("data", () => {}).resume();
    await until(() => app.paths.length === 3, "all began once they were read");
  });
});

describe("a client", () => {
  test("that does not take its answer is dropped", async () => {
    const app = new Counting();
    app.answer = BIG_ANSWER;
    await serve(app, 200);
    const { socket, closed } = await client(requests(2), false);
    await until(() => app.paths.length === 1, "the first began");
    await moment();
    await moment();
    await moment();
    let got = 0;
    socket.on("data", (part) => got += part.length).resume();
    await closed;
    assert(got < BIG_ANSWER.length, "the answer was cut off");
    assertEquals(app.paths, ["/0"]);
  });
  test("does not keep the server from ending", async () => {
    const app = new Counting();
    app.answer = BIG_ANSWER;
    await serve(app);
    for (let count = 0; count < 5; count++) await client(requests(10), false);
    await until(() => app.paths.length === 5, "each is being answered");
    await listening!.close();
    await moment();
    assertEquals(app.paths.length, 5);
  });
  for (
    const [what, text] of [
      ["a tunnel", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"],
      ["another protocol", "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: b\r\n\r\n"],
      ["nothing that can be read", "\x01\x02\x03\r\n\r\n"],
    ] as const
  ) {
    test(`does not end the server when it asks for ${what} and resets the connection`, async () => {
      const address = await serveApart();
      for (let count = 0; count < 10; count++) {
        const { socket, closed } = await client(text, true, address);
        setTimeout(() => socket.resetAndDestroy(), count / 2); // Before an answer, and after.
        await closed;
      }
      assertEquals(await (await fetch(address)).text(), "done");
    });
  }
  test("finds a bounded number of connections", async () => {
    await serve(new Counting());
    let ended = 0;
    for (let count = 0; count < CONNECTIONS_MAX + 40; count++) {
      const { closed } = await client("GET /");
      void closed.then(() => ended++);
    }
    await until(() => ended >= 35, "those above the bound were turned away");
  });
});

test("the description is made once", async () => {
  const app = createApp({ control: () => new FakeControl(), version: "1" });
  const make = app.getOpenAPI31Document.bind(app);
  let made = 0;
  app.getOpenAPI31Document = (config) => {
    made++;
    return make(config);
  };
  const first = await (await app.request("/openapi.json")).text();
  assertEquals(await (await app.request("/openapi.json")).text(), first);
  assertStringIncludes(first, '"openapi":"3.1.0"');
  assertEquals(made, 1);
});

describe("what is no request of ours is answered with a problem", () => {
  const cases: Array<[string, string, number, RegExp]> = [
    ["a Host with a user", "GET / HTTP/1.1\r\nHost: 127.0.0.1@evil\r\n\r\n", 400, /Host/],
    ["an open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, /Host/],
    ["a Host with a path", "GET / HTTP/1.1\r\nHost: 127.0.0.1/x\r\n\r\n", 400, /Host/],
    ["no Host", "GET / HTTP/1.1\r\n\r\n", 400, /Host/],
    ["an expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: foo\r\n\r\n", 417, /"foo"/],
    ["a tunnel", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405, /a:1 takes no CONNECT/],
    ["another method", "FOO BAR\r\n\r\n", 400, /not a request of HTTP/],
    ["bytes", "\x01\x02\x03\r\n\r\n", 400, /not a request of HTTP/],
    ["a long header", `GET / HTTP/1.1\r\nHost: a\r\nx: ${"y".repeat(70_000)}\r\n\r\n`, 431, /long/],
    [
      "a broken chunk",
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      400,
      /not a request of HTTP/,
    ],
  ];
  for (const [name, request, status, detail] of cases) {
    test(name, async () => {
      const app = createApp({ control: () => new FakeControl(), version: "1" });
      await serve(app);
      const { text, closed, socket } = await client(request);
      await Promise.race([until(() => text().includes("}"), "an answer came"), closed]);
      socket.end();
      const [head, body] = text().split("\r\n\r\n");
      assertStringIncludes(head ?? "", `HTTP/1.1 ${status} `);
      assertMatch(head ?? "", /content-type: application\/problem\+json/i);
      // The runtimes send some answers in chunks, with their lengths around the text.
      const problem = JSON.parse(/\{.*\}/s.exec(body ?? "")?.[0] ?? "");
      assertEquals(problem.status, status);
      assertMatch(problem.detail, detail);
    });
  }
});

test("a request whose rest does not come in time is told so", async () => {
  const server = createServer();
  const connections = new Connections(() => Promise.resolve(), 1000);
  connections.attachTo(server);
  refuseUnread(server, connections);
  // What the runtimes say after half a minute or more.
  const late = Object.assign(new Error("Request timeout"), { code: "ERR_HTTP_REQUEST_TIMEOUT" });
  server.on("connection", (socket) => server.emit("clientError", late, socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
  const { port } = server.address() as AddressInfo;
  const { text, closed, socket } = await client("GET / HT", true, `127.0.0.1:${port}`);
  await Promise.race([until(() => text().includes("}"), "an answer came"), closed]);
  socket.destroy();
  server.close();
  assertMatch(text(), /^HTTP\/1\.1 408 /);
  assertStringIncludes(text(), '"code":"RequestTimeout"');
  assertStringIncludes(text(), "did not come to its end in time");
});
