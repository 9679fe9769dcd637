/** Real mounts, used by real programs. Needs /dev/fuse and root; CI has both. */
import { afterEach, describe, test } from "bun:test";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { chmodSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BcacheError } from "../../lib/base/errors.ts";
import { mountCacheSet, type MountConfig } from "../../fuse/mount_handle.ts";
import { isMounted, Mounts, ok, run } from "./support/mounted.ts";

const MIB = 1024 * 1024;
const mounts = new Mounts();
afterEach(() => mounts.cleanUp());

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const hashOf = async (file: string): Promise<string> => (await ok("sha256sum", file)).slice(0, 64);

const sleep = (delayMs: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, delayMs));

/** Random bytes in a file of their own. */
function source(lengthBytes: number): { path: string; bytes: Uint8Array } {
  const bytes = new Uint8Array(randomBytes(lengthBytes));
  const path = join(mounts.folder(), "source");
  writeFileSync(path, bytes);
  return { path, bytes };
}

/** Runs lines of Python with the file's path as `path`. */
const python = (file: string, code: string): Promise<string> =>
  ok("python3", "-c", `import mmap, os, sys\npath = sys.argv[1]\n${code}`, file);

/** A program in this runtime that mounts and then does `more`; tells of an error and exits 1. */
function mountingProcess(config: MountConfig, home: string, more: string): [string, string[]] {
  const script = join(home, "mount.ts");
  const module = new URL("../../fuse/mount_handle.ts", import.meta.url).href;
  writeFileSync(
    script,
    `import { readFileSync } from "node:fs";
import { mountCacheSet } from ${JSON.stringify(module)};
const config = ${JSON.stringify(config)};
const handle = await mountCacheSet(config).catch((error) => {
  console.log(error.code + ": " + error.message);
  process.exit(1);
});
void [readFileSync, handle];
${more}
`,
  );
  const run = "Bun" in globalThis ? [] : ["run", "-A", "--no-check"];
  return [process.execPath, [...run, script]];
}

/** The engine answers at once; or through its own clock; or through the runtime's event loop. */
for (const async of ["no", "yes", "turn"]) {
  describe(`a mounted file whose engine waits: ${async}`, () => {
    test("holds what dd wrote, buffered, direct and unaligned", async () => {
      const { handle, file } = await mounts.mount({ async });
      const { path, bytes } = source(16 * MIB);
      await ok("dd", `if=${path}`, `of=${file}`, "bs=1M", "conv=notrunc,fsync");
      assertEquals(await hashOf(file), sha256(bytes));
      await ok(
        "dd",
        `if=${path}`,
        `of=${file}`,
        "bs=256k",
        "count=8",
        "oflag=direct",
        "seek=3",
        "conv=notrunc",
      );
      bytes.copyWithin(3 * 256 * 1024, 0, 2 * MIB);
      await ok("dd", `if=${path}`, `of=${file}`, "bs=777", "count=50", "seek=1001", "conv=notrunc");
      bytes.set(readFileSync(path).subarray(0, 777 * 50), 777 * 1001);
      assertEquals(await hashOf(file), sha256(bytes));
      const copy = join(mounts.folder(), "copy");
      await ok("dd", `if=${file}`, `of=${copy}`, "bs=1M", "iflag=direct");
      assertEquals(sha256(readFileSync(copy)), sha256(bytes));
      const [flushes] = await handle.control.attributes(undefined, "flushes");
      assert(Number(flushes!.value) >= 1);
    }, 30_000);

    test("is mapped into memory, and holes are punched into it", async () => {
      const { file } = await mounts.mount({ async, size: String(MIB) });
      await python(
        file,
        `fd = os.open(path, os.O_RDWR)
with mmap.mmap(fd, 0) as m:
    m[5000:5005] = b"hello"
    m.flush()
assert os.pread(fd, 7, 4999) == b"\\0hello\\0"
os.pwrite(fd, b"x" * 8192, 16384)`,
      );
      await ok("fallocate", "-p", "-o", "5001", "-l", "3", file);
      await ok("fallocate", "-z", "-n", "-o", "16384", "-l", "4096", file);
      await python(
        file,
        `fd = os.open(path, os.O_RDONLY)
assert os.pread(fd, 5, 5000) == b"h\\0\\0\\0o"
assert os.pread(fd, 8192, 16384) == b"\\0" * 4096 + b"x" * 4096
assert os.fstat(fd).st_size == ${MIB}`,
      );
    }, 30_000);
  });
}

