/**
 * The main thread's side of a mounted cache set: starts the data plane's worker, passes calls and
 * answers, unmounts, and notices the worker's end, also when it is not an orderly one.
 */
import { realpathSync } from "node:fs";
import { resolve as resolvePath } from "node:path";
import { Worker } from "node:worker_threads";
import { BcacheError, messageOf } from "../lib/base/errors.ts";
import type { Log } from "../lib/base/runtime.ts";
import type { CacheControl, SetRemains } from "../lib/cache/ports.ts";
import { type Libc, openLibc } from "../lib/runtime/libc.ts";
import type { MountConfig } from "./engine.ts";
import type { FilesystemChange } from "./filesystem.ts";
import {
  CONTROL_METHODS,
  type ControlMethod,
  fromPlain,
  type FromWorker,
  type ToWorker,
  type VolumeInfo,
  type WorkerStart,
} from "./messages.ts";
import { moduleBeside } from "./module_beside.ts";
import { checkMountPoint, isNotMounted, unmountFuse } from "./mount.ts";
import { describeUsers } from "./mount_users.ts";
import { notifications } from "./notify.ts";
import { byForce, fileOfRefusal } from "./served_volumes.ts";

export type { MountConfig } from "./engine.ts";

/** How a mount ended: by unmounting, here or by hand, or because something broke. */
export interface MountEnd {
  readonly reason: "unmounted" | "failed" | "crashed";
  readonly error?: Error;
  /** What the cache set left, where that is known. */
  readonly remains?: SetRemains;
}

export interface MountHandle {
  readonly control: CacheControl;
  readonly volumes: readonly VolumeInfo[];
  /** Resolves when the cache set is closed and nothing is held any more; never rejects. */
  readonly ended: Promise<MountEnd>;
  /**
   * Unmounts, closes the cache set, and resolves at the end. Rejects with BcacheError Busy, naming
   * who has files open, while that is so; it then goes on serving. `force` takes the files away
   * from them: what they write later fails, what was written is kept.
   */
  unmount(options?: { readonly force?: boolean }): Promise<void>;
}

export interface MountListeners {
  /** What the engine wants a person to know. */
  readonly log?: Log;
}

/**
 * Mounts a cache set. Resolves when its files can be used. Rejects with a BcacheError, having
 * changed nothing that can be known beforehand to be in vain.
 */
export async function mountCacheSet(
  config: MountConfig,
  listeners: MountListeners = {},
): Promise<MountHandle> {
  const libc = await openLibc();
  checkMountPoint(libc, config.mountPoint);
  const absolute: MountConfig = {
    ...config,
    mountPoint: realpathSync(config.mountPoint),
    cachePath: resolvePath(config.cachePath),
    backingPaths: config.backingPaths.map((path) => resolvePath(path)),
  };
  const mounted = new MountedCacheSet(libc, absolute, listeners.log ?? (() => {}));
  await mounted.ready;
  return mounted;
}

interface Caller {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

class MountedCacheSet implements MountHandle {
  readonly control: CacheControl;
  readonly ready: Promise<void>;
  readonly ended: Promise<MountEnd>;
  volumes: readonly VolumeInfo[] = [];
  readonly #libc: Libc;
  readonly #config: MountConfig;
  readonly #log: Log;
  readonly #wakeFd: number;
  readonly #one: Uint8Array<ArrayBuffer>;
  readonly #worker: Worker;
  readonly #callers = new Map<number, Caller>();
  readonly #readyPromise = Promise.withResolvers<void>();
  readonly #endedPromise = Promise.withResolvers<MountEnd>();
  readonly #exited = Promise.withResolvers<void>();
  #lastCall = 0;
  #fuseFd = -1;
  #over = false;
  /** The files were taken away by force: nothing is mounted any more, though it may still end. */
  #detached = false;
  #isReady = false;

