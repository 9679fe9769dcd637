/**
 * The data plane's thread, started by mount_handle.ts: opens the engine, mounts, serves until the
 * file system is unmounted (by whomever), closes the engine, and says so.
 *
 * The connection's descriptor stays open until the engine is closed, and is closed right before
 * the last message: the main thread closes it if this thread does not get that far.
 */
import { parentPort, workerData } from "node:worker_threads";
import { assert } from "../lib/base/assert.ts";
import { BcacheError } from "../lib/base/errors.ts";
import type { Log } from "../lib/base/runtime.ts";
import type { SetRemains } from "../lib/cache/ports.ts";
import { type Libc, openLibc } from "../lib/runtime/libc.ts";
import { SystemRandom } from "../lib/runtime/random.ts";
import { alignToPage, DevFuseChannel } from "./channel_dev_fuse.ts";
import { DataPlane } from "./data_plane.ts";
import { DataPlaneClock } from "./data_plane_clock.ts";
import type { Engine, EngineModule, MountConfig } from "./engine.ts";
import { limitLog } from "./log_limit.ts";
import { Filesystem } from "./filesystem.ts";
import {
  CONTROL_METHODS,
  type ControlCall,
  type FromWorker,
  type PlainError,
  type ServedEnd,
  toPlain,
  type ToWorker,
  type WorkerStart,
} from "./messages.ts";
import { moduleBeside } from "./module_beside.ts";
import { mountFuse, unmountFuse } from "./mount.ts";
import { FuseSession } from "./session.ts";
import { ServedVolumes, volumeInfo } from "./served_volumes.ts";
import { SlotPool } from "./slot.ts";

/** How often the end of requests under way is looked for while closing. */
const DRAIN_STEP_MS = 1;

function post(message: FromWorker): void {
  assert(parentPort !== null, "this module runs as a worker");
  parentPort.postMessage(message);
}

const log: Log = limitLog(
  (level, message) => post({ type: "log", level, message }),
  () => performance.now(),
);

/** The main thread sends nothing before it was told that the files are ready. */
function listen(onMessage: (message: ToWorker) => void): void {
  parentPort?.on("message", onMessage);
}

/** A mounted file system and what it is made of. */
interface Connection {
  readonly channel: DevFuseChannel;
  readonly session: FuseSession;
  /** Resolves at the end of the connection; rejects when reading from it failed. */
  readonly over: Promise<void>;
}

interface World {
  readonly config: MountConfig;
  readonly libc: Libc;
  readonly plane: DataPlane;
  readonly served: ServedVolumes;
}

async function openEngine(world: World): Promise<Engine> {
  const { config, libc, plane, served } = world;
  const address = config.engineModule ??
    moduleBeside(new URL("./cache_engine.ts", import.meta.url), import.meta.url).href;
  const module = await import(address) as EngineModule;
  const random = new SystemRandom();
  return await module.openEngine({
    config,
    libc,
    clock: plane.clock,
    random,
    log,
    operations: plane,
    onVolumesChanged: () => served.refresh(),
  });
}

/** Mounts, and resolves when the kernel and we have agreed. */
async function connect(world: World, engine: Engine): Promise<Connection> {
  const { config, libc, plane } = world;
  const filesystem = new Filesystem({
    volumes: engine.volumes,
    ownerUser: libc.effectiveUserId(),
    ownerGroup: libc.effectiveGroupId(),
    readOnly: config.readOnly,
    wallSeconds: () => plane.clock.wallSeconds(),
  });
  await world.served.serve(engine, filesystem);
  const fuseFd = mountFuse(libc, config);
  post({ type: "connected", fuseFd });
  const channel = new DevFuseChannel(libc, fuseFd);
  const pool = new SlotPool(alignToPage(libc));
  const ready = Promise.withResolvers<void>();
  const over = Promise.withResolvers<void>();
  const session = new FuseSession({ channel, filesystem, pool, log, onReady: ready.resolve });
  const onEnded = (error?: unknown): void => {
    if (error === undefined) over.resolve();
    else over.reject(error);
  };
  plane.attach({ channel, session, pool, onEnded });
  const tooSoon = over.promise.then(() => {
    throw new BcacheError("DeviceIo", `${config.mountPoint}: unmounted before it was ready`);
  });
  try {
    await Promise.race([ready.promise, tooSoon]);
  } catch (error) {
    channel.close();
    tryDetach(world);
    throw error;
  }
  // From now on its rejection is for whoever waits for the end.
  tooSoon.catch(() => {});
  return { channel, session, over: over.promise };
}

