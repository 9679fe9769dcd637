/** A device that a mount has: the refusal says which, before anything else that is in the way. */
import { afterEach, beforeEach, describe, test } from "bun:test";
import { assertEquals, assertStringIncludes } from "@std/assert";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { main } from "../../../api/cli/main.ts";
import { controlSocketPath, ensureRunDirectory } from "../../../api/control/run_directory.ts";
import { createApp } from "../../../api/http/app.ts";
import { type Listening, listenTcp, listenUnix } from "../../../api/http/serve.ts";

let folder = "";
let image = "";
let holder: ChildProcess | undefined;
const listening: Listening[] = [];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-in-use-"));
  image = join(folder, "cache.img");
  writeFileSync(image, new Uint8Array(65536));
  mkdirSync(join(folder, "mnt"));
  // It locks the file and says so, as another process would hold it.
  const words = ["--exclusive", image, "sh", "-c", "echo held; exec sleep 60"];
  holder = spawn("flock", words, { stdio: ["ignore", "pipe", "ignore"] });
  await once(holder.stdout!, "data");
});
afterEach(async () => {
  holder?.kill("SIGKILL");
  await Promise.all(listening.splice(0).map((each) => each.close()));
  rmSync(folder, { recursive: true, force: true });
});

function environment() {
  return { uid: process.getuid?.() ?? 0, xdgRuntimeDirectory: folder };
}

/** A control socket of a mount at `mountPoint`, which says that it is the process `pid`. */
async function serve(mountPoint: string, pid: number): Promise<void> {
  const info = () => ({
    ...{ pid, mountPoint, cachePath: image, backingPaths: [], readOnly: false },
    ...{ httpAddress: null, version: "1" },
  });
  const mount = { info, unmount: () => Promise.resolve(undefined) };
  const app = createApp({ control: () => undefined, mount, version: "1" });
  const socket = controlSocketPath(ensureRunDirectory(environment()), mountPoint);
  listening.push(await listenUnix(app, socket));
}

async function run(...words: string[]): Promise<{ status: number; err: string }> {
  let err = "";
  const nothing = () => Promise.reject(new Error("not in this test"));
  const status = await main(words, {
    version: "1.2.3",
    path: "",
    parts: { mount: nothing, make: nothing },
    environment: environment(),
    isTerminal: false,
    isDaemon: false,
    flushed: () => Promise.resolve(),
    out: () => {},
    err: (text) => void (err += text),
  });
  return { status, err };
}

describe("a device in use", () => {
  test("by a mount of ours: the refusal names it, and what ends it", async () => {
    await serve("/mnt/other", 1);
    await serve("/mnt/of it", holder!.pid!);
    const { status, err } = await run("check", "-C", image);
    assertEquals(status, 1);
    assertStringIncludes(err, `${image} is in use by process ${holder!.pid} (`);
    const advice = "; it serves /mnt/of it: run bcache-fuse unmount /mnt/of it first\n";
    assertEquals(err.slice(-advice.length), advice);
  });

  test("by somebody else: the process is named", async () => {
    await serve("/mnt/other", 1);
    const { err } = await run("check", "-C", image);
    assertStringIncludes(err, `${image} is in use by process ${holder!.pid} (`);
    assertEquals(err.endsWith("); stop that first\n"), true);
  });

  test("is said before the port that the same mount has", async () => {
    if (!existsSync("/dev/fuse")) return;
    const app = createApp({ control: () => undefined, version: "1" });
    const http = await listenTcp(app, { host: "127.0.0.1", port: 0 });
    listening.push(http);
    await serve("/mnt/x", holder!.pid!);
    const { host } = new URL(http.address);
    const free = join(folder, "free.img");
    writeFileSync(free, new Uint8Array(65536));
    const mnt = join(folder, "mnt");
    for (const devices of [["-C", image, "-B", free], ["-C", free, "-B", image]]) {
      const { status, err } = await run("mount", ...devices, "--http", host, mnt);
      assertEquals(status, 1);
      assertStringIncludes(err, `${image} is in use by process ${holder!.pid} (`);
      assertStringIncludes(err, "unmount /mnt/x first");
    }
    const { err } = await run("mount", "-C", free, "-B", free + "2", "--http", host, mnt);
    assertStringIncludes(err, `${host} is in use by another program`);
  });
});