describe("a mounted file", () => {
  test("is one of several, each with its size and block size", async () => {
    const { handle, mountPoint } = await mounts.mount({ volumes: "2", size: "1048576" });
    assertEquals(handle.volumes, [
      { name: "bcache0", sizeBytes: MIB },
      { name: "bcache1", sizeBytes: MIB },
    ]);
    assertEquals((await ok("ls", mountPoint)).split("\n"), ["bcache0", "bcache1"]);
    const format = "--format=%s %b %B %o %a %F";
    const stat = await ok("stat", format, join(mountPoint, "bcache1"));
    assertEquals(stat, "1048576 2048 512 4096 600 regular file");
    assertEquals(await ok("stat", "-f", "--format=%b %S %a", mountPoint), "512 4096 0");
  }, 30_000);

  test("refuses what a disk cannot do, each with its errno", async () => {
    const { file, mountPoint } = await mounts.mount({ size: String(MIB) });
    await python(
      file,
      `import errno
def refused(number, call, *args):
    try:
        call(*args)
    except OSError as error:
        assert error.errno == number, (call, errno.errorcode[error.errno])
        return
    raise AssertionError(call)
size = ${MIB}
folder = os.path.dirname(path)
fd = os.open(path, os.O_RDWR)
refused(errno.EPERM, os.truncate, path, size + 1)
refused(errno.EPERM, os.ftruncate, fd, 0)
os.ftruncate(fd, size)
refused(errno.EPERM, os.open, path, os.O_WRONLY | os.O_TRUNC)
refused(errno.EPERM, os.open, folder + "/new", os.O_WRONLY | os.O_CREAT)
refused(errno.EPERM, os.mkdir, folder + "/new")
refused(errno.EPERM, os.unlink, path)
refused(errno.EPERM, os.rename, path, folder + "/other")
refused(errno.EPERM, os.symlink, path, folder + "/new")
refused(errno.EPERM, os.link, path, folder + "/new")
refused(errno.EPERM, os.chmod, path, 0o644)
refused(errno.ENOENT, os.stat, folder + "/new")
refused(errno.ENOSPC, os.pwrite, fd, b"x", size)
assert os.pwrite(fd, b"xyz", size - 2) == 2
assert os.pread(fd, 10, size - 3) == b"\\0xy"
assert os.pread(fd, 10, size) == b""
os.utime(path, (1000, 2000))
assert os.stat(path).st_mtime == 2000
assert os.lseek(fd, 0, os.SEEK_HOLE) == size`,
    );
    const grown = await run("fallocate", "-o", String(MIB), "-l", "4096", file);
    assertStringIncludes(grown.err, "not supported");
    assertEquals((await ok("ls", mountPoint)).split("\n"), ["bcache0"]);
  }, 30_000);

  test("can be mounted read-only", async () => {
    const { file } = await mounts.mount({ size: String(MIB) }, { readOnly: true });
    const written = await run("dd", "if=/dev/zero", `of=${file}`, "count=1", "conv=notrunc");
    assertStringIncludes(written.err, "Read-only file system");
    assertEquals(await ok("stat", "--format=%a", file), "400");
    await ok("cmp", "-n", String(MIB), file, "/dev/zero");
  }, 30_000);

  for (const direct of ["off", "on"]) {
    test(
      `carries a loop device with direct I/O ${direct}, and gives back what it discards`,
      async () => {
        const { file } = await mounts.mount({ size: String(8 * MIB) });
        const loop = await ok("losetup", "--find", "--show", `--direct-io=${direct}`, file);
        let attached = true;
        mounts.later(async () => {
          if (attached) await run("losetup", "-d", loop);
        });
        const { path, bytes } = source(4 * MIB);
        await ok("dd", `if=${path}`, `of=${loop}`, "bs=64k", "conv=fsync");
        assertEquals(await hashOfFirst(file, 4 * MIB), sha256(bytes));
        await ok("blkdiscard", "-o", "4096", "-l", "8192", loop);
        bytes.fill(0, 4096, 4096 + 8192);
        assertEquals(await hashOfFirst(file, 4 * MIB), sha256(bytes));
        await ok("losetup", "-d", loop);
        attached = false;
      },
      30_000,
    );
  }

  async function hashOfFirst(file: string, lengthBytes: number): Promise<string> {
    const hashed = await ok("sh", "-c", `head -c ${lengthBytes} "$0" | sha256sum`, file);
    return hashed.slice(0, 64);
  }
});

