/** The session over a channel in memory: each operation, and whatever else may arrive. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import fc from "fast-check";
import { BcacheError, ERRNO } from "../../lib/base/errors.ts";
import { type BlockVolume, REQUEST_SYNC } from "../../lib/cache/ports.ts";
import { FILE_ERRNO } from "../../fuse/filesystem.ts";
import * as protocol from "../../fuse/protocol.ts";
import {
  Bench,
  concat,
  initRequest,
  parseReply,
  request,
  struct,
  text,
  u32,
  u64,
} from "./support/wire.ts";
import { MemoryVolume } from "./support/memory_engine.ts";

const { OPCODE } = protocol;
const SIZE = 64 * 1024;
const FILE = 2;

function open(options: { readOnly?: boolean; volumes?: number } = {}) {
  const volumes: MemoryVolume[] = [];
  for (let index = 0; index < (options.volumes ?? 1); index++) {
    volumes.push(new MemoryVolume(`bcache${index}`, SIZE));
  }
  const volume = volumes[0]!;
  for (let at = 0; at < SIZE; at++) volume.bytes[at] = (at * 7 + (at >> 8)) & 0xff;
  return { bench: new Bench(volumes, options), volume };
}

const readRequest = (fields: Record<string, number>, node = FILE): Uint8Array =>
  request("READ", node, struct(protocol.READ_IN, { fh: FILE, ...fields }));
const writeRequest = (offset: number, data: Uint8Array, fields: Record<string, number> = {}) =>
  request(
    "WRITE",
    FILE,
    concat(struct(protocol.WRITE_IN, { fh: FILE, offset, size: data.length, ...fields }), data),
  );
const setattr = (fields: Record<string, number>, node = FILE): Uint8Array =>
  request("SETATTR", node, struct(protocol.SETATTR_IN, fields));
const openRequest = (flags: number, node = FILE): Uint8Array =>
  request("OPEN", node, struct(protocol.OPEN_IN, { flags }));
const fallocate = (mode: number, offset: number, length: number): Uint8Array =>
  request("FALLOCATE", FILE, struct(protocol.FALLOCATE_IN, { fh: FILE, mode, offset, length }));

describe("names", () => {
  test("each volume is a file of the root directory", () => {
    const { bench } = open({ volumes: 2 });
    const reply = bench.ask(request("LOOKUP", 1, text("bcache1")));
    assertEquals(reply.error, 0);
    assertEquals(u64(reply.payload, protocol.ENTRY_OUT.nodeid), 3);
  });

  test("other names do not exist, and files are no directories", () => {
    const { bench } = open();
    assertEquals(bench.ask(request("LOOKUP", 1, text("other"))).error, -ERRNO.ENOENT);
    assertEquals(bench.ask(request("LOOKUP", FILE, text("bcache0"))).error, -ERRNO.ENOTDIR);
    assertEquals(bench.ask(request("LOOKUP", 9, text("bcache0"))).error, -FILE_ERRNO.ESTALE);
  });

  test("a name without its end is refused", () => {
    const { bench } = open();
    const reply = bench.ask(request("LOOKUP", 1, new Uint8Array([98, 99, 97])));
    assertEquals(reply.error, -ERRNO.EINVAL);
  });

  test("READDIR lists the volumes, in pieces as small as the kernel likes", () => {
    const { bench } = open({ volumes: 2 });
    const names: string[] = [];
    for (let offset = 0;;) {
      const argument = struct(protocol.READ_IN, { fh: 1, offset, size: 70 });
      const { payload } = bench.ask(request("READDIR", 1, argument));
      if (payload.length === 0) break;
      assert(payload.length <= 70);
      for (let at = 0; at < payload.length;) {
        const length = u32(payload, at + protocol.DIRENT.namelen);
        names.push(new TextDecoder().decode(payload.subarray(at + 24, at + 24 + length)));
        offset = u64(payload, at + protocol.DIRENT.off);
        at += Math.ceil((24 + length) / 8) * 8;
      }
    }
    assertEquals(names, [".", "..", "bcache0", "bcache1"]);
  });

  test("READDIRPLUS gives the attributes along", () => {
    const { bench } = open();
    const argument = struct(protocol.READ_IN, { fh: 1, offset: 2, size: 4096 });
    const { payload } = bench.ask(request("READDIRPLUS", 1, argument));
    assertEquals(payload.length, 128 + 32);
    const size = protocol.ENTRY_OUT.attr + protocol.ATTR.size;
    assertEquals(u64(payload, size), SIZE);
  });

  test("nothing can be created, removed or renamed", () => {
    const names = [
      "SYMLINK",
      "MKNOD",
      "MKDIR",
      "UNLINK",
      "RMDIR",
      "RENAME",
      "RENAME2",
      "LINK",
      "CREATE",
      "TMPFILE",
    ] as const;
    const argument = concat(new Uint8Array(16), text("a"), text("b"));
    for (const name of names) {
      assertEquals(open().bench.ask(request(name, 1, argument)).error, -ERRNO.EPERM);
      const readOnly = open({ readOnly: true }).bench;
      assertEquals(readOnly.ask(request(name, 1, argument)).error, -ERRNO.EROFS);
    }
  });
});

describe("attributes", () => {
  test("a file has its volume's size and belongs to the one who mounted", () => {
    const { bench } = open();
    const { payload } = bench.ask(request("GETATTR", FILE, new Uint8Array(16)));
    const at = (name: keyof typeof protocol.ATTR): number =>
      protocol.ATTR_OUT.attr + protocol.ATTR[name];
    assertEquals(u64(payload, at("size")), SIZE);
    assertEquals(u32(payload, at("mode")), 0o100600);
    assertEquals(u32(payload, at("uid")), 1000);
    assertEquals(u32(payload, at("blksize")), 4096);
  });

  test("times are taken, sizes and owners are refused", () => {
    const { bench } = open();
    const { SIZE: size, UID, MODE, MTIME, ATIME_NOW } = protocol.SETATTR_VALID;
    const reply = bench.ask(setattr({ valid: MTIME | ATIME_NOW, mtime: 12345, mtimensec: 6 }));
    assertEquals(reply.error, 0);
    const mtime = protocol.ATTR_OUT.attr + protocol.ATTR.mtime;
    assertEquals(u64(reply.payload, mtime), 12345);
    assertEquals(bench.ask(setattr({ valid: size, size: SIZE })).error, 0);
    assertEquals(bench.ask(setattr({ valid: size, size: SIZE + 1 })).error, -ERRNO.EPERM);
    assertEquals(bench.ask(setattr({ valid: size, size: 0 })).error, -ERRNO.EPERM);
    assertEquals(bench.ask(setattr({ valid: UID, uid: 0 })).error, -ERRNO.EPERM);
    assertEquals(bench.ask(setattr({ valid: MODE, mode: 0 })).error, -ERRNO.EPERM);
    assertEquals(bench.ask(setattr({ valid: size, size: 0 }, 1)).error, -FILE_ERRNO.EISDIR);
    assertEquals(bench.ask(setattr({ valid: MTIME }, 77)).error, -FILE_ERRNO.ESTALE);
  });

  test("a write changes the time of modification", () => {
    const { bench } = open();
    bench.ask(setattr({ valid: protocol.SETATTR_VALID.MTIME, mtime: 5 }));
    bench.ask(writeRequest(0, new Uint8Array(10)));
    const { payload } = bench.ask(request("GETATTR", FILE, new Uint8Array(16)));
    assertEquals(u64(payload, protocol.ATTR_OUT.attr + protocol.ATTR.mtime), 1_600_000_000);
  });

  test("STATFS counts the volumes as full", () => {
    const { bench } = open({ volumes: 2 });
    const { payload } = bench.ask(request("STATFS", 1));
    assertEquals(u64(payload, protocol.STATFS_OUT.blocks), 2 * SIZE / 4096);
    assertEquals(u64(payload, protocol.STATFS_OUT.bfree), 0);
    assertEquals(u32(payload, protocol.STATFS_OUT.bsize), 4096);
  });

  test("ACCESS refuses writing where all is read-only", () => {
    const ask = (readOnly: boolean, mask: number) =>
      open({ readOnly }).bench.ask(
        request("ACCESS", FILE, struct(protocol.ACCESS_IN, { mask })),
      ).error;
    assertEquals(ask(false, 2), 0);
    assertEquals(ask(true, 4), 0);
    assertEquals(ask(true, 2), -ERRNO.EROFS);
  });
});

describe("opening", () => {
  test("pages are kept from one open to the next, O_DIRECT goes past them", () => {
    const { bench } = open();
    const flags = (asked: number): number =>
      u32(bench.ask(openRequest(asked)).payload, protocol.OPEN_OUT.openFlags);
    assertEquals(flags(2), protocol.OPEN_REPLY.KEEP_CACHE);
    const direct = protocol.OPEN_REPLY.DIRECT_IO | protocol.OPEN_REPLY.PARALLEL_DIRECT_WRITES;
    assertEquals(flags(2 | protocol.OPEN_FLAG.DIRECT), direct | protocol.OPEN_REPLY.KEEP_CACHE);
  });

  test("a kernel that does not keep direct and cached files alike gets no direct ones", () => {
    const bench = new Bench([new MemoryVolume("bcache0", SIZE)], { init: false });
    assertEquals(bench.ask(initRequest({ flags2: 0 })).error, 0);
    const { payload } = bench.ask(openRequest(protocol.OPEN_FLAG.DIRECT));
    assertEquals(u32(payload, protocol.OPEN_OUT.openFlags), protocol.OPEN_REPLY.KEEP_CACHE);
  });

  test("truncating is refused, and writing to what is read-only", () => {
    const truncate = protocol.OPEN_FLAG.TRUNCATE;
    assertEquals(open().bench.ask(openRequest(1 | truncate)).error, -ERRNO.EPERM);
    const { bench } = open({ readOnly: true });
    assertEquals(bench.ask(openRequest(0)).error, 0);
    assertEquals(bench.ask(openRequest(2)).error, -ERRNO.EROFS);
  });

  test("files are opened as files and the directory as a directory", () => {
    const { bench } = open();
    assertEquals(bench.ask(openRequest(0, 1)).error, -FILE_ERRNO.EISDIR);
    assertEquals(bench.ask(openRequest(0, 5)).error, -FILE_ERRNO.ESTALE);
    const directory = (node: number) =>
      bench.ask(request("OPENDIR", node, new Uint8Array(8))).error;
    assertEquals(directory(1), 0);
    assertEquals(directory(FILE), -ERRNO.ENOTDIR);
  });

  test("closing in all its forms is accepted", () => {
    const { bench } = open();
    assertEquals(bench.ask(request("FLUSH", FILE, new Uint8Array(24))).error, 0);
    assertEquals(bench.ask(request("RELEASE", FILE, new Uint8Array(24))).error, 0);
    assertEquals(bench.ask(request("RELEASEDIR", 1, new Uint8Array(24))).error, 0);
    assertEquals(bench.ask(request("FSYNCDIR", 1, new Uint8Array(16))).error, 0);
    assertEquals(bench.ask(request("DESTROY", 0)).error, 0);
  });
});

describe("data", () => {
  test("any range reads as what was written, and nothing outside of it changes", async () => {
    const range = fc.record({
      offset: fc.nat(SIZE - 1),
      length: fc.integer({ min: 1, max: 9000 }),
      seed: fc.nat(255),
      later: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 12 }), async (writes) => {
        const { bench, volume } = open();
        const model = volume.bytes.slice();
        for (const { offset, length, seed, later } of writes) {
          volume.delay = later ? () => Promise.resolve() : undefined;
          const data = new Uint8Array(length).map((_, at) => (at * 31 + seed) & 0xff);
          const written = Math.min(length, SIZE - offset);
          model.set(data.subarray(0, written), offset);
          const reply = await bench.askLater(writeRequest(offset, data));
          assertEquals([reply.error, u32(reply.payload, 0)], [0, written]);
          const from = Math.max(0, offset - 100);
          const got = await bench.askLater(readRequest({ offset: from, size: length + 200 }));
          assertEquals(got.error, 0);
          const end = Math.min(SIZE, from + length + 200);
          assertEquals(got.payload, model.slice(from, end));
        }
        assertEquals(volume.bytes, model);
        assertEquals(bench.pool.taken, 1);
      }),
      { numRuns: 60 },
    );
  });

  test("reads end at the end, writes past it are refused as on a full disk", () => {
    const { bench, volume } = open();
    const tail = bench.ask(readRequest({ offset: SIZE - 3, size: 4096 }));
    assertEquals(tail.payload, volume.bytes.slice(SIZE - 3));
    assertEquals(bench.ask(readRequest({ offset: SIZE, size: 1 })).payload.length, 0);
    assertEquals(bench.ask(readRequest({ offset: 2 ** 52, size: 1 })).payload.length, 0);
    assertEquals(bench.ask(writeRequest(SIZE, new Uint8Array(1))).error, -ERRNO.ENOSPC);
    const cut = bench.ask(writeRequest(SIZE - 3, new Uint8Array(10).fill(9)));
    assertEquals(u32(cut.payload, 0), 3);
    const none = bench.ask(writeRequest(SIZE, new Uint8Array(0)));
    assertEquals([none.error, u32(none.payload, 0)], [0, 0]);
  });

  test("a read-only file refuses writing and zeroing", () => {
    const { bench } = open({ readOnly: true });
    assertEquals(bench.ask(writeRequest(0, new Uint8Array(1))).error, -ERRNO.EROFS);
    assertEquals(bench.ask(fallocate(3, 0, 4096)).error, -ERRNO.EROFS);
  });

  test("FSYNC and SYNCFS are answered when the volume has flushed", async () => {
    const { bench, volume } = open();
    let release = (): void => {};
    volume.delay = () => new Promise((resolve) => release = resolve);
    bench.send(request("FSYNC", FILE, struct(protocol.FSYNC_IN, { fh: FILE })));
    await Promise.resolve();
    assertEquals([bench.channel.replies.length, bench.session.pending], [0, 1]);
    release();
    await bench.idle();
    assertEquals([bench.channel.replies.length, volume.flushes], [1, 1]);
    volume.delay = undefined;
    bench.channel.replies.length = 0;
    assertEquals((await bench.askLater(request("SYNCFS", 1, new Uint8Array(8)))).error, 0);
    assertEquals(volume.flushes, 2);
  });

  for (const [how, isLater] of [["at once", false], ["later", true]] as const) {
    test(`a write with O_DSYNC that is done ${how} is answered when it was flushed`, async () => {
      const { bench, volume } = open();
      if (isLater) volume.tryWrite = () => false;
      const data = new Uint8Array(512).fill(9);
      for (const flags of [0o10000, 0o50001, 0o4010000]) {
        let release = (): void => {};
        const flushed = new Promise<void>((resolve) => release = resolve);
        volume.flush = () => flushed;
        bench.send(writeRequest(512, data, { flags }));
        for (let turn = 0; turn < 20; turn++) await Promise.resolve();
        assertEquals(volume.bytes.subarray(512, 1024), data);
        assertEquals([bench.channel.replies.length, bench.session.pending], [0, 1]);
        release();
        await bench.idle();
        const reply = parseReply(bench.channel.replies.pop()!);
        assertEquals([reply.error, u32(reply.payload, 0)], [0, 512]);
      }
      volume.flush = () => Promise.reject(new BcacheError("DeviceIo", "broken"));
      const failed = await bench.askLater(writeRequest(512, data, { flags: 0o10000 }));
      assertEquals(failed.error, -ERRNO.EIO);
      assertEquals((await bench.askLater(writeRequest(512, data, { flags: 1 }))).error, 0);
      assertEquals(bench.pool.taken, 1);
    });
  }

  test("FALLOCATE zeroes holes and ranges, and never grows a file", async () => {
    const { bench, volume } = open();
    volume.bytes.fill(1);
    assertEquals((await bench.askLater(fallocate(3, 10, 20))).error, 0);
    assertEquals((await bench.askLater(fallocate(0x11, SIZE - 5, 100))).error, 0);
    assertEquals((await bench.askLater(fallocate(0x10, 100, 5))).error, 0);
    const expected = new Uint8Array(SIZE).fill(1).fill(0, 10, 30).fill(0, SIZE - 5).fill(
      0,
      100,
      105,
    );
    assertEquals(volume.bytes, expected);
    assertEquals(bench.ask(fallocate(0x10, SIZE - 5, 100)).error, -ERRNO.EPERM);
    assertEquals(bench.ask(fallocate(3, SIZE, 100)).error, 0);
    for (const mode of [0, 1, 2, 8, 0x20, 0x40, 0x80, 0x13]) {
      assertEquals(bench.ask(fallocate(mode, 0, 4096)).error, -ERRNO.EOPNOTSUPP);
    }
    assertEquals(bench.ask(fallocate(3, 0, 0)).error, -ERRNO.EINVAL);
    assertEquals(volume.bytes, expected);
  });

  test("an error of the volume is the errno its caller sees, now or later", async () => {
    const { bench, volume } = open();
    volume.tryRead = () => {
      throw new BcacheError("DeviceIo", "sector 8: broken");
    };
    assertEquals(bench.ask(readRequest({ offset: 0, size: 512 })).error, -ERRNO.EIO);
    volume.tryWrite = () => false;
    volume.write = () => Promise.reject(new BcacheError("NoSpace", "full"));
    const refused = await bench.askLater(writeRequest(0, new Uint8Array(512)));
    assertEquals(refused.error, -ERRNO.ENOSPC);
    volume.flush = () => Promise.reject(new BcacheError("DeviceIo", "odd", { errno: 100_000 }));
    const odd = await bench.askLater(
      request("FSYNC", FILE, struct(protocol.FSYNC_IN, { fh: FILE })),
    );
    assertEquals(odd.error, -ERRNO.EIO);
    volume.flush = () => Promise.reject(new BcacheError("DeviceIo", "off", { isLogged: true }));
    const off = await bench.askLater(
      request("FSYNC", FILE, struct(protocol.FSYNC_IN, { fh: FILE })),
    );
    assertEquals(off.error, -ERRNO.EIO);
    assertEquals(bench.logged, ["READ: sector 8: broken", "full", "odd"], "what is told is told");
    assertEquals(bench.pool.taken, 1);
  });

  test("a volume is told whose request it is, and whether somebody waits for a write", async () => {
    const { bench, volume } = open();
    const told: Array<[task: number, flags: number]> = [];
    const describing: BlockVolume = volume;
    describing.describeNext = (task, flags) => void told.push([task, flags]);
    const from = (pid: number, bytes: Uint8Array): Uint8Array => {
      new DataView(bytes.buffer).setUint32(protocol.IN_HEADER.pid, pid, true);
      return bytes;
    };
    const data = new Uint8Array(512);
    bench.ask(from(4_000_000_000, readRequest({ offset: 0, size: 512 })));
    bench.ask(from(12, writeRequest(0, data)));
    for (const flags of [0o10000, 0o4010000, 0o40001]) {
      await bench.askLater(from(13, writeRequest(0, data, { flags })));
    }
    assertEquals(told, [
      [4_000_000_000, 0],
      [12, 0],
      [13, REQUEST_SYNC],
      [13, REQUEST_SYNC],
      [13, 0],
    ]);
  });

  test("many requests wait at once, each for its own answer", async () => {
    const { bench, volume } = open();
    const releases: Array<() => void> = [];
    volume.delay = () => new Promise((resolve) => releases.push(resolve));
    for (let unique = 1; unique <= 150; unique++) {
      const argument = struct(protocol.READ_IN, { fh: FILE, offset: unique, size: 100 });
      bench.send(request("READ", FILE, argument, unique));
    }
    assertEquals(bench.session.pending, 150);
    for (const release of releases.reverse()) release();
    await bench.idle();
    const uniques = new Set<number>();
    for (const bytes of bench.channel.replies) {
      const unique = u64(bytes, 8);
      uniques.add(unique);
      assertEquals(bytes.slice(16), volume.bytes.slice(unique, unique + 100));
    }
    assertEquals(uniques.size, 150);
    assertEquals(bench.pool.taken, 1);
  });
});

describe("what should not arrive", () => {
  test("before INIT nothing is served, and kernels too old are refused", () => {
    const bench = new Bench([], { init: false });
    assertEquals(bench.ask(request("GETATTR", 1)).error, -ERRNO.ENOTCONN);
    assertEquals(bench.ask(initRequest({ minor: 12 })).error, -FILE_ERRNO.EPROTO);
    assertEquals(bench.session.ready, false);
    const newer = bench.ask(initRequest({ major: 8 }));
    assertEquals([newer.error, u32(newer.payload, 0)], [0, 7]);
    assertEquals(bench.session.ready, false);
    assertEquals(bench.ask(initRequest()).error, 0);
    assertEquals(bench.session.ready, true);
  });

  test("lying lengths and unknown handles are refused without touching data", () => {
    const { bench, volume } = open();
    const before = volume.bytes.slice();
    const lying = writeRequest(0, new Uint8Array(10), { size: 4096 });
    assertEquals(bench.ask(lying).error, -ERRNO.EINVAL);
    const huge = writeRequest(0, new Uint8Array(10), { size: 0xffff_ffff });
    assertEquals(bench.ask(huge).error, -ERRNO.EINVAL);
    const stranger = writeRequest(0, new Uint8Array(10), { fh: 3 });
    assertEquals(bench.ask(stranger).error, -FILE_ERRNO.EBADF);
    assertEquals(bench.ask(writeRequest(-1, new Uint8Array(10))).error, -ERRNO.EINVAL);
    assertEquals(bench.ask(readRequest({ offset: 0, size: 2 ** 30 })).error, -ERRNO.EINVAL);
    assertEquals(bench.ask(readRequest({ offset: 2 ** 53, size: 1 })).error, -ERRNO.EINVAL);
    assertEquals(bench.ask(readRequest({ size: 1 }, 1)).error, -FILE_ERRNO.EISDIR);
    assertEquals(bench.ask(readRequest({ size: 1 }, 2 ** 40)).error, -FILE_ERRNO.ESTALE);
    const wrong = readRequest({ offset: 0, size: 8 });
    new DataView(wrong.buffer).setUint32(0, 79, true);
    assertEquals(bench.ask(wrong).error, -ERRNO.EINVAL);
    assertEquals(volume.bytes, before);
  });

  test("what the kernel can do without us is left to it", () => {
    const { bench } = open();
    for (
      const opcode of [OPCODE.GETXATTR, OPCODE.LSEEK, OPCODE.STATX, 19, 63, 64, 4096, 2 ** 32 - 1]
    ) {
      assertEquals(bench.ask(request(opcode, FILE, new Uint8Array(64))).error, -ERRNO.ENOSYS);
    }
    const control = bench.ask(request("IOCTL", FILE, new Uint8Array(32)));
    assertEquals(control.error, -FILE_ERRNO.ENOTTY);
  });

  test("FORGET and INTERRUPT are never answered, not even ill-formed ones", () => {
    const { bench } = open();
    for (const name of ["FORGET", "BATCH_FORGET", "INTERRUPT"] as const) {
      for (const length of [0, 4, 8, 64]) bench.send(request(name, 1, new Uint8Array(length)));
    }
    assertEquals(bench.channel.replies.length, 0);
  });

  test("any bytes at all are answered at most once, with an errno the kernel takes", async () => {
    const operation = fc.oneof(
      fc.integer({ min: 0, max: 60 }),
      fc.constantFrom(OPCODE.READ, OPCODE.WRITE, OPCODE.FALLOCATE, OPCODE.READDIRPLUS),
      fc.nat(),
    );
    const message = fc.record({
      len: fc.option(fc.nat(300)),
      opcode: operation,
      nodeid: fc.oneof(fc.integer({ min: 0, max: 4 }), fc.nat()),
      argument: fc.uint8Array({ maxLength: 200 }),
      handle: fc.option(fc.integer({ min: 0, max: 3 })),
      cut: fc.option(fc.nat(240)),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 20 }), async (messages) => {
        const { bench, volume } = open();
        for (const { len, opcode, nodeid, argument, handle, cut } of messages) {
          if (handle !== null && argument.length > 8) argument.fill(0, 0, 8).fill(handle, 0, 1);
          const bytes = request(opcode, nodeid, argument);
          if (len !== null) new DataView(bytes.buffer).setUint32(0, len, true);
          bench.send(cut === null ? bytes : bytes.slice(0, cut));
          await bench.idle();
          assert(bench.channel.replies.length <= 1);
          const reply = bench.channel.replies.pop();
          if (reply === undefined) continue;
          assertEquals(u32(reply, 0), reply.length);
          const error = new DataView(reply.buffer).getInt32(4, true);
          assertGreaterOrEqual(error, -511);
          assertLess(error, 1);
          if (error < 0) assertEquals(reply.length, 16);
        }
        assertEquals([volume.bytes.length, bench.pool.taken], [SIZE, 1]);
      }),
      { numRuns: 400 },
    );
  });
});
