/** Where control sockets live, and what the mount table says. */
import { afterAll, beforeAll, describe, test } from "bun:test";
import {
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { spawn } from "node:child_process";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import {
  holdersOf,
  isDeadMount,
  loopDeviceOf,
  mountAt,
  parseMountInfo,
  realMountPoint,
} from "../../../api/control/mount_table.ts";
import {
  controlSocketPath,
  controlSockets,
  ensureRunDirectory,
  runDirectoryPath,
} from "../../../api/control/run_directory.ts";
import { BcacheError } from "../../../lib/base/errors.ts";

let directory = "";
beforeAll(() => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), "bcache-fuse-files-")));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const uid = process.getuid?.() ?? 0;

describe("the run directory", () => {
  test("is the user's runtime directory, or /run for root, or in /tmp", () => {
    assertEquals(runDirectoryPath({ uid: 7, xdgRuntimeDirectory: "/x" }), "/x/bcache-fuse");
    assertEquals(
      runDirectoryPath({ uid: 0, xdgRuntimeDirectory: undefined }),
      "/run/bcache-fuse",
    );
    assertEquals(
      runDirectoryPath({ uid: 7, xdgRuntimeDirectory: undefined }),
      "/tmp/bcache-fuse-7",
    );
  });
  test("is made for this user only", () => {
    const path = ensureRunDirectory({ uid, xdgRuntimeDirectory: directory });
    assertEquals(statSync(path).mode & 0o777, 0o700);
    assertEquals(controlSockets(path), []);
  });
  test("is refused when others may enter, or when it is somebody else's", () => {
    const open = join(directory, "open");
    mkdirSync(join(open, "bcache-fuse"), { recursive: true });
    chmodSync(join(open, "bcache-fuse"), 0o755);
    const refused = (environment: { uid: number; xdgRuntimeDirectory: string }) =>
      assertThrows(() => ensureRunDirectory(environment), BcacheError, "mode 0700");
    refused({ uid, xdgRuntimeDirectory: open });
    chmodSync(join(open, "bcache-fuse"), 0o700);
    refused({ uid: uid + 1, xdgRuntimeDirectory: open });
  });
  test("is refused when it is a link", () => {
    const linked = join(directory, "linked");
    mkdirSync(linked);
    mkdirSync(join(directory, "target"), { mode: 0o700 });
    symlinkSync(join(directory, "target"), join(linked, "bcache-fuse"));
    const environment = { uid, xdgRuntimeDirectory: linked };
    assertThrows(() => ensureRunDirectory(environment), BcacheError, "mode 0700");
  });
  test("names sockets apart from the path alone, within what a socket's path may be", () => {
    const a = controlSocketPath("/run/x", "/mnt/a-b");
    assertEquals(a, controlSocketPath("/run/x", "/mnt/a-b"));
    assertNotEquals(a, controlSocketPath("/run/x", "/mnt/a/b"));
    assertMatch(a, /^\/run\/x\/mnt-a-b\.[0-9a-f]{12}\.sock$/);
    assertEquals(controlSocketPath("/run/x", `/${"long".repeat(500)}`).length < 100, true);
    assertThrows(() => controlSocketPath(`/${"x".repeat(90)}`, "/mnt"), BcacheError, "107");
  });
});

describe("the mount table", () => {
  test("is read with escaped blanks, and survives lines of another form", () => {
    const text = "36 35 98:0 / /mnt/a\\040b rw shared:1 - fuse.bcache-fuse /c\\134d rw\nnonsense\n";
    assertEquals(parseMountInfo(text), [
      { mountPoint: "/mnt/a b", type: "fuse.bcache-fuse", source: "/c\\d", device: "98:0" },
    ]);
  });
  test("tells whose a FUSE mount is", () => {
    const line = (options: string) =>
      parseMountInfo(`36 35 0:41 / /m rw - fuse.bcache b ${options}\n`)[0]?.userId;
    assertEquals(line("rw,user_id=1000,group_id=7"), 1000);
    assertEquals([line("rw,user_id=0"), line("rw,xuser_id=5"), line("rw")], [
      0,
      undefined,
      undefined,
    ]);
  });
  test("names the loop device that has a file, and what is mounted from it", () => {
    const block = join(directory, "block");
    const entry = (source: string, mountPoint: string) => ({
      source,
      mountPoint,
      type: "ext4",
      device: "7:3",
    });
    const backing = (name: string, file: string) => {
      mkdirSync(join(block, name, "loop"), { recursive: true });
      writeFileSync(join(block, name, "loop/backing_file"), `${file}\n`);
    };
    mkdirSync(join(block, "sda"), { recursive: true });
    backing("loop1", "/images/other");
    backing("loop3", "/images/a");
    const of = (path: string, ...entries: ReturnType<typeof entry>[]) =>
      loopDeviceOf(path, { block, entries });
    assertEquals(of("/images/none"), undefined);
    assertEquals(of("/images/a", entry("/dev/loop30", "/x"), entry("/dev/loop1", "/y")), {
      description: "the loop device /dev/loop3",
      remedy: "losetup -d /dev/loop3",
    });
    assertEquals(of("/images/a", entry("/dev/loop3", "/x"), entry("/dev/loop3p2", "/y")), {
      description: "the loop device /dev/loop3, mounted at /x and /y",
      remedy: "umount /x /y, then losetup -d /dev/loop3",
    });
    const entries = [entry("/dev/loop3", "/x")];
    assertEquals(holdersOf("/images", { block, entries }).map(({ remedy }) => remedy), [
      "losetup -d /dev/loop1",
      "umount /x, then losetup -d /dev/loop3",
    ]);
    // As `mount -o loop` makes it: the kernel detaches it with the last mount.
    writeFileSync(join(block, "loop3/loop/autoclear"), "1\n");
    assertEquals(of("/images/a", ...entries)?.remedy, "umount /x");
    assertEquals(of("/images/a")?.remedy, "losetup -d /dev/loop3");
  });
  test("knows what is mounted here", () => {
    assertEquals(mountAt("/proc")?.type, "proc");
    assertEquals(mountAt(directory), undefined);
    assertEquals(isDeadMount("/proc"), false);
  });
  test("a mount point is found through links, also when it does not exist", () => {
    const target = join(directory, "real");
    mkdirSync(target);
    symlinkSync(target, join(directory, "link"));
    assertEquals(realMountPoint(join(directory, "link")), target);
    assertEquals(realMountPoint(join(directory, "link/../real/.")), target);
    assertEquals(realMountPoint("/proc/"), "/proc");
    assertEquals(realMountPoint(join(directory, "none")), join(directory, "none"));
  });
  test("names the process that keeps a directory busy", async () => {
    const busy = join(directory, "busy");
    mkdirSync(busy);
    assertEquals(holdersOf(busy), []);
    const child = spawn("sleep", ["30"], { cwd: busy, stdio: "ignore" });
    await new Promise((resolve) => child.once("spawn", resolve));
    const ended = new Promise((resolve) => child.once("exit", resolve));
    const [holder] = holdersOf(busy);
    assertStringIncludes(holder?.description ?? "", `(PID ${child.pid})`);
    child.kill();
    await ended;
    assertEquals(holdersOf(busy), []);
  });
});
