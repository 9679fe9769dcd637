/**
 * The other end of a control socket: a CacheControl that speaks the HTTP API, so that commands
 * treat a mount in another process like a cache set of their own.
 */
import { request } from "node:http";
import { BcacheError } from "../../lib/base/errors.ts";
import type {
  AttributeInfo,
  CacheControl,
  DeviceStatus,
  SetRemains,
  SetStatus,
  UuidStatus,
  VolumeStatus,
} from "../../lib/cache/ports.ts";
import { errorOfProblem } from "../http/problem.ts";
import type { MountInfo, Unmounted } from "../http/schema.ts";
import { holderOfName, isListening } from "../http/socket_lock.ts";

/** A process that does not answer a question by now is stopped, or hangs. */
const ANSWER_PATIENCE_MS = 10_000;
/** An answer longer than this is not one of ours. */
const ANSWER_BYTES_MAX = 16 * 1024 * 1024;

/** The process went away while it was asked. */
export class ProcessGoneError extends BcacheError {
  constructor(socketPath: string, cause: Error) {
    super(
      "Shutdown",
      `the process behind ${socketPath} has ended while it was asked, or is ending ` +
        `(${cause.message}); bcache-fuse status lists what is mounted`,
      { cause },
    );
  }
}

/** The process is there and says nothing, or no end of it. */
function silentError(socketPath: string, cause: Error): BcacheError {
  const pid = holderOfName(socketPath);
  return new BcacheError(
    "Shutdown",
    `${nameOf(socketPath, pid)} does not answer: ${cause.message}; if it is stopped, kill -CONT ` +
      `${pid ?? "and its PID"} goes on with it`,
    { cause },
  );
}

/** The process is there, and drops connections above those that it takes. */
function crowdedError(socketPath: string, cause: Error): BcacheError {
  return new BcacheError(
    "Shutdown",
    `${nameOf(socketPath, holderOfName(socketPath))} took no question: it has too many ` +
      `connections (${cause.message}); try again when others have ended`,
    { cause },
  );
}

function nameOf(socketPath: string, pid: number | undefined): string {
  return pid === undefined ? `the process behind ${socketPath}` : `process ${pid}`;
}

export class ControlClient implements CacheControl {
  readonly socketPath: string;
  #patienceMs: number;

  constructor(socketPath: string, options: { patienceMs?: number } = {}) {
    this.socketPath = socketPath;
    this.#patienceMs = options.patienceMs ?? ANSWER_PATIENCE_MS;
  }

  status(): Promise<SetStatus> {
    return this.#call<SetStatus>("GET", "/v1/stats");
  }

