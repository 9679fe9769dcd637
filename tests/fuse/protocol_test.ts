/** The tables against bytes and sizes taken from the kernel's header by a C compiler. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import * as protocol from "../../fuse/protocol.ts";
import { Bench, concat, initRequest, request, struct, text } from "./support/wire.ts";
import { MemoryVolume } from "./support/memory_engine.ts";

const hex = (bytes: Uint8Array): string =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

test("the structs have the sizes that the kernel's header gives them", () => {
  const sizes = Object.fromEntries(
    Object.entries(protocol).filter(([, value]) =>
      typeof value === "object" && "sizeBytes" in value
    )
      .map(([name, value]) => [name, (value as { sizeBytes: number }).sizeBytes]),
  );
  assertEquals(sizes, {
    IN_HEADER: 40,
    OUT_HEADER: 16,
    ATTR: 88,
    ENTRY_OUT: 128,
    ATTR_OUT: 104,
    INIT_IN: 64,
    INIT_OUT: 64,
    SETATTR_IN: 88,
    OPEN_IN: 8,
    OPEN_OUT: 16,
    READ_IN: 40,
    WRITE_IN: 40,
    WRITE_OUT: 8,
    FSYNC_IN: 16,
    RELEASE_IN: 24,
    FLUSH_IN: 24,
    FALLOCATE_IN: 32,
    STATFS_OUT: 80,
    NOTIFY_INODE_OUT: 24,
    NOTIFY_ENTRY_OUT: 16,
    DIRENT: 24,
    ACCESS_IN: 8,
    BATCH_FORGET_IN: 8,
  });
});

test("fields lie where the compiler puts them", () => {
  assertEquals(protocol.ATTR.mode, 60);
  assertEquals(protocol.ATTR.blksize, 80);
  assertEquals(protocol.ENTRY_OUT.attr, 40);
  assertEquals(protocol.ATTR_OUT.attr, 16);
  assertEquals(protocol.INIT_OUT.maxWrite, 20);
  assertEquals(protocol.INIT_OUT.maxPages, 28);
  assertEquals(protocol.INIT_OUT.flags2, 32);
  assertEquals(protocol.SETATTR_IN.size, 16);
  assertEquals(protocol.SETATTR_IN.mode, 68);
  assertEquals(protocol.FALLOCATE_IN.mode, 24);
  assertEquals(protocol.STATFS_OUT.bsize, 40);
  assertEquals(protocol.STATFS_OUT.frsize, 48);
});

test("the answer to INIT is this, byte for byte", () => {
  const bench = new Bench([], { init: false });
  bench.send(initRequest());
  assertEquals(
    hex(bench.channel.replies[0]!),
    "50000000" + "00000000" + "0700000000000000" + // 80 bytes, no error, request 7
      "07000000" + "26000000" + "00000200" + // 7.38, readahead 128 KiB
      "21e06440" + "8000" + "6000" + // flags; 128 in the background, 96 are many
      "00001000" + "01000000" + "0001" + "0000" + // 1 MiB, 1 ns, 256 pages
      "10000000" + "00".repeat(28),
  );
});

test("LOOKUP, OPEN, READ and WRITE are answered byte for byte", () => {
  const volume = new MemoryVolume("bcache0", 8192);
  const bench = new Bench([volume]);
  const send = (bytes: Uint8Array): string => {
    bench.send(bytes);
    return hex(bench.channel.replies.pop()!);
  };
  const time = "00105e5f00000000";
  assertEquals(
    send(request("LOOKUP", 1, text("bcache0"), 0x1_0000_0002)),
    "90000000" + "00000000" + "0200000001000000" +
      "0200000000000000" + "0000000000000000" + // node 2, generation 0
      "0100000000000000".repeat(2) + "0000000000000000" + // valid for a second
      "0200000000000000" + "0020000000000000" + "1000000000000000" + // 8192 bytes, 16 blocks
      time.repeat(3) + "00".repeat(12) +
      "80810000" + "01000000" + "e8030000" + "e8030000" + // 0100600, one link, owner 1000
      "00000000" + "00100000" + "00000000",
  );
  assertEquals(
    send(request("OPEN", 2, struct(protocol.OPEN_IN, { flags: 0o100002 }))),
    "20000000" + "00000000" + "0700000000000000" + "0200000000000000" + "02000000" + "00000000",
  );
  const put = struct(protocol.WRITE_IN, { fh: 2, offset: 4095, size: 3 });
  assertEquals(
    send(request("WRITE", 2, concat(put, new Uint8Array([1, 2, 3])))),
    "18000000" + "00000000" + "0700000000000000" + "03000000" + "00000000",
  );
  const get = struct(protocol.READ_IN, { fh: 2, offset: 4094, size: 5 });
  assertEquals(
    send(request("READ", 2, get)),
    "15000000" + "00000000" + "0700000000000000" + "0001020300",
  );
});
