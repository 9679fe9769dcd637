/**
 * `npm start`: the main job, shown. Makes a backing image and a cache in ./demo, mounts them, puts
 * ext4 on the mounted file (as root; otherwise an archive straight into it), copies real files in
 * and reads them back twice, from the backing image and from the cache. Then it stays mounted
 * until Ctrl-C; with --once it ends. What ./demo holds from an earlier run is used again.
 *
 *   npm start -- [--once] [--folder FOLDER]
 */
// deno-lint-ignore-file no-console
import { execFile, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join, relative, resolve } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { isDeadMount } from "../api/control/mount_table.ts";
import { argumentsOf, flag, text } from "./support/arguments.ts";
import { clearDeadMount } from "./support/dead_mounts.ts";
import { installFor } from "./support/install.ts";

const TOP = join(import.meta.dirname!, "..");
const PROGRAM = process.versions["bun"] === undefined
  ? [process.execPath, "run", "--quiet", "-A", "--no-check", join(TOP, "mod.ts")]
  : [process.execPath, join(TOP, "mod.ts")];
const BACKING_BYTES = 1024 * 1024 * 1024;
const CACHE_BYTES = 320 << 20;
/** What is copied in is this project's own packages, up to about this much. */
const COPY_BYTES = 48 << 20;
const DEFAULT_PORT = 8380;
const MOUNT_LIMIT_MS = 30_000;

const { once, folder: named } = argumentsOf({
  command: "npm start",
  about:
    "The main job, shown: a cache before a backing image, mounted, real files on it, read from " +
    "the backing image and then from the cache. It stays mounted until Ctrl-C.",
  options: {
    once: flag("ends instead of staying mounted"),
    folder: text("where everything lies (default demo in the project)", "FOLDER", resolve),
  },
}).values;

/** Somewhere to put files, on the mounted file, and to read them all back from. */
interface Store {
  fill(): void;
  /** Reads everything, past the page cache, and returns how many bytes that was. */
  readAll(): number;
}

/** What is to be undone at the end, the last first. */
const undo: Array<() => void | Promise<void>> = [];

function run(program: string, ...args: string[]): string {
  const path = `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`;
  const env = { ...process.env, PATH: path, LC_ALL: "C" };
  return execFileSync(program, args, { encoding: "utf8", env, stdio: ["ignore", "pipe", "pipe"] });
}

/** Takes away what a mount that was killed has left, and says so. */
function clearDead(mountpoint: string): void {
  if (!clearDeadMount(mountpoint)) return;
  show("cleared", `${short(mountpoint)}, whose mount was killed`);
}

function bcacheFuse(...args: string[]): string {
  return run(PROGRAM[0]!, ...PROGRAM.slice(1), ...args);
}

function show(step: string, text: string): void {
  console.log(`${step.padEnd(11)}${text}`);
}

function short(path: string): string {
  const fromHere = relative(process.cwd(), path);
  return fromHere.startsWith("..") ? path : fromHere || ".";
}

