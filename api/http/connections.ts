/**
 * One request per connection at a time. The runtimes hand over every request of a packet at once,
 * and read on whether or not answers are taken: a client that sends thousands and reads nothing
 * would have all of them worked on, and all answers kept in memory. Here a request begins when the
 * answer before it has gone to the kernel, few may wait, and none of a client that has gone begins.
 */
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { Socket } from "node:net";

/** Requests of one connection that may wait behind the one under way. */
export const WAITING_MAX = 16;
/**
 * Open connections of one server. Each costs a file descriptor, and under Deno, which reads a
 * packet to its end whatever became of the connection, the requests of one packet (64 KiB).
 */
export const CONNECTIONS_MAX = 64;

/** Resolves when the answer was handed to the response, not when the client has it. */
export type Listener = (incoming: IncomingMessage, outgoing: ServerResponse) => Promise<void>;

interface Exchange {
  incoming: IncomingMessage;
  outgoing: ServerResponse;
}

export class Connections {
  #listener: Listener;
  #takeMs: number;
  /** Of each connection the exchange under way, then those that wait. */
  #open = new Map<Socket, Exchange[]>();
  #isClosing = false;

  /** A client that has not taken a whole answer after `takeMs` is dropped. */
  constructor(listener: Listener, takeMs: number) {
    this.#listener = listener;
    this.#takeMs = takeMs;
  }

  /** Serves what comes in at `server`. */
  attachTo(server: Server): void {
    server.maxConnections = CONNECTIONS_MAX;
    // A stranger who opens connections and says nothing must not use them up.
    server.headersTimeout = 10_000;
    server.requestTimeout = 30_000;
    const accept = (incoming: IncomingMessage, outgoing: ServerResponse): void =>
      this.#accept({ incoming, outgoing });
    // The runtimes take their own listener away with a CONNECT: a client that then resets the
    // connection would end the process. Its "close" tells whoever waits.
    server.on("connection", (socket: Socket) => socket.on("error", () => {}));
    server.on("request", accept);
    // Without this the runtime answers what a client expects and nobody knows, beside the others.
    server.on("checkExpectation", accept);
  }

  /** Whether something may be said there out of turn: of no request an answer was promised. */
  isQuiet(socket: Socket): boolean {
    const [first, ...waiting] = this.#open.get(socket) ?? [];
    if (first === undefined) return true;
    // What came was of the first one's body: nobody has acted on that yet.
    return waiting.length === 0 && !first.incoming.complete && !first.outgoing.headersSent;
  }

  /** Begins no request any more; a connection ends with the answer it is waiting for. */
  beginClose(): void {
    this.#isClosing = true;
  }

  #accept(exchange: Exchange): void {
    const { socket } = exchange.incoming;
    // The rest of a packet still comes after its connection was dropped.
    if (socket.destroyed) return;
    const exchanges = this.#open.get(socket) ?? this.#opened(socket);
    if (exchanges.length > WAITING_MAX) {
      socket.destroy();
      return;
    }
    exchanges.push(exchange);
    if (exchanges.length === 1) void this.#serve(socket, exchanges);
  }

  #opened(socket: Socket): Exchange[] {
    const exchanges: Exchange[] = [];
    this.#open.set(socket, exchanges);
    socket.once("close", () => this.#open.delete(socket));
    return exchanges;
  }

  async #serve(socket: Socket, exchanges: Exchange[]): Promise<void> {
    for (let next = exchanges[0]; next !== undefined; next = exchanges[0]) {
      if (socket.destroyed) return;
      if (this.#isClosing) {
        socket.end();
        return;
      }
      await this.#answer(socket, next);
      exchanges.shift();
    }
  }

  /** Resolves when the answer has gone to the kernel, or the client has. Never rejects. */
  async #answer(socket: Socket, { incoming, outgoing }: Exchange): Promise<void> {
    let settle = (): void => {};
    const over = new Promise<void>((resolve) => settle = resolve);
    outgoing.once("finish", settle);
    socket.once("close", settle);
    let patience: ReturnType<typeof setTimeout> | undefined;
    try {
      await this.#listener(incoming, outgoing);
      patience = setTimeout(() => socket.destroy(), this.#takeMs);
      await over;
    } catch {
      socket.destroy(); // There is no answer: the end of the connection tells the client.
    } finally {
      clearTimeout(patience);
      socket.off("close", settle);
    }
  }
}
