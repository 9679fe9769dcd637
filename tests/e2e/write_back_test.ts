/** After a flush the backing file alone holds everything, behind its data offset or as it is. */
import { test } from "bun:test";
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { existsSync } from "node:fs";
import { hashOfFile } from "../support/fixtures.ts";
import { bcacheFuse, inWorkshop, run, type Served } from "./support/workshop.ts";

const LIMIT_MS = 180_000;
/** make's default: 16 sectors. */
const DATA_OFFSET_BYTES = 8192;

/** Scattered writes of odd sizes at odd places, so that blocks are merged on their way. */
async function scribble(served: Served): Promise<void> {
  await run(
    "fio",
    "--name=scribble",
    `--filename=${served.file}`,
    "--size=60m",
    "--io_size=24m",
    "--rw=randwrite",
    "--bsrange=512-96k",
    "--blockalign=512",
    "--ioengine=psync",
    "--norandommap",
    "--refill_buffers",
    "--end_fsync=1",
    "--randseed=11",
  );
}

async function dirtyBytes(served: Served): Promise<number> {
  const status = JSON.parse(await bcacheFuse("status", served.mountpoint, "--json"));
  return status.set.devices[0].dirtyBytes;
}

test(
  "after flush and unmount the backing file behind its data offset is what was served",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format({ cacheMib: 96, backingMib: 64 });
      const flags = ["--cache-mode", "writeback", "--set", "writeback_running=0"];
      const served = await place.mount({ cache, backing, flags });
      await scribble(served);
      const before = hashOfFile(served.file);
      assert(await dirtyBytes(served) > 0, "writeback leaves something to write back");
      assertNotEquals(hashOfFile(backing, DATA_OFFSET_BYTES), before);
      await bcacheFuse("flush", served.mountpoint);
      assertEquals(await dirtyBytes(served), 0);
      assertEquals(hashOfFile(served.file), before, "a flush changes nothing that is read");
      await place.unmount(served);
      assertEquals(hashOfFile(backing, DATA_OFFSET_BYTES), before);
    }),
  LIMIT_MS,
);

test("unmount --flush leaves nothing behind in the cache", () =>
  inWorkshop(async (place) => {
    const { cache, backing } = await place.format({ cacheMib: 96, backingMib: 64 });
    const flags = ["--cache-mode", "writeback", "--set", "writeback_running=0"];
    const served = await place.mount({ cache, backing, flags });
    await scribble(served);
    const before = hashOfFile(served.file);
    await place.unmount(served, "--flush");
    assertEquals(hashOfFile(backing, DATA_OFFSET_BYTES), before);
    assert((await bcacheFuse("show", backing)).includes("clean"), "the superblock says clean");
  }), LIMIT_MS);

test(
  "an existing image with a sidecar stays the plain image it was",
  () =>
    inWorkshop(async (place) => {
      const image = place.path("disk.img");
      const cache = place.path("cache.img");
      await run("truncate", "-s", "64M", image);
      await run("mkfs.ext4", "-q", image);
      const plain = hashOfFile(image);
      const make = ["make", "-C", cache, "--size", "64M", "-b", "64k", "-B", image, "--sidecar"];
      await bcacheFuse(...make);
      assertEquals(hashOfFile(image), plain, "make leaves the image alone");
      assert(existsSync(`${image}.bcache`), "the superblock lies beside the image");

      const served = await place.mount({
        cache,
        backing: image,
        flags: ["--cache-mode", "writeback"],
      });
      assertEquals(hashOfFile(served.file), plain, "the image is served from its first byte");
      const loop = await place.attachLoop(served.file, { direct: true });
      const folder = await place.mountFileSystem(loop, "fs");
      await run("cp", "-a", "/etc", folder);
      await run("umount", folder);
      await place.detachLoop(loop);
      const after = hashOfFile(served.file);
      await bcacheFuse("flush", served.mountpoint);
      await place.unmount(served);
      assertEquals(hashOfFile(image), after);
      assertNotEquals(after, plain);
      await run("fsck.ext4", "-fn", image);
    }),
  LIMIT_MS,
);
