import { test } from "bun:test";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BcacheError } from "../../../lib/base/errors.ts";
import { makeBacking, prepareSidecar, writePrepared } from "../../../lib/cache/make.ts";
import {
  openBacking,
  type OpenDevice,
  sidecarPath,
} from "../../../lib/cache/members/open_backing.ts";
import { createSparseFile, nameExists, removeCreatedFile } from "../../../lib/device/create.ts";
import type { Device } from "../../../lib/device/device.ts";
import { openFileDevice } from "../../../lib/device/file.ts";
import { viewOf } from "../../../lib/ondisk/layout.ts";
import { showSuperblock } from "../../../lib/ondisk/show.ts";
import { sealSuperblock } from "../../../lib/ondisk/superblock.ts";
import { parseUuid } from "../../../lib/ondisk/uuid.ts";

const uuid = parseUuid("c730f6ac-bdd4-489d-ad24-86ed66eecbf3")!;
const setUuid = parseUuid("8f66098c-a234-4f47-a35b-7392a76383cd")!;
const ids = { uuid, setUuid };

interface World {
  readonly image: string;
  readonly open: OpenDevice;
  /** Files opened and not closed yet. */
  count(): number;
}

/** An image of 1 MiB with text in it, and an `open` that counts. */
async function inWorld(body: (world: World) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-backing-"));
  let open = 0;
  const counting: OpenDevice = async (path) => {
    const device = await openFileDevice(path);
    open++;
    const close = device.close.bind(device);
    device.close = () => {
      open--;
      return close();
    };
    return device;
  };
  try {
    const image = join(folder, "disk.img");
    writeFileSync(image, "somebody's data. ".repeat(61_681).slice(0, 1 << 20));
    await body({ image, open: counting, count: () => open });
    assertEquals(open, 0, "every file was closed");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function withSidecar(image: string): Promise<void> {
  createSparseFile(sidecarPath(image), 8192);
  const sidecar = await openFileDevice(sidecarPath(image));
  const device = await openFileDevice(image, { readOnly: true });
  await writePrepared([await prepareSidecar(sidecar, device, ids)]);
  await device.close();
  await sidecar.close();
}

async function sectorsOf(device: Device, atSector: number, sectors: number): Promise<Uint8Array> {
  const into = new Uint8Array(sectors * 512);
  await device.read(atSector, into);
  return into;
}

test("a link to an image leads to the sidecar of the image", () =>
  inWorld(async ({ image, open }) => {
    await withSidecar(image);
    const link = `${image}.link`;
    symlinkSync(image, link);
    const device = await openBacking(link, open);
    assertEquals([device.hasSidecar, device.sizeSectors], [true, 16 + 2048]);
    await device.close();
    // Beside the link it does not count, and is not to be made anew.
    renameSync(sidecarPath(image), sidecarPath(link));
    const message = `move it there: mv ${sidecarPath(link)} ${sidecarPath(image)}`;
    const error = await assertRejects(() => openBacking(link, open), BcacheError, message);
    assertEquals(error.code, "WrongState");
  }));

test("a sidecar beside a link is refused also when the image itself reads as a device", () =>
  inWorld(async ({ image, open }) => {
    const device = await openFileDevice(image);
    await makeBacking(device, ids); // As a guest might.
    await device.close();
    const link = `${image}.link`;
    symlinkSync(image, link);
    createSparseFile(sidecarPath(link), 8192);
    const error = await assertRejects(() => openBacking(link, open), BcacheError, "move it there");
    assertEquals(error.code, "WrongState");
  }));

// Attaching loop devices is for root.
if (process.getuid?.() === 0) {
  test("the sidecar of a disk lies beside the link that names it, not in /dev", () =>
    inWorld(async ({ image, open }) => {
      const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
      const attach = ["--find", "--show", image];
      const loop = execFileSync("losetup", attach, { env, encoding: "utf8" }).trim();
      try {
        const link = `${image}.disk`;
        symlinkSync(loop, link);
        const disk = await openFileDevice(link);
        assertEquals(disk.filePath, link);
        await disk.close();
        await withSidecar(link);
        const device = await openBacking(link, open);
        assertEquals([device.hasSidecar, device.sizeSectors], [true, 16 + 2048]);
        await device.close();
      } finally {
        execFileSync("losetup", ["-d", loop], { env });
      }
    }));
}

test("a file with a superblock of its own is the backing device", () =>
  inWorld(async ({ image, open }) => {
    const device = await openFileDevice(image);
    await makeBacking(device, ids);
    await device.close();
    const backing = await openBacking(image, open);
    assertEquals([backing.name, backing.sizeSectors], [image, 2048]);
    await backing.close();
  }));

test("a plain image and its sidecar are one device that Debian's tools accept", () =>
  inWorld(async ({ image, open }) => {
    const plain = readFileSync(image);
    await withSidecar(image);
    assertEquals(readFileSync(image), plain);
    assertEquals(statSync(sidecarPath(image)).size, 8192);
    const backing = await openBacking(image, open);
    assertEquals([backing.name, backing.sizeSectors], [image, 2048 + 16]);
    assertEquals(await sectorsOf(backing, 16, 2048), Uint8Array.from(plain));
    const { text } = showSuperblock(await sectorsOf(backing, 8, 8));
    await backing.close();
    const joined = join(image, "../joined.img");
    writeFileSync(joined, Buffer.concat([readFileSync(sidecarPath(image)), plain]));
    const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
    const shown = execFileSync("bcache-super-show", [joined], { env, encoding: "utf8" });
    assertEquals(shown, text);
  }));

test("a superblock inside an image with a sidecar is data, not the image's own", () =>
  inWorld(async ({ image, open }) => {
    await withSidecar(image);
    const device = await openFileDevice(image);
    await makeBacking(device, { ...ids, uuid: setUuid }); // As a guest might.
    await device.close();
    const backing = await openBacking(image, open);
    assertEquals(backing.sizeSectors, 2048 + 16);
    await backing.close();
  }));

test("an image with no superblock anywhere is refused with the command that makes one", () =>
  inWorld(async ({ image, open }) => {
    const words = `make one with: bcache-fuse make -B ${image} --sidecar`;
    const error = await assertRejects(() => openBacking(image, open), BcacheError, words);
    assertEquals(error.code, "BadFormat");
    writeFileSync(image, "tiny");
    await assertRejects(() => openBacking(image, open), BcacheError, words);
  }));

test("a missing image is refused, and a directory in the sidecar's place too", () =>
  inWorld(async ({ image, open }) => {
    const none = await assertRejects(() => openBacking(`${image}x`, open), BcacheError);
    assertEquals(none.code, "NotFound");
    execFileSync("mkdir", [sidecarPath(image)]);
    await assertRejects(() => openBacking(image, open), BcacheError, "is a directory");
  }));

test("a sidecar that is a link to nothing is refused as that: it is elsewhere, not lost", () =>
  inWorld(async ({ image, open }) => {
    const beside = sidecarPath(image);
    symlinkSync("/none/there", beside);
    const why = `${beside} is a link to /none/there, which is not there; bring that back`;
    const error = await assertRejects(() => openBacking(image, open), BcacheError, why);
    assertEquals(error.code, "WrongState");
    assertThrows(() => createSparseFile(beside, 8192), BcacheError, why);
    assert(nameExists(beside) && !nameExists(`${beside}x`));
  }));

test("a size that no file can have is refused before anything is made", () =>
  inWorld(async ({ image }) => {
    const path = `${image}.large`;
    const why = `with ${2 ** 53} bytes, expected at most`;
    const error = assertThrows(() => createSparseFile(path, 2 ** 53), BcacheError, why);
    assertEquals([error.code, nameExists(path)], ["NoSpace", false]);
    const nul = () => openFileDevice("/a\0b");
    await assertRejects(nul, BcacheError, '"/a\\u0000b" is no path');
  }));

type Damage = (bytes: Uint8Array) => Uint8Array;
const resealed = (change: (view: DataView) => void): Damage => (bytes) => {
  const page = bytes.subarray(4096);
  change(viewOf(page));
  sealSuperblock(page);
  return bytes;
};
const DAMAGED: ReadonlyArray<readonly [string, string, Damage]> = [
  ["cut short", "a sidecar has 16", (bytes) => bytes.subarray(0, 4096)],
  ["empty", "no bcache magic", () => new Uint8Array(8192)],
  ["with a flipped bit", "checksum 0x", (bytes) => bytes.fill(1, 4096 + 0x50, 4096 + 0x51)],
  ["of a cache", "of a cache; this is not a sidecar", (bytes) => {
    const view = viewOf(bytes.subarray(4096));
    view.setUint16(0xc2, 8, true);
    view.setUint32(0xb8, 200, true);
    view.setUint16(0xc4, 1, true);
    view.setUint16(0xcc, 3, true);
    return resealed((v) => v.setUint32(0x10, 0, true))(bytes);
  }],
  [
    "whose data would begin beyond it",
    "data offset 32, beyond its own end",
    resealed((view) => {
      view.setUint32(0x10, 4, true);
      view.setUint32(0xb8, 32, true);
    }),
  ],
];

for (const [what, words, damage] of DAMAGED) {
  test(`a sidecar ${what} is refused by name`, () =>
    inWorld(async ({ image, open }) => {
      await withSidecar(image);
      const sidecar = sidecarPath(image);
      writeFileSync(sidecar, damage(Uint8Array.from(readFileSync(sidecar))));
      const error = await assertRejects(() => openBacking(image, open), BcacheError, words);
      assertEquals(error.message.startsWith(sidecar), true, error.message);
    }));
}

test("an image that grew by half a block since its sidecar was made is refused", () =>
  inWorld(async ({ image, open }) => {
    await withSidecar(image);
    appendFileSync(image, "x".repeat(513));
    const words = "1049089 bytes are not whole blocks of 4096";
    await assertRejects(() => openBacking(image, open), BcacheError, words);
  }));

test("a new file is sparse and for its owner alone; an existing one is never touched", () =>
  inWorld(({ image }) => {
    const path = `${image}.new`;
    createSparseFile(path, 1 << 30);
    const { size, blocks, mode } = statSync(path);
    assertEquals([size, blocks, mode & 0o777], [1 << 30, 0, 0o600]);
    const before = readFileSync(image);
    let code = "";
    try {
      createSparseFile(image, 5);
    } catch (error) {
      code = error instanceof BcacheError ? error.code : String(error);
    }
    assertEquals([code, readFileSync(image)], ["Exists", before]);
    removeCreatedFile(path);
    removeCreatedFile(path); // Gone is gone.
    return Promise.resolve();
  }));
