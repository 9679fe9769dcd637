/** The commands over a real FUSE mount: daemon, in use, detached by hand, killed. */
import { afterEach, beforeEach, test } from "bun:test";
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { execFile, spawnSync } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
} from "node:fs";
import { readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { lateText } from "../../../api/cli/unmount.ts";
import { isDeadMount, mountAt } from "../../../api/control/mount_table.ts";

const PROGRAM = join(import.meta.dirname!, "memory_program.ts");
const RUNTIME = "Deno" in globalThis ? ["run", "--quiet", "--no-check", "-A"] : [];
const MOUNT = ["mount", "-C", "c", "-B", "b", "--http", "off", "--daemon"];

/** Only root can be sure to be let: others need fusermount3 and its permission. */
function testWithMount(name: string, body: () => Promise<void>): void {
  if (existsSync("/dev/fuse") && process.getuid?.() === 0) test(name, body, 20_000);
}

let directory = "";
let mountPoint = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "bcache-fuse-real-"));
  mountPoint = join(directory, "mnt");
  mkdirSync(mountPoint);
});
afterEach(() => {
  if (mountAt(mountPoint)) spawnSync("umount", ["-l", mountPoint]);
  rmSync(directory, { recursive: true, force: true });
});

function run(...words: string[]): Promise<{ status: number; out: string; err: string }> {
  const env = { ...process.env, XDG_RUNTIME_DIR: directory };
  return new Promise((resolve) => {
    const options = { env, cwd: directory, encoding: "utf8" } as const;
    execFile(process.execPath, [...RUNTIME, PROGRAM, ...words], options, (error, out, err) => {
      resolve({ status: error === null ? 0 : Number(error.code), out, err });
    });
  });
}

async function pidOf(): Promise<number> {
  return JSON.parse((await run("status", "mnt", "--json")).out).mount.pid;
}

/** One that has ended stays listed until its parent looks. */
function isRunning(pid: number): boolean {
  const path = `/proc/${pid}/status`;
  return existsSync(path) && !/^State:\tZ/m.test(readFileSync(path, "utf8"));
}

testWithMount("a daemon serves its file, and unmount ends it", async () => {
  const mounted = await run(...MOUNT, "mnt");
  assertEquals([mounted.status, mounted.err], [0, ""]);
  assertEquals(statSync(join(mountPoint, "bcache0")).size, 1048576);
  const log = mounted.out.trim().split("log: ")[1]!;
  assertEquals(existsSync(log), true);
  const pid = await pidOf();
  const ofFile = await run("status", "mnt/bcache0");
  assertEquals([ofFile.status, ofFile.out], [1, ""]);
  const line = `mnt/bcache0 is a file of the mount at ${mountPoint}; name the mount point, `;
  assertEquals(ofFile.err, `bcache-fuse: ${line}${mountPoint}\n`);
  const unmounted = await run("unmount", "mnt", "--flush");
  assertEquals([unmounted.status, unmounted.out], [0, "unmounted mnt\n"]);
  assertEquals(mountAt(mountPoint), undefined);
  assertEquals(isRunning(pid), false);
  assertEquals(existsSync(log), false); // It ended well; a log is kept for what did not.
});

/** The logs in the run directory, by name. */
function logs(): string[] {
  return readdirSync(join(directory, "bcache-fuse")).filter((name) => name.endsWith(".log"));
}

testWithMount("a start that is refused is one line, and leaves no log", async () => {
  writeFileSync(join(mountPoint, "x"), "");
  for (const [where, why] of [["mnt", "is not empty"], ["mnt/x", "not a directory"]] as const) {
    const refused = await run(...MOUNT, where);
    assertEquals([refused.status, refused.out], [1, ""]);
    assertMatch(refused.err, new RegExp(`^bcache-fuse: .*${why}.*\n$`));
  }
  const missing = await run(...MOUNT, "none");
  assertMatch(missing.err, /^bcache-fuse: .* does not exist; .*\n$/);
  assertEquals(logs(), []);
});

