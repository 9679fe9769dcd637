/** `make` on real files, all or nothing, and what Debian's bcache-super-show says of the result. */
import { afterEach, beforeEach, test } from "bun:test";
import { assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { linkSync, renameSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeRequest } from "../../../api/cli/make.ts";
import { makeDevices } from "../../../api/cli/make_devices.ts";
import { runShow } from "../../../api/cli/show.ts";
import type { Program } from "../../../api/cli/program.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { openLibc } from "../../../lib/runtime/libc.ts";

const HAS_TOOLS = spawnSync("bcache-super-show", ["--help"]).error === undefined;
const MIB = 1024 * 1024;

let directory = "";
const at = (name: string) => join(directory, name);
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "bcache-fuse-make-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function make(options: Parameters<typeof makeRequest>[0]): Promise<string> {
  return makeDevices(makeRequest(options));
}

async function show(path: string): Promise<string> {
  let out = "";
  const program = { out: (text: string) => void (out += text) } as unknown as Program;
  await runShow(program, { path, json: false });
  return out;
}

async function refused(options: Parameters<typeof makeRequest>[0], message: string): Promise<void> {
  const error = await assertRejects(() => make(options), BcacheError);
  assertStringIncludes(error.message, message);
}

test("make creates missing files, sparse, and formats them as one set", async () => {
  const options = { cache: [at("c")], bdev: [at("b1"), at("b2")], bucket: "64k", size: "64M" };
  const told = await make({ ...options, writeback: true, label: "two words" });
  assertEquals(told.trim().split("\n").length, 3);
  const sets = new Set<string | undefined>();
  for (const name of ["c", "b1", "b2"]) {
    assertEquals(statSync(at(name)).size, 64 * MIB);
    assertEquals(statSync(at(name)).blocks * 512 < MIB, true);
    sets.add(/cset\.uuid\t\t(\S+)/.exec(await show(at(name)))?.[1]);
  }
  assertEquals(sets.size, 1);
  assertMatch(await show(at("c")), /sectors_per_bucket\t128\n/);
  assertMatch(await show(at("b1")), /cache_mode\t1 \[writeback\]/);
  if (!HAS_TOOLS) return;
  for (const name of ["c", "b1", "b2"]) {
    const debian = spawnSync("bcache-super-show", [at(name)], { encoding: "utf8" });
    assertEquals([debian.status, debian.stdout], [0, await show(at(name))]);
  }
});

test("make without --size does not create a missing file, and says how to", async () => {
  await refused({ cache: [at("c")] }, "does not exist; check the path, or add --size SIZE");
  assertEquals(readdirSync(directory), []);
});

test("make says of links in a circle what they are", async () => {
  symlinkSync("two", at("one"));
  symlinkSync("one", at("two"));
  for (const size of [undefined, "300M"]) {
    const advice = "links lead in a circle; remove the link";
    await refused({ cache: [at("one")], ...(size === undefined ? {} : { size }) }, advice);
  }
  const error = await assertRejects(() => openFileDevice(at("one")), BcacheError, "in a circle");
  assertEquals(error.code, "WrongState");
});

test("make creates no file in /dev and in no folder that is missing, and says why", async () => {
  const disk = "/dev/bcache-fuse-no-such-disk";
  await refused({ bdev: [disk], size: "20M" }, `${disk}: no such device; lsblk lists`);
  await refused({ bdev: [disk] }, `${disk}: no such device`);
  assertEquals(existsSync(disk), false);
  const far = at("nodir/c.img");
  await refused({ cache: [far], size: "600M" }, `${far}: there is no folder ${at("nodir")}; make`);
});

test("make says that --size changes no file that is there", async () => {
  writeFileSync(at("b"), new Uint8Array(1 * MIB));
  const told = await make({ cache: [at("c")], bdev: [at("b")], size: "512M" });
  assertMatch(told, /\/b: was there before and keeps its size, 1\.0M; --size is for files that/);
  assertEquals(told.trim().split("\n").length, 3);
  assertEquals(statSync(at("b")).size, 1 * MIB);
});

test("make refuses what is in use by a file system until forced, and changes nothing", async () => {
  const image = new Uint8Array(64 * MIB);
  image.set([0x53, 0xef], 1024 + 56);
  image.set([1], 1024 + 76);
  image.set(new TextEncoder().encode("XFSB"), 0);
  writeFileSync(at("b"), image);
  const options = { cache: [at("c")], bdev: [at("b")], size: "512M" };
  await refused(options, "--force overwrites it");
  assertEquals(readFileSync(at("b")).equals(image), true);
  assertEquals(existsSync(at("c")), false);
  await make({ ...options, force: true });
  assertMatch(await show(at("b")), /sb\.magic\t\tok/);
  await refused(options, "bcache");
});

test("make refuses a file that a loop device has, also with --force", async () => {
  writeFileSync(at("b"), new Uint8Array(1 * MIB));
  const loop = spawnSync("losetup", ["--show", "-f", at("b")], { encoding: "utf8" });
  if (loop.status !== 0) return; // Only root may, and not on every machine.
  const device = loop.stdout.trim();
  try {
    const words = `is in use by the loop device ${device}; first: losetup -d ${device}`;
    await refused({ bdev: [at("b")], force: true }, words);
    assertEquals(readFileSync(at("b")).every((byte) => byte === 0), true);
  } finally {
    spawnSync("losetup", ["-d", device]);
  }
  await make({ bdev: [at("b")] });
});

