import { test } from "bun:test";
import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BcacheError, errnoOf } from "../../lib/base/errors.ts";
import { type FileDevice, type FileDeviceOptions, openFileDevice } from "../../lib/device/file.ts";
import { type FileCalls, type HostCalls, nodeFileCalls } from "../../lib/device/host.ts";
import { openLibc } from "../../lib/runtime/libc.ts";
import { deviceContract, pattern, readSectors } from "./contract.ts";

const host: HostCalls = await openLibc();
const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };

/** A fresh folder, gone afterwards. */
async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = fs.mkdtempSync(join(tmpdir(), "bcache-fuse-device-"));
  try {
    await body(folder);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function sized(path: string, sizeBytes: number): string {
  fs.closeSync(fs.openSync(path, "w"));
  fs.truncateSync(path, sizeBytes);
  return path;
}

/** An open file of `sizeBytes`, closed and gone afterwards. */
function withDevice(
  sizeBytes: number,
  options: FileDeviceOptions,
  body: (device: FileDevice, path: string) => Promise<void>,
): Promise<void> {
  return inFolder(async (folder) => {
    const device = await openFileDevice(sized(join(folder, "d.img"), sizeBytes), options);
    await body(device, device.name);
    await device.close();
  });
}

function contractFor(name: string, options: FileDeviceOptions): void {
  deviceContract(name, async (sizeSectors) => {
    const folder = fs.mkdtempSync(join(tmpdir(), "bcache-fuse-device-"));
    const device = await openFileDevice(sized(join(folder, "d.img"), sizeSectors * 512), options);
    return { device, cleanUp: () => fs.rmSync(folder, { recursive: true }) };
  });
}

function failing(code: string): Error {
  return Object.assign(new Error(`${code}: planted`), { code });
}

/** Transfers at most 700 bytes at a time, and every third call is interrupted. */
function hesitant(): FileCalls {
  let calls = 0;
  const isInterrupted = () => ++calls % 3 === 0;
  return {
    ...nodeFileCalls,
    read: (fd, into, offset, length, position, done) => {
      if (isInterrupted()) done(failing("EINTR"), 0);
      else nodeFileCalls.read(fd, into, offset, Math.min(length, 700), position, done);
    },
    write: (fd, from, offset, length, position, done) => {
      if (isInterrupted()) done(failing("EINTR"), 0);
      else nodeFileCalls.write(fd, from, offset, Math.min(length, 700), position, done);
    },
    readSync: (fd, into, offset, length, position) => {
      if (isInterrupted()) throw failing("EINTR");
      return nodeFileCalls.readSync(fd, into, offset, Math.min(length, 700), position);
    },
    writeSync: (fd, from, offset, length, position) => {
      if (isInterrupted()) throw failing("EINTR");
      return nodeFileCalls.writeSync(fd, from, offset, Math.min(length, 700), position);
    },
    fdatasync: (fd, done) => {
      if (isInterrupted()) done(failing("EINTR"));
      else nodeFileCalls.fdatasync(fd, done);
    },
  };
}

contractFor("file", { host });
contractFor("file without system calls", {});
const refusing: HostCalls = { ...bound(host), fallocate: () => -95 };
contractFor("file on a file system without holes", { host: refusing });
contractFor("file with short and interrupted transfers", { host, files: hesitant() });

function bound(calls: HostCalls): HostCalls {
  return {
    open: (path, flags) => calls.open(path, flags),
    close: (fd) => calls.close(fd),
    fallocate: (fd, mode, offset, length) => calls.fallocate(fd, mode, offset, length),
    flock: (fd, operation) => calls.flock(fd, operation),
    blockDeviceBytes: (fd) => calls.blockDeviceBytes(fd),
    blockDeviceSectorBytes: (fd) => calls.blockDeviceSectorBytes(fd),
  };
}

test("zeroing and discarding give space back to the file system", () =>
  withDevice(8 << 20, { host }, async (device, path) => {
    await device.write(0, new Uint8Array(8 << 20).fill(7));
    await device.flush();
    const full = fs.statSync(path).blocks;
    await device.zero(0, 8192);
    await device.discard(8192, 4096);
    const { blocks, size } = fs.statSync(path);
    assertEquals([blocks <= full / 2, size], [true, 8 << 20]);
  }));

test("where holes are not supported the second way is tried, and the first not again", async () => {
  const modes: number[] = [];
  const calls: HostCalls = {
    ...bound(host),
    fallocate: (fd, mode, offset, length) => {
      modes.push(mode);
      return mode === 3 ? -95 : host.fallocate(fd, mode, offset, length);
    },
  };
  await withDevice(1 << 20, { host: calls }, async (device) => {
    await device.write(0, pattern(1, 16));
    await device.zero(0, 8);
    await device.zero(8, 8);
    await device.discard(0, 8);
    assertEquals(await readSectors(device, 0, 16), new Uint8Array(8192));
  });
  assertEquals(modes, [3, 17, 17]);
});

test("flushes asked for together share calls; a later one is a call of its own", async () => {
  let calls = 0;
  const files: FileCalls = {
    ...nodeFileCalls,
    fdatasync: (fd, done) => {
      calls++;
      nodeFileCalls.fdatasync(fd, done);
    },
  };
  await withDevice(4096, { files }, async (device) => {
    await Promise.all(Array.from({ length: 20 }, () => device.flush()));
    assertEquals(calls, 2);
    await device.flush();
    assertEquals(calls, 3);
    await device.write(0, pattern(1, 1), { preflush: true, fua: true });
    assertEquals(calls, 5);
  });
});

test("after a failed flush every later one fails, since the data may be gone", async () => {
  let failures = 1;
  const files: FileCalls = {
    ...nodeFileCalls,
    fdatasync: (fd, done) => {
      if (failures-- > 0) done(failing("EIO"));
      else nodeFileCalls.fdatasync(fd, done);
    },
  };
  await withDevice(4096, { files }, async (device) => {
    const outcomes = await Promise.allSettled([device.flush(), device.flush()]);
    assertEquals(outcomes.map((o) => o.status), ["rejected", "rejected"]);
    const error = await assertRejects(() => device.flush(), BcacheError, "flush failed");
    assertEquals(error.code, "DeviceIo");
    const fua = () => device.write(0, pattern(1, 1), { fua: true });
    await assertRejects(fua, BcacheError, "flush failed");
    await device.write(0, pattern(2, 1)); // What is not yet promised may still be written.
  });
});

test("a failing transfer names file, sector and length, and what it means", async () => {
  const files: FileCalls = {
    ...nodeFileCalls,
    read: (_fd, _into, _offset, _length, _position, done) => done(failing("EIO"), 0),
    write: (_fd, _from, _offset, _length, _position, done) => done(failing("ENOSPC"), 0),
    readSync: () => {
      throw failing("EIO");
    },
    writeSync: () => {
      throw failing("EDQUOT");
    },
  };
  await withDevice(8192, { files }, async (device, path) => {
    const two = new Uint8Array(1024);
    const read = await assertRejects(() => device.read(3, two), BcacheError);
    assertEquals([read.code, errnoOf(read)], ["DeviceIo", 5]);
    const write = await assertRejects(() => device.write(3, two), BcacheError);
    assertEquals([write.code, errnoOf(write)], ["NoSpace", 28]);
    for (const [kind, error] of [["read", read], ["write", write]] as const) {
      const start = `${path}: ${kind} of 2 sectors at sector 3 failed: `;
      assertEquals(error.message.slice(0, start.length), start);
      assertEquals(error.message.includes("\n"), false);
    }
    assertThrows(() => device.sync.read(0, two), BcacheError, "EIO");
    const full = assertThrows(() => device.sync.write(0, two), BcacheError, "quota is used up");
    assertEquals(full.code, "NoSpace");
  });
});

const CUT_SHORT = "has 1024 bytes, but had 8192: it was cut short while in use";

test("a file cut short while in use is not read any more, once a read has met its end", () =>
  withDevice(8192, {}, async (device, path) => {
    fs.truncateSync(path, 1024);
    assertEquals((await readSectors(device, 0, 2)).length, 1024);
    await assertRejects(() => readSectors(device, 1, 4), BcacheError, CUT_SHORT);
    assertThrows(() => device.sync.read(0, new Uint8Array(512)), BcacheError, CUT_SHORT);
    fs.truncateSync(path, 8192);
    await assertRejects(() => readSectors(device, 0, 1), BcacheError, CUT_SHORT);
  }));

test("a file cut short while in use fails the next flush, though writes have made it longer", () =>
  withDevice(8192, {}, async (device, path) => {
    await device.flush();
    fs.truncateSync(path, 1024);
    device.sync.write(8, new Uint8Array(512));
    await assertRejects(() => device.flush(), BcacheError, "has 4608 bytes, but had 8192");
    await assertRejects(() => readSectors(device, 4, 1), BcacheError, "cut short");
    await assertRejects(() => device.write(0, new Uint8Array(512)), BcacheError, "cut short");
  }));

for (const how of ["write", "sync", "zero"] as const) {
  test(`a file cut short is found before ${how} gives it its length back`, () =>
    withDevice(8192, {}, async (device, path) => {
      const last = new Uint8Array(512);
      fs.truncateSync(path, 1024);
      if (how === "write") {
        await assertRejects(() => device.write(15, last), BcacheError, CUT_SHORT);
      } else if (how === "zero") {
        await assertRejects(() => device.zero(14, 2), BcacheError, CUT_SHORT);
      } else assertThrows(() => device.sync.write(15, last), BcacheError, CUT_SHORT);
      assertEquals(fs.statSync(path).size, 1024);
    }));
}

test("a file that was deleted while in use says so, and goes on", () =>
  withDevice(8192, {}, async (device, path) => {
    assertEquals(await device.fate(), "there");
    fs.rmSync(path);
    await device.write(0, new Uint8Array(512));
    await device.flush();
    assertEquals(await device.fate(), "deleted");
  }));

test("a file that was replaced by its copy says so, until it is moved back", () =>
  withDevice(8192, {}, async (device, path) => {
    fs.renameSync(path, `${path}.moved`);
    assertEquals(await device.fate(), "there");
    fs.copyFileSync(`${path}.moved`, path);
    assertEquals(await device.fate(), "replaced");
    fs.renameSync(`${path}.moved`, path);
    assertEquals(await device.fate(), "there");
  }));

test("a device opened for reading refuses changes and needs no lock", () =>
  inFolder(async (folder) => {
    const path = sized(join(folder, "d.img"), 4096);
    const writer = await openFileDevice(path, { host });
    const device = await openFileDevice(path, { host, readOnly: true });
    assertEquals(device.readOnly, true);
    await assertRejects(() => device.write(0, pattern(1, 1)), BcacheError, "for reading only");
    await assertRejects(() => device.zero(0, 1), BcacheError, "for reading only");
    assertThrows(() => device.sync.write(0, pattern(1, 1)), BcacheError, "for reading only");
    await device.flush();
    await device.close();
    await writer.close();
  }));

test("a file in use is refused, and the message names the process that has it", () =>
  inFolder(async (folder) => {
    const path = sized(join(folder, "d.img"), 4096);
    const holder = spawn("flock", ["-x", path, "sh", "-c", "echo locked; read line"], { env });
    try {
      await new Promise((resolve) => holder.stdout.once("data", resolve));
      const open = () => openFileDevice(path, { host });
      const error = await assertRejects(open, BcacheError, `${path} is in use by`);
      assertEquals([error.code, errnoOf(error)], ["Busy", 16]);
      assertMatch(error.message, new RegExp(`process ${holder.pid} \\(flock -x ${path} `));
    } finally {
      const ended = new Promise((resolve) => holder.once("exit", resolve));
      holder.stdin.end();
      await ended;
    }
  }));

test("a file open in this process is refused a second time and free again when closed", () =>
  inFolder(async (folder) => {
    const path = sized(join(folder, "d.img"), 4096);
    const first = await openFileDevice(path, { host });
    fs.symlinkSync(path, join(folder, "link"));
    for (const name of [path, join(folder, "link")]) {
      const expected = `open in this process (${process.pid}) already`;
      await assertRejects(() => openFileDevice(name, { host }), BcacheError, expected);
    }
    await first.close();
    await (await openFileDevice(path, { host })).close();
  }));

test("what cannot be opened is refused with the reason and what to do", () =>
  inFolder(async (folder) => {
    const refused = async (path: string, code: string, words: string) => {
      const error = await assertRejects(() => openFileDevice(path, { host }), BcacheError, words);
      assertEquals([error.code, error.message.startsWith(path)], [code, true]);
    };
    await refused(join(folder, "none"), "NotFound", "there is no such file");
    await refused(folder, "InvalidArgument", "is a directory; name the image");
    await refused(
      "/dev/null",
      "InvalidArgument",
      "is neither a regular file nor a block device; name",
    );
    const pipe = join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    await refused(pipe, "InvalidArgument", "is neither a regular file nor a block device; name");
  }));

test("bytes behind the last whole sector are not part of the device", () =>
  withDevice(1300, {}, (device) => {
    assertEquals([device.sizeSectors, device.logicalBlockSectors], [2, 1]);
    assertEquals(device.tailBytes, 276);
    return Promise.resolve();
  }));

// Mounting and attaching loop devices is for root.
const isRoot = process.getuid?.() === 0;

if (isRoot) {
  test("a full file system is an error of its own, and the data before stays", () =>
    inFolder(async (folder) => {
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], { env });
      try {
        const device = await openFileDevice(sized(join(folder, "d.img"), 1 << 20), { host });
        await device.write(0, pattern(1, 8));
        const write = () => device.write(8, pattern(2, 1024));
        const error = await assertRejects(write, BcacheError, "free space on the file system");
        assertEquals([error.code, errnoOf(error)], ["NoSpace", 28]);
        assertThrows(() => device.sync.write(1000, pattern(2, 1024)), BcacheError, "ENOSPC");
        assertEquals(await readSectors(device, 0, 8), pattern(1, 8));
        await device.close();
      } finally {
        execFileSync("umount", [folder], { env });
      }
    }));

  test("a block device has its own size and sectors, and mounted ones are refused", () =>
    inFolder(async (folder) => {
      const image = sized(join(folder, "d.img"), 16 << 20);
      const attach = ["--find", "--show", "--sector-size", "4096", image];
      const loop = execFileSync("losetup", attach, { env, encoding: "utf8" }).trim();
      try {
        for (const options of [{ host }, {}]) {
          const device = await openFileDevice(loop, options);
          assertEquals([device.sizeSectors, device.logicalBlockSectors], [32768, 8]);
          await device.write(8, pattern(3, 24), { fua: true });
          await device.zero(16, 8);
          await device.zero(25, 3); // Not whole blocks of the device: written.
          const expected = pattern(3, 24);
          expected.fill(0, 8 * 512, 16 * 512);
          expected.fill(0, 17 * 512, 20 * 512);
          assertEquals(await readSectors(device, 8, 24), expected);
          await device.discard(8, 8);
          await device.flush();
          await device.close();
        }
        execFileSync("mkfs.ext4", ["-qF", loop], { env });
        execFileSync("mkdir", [join(folder, "mnt")]);
        execFileSync("mount", [loop, join(folder, "mnt")], { env });
        const open = () => openFileDevice(loop, { host });
        const error = await assertRejects(open, BcacheError, `a mount on ${join(folder, "mnt")}`);
        assertEquals(error.code, "Busy");
      } finally {
        spawnSync("umount", [join(folder, "mnt")], { env });
        execFileSync("losetup", ["-d", loop], { env });
      }
    }));
}