  constructor(libc: Libc, config: MountConfig, log: Log) {
    this.#libc = libc;
    this.#config = config;
    this.#log = log;
    this.#wakeFd = libc.eventfd();
    if (this.#wakeFd < 0) {
      throw new BcacheError("DeviceIo", `eventfd failed (errno ${-this.#wakeFd})`);
    }
    this.#one = new Uint8Array(new BigUint64Array([1n]).buffer);
    this.ready = this.#readyPromise.promise;
    this.ended = this.#endedPromise.promise;
    this.control = this.#makeControl();
    const workerData: WorkerStart = { config, wakeFd: this.#wakeFd };
    this.#worker = new Worker(
      moduleBeside(new URL("./worker.ts", import.meta.url), import.meta.url),
      { workerData },
    );
    this.#worker.on("message", (message: FromWorker) => this.#receive(message));
    this.#worker.on("error", (error: unknown) => this.#crashed(error));
    this.#worker.on("exit", () => {
      this.#exited.resolve();
      this.#crashed(new Error("its thread ended"));
    });
  }

  async unmount(options: { readonly force?: boolean } = {}): Promise<void> {
    const isForced = options.force === true;
    if (!this.#over) {
      // Once it is detached only the end is to be waited for; or to be brought about, by force.
      if (!this.#detached) this.#unmountNow(isForced);
      if (isForced && !this.#over) this.#send({ type: "stop" });
    }
    const end = await this.ended;
    if (end.reason !== "unmounted" && end.error !== undefined) throw end.error;
  }

  /** Another process may have detached it, with files open: by force its end is brought about. */
  #unmountNow(isForced: boolean): void {
    try {
      unmountFuse(this.#libc, this.#config.mountPoint, isForced);
    } catch (error) {
      if (!isForced || !isNotMounted(error)) throw error;
    }
    this.#detached = isForced;
  }

  #makeControl(): CacheControl {
    const methods: Partial<Record<ControlMethod, unknown>> = {};
    for (const method of CONTROL_METHODS) {
      methods[method] = (...args: unknown[]) =>
        this.#call(method, args).catch((error: Error) =>
          Promise.reject(this.#namingUsers(error, byForce({ method, args })))
        );
    }
    return methods as unknown as CacheControl;
  }

  /** A refusal because a file is open, with the names of those who have it open. */
  #namingUsers(error: Error, otherwise: string): Error {
    const file = fileOfRefusal(error);
    if (file === undefined) return error;
    const path = `${this.#config.mountPoint}/${file}`;
    return new BcacheError(
      "Busy",
      `${path}: in use by ${describeUsers(path)}: close that first${otherwise}`,
      { cause: error },
    );
  }

  #call(method: ControlMethod, args: readonly unknown[]): Promise<unknown> {
    if (this.#over) return Promise.reject(this.#gone());
    const id = ++this.#lastCall;
    return new Promise((resolve, reject) => {
      this.#callers.set(id, { resolve, reject });
      this.#send({ type: "call", id, method, args });
    });
  }

  /** The worker may block in a system call: the count of `#wakeFd` tells it of a message. */
  #send(message: ToWorker): void {
    this.#worker.postMessage(message);
    this.#libc.write(this.#wakeFd, this.#one);
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case "connected":
        this.#fuseFd = message.fuseFd;
        break;
      case "ready":
        this.volumes = message.volumes;
        this.#isReady = true;
        this.#readyPromise.resolve();
        break;
      case "volumes":
        this.volumes = message.volumes;
        this.#tellKernel(message.change);
        this.#send({ type: "told" });
        break;
      case "result":
        this.#take(message.id)?.resolve(message.value);
        break;
      case "failure":
        this.#take(message.id)?.reject(fromPlain(message.error));
        break;
      case "log":
        this.#log(message.level, message.message);
        break;
      case "crashed":
        this.#crashed(fromPlain(message.error));
        break;
      case "ended": {
        this.#fuseFd = -1;
        const error = message.error && fromPlain(message.error);
        const left = message.remains === undefined ? {} : { remains: message.remains };
        this.#end(
          error === undefined ? { reason: "unmounted", ...left } : { reason: "failed", error },
        );
        break;
      }
    }
  }

  /** ENOENT: the kernel remembers nothing of it. Any other failure costs a second's delay. */
  #tellKernel(change: FilesystemChange): void {
    if (this.#fuseFd < 0) return;
    for (const bytes of notifications(change)) this.#libc.write(this.#fuseFd, bytes);
  }

  #take(id: number): Caller | undefined {
    const caller = this.#callers.get(id);
    this.#callers.delete(id);
    return caller;
  }

  #gone(): BcacheError {
    return new BcacheError("Shutdown", `${this.#config.mountPoint}: not mounted any more`);
  }

  /**
   * A dead thread leaves its descriptors open: without closing the connection's, everybody who
   * uses the files would wait for ever.
   */
  #crashed(cause: unknown): void {
    if (this.#over) return;
    if (this.#fuseFd >= 0) {
      this.#libc.close(this.#fuseFd);
      this.#fuseFd = -1;
      try {
        unmountFuse(this.#libc, this.#config.mountPoint, true);
      } catch (error) {
        this.#log("warning", messageOf(error));
      }
    }
    const message = `${this.#config.mountPoint}: the data plane crashed: ${messageOf(cause)}`;
    this.#end({ reason: "crashed", error: new BcacheError("SetFailed", message, { cause }) });
  }

  #end(end: MountEnd): void {
    if (this.#over) return;
    this.#over = true;
    for (const caller of this.#callers.values()) caller.reject(this.#gone());
    this.#callers.clear();
    if (!this.#isReady) this.#readyPromise.reject(end.error ?? this.#gone());
    this.#libc.close(this.#wakeFd);
    const finish = (): void => this.#endedPromise.resolve(end);
    // A thread that ended by itself may leave the promise of `terminate` open for ever.
    Promise.race([this.#worker.terminate(), this.#exited.promise]).then(finish, finish);
  }
}