  async attributes(device: string | undefined, name?: string): Promise<AttributeInfo[]> {
    if (name !== undefined) {
      return [await this.#call<AttributeInfo>("GET", attributePath(device, name))];
    }
    const path = `${ownerPath(device)}/attributes`;
    return (await this.#call<{ attributes: AttributeInfo[] }>("GET", path)).attributes;
  }

  setAttribute(device: string | undefined, name: string, value: string): Promise<AttributeInfo> {
    return this.#call<AttributeInfo>("PUT", attributePath(device, name), { value });
  }

  async flushDirty(device: string | undefined): Promise<void> {
    await this.#work<SetStatus | DeviceStatus>("POST", `${ownerPath(device)}/writeback/flush`);
  }

  attach(backingPath: string, options: { force?: boolean } = {}): Promise<DeviceStatus> {
    return this.#work<DeviceStatus>("POST", "/v1/devices", { backingPath, ...options });
  }

  detach(device: string): Promise<DeviceStatus> {
    return this.#work<DeviceStatus>("POST", `${ownerPath(device)}/detach`);
  }

  async stop(device: string, options: { force?: boolean } = {}): Promise<void> {
    await this.#work<{ devices: DeviceStatus[] }>("POST", `${ownerPath(device)}/stop`, options);
  }

  createVolume(options: { sizeBytes: number; label?: string }): Promise<VolumeStatus> {
    return this.#work<VolumeStatus>("POST", "/v1/volumes", options);
  }

  resizeVolume(
    name: string,
    sizeBytes: number,
    options: { force?: boolean } = {},
  ): Promise<VolumeStatus> {
    const path = `/v1/volumes/${encodeURIComponent(name)}/size`;
    return this.#work<VolumeStatus>("PUT", path, { sizeBytes, ...options });
  }

  async destroyVolume(name: string, options: { force?: boolean } = {}): Promise<void> {
    const path = `/v1/volumes/${encodeURIComponent(name)}`;
    await this.#work<{ volumes: VolumeStatus[] }>("DELETE", path + forced(options));
  }

  async uuids(): Promise<UuidStatus[]> {
    return (await this.#work<{ uuids: UuidStatus[] }>("GET", "/v1/uuids")).uuids;
  }

  async forget(uuid: string, options: { force?: boolean } = {}): Promise<void> {
    const path = `/v1/uuids/${encodeURIComponent(uuid)}`;
    await this.#work<{ uuids: UuidStatus[] }>("DELETE", path + forced(options));
  }

  /** What is mounted there. */
  mountInfo(): Promise<MountInfo> {
    return this.#call<MountInfo>("GET", "/v1/mount");
  }

  /**
   * Asks the process to unmount; resolves with what is left, if that is known. Rejects with Busy
   * while the mount is in use.
   */
  async unmount(options: { force: boolean }): Promise<SetRemains | undefined> {
    const { force } = options;
    return (await this.#work<Unmounted>("POST", "/v1/mount/unmount", { force })).remains;
  }

  /** Something that may take as long as it takes, once the process has shown that it answers. */
  async #work<T>(method: string, path: string, body?: unknown): Promise<T> {
    await this.mountInfo();
    return await this.#call<T>(method, path, body, Infinity);
  }

  async #call<T>(
    method: string,
    path: string,
    body?: unknown,
    patienceMs: number = this.#patienceMs,
  ): Promise<T> {
    const { status, text } = await this.#exchange({ method, path, body, patienceMs });
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch {
      parsed = undefined; // Judged by the status below.
    }
    if (status < 200 || status >= 300 || parsed === undefined) {
      throw errorOfProblem(status, parsed);
    }
    return parsed as T;
  }

  #exchange(
    question: { method: string; path: string; body: unknown; patienceMs: number },
  ): Promise<{ status: number; text: string }> {
    const { method, path, body, patienceMs } = question;
    const payload = body === undefined ? undefined : JSON.stringify(body);
    return new Promise((resolve, reject) => {
      let patience: ReturnType<typeof setTimeout> | undefined;
      let isSilent = false;
      let isAnswering = false;
      const fail = (error: Error): void => {
        clearTimeout(patience);
        const { socketPath } = this;
        if (isSilent) return reject(silentError(socketPath, error));
        // A process that ends stops listening before it drops connections.
        const isThere = !isAnswering && isListening(socketPath);
        if (!isThere) return reject(new ProcessGoneError(socketPath, error));
        const full = new Error("its queue of connections is full", { cause: error });
        const isCrowded = !isRefusal(error);
        reject(isCrowded ? crowdedError(socketPath, error) : silentError(socketPath, full));
      };
      // One call per connection: a process that ends need not wait for us to close it.
      const headers: Record<string, string> = payload === undefined ? { connection: "close" } : {
        connection: "close",
        "content-type": "application/json",
        "content-length": String(new TextEncoder().encode(payload).length),
      };
      const call = request({ socketPath: this.socketPath, method, path, headers }, (response) => {
        let text = "";
        isAnswering = true;
        response.setEncoding("utf8");
        response.on("data", (part: string) => {
          text += part;
          if (text.length <= ANSWER_BYTES_MAX) return;
          isSilent = true;
          response.destroy(new Error("the answer is too long"));
        });
        response.once("error", fail);
        response.once("end", () => {
          clearTimeout(patience);
          resolve({ status: response.statusCode ?? 0, text });
        });
      });
      if (patienceMs < Infinity) {
        const seconds = patienceMs / 1000;
        patience = setTimeout(() => {
          const error = new Error(`nothing came within ${seconds} seconds`);
          isSilent = true;
          fail(error);
          call.destroy(error);
        }, patienceMs);
      }
      call.once("error", fail);
      call.end(payload);
    });
  }
}

/** Of a connection that was not taken; the runtimes differ in what they call it. */
function isRefusal(error: Error): boolean {
  return "code" in error && (error.code === "EAGAIN" || error.code === "ECONNREFUSED");
}

function forced(options: { force?: boolean }): string {
  return options.force === true ? "?force=true" : "";
}

function ownerPath(device: string | undefined): string {
  return device === undefined ? "/v1" : `/v1/devices/${encodeURIComponent(device)}`;
}

function attributePath(device: string | undefined, name: string): string {
  return `${ownerPath(device)}/attributes/${encodeURIComponent(name)}`;
}