testWithMount(
  "a second mount that is refused writes nothing into the first one's log",
  async () => {
    const log = (await run(...MOUNT, "mnt")).out.trim().split("log: ")[1]!;
    const before = readFileSync(log, "utf8");
    const refused = await run(...MOUNT, "mnt");
    assertEquals(refused.status, 1);
    assertMatch(refused.err, /is already a mount point/);
    assertEquals([logs().length, readFileSync(log, "utf8")], [1, before]);
    assertEquals((await run("unmount", "mnt")).status, 0);
    assertEquals(logs(), []);
  },
);

testWithMount(
  "the log of a mount that failed stays, and the next one's goes on from it",
  async () => {
    const log = (await run(...MOUNT, "mnt")).out.trim().split("log: ")[1]!;
    process.kill(await pidOf(), "SIGKILL");
    appendFileSync(log, "what was logged last\n");
    assertEquals((await run("unmount", "mnt")).status, 0);
    assertEquals((await run(...MOUNT, "--set", "none=1", "mnt")).status, 1);
    assertEquals((await run(...MOUNT, "mnt")).status, 0);
    assertMatch(readFileSync(log, "utf8"), /^(.*\n)?what was logged last\n/);
    // What the daemon says later follows: it writes to that very file.
    const { ino } = statSync(log);
    assertEquals(statSync(`/proc/${await pidOf()}/fd/2`).ino, ino);
    assertEquals((await run("unmount", "mnt")).status, 0);
  },
);

testWithMount("a mount in use is not unmounted unless forced, and its user is named", async () => {
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  const held = openSync(join(mountPoint, "bcache0"), "r");
  try {
    const refused = await run("unmount", "mnt");
    assertEquals(refused.status, 1);
    assertMatch(refused.err, /^bcache-fuse: \S+ is in use by [^\n]+\n$/);
    assertStringIncludes(refused.err, `(PID ${process.pid})`);
    assertEquals((await run("status")).out.includes("bcache0"), true);
    const forced = await run("unmount", "mnt", "--force");
    assertEquals([forced.status, forced.err], [0, ""]);
  } finally {
    closeSync(held);
  }
  assertEquals(mountAt(mountPoint), undefined);
});

