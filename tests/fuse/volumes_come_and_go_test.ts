/** Volumes that come and go while they are mounted: in the session, and under real programs. */
import { afterEach, describe, test } from "bun:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { BcacheError, ERRNO } from "../../lib/base/errors.ts";
import { FILE_ERRNO, Filesystem } from "../../fuse/filesystem.ts";
import { notifications } from "../../fuse/notify.ts";
import { NOTIFY, OUT_HEADER, ROOT_NODE } from "../../fuse/protocol.ts";
import { byForce } from "../../fuse/served_volumes.ts";
import { MemoryVolume } from "./support/memory_engine.ts";
import { Mounts } from "./support/mounted.ts";

const mounts = new Mounts();
afterEach(() => mounts.cleanUp());

const options = { ownerUser: 0, ownerGroup: 0, readOnly: false, wallSeconds: () => 1 };

describe("the directory", () => {
  test("gives no node number twice, and says of a node that it is gone", () => {
    const [one, two, three] = ["bcache0", "bcache1", "bcache0"].map((n) =>
      new MemoryVolume(n, 512)
    );
    const filesystem = new Filesystem({ ...options, volumes: [one!, two!] });
    const node = filesystem.lookup(ROOT_NODE, "bcache0");
    assertEquals(filesystem.open(node, 2), node);
    assertEquals(filesystem.opens("bcache0"), 1);
    const change = filesystem.update([two!]);
    assertEquals(change, { gone: [{ node, name: "bcache0" }], resized: [] });
    assertEquals(filesystem.lookup(ROOT_NODE, "bcache0"), -ERRNO.ENOENT);
    assertEquals(filesystem.notAFile(node), -ERRNO.ENODEV);
    assertEquals(filesystem.release(node), -ERRNO.ENODEV);
    assertEquals(filesystem.notAFile(999), -FILE_ERRNO.ESTALE);
    filesystem.update([two!, three!]);
    assert(filesystem.lookup(ROOT_NODE, "bcache0") > node + 1);
    assertEquals(filesystem.opens("bcache0"), 0);
    assertEquals([2, 3, 4].map((index) => filesystem.entry(index)?.name), [
      "bcache1",
      "bcache0",
      undefined,
    ]);
  });

  test("counts who has a file open, and tells of sizes that changed", () => {
    let sizeBytes = 512;
    const volume = new MemoryVolume("bcache0", 512);
    Object.defineProperty(volume, "sizeBytes", { get: () => sizeBytes });
    const filesystem = new Filesystem({ ...options, volumes: [volume] });
    const node = filesystem.lookup(ROOT_NODE, "bcache0");
    filesystem.open(node, 0);
    filesystem.open(node, 0);
    assertEquals([filesystem.release(node), filesystem.opens("bcache0")], [0, 1]);
    assertEquals(filesystem.open(node, 0o1000), -ERRNO.EPERM);
    assertEquals(filesystem.opens("bcache0"), 1);
    sizeBytes = 1024;
    assertEquals(filesystem.update([volume]), { gone: [], resized: [node] });
    assertEquals(filesystem.update([volume]), { gone: [], resized: [] });
  });

  test("messages to the kernel name the entry and drop what it has of the contents", () => {
    const messages = notifications({ gone: [{ node: 5, name: "bcache0" }], resized: [7] });
    const heads = messages.map((bytes) => {
      const view = new DataView(bytes.buffer);
      return [view.getUint32(OUT_HEADER.len, true), view.getInt32(OUT_HEADER.error, true)];
    });
    assertEquals(heads, [
      [16 + 16 + 8, NOTIFY.INVALIDATE_ENTRY],
      [40, NOTIFY.INVALIDATE_INODE],
      [40, NOTIFY.INVALIDATE_INODE],
    ]);
    assertEquals(new TextDecoder().decode(messages[0]!.subarray(32)), "bcache0\0");
    assertEquals(messages[2]![16], 7);
  });
});