function tryDetach(world: World): void {
  try {
    unmountFuse(world.libc, world.config.mountPoint, true);
  } catch (error) {
    log("warning", toPlain(error).message);
  }
}

async function closeEngine(
  world: World,
  engine: Engine,
  connection?: Connection,
): Promise<SetRemains | undefined> {
  engine.stopWaiting?.();
  while (connection !== undefined && connection.session.pending > 0) {
    await world.plane.clock.sleep(DRAIN_STEP_MS);
  }
  return await engine.close();
}

/** One call of the control plane. */
async function answer(world: World, engine: Engine, call: ControlCall): Promise<FromWorker> {
  try {
    await world.served.refuseBusy(call);
    assert(CONTROL_METHODS.includes(call.method), `${call.method} is a method of CacheControl`);
    const method = engine[call.method] as (...args: readonly unknown[]) => Promise<unknown>;
    const value = await method.apply(engine, [...call.args]);
    await world.served.told();
    return { type: "result", id: call.id, value };
  } catch (error) {
    return { type: "failure", id: call.id, error: toPlain(error) };
  }
}

/** From opening to closing. Returns the error that ended it, if one did, and what is left. */
async function serve(world: World): Promise<ServedEnd> {
  const { plane } = world;
  let engine: Engine | undefined;
  let connection: Connection | undefined;
  let failure: PlainError | undefined;
  let remains: SetRemains | undefined;
  try {
    const opened = engine = await plane.track(openEngine(world));
    listen((message) => {
      plane.noteMessage();
      if (message.type === "stop") plane.detach();
      else if (message.type === "told") world.served.noteTold();
      else void plane.track(answer(world, opened, message)).then(post);
    });
    connection = await plane.track(connect(world, engine));
    post({ type: "ready", volumes: engine.volumes.map(volumeInfo) });
    await connection.over;
  } catch (error) {
    failure = toPlain(error);
  }
  const isBroken = failure !== undefined && connection !== undefined;
  try {
    if (engine !== undefined) {
      remains = await plane.track(closeEngine(world, engine, connection));
    }
  } catch (error) {
    const closing = toPlain(error);
    const { message } = closing;
    failure = failure === undefined
      ? closing
      : { ...closing, message: `${failure.message}; then closing failed: ${message}` };
  }
  // Until then the other thread uses the descriptor.
  await plane.track(world.served.told());
  await plane.stop();
  connection?.channel.close();
  // A connection that broke is still mounted, and answers nobody any more.
  if (isBroken) tryDetach(world);
  return { error: failure, remains };
}

async function main(start: WorkerStart): Promise<void> {
  const libc = await openLibc();
  const clock = new DataPlaneClock();
  const plane = new DataPlane({ libc, clock, wakeFd: start.wakeFd });
  const crash = (error: unknown): void => {
    plane.abandon();
    post({ type: "crashed", error: toPlain(error) });
  };
  // Holds the thread until the main thread ends it, which has read the last message then.
  listen(() => {});
  process.on("uncaughtException", crash);
  process.on("unhandledRejection", crash);
  plane.start();
  const served = new ServedVolumes(clock, post, {
    allowOther: start.config.allowOther,
    track: (work) => plane.track(work),
  });
  const end = await serve({ config: start.config, libc, plane, served });
  post({ type: "ended", ...end });
}

await main(workerData as WorkerStart);