testWithMount("a mount whose process was killed is refused, named, and cleared away", async () => {
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  process.kill(await pidOf(), "SIGKILL");
  for (let tries = 0; tries < 100 && !isDeadMount(mountPoint); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assertEquals(isDeadMount(mountPoint), true);
  for (const words of [["status", "mnt"], [...MOUNT, "mnt"]]) {
    const result = await run(...words);
    assertEquals(result.status, 1);
    assertMatch(
      result.err,
      /^bcache-fuse: .*process.*has ended; run bcache-fuse unmount \S*mnt.*\n$/,
    );
  }
  const asJson = await run("status", "mnt", "--json");
  assertEquals(asJson.status, 1);
  assertEquals(JSON.parse(asJson.out), { mount: { mountPoint }, dead: true });
  const all = await run("status");
  assertEquals(all.status, 0);
  assertStringIncludes(
    all.out,
    `${mountPoint}  DEAD: its process has ended; run bcache-fuse unmount ${mountPoint}\n`,
  );
  const json = JSON.parse((await run("status", "--json")).out);
  assertEquals(
    json.filter((each: { mount: { mountPoint: string } }) => each.mount.mountPoint === mountPoint),
    [{ mount: { mountPoint }, dead: true }],
  );
  const cleared = await run("unmount", "mnt");
  assertEquals([cleared.status, cleared.out], [0, "unmounted mnt, whose process had ended\n"]);
  assertEquals(mountAt(mountPoint), undefined);
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  assertEquals((await run("unmount", "mnt")).status, 0);
});

testWithMount("a mount whose control socket was removed is told of, and unmounted", async () => {
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  const pid = await pidOf();
  const runDirectory = join(directory, "bcache-fuse");
  const [socket] = readdirSync(runDirectory).filter((name) => name.endsWith(".sock"));
  rmSync(join(runDirectory, socket!));
  const one = await run("status", "mnt");
  assertEquals([one.status, one.out], [1, ""]);
  assertMatch(one.err, /^bcache-fuse: mnt is a mount .* without its control socket \S+ .*\n$/);
  assertStringIncludes(one.err, `; process ${pid} serves it; run bcache-fuse unmount mnt, `);
  assertStringIncludes(
    (await run("status")).out,
    `${mountPoint}  PID ${pid}, UNREACHABLE: its control socket is missing (it was removed, or ` +
      `belongs to another user or XDG_RUNTIME_DIR); run bcache-fuse unmount ${mountPoint}\n`,
  );
  assertMatch((await run("unmount", "mnt", "--flush")).err, /cannot be flushed/);
  const held = openSync(join(mountPoint, "bcache0"), "r");
  const busy = await run("unmount", "mnt");
  closeSync(held);
  assertEquals(busy.status, 1);
  assertMatch(busy.err, /is in use by/);
  const cleared = await run("unmount", "mnt");
  const line = "unmounted mnt, whose control socket was missing\n";
  assertEquals([cleared.status, cleared.out, cleared.err], [0, line, ""]);
  assertEquals([isRunning(pid), mountAt(mountPoint)], [false, undefined]);
});

testWithMount(
  "a mount whose run directory was wiped is told of, and its end waited for",
  async () => {
    assertEquals((await run(...MOUNT, "mnt")).status, 0);
    const pid = await pidOf();
    rmSync(join(directory, "bcache-fuse"), { recursive: true });
    // Linux tells since 6.17 who serves.
    const fds = readdirSync(`/proc/${pid}/fdinfo`);
    const isSeen = fds.some((fd) =>
      readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8").includes("fuse_connection:")
    );
    const all = await run("status");
    assertEquals(all.status, 0);
    assertStringIncludes(all.out, `${mountPoint}  PID ${isSeen ? pid : "unknown"}, UNREACHABLE: `);
    const { out } = await run("unmount", "mnt");
    const late = isSeen ? "" : "; its process cannot be seen and may still be writing";
    assertEquals(out, `unmounted mnt, whose control socket was missing${late}\n`);
    if (isSeen) assertEquals(isRunning(pid), false);
  },
);

test("of a process that is not known the end cannot be told", async () => {
  assertStringIncludes(await lateText(undefined), "cannot be seen and may still be writing");
  assertEquals(await lateText(process.pid), "");
});

testWithMount("a stopped mount whose queue of connections is full is not called gone", async () => {
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  const pid = await pidOf();
  const runDirectory = join(directory, "bcache-fuse");
  const [socket] = readdirSync(runDirectory).filter((name) => name.endsWith(".sock"));
  process.kill(pid, "SIGSTOP");
  const clients: Socket[] = [];
  try {
    let isFull = false;
    for (let count = 0; count < 6000 && !isFull; count++) {
      isFull = await new Promise<boolean>((resolve) => {
        const client = connect(join(runDirectory, socket!));
        clients.push(client);
        client.once("connect", () => resolve(false));
        client.once("error", () => resolve(true));
      });
    }
    assertEquals(isFull, true);
    for (const words of [["status"], ["status", "mnt"], ["unmount", "mnt"]]) {
      const { status, err } = await run(...words);
      assertEquals(status, 1);
      assertMatch(
        err,
        new RegExp(
          `^bcache-fuse: process ${pid} does not answer: its queue of connections is full`,
        ),
      );
      assertStringIncludes(err, `kill -CONT ${pid} goes on with it`);
    }
  } finally {
    for (const client of clients) client.destroy();
    process.kill(pid, "SIGCONT");
  }
  assertEquals((await run("unmount", "mnt")).status, 0);
});

testWithMount("a mount that was unmounted by hand ends its process", async () => {
  assertEquals((await run(...MOUNT, "mnt")).status, 0);
  const pid = await pidOf();
  spawnSync("umount", [mountPoint]);
  for (let tries = 0; tries < 200 && existsSync(`/proc/${pid}`); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assertEquals(existsSync(`/proc/${pid}`), false);
  assertEquals((await run("status")).out.includes(mountPoint), false);
  assertEquals(readFileSync("/proc/self/mounts", "utf8").includes(mountPoint), false);
});
