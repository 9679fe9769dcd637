/** System calls through the runtime's foreign function interface, on real files. */
import { afterEach, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ERRNO } from "../../lib/base/errors.ts";
import { Libc, O, openLibc } from "../../lib/runtime/libc.ts";

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

function newFile(): { path: string; fd: number } {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-libc-"));
  folders.push(folder);
  const path = join(folder, "file");
  return { path, fd: openSync(path, "w+") };
}

test("a failing call returns its errno, negated", async () => {
  const libc = await openLibc();
  assert(libc instanceof Libc);
  assertEquals(libc.open("/no/such/file", O.RDONLY), -ERRNO.ENOENT);
  assertEquals(libc.close(-1), -9);
  assertEquals(libc.umount2("/no/such/folder", 0), -ERRNO.ENOENT);
  const folder = libc.open(tmpdir(), O.RDONLY | O.CLOEXEC);
  assert(folder >= 0);
  assertEquals(libc.read(folder, new Uint8Array(8)), -ERRNO.EISDIR);
  assertEquals(libc.blockDeviceBytes(folder), -25);
  assertEquals(libc.blockDeviceSectorBytes(folder), -25);
  assertEquals(libc.close(folder), 0);
});

test("fallocate takes offsets and lengths beyond 32 bits", async () => {
  const libc = await openLibc();
  const { path, fd } = newFile();
  const farBytes = 5 * 2 ** 32 + 4096;
  writeSync(fd, new Uint8Array(8192).fill(1), 0, 8192, farBytes);
  const allocated = statSync(path).blocks;
  assertEquals(libc.fallocate(fd, 3, farBytes - 2 ** 33, 2 ** 33 + 4096), 0);
  const bytes = new Uint8Array(8192);
  readSync(fd, bytes, 0, 8192, farBytes);
  assertEquals(bytes.indexOf(1), 4096);
  assertEquals(statSync(path).size, farBytes + 8192);
  assert(statSync(path).blocks < allocated);
  closeSync(fd);
});

test("flock refuses who comes second, until the first one closes", async () => {
  const libc = await openLibc();
  const { path, fd } = newFile();
  const second = libc.open(path, O.RDWR);
  assertEquals(libc.flock(fd, 2 | 4), 0);
  assertEquals(libc.flock(second, 2 | 4), -ERRNO.EAGAIN);
  closeSync(fd);
  assertEquals(libc.flock(second, 2 | 4), 0);
  libc.close(second);
});

test("an eventfd counts, and is empty when it was read", async () => {
  const libc = await openLibc();
  const fd = libc.eventfd();
  assert(fd >= 0);
  const one = new Uint8Array(new BigUint64Array([1n]).buffer);
  for (let count = 0; count < 3; count++) assertEquals(libc.write(fd, one), 8);
  const counter = new BigUint64Array(1);
  assertEquals(libc.read(fd, new Uint8Array(counter.buffer)), 8);
  assertEquals(counter[0], 3n);
  assertEquals(libc.read(fd, new Uint8Array(counter.buffer)), -ERRNO.EAGAIN);
  libc.close(fd);
});

test("an address names the byte it was made for, also as a number", async () => {
  const libc = await openLibc();
  const { fd } = newFile();
  const bytes = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]);
  const numberAt = (offset: number): number => libc.addressValue(libc.addressOf(bytes, offset));
  assertEquals(numberAt(5) - numberAt(0), 5);
  assertEquals(libc.write(fd, bytes.subarray(2, 5)), 3);
  const back = new Uint8Array(4);
  assertEquals(readSync(fd, back, 0, 4, 0), 3);
  assertEquals([...back], [3, 4, 5, 0]);
  closeSync(fd);
});

test("C strings are UTF-8 and end in NUL", async () => {
  const libc = await openLibc();
  assertEquals([...libc.cString("aé").bytes], [0x61, 0xc3, 0xa9, 0]);
});

test("a thread's time on a processor goes on while it works, not while it waits", async () => {
  const libc = await openLibc();
  const before = libc.threadCpuMs();
  let turns = 0;
  while (libc.threadCpuMs() - before < 20 && turns < 50_000_000) turns++;
  assert(libc.threadCpuMs() - before >= 20, "work is counted");
  const worked = libc.threadCpuMs();
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert(libc.threadCpuMs() - worked < 250, "waiting is not");
});