test("who is refused a file that is open is told what takes force, where there is such", () => {
  const told = (...args: unknown[]) => byForce({ method: "setAttribute", args });
  assertEquals(byForce({ method: "stop", args: ["bcache0"] }), ", or use --force");
  assertStringIncludes(told("bcache1", "size", "4k"), "(bcache-fuse volume resize --force, ");
  assertStringIncludes(told("bcache0", "stop", "1"), "(bcache-fuse stop --force, ");
  assertStringIncludes(told("bcache1", "unregister", "1"), "(bcache-fuse volume destroy --force, ");
  assertEquals(told(undefined, "stop", "1"), "");
});

describe("a mounted directory", () => {
  test("shows a file as soon as it is attached, and no more once it is stopped", async () => {
    const { handle, mountPoint } = await mounts.mount();
    await handle.control.attach("/elsewhere/bcache1");
    const path = join(mountPoint, "bcache1");
    assertEquals(readdirSync(mountPoint), ["bcache0", "bcache1"]);
    assertEquals(readFileSync(path).length, 65536);
    assertEquals(handle.volumes.map((volume) => volume.name), ["bcache0", "bcache1"]);
    await handle.control.stop("bcache1");
    assertEquals(existsSync(path), false);
    assertEquals(readdirSync(mountPoint), ["bcache0"]);
    await handle.control.attach("/elsewhere/bcache1");
    assertEquals(readFileSync(path).length, 65536);
  });

  test("shows the new size of a volume at once", async () => {
    const { handle, mountPoint } = await mounts.mount();
    const path = join(mountPoint, "bcache0");
    const before = statSync(path).size;
    assertEquals(readFileSync(path).length, before);
    await handle.control.resizeVolume("bcache0", 2 * before);
    assertEquals(statSync(path).size, 2 * before);
    assertEquals(readFileSync(path).length, 2 * before);
    await handle.control.resizeVolume("bcache0", 4096);
    assertEquals([statSync(path).size, readFileSync(path).length], [4096, 4096]);
  });

  test("makes no file smaller that is open, naming by whom, unless by force", async () => {
    const { handle, mountPoint } = await mounts.mount();
    const path = join(mountPoint, "bcache0");
    const before = statSync(path).size;
    const file = openSync(path, "r");
    try {
      const { control } = handle;
      for (
        const [cut, advice] of [
          [() => control.resizeVolume("bcache0", 4096), ", or use --force"],
          [
            () => control.setAttribute("bcache0", "size", "4k"),
            ', or do it by force (bcache-fuse volume resize --force, over HTTP "force":true)',
          ],
        ] as const
      ) {
        const error = await assertRejects(cut, BcacheError, `${path}: in use by `);
        assertEquals(error.code, "Busy");
        assertStringIncludes(error.message, `(process ${process.pid})`);
        assertEquals(error.message.split("close that first")[1], advice);
      }
      assertEquals(statSync(path).size, before);
      await control.resizeVolume("bcache0", 2 * before);
      assertEquals(statSync(path).size, 2 * before);
      await control.resizeVolume("bcache0", 4096, { force: true });
      assertEquals(statSync(path).size, 4096);
    } finally {
      closeSync(file);
    }
  });

  test("keeps a file that is open, naming by whom, unless it is taken away by force", async () => {
    const { handle, mountPoint } = await mounts.mount();
    const path = join(mountPoint, "bcache0");
    const file = openSync(path, "r");
    try {
      assertEquals(readSync(file, new Uint8Array(4096)), 4096);
      const error = await assertRejects(() => handle.control.stop("bcache0"), BcacheError);
      assertStringIncludes(error.message, `${path}: in use by `);
      assertStringIncludes(error.message, `(process ${process.pid})`);
      assertEquals(readSync(file, new Uint8Array(4096)), 4096);
      await handle.control.stop("bcache0", { force: true });
      // Not even what the kernel had in its page cache is served any more.
      const refused = (() => {
        try {
          readSync(file, new Uint8Array(4096), 0, 4096, 0);
          return "";
        } catch (error) {
          return String(error);
        }
      })();
      assert(/ENODEV|EIO|os error 19|os error 5|No such device/i.test(refused), refused);
      assertEquals(existsSync(path), false);
    } finally {
      closeSync(file);
    }
  });
});
