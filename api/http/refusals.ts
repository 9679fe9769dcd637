/** Problems for requests that never reach the app: the runtime could not read them, or will not. */
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { RequestError } from "@hono/node-server";
import { messageOf } from "../../lib/base/errors.ts";
import type { Connections } from "./connections.ts";
import { type Problem, problemResponse, requestProblem } from "./problem.ts";

/** A client that was refused gets so long to take that, and to stop sending. */
const LINGER_MS = 1000;

/** The answer to what the adapter could not make a request of: mostly its Host. */
export function listenerErrorResponse(error: unknown): Response {
  if (!(error instanceof RequestError)) {
    return problemResponse(requestProblem(500, messageOf(error)));
  }
  const detail = `the Host header or the path is not valid (${error.message}); ` +
    "expected a Host such as localhost:8380 and a path such as /v1/stats";
  return problemResponse(requestProblem(400, detail));
}

/** Answers a request that expects what is not done here. Returns whether it did. */
export function expectationRefusal(incoming: IncomingMessage, outgoing: ServerResponse): boolean {
  const { expect } = incoming.headers;
  if (expect === undefined || expect.toLowerCase() === "100-continue") return false;
  const detail = `the Expect header is ${JSON.stringify(expect)}; expected 100-continue or none`;
  const body = JSON.stringify(requestProblem(417, detail));
  outgoing.writeHead(417, {
    "content-type": "application/problem+json",
    "content-length": new TextEncoder().encode(body).length,
    connection: "close",
  });
  outgoing.end(body);
  return true;
}

/** Answers what the runtime could not read as a request, and tunnels, which are not made here. */
export function refuseUnread(server: Server, connections: Connections): void {
  server.on("clientError", (error: Error, socket) => {
    refuse(socket as Socket, connections, unreadProblem(error));
  });
  server.on("connect", (request, socket) => {
    const detail = `${request.url} takes no CONNECT; /openapi.json lists what there is`;
    refuse(socket as Socket, connections, requestProblem(405, detail));
  });
}

function unreadProblem(error: Error): Problem {
  const code = "code" in error ? String(error.code) : "";
  if (code === "HPE_HEADER_OVERFLOW") {
    return requestProblem(431, "the request's first line and headers are too long; send fewer");
  }
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") {
    const detail = "the request did not come to its end in time; send all of it at once, again";
    return requestProblem(408, detail);
  }
  return requestProblem(400, `this is not a request of HTTP/1.1 (${error.message})`);
}

function refuse(socket: Socket, connections: Connections, problem: Problem): void {
  if (!socket.writable || !connections.isQuiet(socket)) {
    socket.destroy();
    return;
  }
  const body = JSON.stringify(problem);
  socket.end(
    `HTTP/1.1 ${problem.status} ${problem.title}\r\n` +
      "content-type: application/problem+json\r\n" +
      `content-length: ${new TextEncoder().encode(body).length}\r\n` +
      `connection: close\r\n\r\n${body}`,
  );
  const lingering = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once("close", () => clearTimeout(lingering));
}
