/** The command line as a process, under the runtime that runs this test, over a fake engine. */
import { afterAll, afterEach, beforeAll, beforeEach, test } from "bun:test";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { main } from "../../../api/cli/main.ts";

const PROGRAM = fileURLToPath(new URL("./fake_program.ts", import.meta.url));
const RUNTIME = "Deno" in globalThis ? ["run", "--quiet", "--no-check", "-A"] : [];

/** Without FUSE every mount is refused for that reason first. */
function testWithFuse(name: string, body: () => Promise<void>, timeoutMs?: number): void {
  if (existsSync("/dev/fuse")) test(name, body, timeoutMs);
}

let directory = "";
let mountPoint = "";
let log = "";
let children: ChildProcess[] = [];

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "bcache-fuse-cli-"));
  mountPoint = join(directory, "mnt");
  log = join(directory, "log");
  mkdirSync(mountPoint);
});
beforeEach(() => writeFileSync(log, ""));
afterEach(() => {
  for (const child of children) if (child.exitCode === null) child.kill("SIGKILL");
  children = [];
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

interface MountListed {
  readonly mount: { readonly mountPoint: string };
}

interface Running {
  child: ChildProcess;
  out(): string;
  err(): string;
  ended: Promise<number | null>;
}

function start(words: readonly string[], variables: Record<string, string> = {}): Running {
  const child = spawn(process.execPath, [...RUNTIME, PROGRAM, ...words], {
    cwd: directory,
    env: { ...process.env, XDG_RUNTIME_DIR: directory, FAKE_LOG: log, ...variables },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  let out = "";
  let err = "";
  child.stdout?.setEncoding("utf8").on("data", (part: string) => out += part);
  child.stderr?.setEncoding("utf8").on("data", (part: string) => err += part);
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  return { child, out: () => out, err: () => err, ended };
}

async function run(
  words: readonly string[],
  variables: Record<string, string> = {},
): Promise<{ status: number | null; out: string; err: string }> {
  const running = start(words, variables);
  const status = await running.ended;
  return { status, out: running.out(), err: running.err() };
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let waitedMs = 0; waitedMs < 8000; waitedMs += 20) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}

/** Fails with exactly one line on standard error and nothing on standard output. */
async function refused(status: number, line: RegExp, words: readonly string[]): Promise<void> {
  const result = await run(words);
  assertMatch(result.err, /^bcache-fuse: [^\n]+\n$/);
  assertMatch(result.err, line);
  assertEquals([result.status, result.out], [status, ""]);
}

/** Not `child.kill`: Deno then reports the signal as the end, whatever the process made of it. */
function signal(running: Running, name: "SIGINT" | "SIGTERM" | "SIGKILL"): void {
  assert(running.child.pid !== undefined, "the process was started");
  process.kill(running.child.pid, name);
}

const calls = () => readFileSync(log, "utf8").trim().split("\n").filter((line) => line !== "");

test("the command line prints help and the version", async () => {
  const help = await run(["--help"]);
  assertEquals(help.status, 0);
  const names = ["make", "show", "mount", "unmount", "status", "flush", "get", "set"];
  for (const name of [...names, "check", "dump", "writeback", "extract"]) {
    assertMatch(help.out, new RegExp(`^  ${name}[ |]`, "m"));
  }
  const version = await run(["--version"]);
  assertMatch(version.out, /^\d+\.\d+\.\d+\n$/);
  const ofDump = await run(["dump", "--help"]);
  assertMatch(ofDump.out.replace(/\s+/g, " "), /"superblock", "journal", .*"extents"/);
  const ofCommand = await run(["mount", "--help"]);
  assertStringIncludes(ofCommand.out, "--cache-mode <mode>");
  assertStringIncludes(ofCommand.out, "127.0.0.1:8380");
});

test("help is a command as well, of the program and of a command", async () => {
  assertEquals((await run(["help"])).out, (await run(["--help"])).out);
  const ofCreate = await run(["help", "volume", "create"]);
  assertEquals(ofCreate.out, (await run(["volume", "create", "--help"])).out);
  assertEquals(ofCreate.status, 0);
  assertStringIncludes((await run(["help", "make"])).out, "--wipe-bcache");
  const ofStatus = (await run(["help", "status"])).out;
  assertStringIncludes(ofStatus.replace(/\s+/g, " "), "those whose process has ended");
  // One image comes of one device.
  const ofExtract = (await run(["help", "extract"])).out;
  assertEquals(/--backing <path> +the backing device\n/.test(ofExtract), true, ofExtract);
});

const WRONG: ReadonlyArray<readonly [number, RegExp, readonly string[]]> = [
  [2, /no command.*--help/, []],
  [2, /unknown command 'mout'.*mount.*--help/, ["mout"]],
  [2, /unknown option '--chache'.*mount --help/, ["mount", "--chache", "c", "m"]],
  [2, /no cache device was given; add --cache CACHE/, ["mount", "--backing", "b", "m"]],
  [2, /missing required argument 'mountpoint'/, ["mount", "--cache", "c", "--backing", "b"]],
  [2, /one cache device, 2 were given/, ["mount", "-C", "c", "-C", "d", "-B", "b", "m"]],
  [2, /b is named twice/, ["mount", "-C", "c", "-B", "b", "-B", "b", "m"]],
  [2, /unknown command 'volume mak'; see/, ["help", "volume", "mak"]],
  [2, /choices are writethrough, writeback, writearound, none; see/i, [
    "mount",
    "-C",
    "c",
    "-B",
    "b",
    "--cache-mode",
    "x",
    "m",
  ]],
  [2, /expected NAME=VALUE/, ["mount", "-C", "c", "-B", "b", "--set", "x", "m"]],
  [2, /expected HOST:PORT/, ["mount", "-C", "c", "-B", "b", "--http", "x", "m"]],
  [2, /nothing to make/, ["make"]],
  [2, /one cache device, 2 were given/, ["make", "-C", "c", "d"]],
  [2, /c is named twice/, ["make", "-C", "c", "-B", "c"]],
  [2, /--sidecar is about a backing device/, ["make", "-C", "c", "--sidecar"]],
  [2, /--discard is about a cache device/, ["make", "-B", "b", "--discard"]],
  [2, /leave out --data-offset/, ["make", "-B", "b", "--sidecar", "-o", "16"]],
  [2, /--http "300\.1\.1\.1:1": the host 300/, ["mount", "-C", "c", "--http", "300.1.1.1:1", "m"]],
  [2, /--bucket "12q".*like 512k/, ["make", "-C", "c", "-b", "12q"]],
  [2, /--bucket 48k: expected a power of two from 4k to 1G; see/, ["make", "-C", "c", "-b", "48k"]],
  [2, /--block 1000: expected a power of two from 512 to 4k; see/, [
    "make",
    "-C",
    "c",
    "-w",
    "1000",
  ]],
  [2, /--block 8k: expected a power of two from 512 to 4k; see/, ["make", "-C", "c", "-w", "8k"]],
  [2, /--block 128k: .* from 512 to 64k; see/, ["make", "-B", "b", "-b", "64k", "-w", "128k"]],
  [2, /--size "64X": expected a number/, ["make", "-C", "c", "--size", "64X"]],
  [2, /--size 0: a size above zero/, ["make", "-C", "c", "--size", "0"]],
  [2, /--data-offset 8k: expected a number of sectors/, ["make", "-B", "b", "-o", "8k"]],
  [2, /--cset-uuid 123: expected a UUID/, ["make", "-C", "c", "--cset-uuid", "123"]],
  [
    2,
    /--cache-replacement-policy mru: expected lru, fifo, random/,
    ["make", "-C", "c", "--cache_replacement_policy=mru"],
  ],
  [2, /--label is 33 bytes long; at most 32/, ["make", "-B", "b", "--label", "x".repeat(33)]],
  [2, /size "abc": expected a number.*; see bcache-fuse volume create --help/, [
    "volume",
    "create",
    "none",
    "abc",
  ]],
  [1, /none does not exist/, ["show", "none"]],
  [2, /<device> is empty; expected a path; see bcache-fuse show --help/, ["show", ""]],
  [2, /--cache is empty/, ["make", "-C", ""]],
  [2, /--bdev is empty/, ["make", "-B", "b", ""]],
  [2, /<mountpoint> is empty/, ["mount", "-C", "c", "-B", "b", ""]],
  [2, /--backing is empty/, ["mount", "-C", "c", "-B", "", "m"]],
  [2, /<backing> is empty/, ["attach", "m", ""]],
  [2, /--output is empty/, ["extract", "-C", "c", "-B", "b", "-o", ""]],
  [
    1,
    /"writeback_precent"; did you mean writeback_percent[^?]*\? bcache-fuse get/,
    ["mount", "-C", "c", "-B", "b", "--set", "writeback_precent=1", "m"],
  ],
  [
    1,
    /no attribute "foo"; bcache-fuse get MOUNTPOINT lists all\n/,
    ["mount", "-C", "c", "-B", "b", "--set", "foo=1", "m"],
  ],
  [1, /neither a file nor a block device/, ["show", "."]],
  [1, /nothing of this user is mounted at .*none; .*status/, ["unmount", "none"]],
  [1, /nothing of this user is mounted/, ["status", "none"]],
  [1, /nothing of this user is mounted/, ["flush", "none"]],
  [1, /nothing of this user is mounted/, ["get", "none", "label"]],
  [1, /nothing of this user is mounted/, ["set", "none", "label", "x"]],
  [2, /missing required argument 'value'/, ["set", "none", "label"]],
];
for (const [status, line, words] of WRONG) {
  const shown = words.join(" ").slice(0, 70) || "nothing at all";
  test(`the command line refuses: ${shown}`, async () => {
    let out = "";
    let err = "";
    const parts = {
      mount: () => Promise.reject(new Error("nothing may be mounted")),
      make: () => Promise.reject(new Error("nothing may be made")),
    };
    const found = await main(words, {
      version: "1.2.3",
      path: PROGRAM,
      parts,
      environment: { uid: process.getuid?.() ?? 0, xdgRuntimeDirectory: directory },
      isTerminal: false,
      isDaemon: false,
      flushed: () => Promise.resolve(),
      out: (text) => void (out += text),
      err: (text) => void (err += text),
    });
    assertMatch(err, /^bcache-fuse: [^\n]+\n$/);
    assertMatch(err, line);
    assertEquals([found, out], [status, ""]);
  });
}

test("a refusal reaches standard error and the exit status of the process", async () => {
  await refused(2, /unknown command 'mout'/, ["mout"]);
  await refused(1, /none does not exist; check the path/, ["show", "none"]);
});

test("make passes everything on, under each of an option's names", async () => {
  const uuid = "01234567-89ab-cdef-0123-456789abcdef";
  const short = ["-C", "c", "-B", "b1", "b2", "-b", "1M", "-w", "512", "-o", "32"];
  const long = ["--cache", "c", "--bdev", "b1", "--backing", "b2", "--bucket", "1024k"];
  long.push("--block", "0.5k", "--data-offset=32");
  const rest = ["--cset-uuid", uuid, "--writeback", "--discard", "--label", "l", "--size", "1G"];
  const one = [...short, ...rest, "--cache_replacement_policy=fifo", "--wipe-bcache"];
  const other = [...long, ...rest, "--cache-replacement-policy", "fifo", "--force"];
  const result = await run(["make", ...one]);
  assertEquals([result.status, result.out, result.err], [0, "made\n", ""]);
  assertEquals((await run(["make", ...other])).status, 0);
  const [first, second] = calls();
  assertEquals(first, second);
  assertEquals(JSON.parse(first!.slice(5)), {
    cachePath: "c",
    backingPaths: ["b1", "b2"],
    bucketSizeBytes: 1024 ** 2,
    blockSizeBytes: 512,
    dataOffsetSectors: 32,
    setUuid: uuid,
    writeback: true,
    discard: true,
    replacementPolicy: "fifo",
    label: "l",
    sidecar: false,
    sizeBytes: 1024 ** 3,
    force: true,
  });
});

const mount = ["mount", "-C", "c", "-B", "b", "--http", "off"];
testWithFuse(
  "mount points that are missing, files, not empty or in use are refused before the engine starts",
  async () => {
    writeFileSync(join(directory, "file"), "");
    mkdirSync(join(directory, "full", "x"), { recursive: true });
    await refused(1, /none does not exist; make it with mkdir -p none/, [...mount, "none"]);
    await refused(1, /is not a directory/, [...mount, "file"]);
    await refused(1, /is not empty/, [...mount, "full"]);
    assertEquals(calls(), []);
  },
);

const words = ["mount", "-C", "c", "-B", "b", "--http", "127.0.0.1:0"];

async function mounted(variables: Record<string, string> = {}, more: string[] = []) {
  const running = start([...words, ...more, "mnt"], variables);
  await until("the mount", () => running.out().includes("\n") || running.child.exitCode !== null);
  return running;
}
const client = (...line: string[]) => run(line);

/** Of this test; the machine may have others, whose processes have ended. */
async function ownMounts(): Promise<string[]> {
  const all = JSON.parse((await client("status", "--json")).out) as MountListed[];
  return all.map(({ mount }) => mount.mountPoint).filter((path) => path.startsWith(directory));
}

testWithFuse("a mount says one line, is found by all commands, and ends at SIGINT", async () => {
  const running = await mounted();
  assertMatch(
    running.out(),
    /^mounted at \S+mnt: bcache0 1\.0 GiB writeback dirty; http:\S+:\d+; Ctrl-C unmounts\n$/,
  );
  const url = /http:\S+(?=;)/.exec(running.out())?.[0];
  assertEquals((await fetch(`${url}/v1/stats`)).status, 200);

  const again = await client("mount", "-C", "c", "-B", "b", "--http", "off", "mnt");
  assertMatch(again.err, /^bcache-fuse: mnt is already served.*unmount mnt first.*\n$/);
  const port = new URL(url!).host;
  mkdirSync(join(directory, "mnt2"), { recursive: true });
  const samePort = await client("mount", "-C", "c", "-B", "b", "--http", port, "mnt2");
  assertMatch(samePort.err, /^bcache-fuse: \S+ is in use by another program; choose.*\n$/);
  assertEquals(calls().length, 1);

  const status = await client("status");
  assertMatch(status.out, /mnt {2}PID \d+, http:/);
  assertMatch(status.out, /bcache0 {2}1\.0 GiB {2}writeback {2}dirty {2}3\.0 MiB dirty/);
  const json = JSON.parse((await client("status", "mnt", "--json")).out);
  assertEquals([json.mount.pid, json.set.devices.length], [running.child.pid, 1]);
  assertEquals(await ownMounts(), [mountPoint]);

  assertEquals((await client("get", "mnt", "writeback_percent")).out, "10\n");
  assertEquals((await client("set", "mnt", "writeback_percent", "25")).out, "25\n");
  assertEquals((await client("get", "mnt", "bcache0/writeback_percent")).out, "25\n");
  assertMatch((await client("get", "mnt")).out, /^journal_delay_ms +rw +100$/m);
  const hostile = await client("set", "mnt", "journal_delay_ms", "a\u001b[31m\tb\nc");
  assertEquals(hostile.out, "a?[31m\tb\nc\n");
  assertEquals((await client("get", "mnt", "journal_delay_ms")).out, hostile.out);
  const outOfRange = await client("set", "mnt", "writeback_percent", "99");
  assertEquals([outOfRange.status, outOfRange.err], [
    1,
    "bcache-fuse: writeback_percent 99: expected 0 to 40\n",
  ]);
  const unknown = await client("get", "mnt", "nonsense");
  assertMatch(unknown.err, /^bcache-fuse: there is no attribute "nonsense"; .*\n$/);

  const flush = await client("flush", "mnt");
  assertEquals([flush.out, flush.err], [
    "clean; 3.0 MiB were dirty\n",
    "writing back 3.0 MiB\n",
  ]);
  assertEquals((await client("flush", "mnt")).out, "nothing was dirty\n");

  signal(running, "SIGINT");
  assertEquals(await running.ended, 0);
  assertEquals(calls().at(-1), "unmount plain");
  assertEquals(await ownMounts(), []);
  const left = (await client("status")).out;
  assertMatch(left, /^(nothing is mounted|(\S+ {2}(DEAD|PID \w+, UNREACHABLE): [^\n]+\n?)+)\n$/);
  assertEquals(left.includes(directory), false);
}, 30_000);

testWithFuse("a mount ends when it is told to unmount, after a flush if asked", async () => {
  const running = await mounted();
  const result = await client("unmount", "mnt", "--flush");
  assertEquals([result.status, result.out], [0, "unmounted mnt\n"]);
  assertEquals(await running.ended, 0);
}, 15_000);

testWithFuse(
  "a mount in use is not unmounted, and who uses it is said; SIGTERM waits for them",
  async () => {
    const running = await mounted({ FAKE_BUSY: "3" });
    const busy = spawn("sleep", ["60"], { cwd: mountPoint, stdio: "ignore" });
    children.push(busy);
    const result = await client("unmount", "mnt");
    assertEquals(result.status, 1);
    assertMatch(result.err, new RegExp(`^bcache-fuse: \\S+ is in use by .*PID ${busy.pid}.*\n$`));
    signal(running, "SIGTERM");
    assertEquals(await running.ended, 0);
    assertStringIncludes(running.err(), `(PID ${busy.pid}); waiting until it is free`);
    assertEquals(calls().filter((line) => line.startsWith("unmount")).length, 4);
  },
  15_000,
);

testWithFuse("a mount in use is detached at the second signal", async () => {
  const running = await mounted({ FAKE_BUSY: "1000" });
  signal(running, "SIGINT");
  await until("the first refusal", () => running.err().includes("waiting until"));
  signal(running, "SIGINT");
  assertEquals(await running.ended, 0);
  assertEquals(calls().at(-1), "unmount force");
}, 15_000);

testWithFuse("a mount is told apart from one whose process was killed", async () => {
  const running = await mounted();
  signal(running, "SIGKILL");
  await running.ended;
  await refused(1, /nothing of this user is mounted/, ["status", "mnt"]);
  const next = await mounted();
  signal(next, "SIGTERM");
  assertEquals(await next.ended, 0);
}, 15_000);

testWithFuse("a mount has ended when its process has, whoever started it", async () => {
  // A shell that never looks what became of its child.
  const command = [process.execPath, ...RUNTIME, PROGRAM, ...words, "mnt"];
  const parent = spawn("sh", ["-c", '"$@" & exec sleep 60', "sh", ...command], {
    cwd: directory,
    env: { ...process.env, XDG_RUNTIME_DIR: directory, FAKE_LOG: log, FAKE_LEFT: "512" },
    stdio: ["ignore", "pipe", "ignore"],
  });
  children.push(parent);
  let out = "";
  parent.stdout.on("data", (part) => out += String(part));
  await until("the mount", () => out.includes("\n"));
  const result = await client("unmount", "mnt");
  assertEquals([result.status, result.err], [0, ""]);
  assertEquals(result.out, "unmounted mnt; 512 B stay dirty in the cache\n");
}, 15_000);

testWithFuse("what the set and its devices have is set of the set, and shown of all", async () => {
  const running = await mounted();
  assertEquals((await client("set", "mnt", "writeback_running", "0")).out, "0\n");
  assertMatch(
    (await client("get", "mnt", "writeback_running")).out,
    /^writeback_running +rw +0\nbcache0\/writeback_running +rw +1\n$/,
  );
  signal(running, "SIGTERM");
  await running.ended;
}, 15_000);

testWithFuse(
  "a mount sets attributes before it is ready, and is not begun when one is refused",
  async () => {
    const good = await mounted({}, ["--set", "bcache0/label=x y=z", "--set", "journal_delay_ms=7"]);
    assertEquals((await client("get", "mnt", "label")).out, "x y=z\n");
    assertEquals((await client("get", "mnt", "journal_delay_ms")).out, "7\n");
    signal(good, "SIGTERM");
    await good.ended;
    const before = calls().length;
    for (
      const [set, line] of [
        ["nonsense=1", /no attribute "nonsense"/],
        ["state=x", /can only be read/],
        ["writeback_percent=99", /from 0 to 40/],
        ["bcache0/cache_mode=foo", /expected one of writethrough/],
      ]
    ) {
      const bad = await run([...words, "--set", set as string, "mnt"]);
      assertEquals([bad.status, bad.out], [1, ""]);
      assertMatch(bad.err.split("\n").at(-2) ?? "", line as RegExp);
      assertEquals(calls().length, before, "nothing was touched");
    }
  },
  15_000,
);

testWithFuse("a mount that the engine refuses is one line, and leaves no socket", async () => {
  const result = await run([...words, "mnt"], { FAKE_FAIL: "c: bad checksum\nat sector 8" });
  assertEquals([result.status, result.out, result.err], [
    1,
    "",
    "bcache-fuse: c: bad checksum; at sector 8\n",
  ]);
  assertEquals(await ownMounts(), []);
});

testWithFuse(
  "a daemon is ready when the command returns, logs to a file, and is unmounted by name",
  async () => {
    const words = ["mount", "-C", "c", "-B", "b", "--http", "off", "--daemon", "mnt"];
    const result = await run(words, { FAKE_LEFT: String(3 * 1024 ** 2) });
    assertEquals([result.status, result.err], [0, ""]);
    const file = /log: (\S+)\n$/.exec(result.out)?.[1];
    assert(file !== undefined, result.out);
    assertStringIncludes(readFileSync(file, "utf8"), "info: replayed the journal");
    assertStringIncludes(calls()[0] ?? "", `"cachePath":"${join(directory, "c")}"`);
    const unmounted = await run(["unmount", "mnt"]);
    assertEquals([unmounted.status, unmounted.out], [
      0,
      "unmounted mnt; 3.0 MiB stay dirty in the cache\n",
    ]);
  },
  15_000,
);

testWithFuse("a daemon that cannot mount passes its error and status back", async () => {
  const words = ["mount", "-C", "c", "-B", "b", "--http", "off", "--daemon", "mnt"];
  const result = await run(words, { FAKE_FAIL: "c: bad magic" });
  assertEquals([result.status, result.out, result.err], [1, "", "bcache-fuse: c: bad magic\n"]);
}, 15_000);