test("make refuses a file that a loop device has under another name", async () => {
  writeFileSync(at("a"), new Uint8Array(1 * MIB));
  linkSync(at("a"), at("b"));
  await withLoops(at("a"), 1, async ([device]) => {
    await refused({ bdev: [at("b")], force: true }, `is in use by the loop device ${device}`);
  });
});

/** Loop devices, each over the one before, the first over `file`. */
async function withLoops(
  file: string,
  levels: number,
  body: (devices: string[]) => Promise<void>,
): Promise<void> {
  const devices: string[] = [];
  try {
    for (let level = 0; level < levels; level++) {
      const words = ["--show", "-f", devices.at(-1) ?? file];
      const loop = spawnSync("losetup", words, { encoding: "utf8" });
      if (loop.status !== 0) return; // Only root may, and not on every machine.
      devices.push(loop.stdout.trim());
    }
    await body(devices);
  } finally {
    for (const device of devices.reverse()) spawnSync("losetup", ["-d", device]);
  }
}

for (const levels of [1, 2]) {
  test(`make refuses a served file behind ${levels} loop devices, also with --force`, async () => {
    writeFileSync(at("b"), new Uint8Array(1 * MIB));
    const host = await openLibc();
    await withLoops(at("b"), levels, async (devices) => {
      const server = await openFileDevice(at("b"), { host });
      const bdev = [devices.at(-1)!];
      await refused({ bdev, force: true }, `${at("b")} behind it is open in this process`);
      await server.close();
      assertEquals(readFileSync(at("b")).every((byte) => byte === 0), true);
      await make({ bdev, force: true });
    });
  });
}

test("make refuses a loop device whose file another loop device serves", async () => {
  writeFileSync(at("b"), new Uint8Array(1 * MIB));
  const host = await openLibc();
  await withLoops(at("b"), 1, ([one]) =>
    withLoops(at("b"), 1, async ([other]) => {
      const server = await openFileDevice(one!, { host });
      await refused({ bdev: [other!], force: true }, `${one}, which has the same file`);
      await assertRejects(
        () => openFileDevice(at("b"), { host }),
        BcacheError,
        "is open in this process",
      );
      await server.close();
      await make({ bdev: [other!] });
    }));
});

test("make takes loop devices that show different parts of one file", async () => {
  writeFileSync(at("b"), new Uint8Array(64 * MIB));
  const devices: string[] = [];
  for (const part of [["--sizelimit", "32M"], ["--offset", "32M"]]) {
    const words = ["--show", "-f", ...part, at("b")];
    const loop = spawnSync("losetup", words, { encoding: "utf8" });
    if (loop.status === 0) devices.push(loop.stdout.trim());
  }
  try {
    if (devices.length === 2) await make({ bdev: devices });
  } finally {
    for (const device of devices) spawnSync("losetup", ["-d", device]);
  }
});

test("make refuses a cache device that is too small, and leaves no file", async () => {
  await refused({ cache: [at("c")], size: "16M" }, at("c"));
  assertEquals(readdirSync(directory), []);
});

test("make --sidecar leaves the image byte for byte, and show finds it", async () => {
  const image = new Uint8Array(8 * MIB).fill(7);
  writeFileSync(at("i"), image);
  await make({ bdev: [at("i")], sidecar: true });
  assertEquals(readFileSync(at("i")).equals(image), true);
  assertEquals(statSync(at("i.bcache")).size, 8192);
  assertMatch(await show(at("i")), /\[backing device\]/);
  await refused({ bdev: [at("i")], sidecar: true }, "--force");
  truncateSync(at("i"), 8 * MIB + 1);
  rmSync(at("i.bcache"));
  await refused({ bdev: [at("i")], sidecar: true }, "whole number of blocks");
  assertEquals(existsSync(at("i.bcache")), false);
});

test("make refuses to format an image that has a sidecar, also with --force", async () => {
  const image = new Uint8Array(8 * MIB).fill(7);
  writeFileSync(at("i"), image);
  await make({ bdev: [at("i")], sidecar: true });
  const words = `superblock is in ${at("i.bcache")}; make that one anew with --sidecar --force`;
  symlinkSync(at("i"), at("link"));
  for (const name of ["i", "link"]) {
    await refused({ bdev: [at(name)], force: true }, words);
    await refused({ cache: [at(name)], force: true }, words);
    await refused({ bdev: [at(name)], sidecar: true }, "--force");
  }
  assertEquals(readFileSync(at("i")).equals(image), true);
  await make({ bdev: [at("i")], sidecar: true, force: true });
  assertEquals(readFileSync(at("i")).equals(image), true);
});

test("an image has one sidecar, beside itself, whatever link it is named by", async () => {
  writeFileSync(at("i"), new Uint8Array(8 * MIB));
  symlinkSync(at("i"), at("link"));
  await make({ bdev: [at("link")], sidecar: true });
  assertEquals([existsSync(at("i.bcache")), existsSync(at("link.bcache"))], [true, false]);
  assertEquals(await show(at("link")), await show(at("i")));
  renameSync(at("i.bcache"), at("link.bcache"));
  const words = `lies beside the link, expected beside the image; move it there: mv`;
  await refused({ bdev: [at("link")], sidecar: true }, words);
  await refused({ bdev: [at("link")] }, words);
});

test("make refuses one device under two names", async () => {
  writeFileSync(at("b"), new Uint8Array(MIB));
  const named = { bdev: [at("b"), `${directory}/./b`] };
  const before = readFileSync(at("b"));
  await assertRejects(() => make(named), BcacheError);
  assertEquals(readFileSync(at("b")).equals(before), true);
});