describe("the end of a mount", () => {
  test("comes by unmount, which closes the engine", async () => {
    const { handle, mountPoint } = await mounts.mount();
    await handle.unmount();
    assertEquals(await handle.ended, { reason: "unmounted" });
    assert(mounts.logged.includes("closed"));
    assertEquals(isMounted(mountPoint), false);
    await handle.unmount();
    await assertRejects(() => handle.control.attributes(undefined), BcacheError, "not mounted");
  }, 30_000);

  test("comes by umount(8), by hand", async () => {
    const { handle, mountPoint } = await mounts.mount();
    mounts.logged.length = 0;
    await ok("umount", mountPoint);
    assertEquals(await handle.ended, { reason: "unmounted" });
    assertEquals(mounts.logged, ["closed"]);
  }, 30_000);

  test("waits for who uses the file, and names them; with force it does not wait", async () => {
    const { handle, file, mountPoint } = await mounts.mount();
    const loop = await ok("losetup", "--find", "--show", file);
    mounts.later(() => run("losetup", "-d", loop));
    const error = await assertRejects(() => handle.unmount(), BcacheError);
    assertEquals(error.code, "Busy");
    assertStringIncludes(error.message, `losetup -d ${loop}`);
    assertEquals((await ok("ls", mountPoint)).split("\n"), ["bcache0"]);
    await handle.unmount({ force: true });
    assertEquals(await handle.ended, { reason: "unmounted" });
    assertEquals(isMounted(mountPoint), false);
  }, 30_000);

  test(
    "with force comes also when a request waits in vain, and when it is asked for twice",
    async () => {
      const { handle, file, mountPoint } = await mounts.mount({ async: "stuck" });
      const how = ["bs=4k", "count=1", "oflag=direct", "conv=notrunc"];
      const writing = run("dd", "if=/dev/zero", `of=${file}`, ...how);
      while ((await run("sh", "-c", `fuser -s "$0"`, file)).status !== 0) await sleep(20);
      await sleep(200);
      await Promise.all([handle.unmount({ force: true }), handle.unmount({ force: true })]);
      assertEquals(await handle.ended, { reason: "unmounted" });
      assertEquals(isMounted(mountPoint), false);
      assertEquals((await writing).status, 1);
    },
    30_000,
  );

  test("with force comes also when the files were detached by hand", async () => {
    const { handle, file, mountPoint } = await mounts.mount();
    const reader = spawn("tail", ["-f", file], { stdio: "ignore" });
    mounts.later(() => Promise.resolve(reader.kill("SIGKILL")));
    while ((await run("sh", "-c", `fuser -s "$0"`, file)).status !== 0) await sleep(20);
    await ok("umount", "-l", mountPoint);
    await handle.unmount({ force: true });
    assertEquals(await handle.ended, { reason: "unmounted" });
  }, 30_000);

  test("comes also when the data plane crashes, without leaving anybody waiting", async () => {
    const { handle, file, mountPoint } = await mounts.mount();
    const call = handle.control.setAttribute(undefined, "crash", "planted");
    const settled = Promise.allSettled([call]);
    const end = await handle.ended;
    await settled;
    assertEquals(end.reason, "crashed");
    assertStringIncludes(end.error!.message, "planted");
    assertEquals(isMounted(mountPoint), false);
    assertEquals((await run("cat", file)).status, 1);
    await assertRejects(() => handle.control.status(), BcacheError, "not mounted");
  }, 30_000);
});

describe("the control plane", () => {
  test("is heard by a data plane that sleeps, and errors arrive as they left", async () => {
    const { handle } = await mounts.mount();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const started = performance.now();
    for (let call = 0; call < 20; call++) await handle.control.attributes(undefined, "flushes");
    assert(performance.now() - started < 2000);
    const error = await assertRejects(
      () => handle.control.setAttribute(undefined, "nonsense", "1"),
      BcacheError,
      "no such attribute",
    );
    assertEquals([error.code, error.errno], ["NotFound", 2]);
  }, 30_000);

  test("waits as long as the engine's clock says, while the data plane is idle", async () => {
    const { handle } = await mounts.mount();
    const started = performance.now();
    await handle.control.setAttribute(undefined, "sleep-ms", "120");
    const waitedMs = performance.now() - started;
    assert(waitedMs >= 119 && waitedMs < 2000, `${waitedMs}`);
  }, 30_000);
});

