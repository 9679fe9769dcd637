/**
 * Serves an app on a TCP address or a Unix socket, with the same code under Bun and Deno
 * (node:http, through Hono's node-server; both runtimes carry it).
 */
import { getRequestListener } from "@hono/node-server";
import { lookup } from "node:dns/promises";
import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { connect, isIP } from "node:net";
import { BcacheError, messageOf } from "../../lib/base/errors.ts";
import { Connections } from "./connections.ts";
import { expectationRefusal, listenerErrorResponse, refuseUnread } from "./refusals.ts";
import { isListening, tryLockName } from "./socket_lock.ts";

/** How long open connections are waited for when a server is closed. */
const CLOSE_PATIENCE_MS = 500;
/** How long a client may take to read one answer. */
const TAKE_PATIENCE_MS = 30_000;

/** Anything with Hono's `fetch`. */
export interface Servable {
  fetch(request: Request): Response | Promise<Response>;
}

export interface Listening {
  /** What to tell a person: `http://127.0.0.1:8380`, or the socket's path. */
  readonly address: string;
  /** Stops listening, drops open connections, removes a socket's file. */
  close(): Promise<void>;
}

/** An address of `--http`. */
export interface HostPort {
  host: string;
  port: number;
}

/** Reads `HOST:PORT` (`[::1]:8380` for IPv6). Throws InvalidArgument. */
export function parseHostPort(text: string): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s/]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  const isAddress = match?.[1] === undefined || isIP(match[1]) === 6;
  if (host === undefined || !(port <= 65535) || !isAddress) {
    throw new BcacheError(
      "InvalidArgument",
      `--http ${JSON.stringify(text)}: expected HOST:PORT such as 127.0.0.1:8380, or off`,
    );
  }
  if (match?.[1] === undefined && /^\d+(\.\d+){3}$/.test(host) && isIP(host) !== 4) {
    throw new BcacheError(
      "InvalidArgument",
      `--http ${JSON.stringify(text)}: the host ${host} is wrong; ` +
        "expected an address such as 127.0.0.1, or a name",
    );
  }
  return { host, port };
}

