import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import * as fc from "fast-check";
import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatBacking } from "../../lib/ondisk/format.ts";
import {
  type DeviceEnds,
  findSignatures,
  SIGNATURE_HEAD_BYTES,
  SIGNATURE_TAIL_BYTES,
} from "../../lib/ondisk/signatures.ts";

/** The ends of a file of 300 MiB on which `command` worked (its path is put behind the words). */
function endsAfter(command: readonly string[], input = ""): DeviceEnds {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-signatures-"));
  try {
    const path = join(folder, "d.img");
    closeSync(openSync(path, "w"));
    truncateSync(path, 300 * 1024 * 1024);
    const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
    const [program, ...args] = command;
    execFileSync(program!, [...args, path], { env, input, stdio: ["pipe", "ignore", "pipe"] });
    const sizeBytes = statSync(path).size;
    const head = new Uint8Array(SIGNATURE_HEAD_BYTES);
    const tail = new Uint8Array(SIGNATURE_TAIL_BYTES);
    const file = openSync(path, "r");
    readSync(file, head, 0, head.length, 0);
    readSync(file, tail, 0, tail.length, sizeBytes - tail.length);
    closeSync(file);
    return { sizeBytes, head, tail };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const MADE: ReadonlyArray<readonly [string, string[], string, number]> = [
  ["ext2 file system", ["mkfs.ext2", "-qF"], "", 1080],
  ["ext3 file system", ["mkfs.ext3", "-qF"], "", 1080],
  ["ext4 file system", ["mkfs.ext4", "-qF"], "", 1080],
  ["xfs file system", ["mkfs.xfs", "-qf"], "", 0],
  ["btrfs file system", ["mkfs.btrfs", "-qf"], "", 0x10040],
  ["swap area", ["mkswap"], "", 4086],
  ["bcache device", ["make-bcache", "-B"], "", 4120],
];

for (const [name, command, input, offsetBytes] of MADE) {
  test(`what ${command[0]} makes is recognised`, () => {
    assertEquals(findSignatures(endsAfter(command, input)), [{ name, offsetBytes }]);
  });
}

function blank(sizeBytes = 4 * 1024 * 1024): DeviceEnds {
  return {
    sizeBytes,
    head: new Uint8Array(Math.min(sizeBytes, SIGNATURE_HEAD_BYTES)),
    tail: new Uint8Array(Math.min(sizeBytes, SIGNATURE_TAIL_BYTES)),
  };
}

function put(bytes: Uint8Array, at: number, what: string | readonly number[]): void {
  const data = typeof what === "string" ? Array.from(what, (c) => c.charCodeAt(0)) : what;
  bytes.set(data, at);
}

const PLANTED: ReadonlyArray<readonly [string, number, string | readonly number[]]> = [
  ["LUKS encrypted volume", 0, "LUKS\xba\xbe"],
  ["md RAID member", 4096, [0xfc, 0x4e, 0x2b, 0xa9]],
  ["ISO 9660 image", 0x8001, "CD001"],
  ["ntfs file system", 3, "NTFS    "],
  ["vfat file system", 0x52, "FAT32   "],
  ["GPT partition table", 512, "EFI PART"],
  ["GPT partition table", 4096, "EFI PART"],
  ["zfs pool member", 0x20000 + 3 * 1024, [0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]],
  ["zfs pool member", 0x60000, [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]],
];

for (const [name, at, what] of PLANTED) {
  test(`${name} at byte ${at} is recognised`, () => {
    const ends = blank();
    put(ends.head, at, what);
    assertEquals(findSignatures(ends), [{ name, offsetBytes: at }]);
  });
}

test("an LVM label is found in any of the first four sectors", () => {
  for (const at of [0, 512, 1024, 1536]) {
    const ends = blank();
    put(ends.head, at, "LABELONE");
    assertEquals(findSignatures(ends), []);
    put(ends.head, at + 24, "LVM2 001");
    assertEquals(findSignatures(ends), [{ name: "LVM physical volume", offsetBytes: at }]);
  }
});

test("what lies only at the end is recognised", () => {
  const sizeBytes = 100 * 65536;
  const planted: ReadonlyArray<readonly [string, number, string | readonly number[]]> = [
    ["GPT partition table (backup)", sizeBytes - 512, "EFI PART"],
    ["md RAID member", sizeBytes - 65536, [0xfc, 0x4e, 0x2b, 0xa9]],
    ["md RAID member", sizeBytes - 8192, [0xfc, 0x4e, 0x2b, 0xa9]],
    ["zfs pool member", 25 * 0x40000 - 0x20000, [0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]],
  ];
  for (const [name, offsetBytes, what] of planted) {
    const ends = blank(sizeBytes);
    put(ends.tail, offsetBytes - (sizeBytes - ends.tail.length), what);
    assertEquals(findSignatures(ends), [{ name, offsetBytes }]);
  }
});

test("a partition table is told from a boot sector, and from a file system that has one", () => {
  const ends = blank();
  put(ends.head, 510, [0x55, 0xaa]);
  assertEquals(findSignatures(ends), [{ name: "boot sector", offsetBytes: 510 }]);
  ends.head[446 + 16] = 0x80;
  ends.head[446 + 20] = 0x83;
  assertEquals(findSignatures(ends), [{ name: "MBR partition table", offsetBytes: 510 }]);
  put(ends.head, 3, "NTFS    ");
  assertEquals(findSignatures(ends).map((f) => f.name), ["ntfs file system"]);
});

test("a blank device and one too small for anything have no signature", () => {
  assertEquals(findSignatures(blank()), []);
  assertEquals(findSignatures(blank(0)), []);
  assertEquals(findSignatures(blank(513)), []);
});

test("our own backing superblock is recognised", () => {
  const ends = blank();
  const id = new Uint8Array(16).fill(1);
  const where = { name: "d", sizeSectors: 8192, logicalBlockSectors: 1 };
  ends.head.set(formatBacking({ ...where, uuid: id, setUuid: id }), 4096);
  assertEquals(findSignatures(ends), [{ name: "bcache device", offsetBytes: 4120 }]);
});

test("no bytes make the search throw", () => {
  const bytes = fc.uint8Array({ maxLength: 3000 });
  fc.assert(fc.property(bytes, bytes, fc.nat(10 ** 7), (head, tail, more) => {
    findSignatures({ sizeBytes: Math.max(head.length, tail.length) + more, head, tail });
  }));
});