describe("mounting is refused, with the reason,", () => {
  const refused = async (config: Parameters<typeof mountCacheSet>[0]): Promise<BcacheError> => {
    const error = await assertRejects(() => mountCacheSet(config), BcacheError);
    assertEquals(error.message.includes("\n"), false);
    return error;
  };

  test("where there is no directory, or one that is not empty", async () => {
    const folder = mounts.folder();
    const missing = await refused(mounts.config({}, { mountPoint: join(folder, "missing") }));
    assertEquals(missing.code, "NotFound");
    assertMatch(missing.message, /no such directory: create it with "mkdir/);
    writeFileSync(join(folder, "file"), "");
    const file = await refused(mounts.config({}, { mountPoint: join(folder, "file") }));
    assertMatch(file.message, /not a directory/);
    const full = await refused(mounts.config({}, { mountPoint: folder }));
    assertEquals([full.code, full.errno], ["Exists", 39]);
    assertMatch(full.message, /not empty \(it has "file"\)/);
    rmSync(join(folder, "file"));
  });

  test("when the engine does not open, with its own words, and nothing is mounted", async () => {
    const config = mounts.config({ "fail-open": "journal bucket 7: bad checksum" });
    const error = await refused(config);
    assertEquals([error.code, error.errno], ["BadChecksum", 117]);
    assertEquals(error.message, "journal bucket 7: bad checksum");
    assertEquals(isMounted(config.mountPoint), false);
  }, 30_000);

  test("where another is mounted, and where one is whose program was killed", async () => {
    const { handle, mountPoint } = await mounts.mount();
    const taken = await refused(mounts.config({}, { mountPoint }));
    assertEquals(taken.code, "Exists");
    await handle.unmount();

    const config = mounts.config({ size: "65536" });
    const child = spawn(
      ...mountingProcess(config, mounts.folder(), "setInterval(() => {}, 1000);"),
    );
    let told = "";
    child.stdout.on("data", (chunk) => told += String(chunk));
    child.stderr.on("data", (chunk) => told += String(chunk));
    const exited = new Promise((resolve) => child.on("exit", resolve));
    while (!isMounted(config.mountPoint)) {
      assertEquals(child.exitCode, null, `the other program ended by itself: ${told}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    child.kill("SIGKILL");
    await exited;
    const left = await refused(config);
    assertEquals(left.code, "Busy");
    assertStringIncludes(left.message, `run "umount ${config.mountPoint}" first`);
    await ok("umount", config.mountPoint);
  }, 30_000);
});

describe("a user who is not root", () => {
  const NOBODY = "65534";
  /** udev lets everybody open /dev/fuse; a machine without udev does not, so it is lent. */
  async function asNobody(home: string, [runtime, args]: [string, string[]]) {
    const { mode } = statSync("/dev/fuse");
    chmodSync("/dev/fuse", 0o666);
    try {
      return await run(
        "setpriv",
        `--reuid=${NOBODY}`,
        `--regid=${NOBODY}`,
        "--clear-groups",
        "env",
        `HOME=${home}`,
        `DENO_DIR=${join(home, "deno")}`,
        runtime,
        ...args,
      );
    } finally {
      chmodSync("/dev/fuse", mode & 0o777);
    }
  }

  test("mounts through fusermount3, and unmounts", async () => {
    const folder = mounts.folder();
    const home = mounts.folder();
    await ok("chown", `${NOBODY}:${NOBODY}`, folder, home);
    const config = mounts.config({ size: "65536" }, { mountPoint: folder });
    const [runtime, args] = mountingProcess(
      config,
      home,
      `const line = readFileSync("/proc/mounts", "utf8").split("\\n")
  .find((text) => text.includes(" " + config.mountPoint + " "));
await handle.unmount();
console.log(line, (await handle.ended).reason);
process.exit(0);`,
    );
    const { out } = await asNobody(home, [runtime, args]);
    assertMatch(out, /fuse\.bcache rw,nosuid,nodev,noatime,user_id=65534.* unmounted\n$/);
    assertEquals(isMounted(folder), false);
  }, 30_000);

  test("may not mount on somebody else's directory, and is told so", async () => {
    const [folder, home] = [mounts.folder(), mounts.folder()];
    await ok("chown", `${NOBODY}:${NOBODY}`, home);
    const config = mounts.config({}, { mountPoint: folder });
    const told = await asNobody(home, mountingProcess(config, home, "process.exit(0);"));
    assertEquals(told.status, 1);
    assertMatch(told.out, /^Permission: \/.*: user has no write access to mountpoint/);
    assertEquals(isMounted(folder), false);
  }, 30_000);
});