/** The URL of an address. */
export function urlOf({ host, port }: HostPort): string {
  return `http://${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}

/** Listens on TCP. Port 0 takes a free one. Throws AddressInUse, Permission or InvalidArgument. */
export async function listenTcp(
  app: Servable,
  at: HostPort,
  options: { takeMs?: number } = {},
): Promise<Listening> {
  const serving = serverOf(app, options.takeMs ?? TAKE_PATIENCE_MS);
  const { server } = serving;
  try {
    await listening(server, () => server.listen({ host: at.host, port: at.port }));
  } catch (error) {
    throw await isKnownHost(at.host) ? tcpError(at, error) : new BcacheError(
      "InvalidArgument",
      `cannot listen on ${at.host}:${at.port}: this machine knows no host ${at.host}; ` +
        "choose another with --http HOST:PORT, such as 127.0.0.1:8380",
      { cause: error },
    );
  }
  const bound = server.address();
  const port = bound !== null && typeof bound === "object" ? bound.port : at.port;
  return { address: urlOf({ host: at.host, port }), close: () => close(serving) };
}

/**
 * Listens on a Unix socket at `path`, for this user only. The file of a process that died is
 * replaced. Throws AddressInUse while another process answers there, or is about to: of any number
 * that try at once, one gets it.
 */
export async function listenUnix(app: Servable, path: string): Promise<Listening> {
  const unlock = await tryLockName(path);
  if (unlock === undefined) {
    throw new BcacheError("AddressInUse", `another process serves ${path}`);
  }
  try {
    const listening = await listenLocked(app, path);
    return { address: listening.address, close: () => listening.close().finally(unlock) };
  } catch (error) {
    unlock();
    throw error;
  }
}

async function listenLocked(app: Servable, path: string): Promise<Listening> {
  const serving = serverOf(app, TAKE_PATIENCE_MS);
  const { server } = serving;
  try {
    await listening(server, () => server.listen(path));
  } catch (error) {
    if (codeOf(error) !== "EADDRINUSE") {
      throw new BcacheError("Permission", `cannot listen on ${path}: ${messageOf(error)}`, {
        cause: error,
      });
    }
    if (await isAnswered(path)) {
      throw new BcacheError("AddressInUse", `another process serves ${path}`, { cause: error });
    }
    removeSocket(path);
    return await listenLocked(app, path);
  }
  chmodSync(path, 0o600);
  return {
    address: path,
    close: async () => {
      await close(serving);
      removeSocket(path);
    },
  };
}

/**
 * Whether a process listens at the Unix socket. One that is stopped or overloaded does, though its
 * queue of connections may be full and refuse ours.
 */
export function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(isListening(path)));
  });
}

/** Removes the socket of a process that died; leaves it when another is about to take its place. */
export async function removeDeadSocket(path: string): Promise<void> {
  const unlock = await tryLockName(path);
  if (unlock === undefined) return;
  if (!(await isAnswered(path))) removeSocket(path);
  unlock();
}

function removeSocket(path: string): void {
  rmSync(path, { force: true });
}

interface Serving {
  readonly server: Server;
  readonly connections: Connections;
}

function serverOf(app: Servable, takeMs: number): Serving {
  const answer = getRequestListener((request) => app.fetch(request), {
    errorHandler: listenerErrorResponse,
  });
  const connections = new Connections(async (incoming, outgoing) => {
    if (expectationRefusal(incoming, outgoing)) return;
    await answer(incoming, outgoing);
  }, takeMs);
  // A request without a Host is the app's to refuse, in its own words.
  const server = createServer({ requireHostHeader: false });
  connections.attachTo(server);
  refuseUnread(server, connections);
  return { server, connections };
}

function listening(server: Server, listen: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.once("listening", () => {
      server.off("error", reject);
      resolve();
    });
    listen();
  });
}

/** Answers under way get a moment to go out: the reply to "unmount" is one of them. */
function close({ server, connections }: Serving): Promise<void> {
  connections.beginClose();
  return new Promise((resolve) => {
    const patience = setTimeout(() => server.closeAllConnections(), CLOSE_PATIENCE_MS);
    server.close(() => {
      clearTimeout(patience);
      resolve();
    });
    server.closeIdleConnections();
  });
}

function codeOf(error: unknown): string | undefined {
  const code = typeof error === "object" && error !== null && "code" in error ? error.code : "";
  return typeof code === "string" ? code : undefined;
}

/** Whether a host is an address, or has one. The runtimes' errors do not tell it from others. */
async function isKnownHost(host: string): Promise<boolean> {
  if (isIP(host) !== 0) return true;
  try {
    await lookup(host);
    return true;
  } catch {
    return false;
  }
}

function tcpError(at: HostPort, error: unknown): BcacheError {
  const where = `${at.host}:${at.port}`;
  switch (codeOf(error)) {
    case "EADDRINUSE":
      return new BcacheError(
        "AddressInUse",
        `${where} is in use by another program; choose another with --http HOST:PORT, ` +
          "or --http off",
        { cause: error },
      );
    case "EACCES":
      return new BcacheError(
        "Permission",
        `${where} may not be used by this user; choose a port above 1023 with --http HOST:PORT`,
        { cause: error },
      );
    case "EINVAL":
    case "EADDRNOTAVAIL":
      return new BcacheError(
        "InvalidArgument",
        `cannot listen on ${where}: this machine has no address ${at.host}; ` +
          "choose another with --http HOST:PORT, such as 127.0.0.1:8380",
        { cause: error },
      );
    default:
      return new BcacheError(
        "InvalidArgument",
        `cannot listen on ${where}: ${messageOf(error)}; choose another with --http HOST:PORT`,
        { cause: error },
      );
  }
}