function mebibytes(bytes: number): string {
  return `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

function sizeOfTree(folder: string): number {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + readFileSync(join(entry.parentPath, entry.name)).length, 0);
}

/** Folders of real files that together hold about COPY_BYTES. */
function chosenFolders(): string[] {
  const packages = join(TOP, "node_modules");
  const chosen: string[] = [];
  let totalBytes = 0;
  for (const name of readdirSync(packages).sort()) {
    const folder = join(packages, name);
    if (name.startsWith(".") || !statSync(folder).isDirectory()) continue;
    const sizeBytes = sizeOfTree(folder);
    if (totalBytes + sizeBytes > COPY_BYTES) continue;
    totalBytes += sizeBytes;
    chosen.push(folder);
  }
  return chosen;
}

/** ext4 through a loop device, for root. Every reading mounts it anew: nothing is in memory. */
function fileSystemOn(file: string, folder: string): Store {
  mkdirSync(folder, { recursive: true });
  const loop = run("losetup", "--find", "--show", "--direct-io=on", file).trim();
  undo.push(() => void run("losetup", "--detach", loop));
  let mounted = false;
  undo.push(() => {
    if (mounted) run("umount", folder);
  });
  const mountAnew = () => {
    if (mounted) run("umount", folder);
    mounted = false;
    run("mount", loop, folder);
    mounted = true;
  };
  return {
    fill: () => {
      run("mkfs.ext4", "-q", "-F", loop);
      mountAnew();
      run("cp", "-a", ...chosenFolders(), folder);
      run("sync", "-f", folder);
    },
    readAll: () => {
      mountAnew();
      return sizeOfTree(folder);
    },
  };
}

/** Without root: a tar archive as the content of the file, read with direct I/O. */
function archiveOn(file: string, scratch: string): Store {
  return {
    fill: () => {
      run("tar", "-cf", scratch, ...chosenFolders());
      run("dd", `if=${scratch}`, `of=${file}`, "bs=1M", "conv=notrunc,fsync", "status=none");
    },
    readAll: () => {
      const sizeBytes = statSync(scratch).size;
      const count = `count=${Math.ceil(sizeBytes / (1 << 20))}`;
      run("dd", `if=${file}`, "of=/dev/null", "bs=1M", count, "iflag=direct", "status=none");
      return sizeBytes;
    },
  };
}

async function httpAddress(): Promise<string> {
  const isFree = await new Promise<boolean>((done) => {
    const server = createServer();
    server.once("error", () => done(false));
    server.listen(DEFAULT_PORT, "127.0.0.1", () => server.close(() => done(true)));
  });
  return `127.0.0.1:${isFree ? DEFAULT_PORT : 0}`;
}

/** Starts `mount` and returns its status line. `ended` is told when the process has gone. */
async function startMount(args: string[], ended: () => void): Promise<string> {
  // A group of its own: Ctrl-C is for us, who have a file system to unmount first.
  const child = spawn(PROGRAM[0]!, [...PROGRAM.slice(1), "mount", ...args], {
    detached: true,
    stdio: ["ignore", "pipe", "inherit"],
  });
  return await new Promise((resolve, reject) => {
    let output = "";
    const limit = setTimeout(() => reject(new Error("the mount is not ready")), MOUNT_LIMIT_MS);
    child.stdout.on("data", (chunk) => {
      output += String(chunk);
      const line = output.split("\n").find((line) => line.includes("mounted at"));
      if (line === undefined) return;
      clearTimeout(limit);
      resolve(line);
    });
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      clearTimeout(limit);
      reject(new Error(`the mount ended with ${signal ?? code}`));
      ended();
    });
  });
}

/** Reads everything once and tells how fast, and how much of it came from the cache. */
function showReading(step: string, store: Store, mountpoint: string): void {
  const statsNow = () =>
    JSON.parse(bcacheFuse("status", mountpoint, "--json")).set.devices[0].stats;
  const before = statsNow();
  const startedMs = performance.now();
  const bytes = store.readAll();
  const seconds = (performance.now() - startedMs) / 1000;
  const after = statsNow();
  const hits = after.cacheHits - before.cacheHits;
  const lookups = hits + after.cacheMisses - before.cacheMisses;
  const ratio = lookups === 0 ? 0 : Math.round(100 * hits / lookups);
  const speed = `${mebibytes(bytes)} in ${seconds.toFixed(2)} s`;
  show(step, `${speed}, ${hits} of ${lookups} requests from the cache: hit ratio ${ratio} %`);
}

/** False when the mount ended before it was asked to. */
async function demonstrate(folder: string): Promise<boolean> {
  const [cache, backing] = [join(folder, "cache.img"), join(folder, "backing.img")];
  const mountpoint = join(folder, "mnt");
  const file = join(mountpoint, "bcache0");
  const mark = join(folder, ".filled");
  clearDead(mountpoint);
  mkdirSync(mountpoint, { recursive: true });

  const isFresh = !existsSync(mark);
  if (isFresh) {
    // Without the mark an earlier run was cut short; what it left is of no use.
    for (const [path, sizeBytes] of [[cache, CACHE_BYTES], [backing, BACKING_BYTES]] as const) {
      rmSync(path, { force: true });
      writeFileSync(path, "");
      truncateSync(path, sizeBytes);
    }
    bcacheFuse("make", "-C", cache, "-B", backing);
    show(
      "make",
      `${short(backing)} ${mebibytes(BACKING_BYTES)} behind ${short(cache)} ` +
        mebibytes(CACHE_BYTES),
    );
  } else show("found", `${short(folder)} of an earlier run; remove it to start over`);

  let stop = () => {};
  const stopped = new Promise<void>((done) => stop = done);
  for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) process.on(signal, stop);
  // Written around the cache first, so that the first reading finds nothing there. It is to leave
  // everything there: no run is too long, and a busy machine is no reason to go past the cache.
  const settings = ["--cache-mode", "writearound", "--set", "sequential_cutoff=0"];
  settings.push("--set", "congested_read_threshold_us=0");
  const devices = ["--cache", cache, "--backing", backing, mountpoint];
  const http = ["--http", await httpAddress()];
  let alive = true;
  const line = await startMount([...devices, ...settings, ...http], () => {
    alive = false;
    stop();
  });
  // Not waited for by blocking: `unmount` waits for the process to be gone, and it is our child.
  undo.push(async () => {
    if (!alive || isDeadMount(mountpoint)) return clearDead(mountpoint);
    await promisify(execFile)(PROGRAM[0]!, [...PROGRAM.slice(1), "unmount", mountpoint]);
  });
  show("mount", short(file));
  const isRoot = process.getuid?.() === 0;
  const store = isRoot
    ? fileSystemOn(file, join(folder, "files"))
    : archiveOn(file, join(folder, "archive.tar"));
  if (isFresh) {
    store.fill();
    writeFileSync(mark, "");
    show("fill", isRoot ? `ext4, files in ${short(join(folder, "files"))}` : "a tar archive");
  }
  showReading(isFresh ? "read cold" : "read", store, mountpoint);
  showReading(isFresh ? "read warm" : "read again", store, mountpoint);
  bcacheFuse("set", mountpoint, "cache_mode", "writeback");
  show("writeback", "from here on writes go to the cache first");
  show("http", /https?:[^\s;]+/.exec(line)?.[0] ?? "off");
  if (once) return true;
  show("mounted", "until Ctrl-C");
  await stopped;
  if (alive) show("unmount", "what is dirty stays in the cache");
  return alive;
}

installFor(["start"], "demo");
const wanted = named ?? join(TOP, "demo");
mkdirSync(wanted, { recursive: true });
// As the kernel names what is mounted there.
const folder = realpathSync(wanted);
try {
  if (!await demonstrate(folder)) {
    console.error("demo: the mount ended before it was asked to; start again to go on");
    process.exitCode = 1;
  }
} catch (error) {
  console.error(`demo: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  for (const step of undo.reverse()) {
    try {
      await step();
    } catch (error) {
      console.error(`demo: ${error instanceof Error ? error.message : String(error)}`);
      process.exitCode = 1;
    }
  }
}
if (process.exitCode === undefined) show("done", `${short(folder)} is kept; run again to go on`);
// The mount's process and its pipe would keep the event loop alive.
process.exit();
