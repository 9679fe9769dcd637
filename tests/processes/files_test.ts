/** Files that are cut short, deleted, replaced or out of room under a running mount. */
import { test } from "bun:test";
import { assert, assertEquals, assertGreater, assertMatch } from "@std/assert";
import { renameSync, rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { hashOfFile } from "../support/fixtures.ts";
import { attempt, bcacheFuse, inWorkshop, run } from "../e2e/support/workshop.ts";
import {
  client,
  complaintsOf,
  exitOf,
  largeBlocks,
  smallDisk,
  statusOf,
  writeSome,
  writeUntilFailure,
} from "./support/scene.ts";

const LIMIT_MS = 120_000;
const WRITEBACK = ["--cache-mode", "writeback", "--set", "writeback_running=0"];
const SIZES = { cacheMib: 40, backingMib: 40 };
const DATA_OFFSET_BYTES = 8192;

test(
  "a cache cut short under dirty data fails its set, and the end says what is lost",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      const truth = largeBlocks();
      writeSome(truth, served, 8);
      truncateSync(cache, 1 << 20);
      // As long as nothing noticed, a write would make it longer, with zeroes in between.
      writeUntilFailure(truth, served, 1);
      const { failed, devices } = await statusOf(served);
      assertMatch(failed!, /cache\.img: has \d+ bytes, but had \d+: it was cut short while in use/);
      assertGreater(devices[0]!.dirtyBytes, 0);
      const gone = await client("unmount", served.mountpoint);
      assertEquals(gone.status, 1);
      assertMatch(gone.stderr, /only in the cache are bcache0: [\d.]+ [KM]iB.*cut short/);
      assertEquals(await exitOf(served), 1);
    }),
  LIMIT_MS,
);

test("a cache cut short is found at the end at the latest", () =>
  inWorkshop(async (place) => {
    const { cache, backing } = await place.format(SIZES);
    const served = await place.mount({ cache, backing, flags: WRITEBACK });
    writeSome(largeBlocks(), served, 8);
    truncateSync(cache, 1 << 20);
    process.kill(served.process.pid!, "SIGTERM");
    assertEquals(await exitOf(served), 1);
    assertMatch(complaintsOf(served).at(-1)!, /only in the cache are bcache0: .*cut short/);
  }), LIMIT_MS);

test(
  "without dirty data a cache cut short costs nothing, and that is said",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const flags = ["--cache-mode", "writethrough"];
      const served = await place.mount({ cache, backing, flags });
      const truth = largeBlocks();
      writeSome(truth, served, 8);
      truncateSync(cache, 1 << 20);
      writeSome(truth, served, 8);
      assertEquals(truth.verify(served.file).losses, []);
      const hash = hashOfFile(served.file);
      await place.unmount(served);
      assertMatch(complaintsOf(served).at(-1)!, /nothing is lost/);
      assertEquals(hashOfFile(backing, DATA_OFFSET_BYTES), hash);
    }),
  LIMIT_MS,
);

test("a deleted cache is not let go while data is only there", () =>
  inWorkshop(async (place) => {
    const { cache, backing } = await place.format(SIZES);
    const served = await place.mount({ cache, backing, flags: WRITEBACK });
    writeSome(largeBlocks(), served, 8);
    const hash = hashOfFile(served.file);
    rmSync(cache);
    assertMatch((await statusOf(served)).warnings![0]!, /cache\.img was deleted while in use/);
    const refused = await client("unmount", served.mountpoint);
    assertEquals(refused.status, 1);
    assertMatch(refused.stderr, /only there are bcache0: [\d.]+ [KM]iB; flush first/);
    await place.unmount(served, "--flush");
    assertEquals(hashOfFile(backing, DATA_OFFSET_BYTES), hash);
  }), LIMIT_MS);

test(
  "a backing file that was replaced is warned of, and its end is a failure",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      writeSome(largeBlocks(), served, 4);
      await run("truncate", "-s", "40M", `${backing}.other`);
      renameSync(`${backing}.other`, backing);
      writeSome(largeBlocks(), served, 4);
      const refused = await client("unmount", served.mountpoint);
      assertEquals(refused.status, 1);
      assertMatch(refused.stderr, /backing\.img was deleted while in use.*copy bcache0/);
      const forced = await client("unmount", served.mountpoint, "--force");
      assertEquals([forced.status, await exitOf(served)], [1, 1]);
      assertMatch(complaintsOf(served).at(-1)!, /backing\.img was deleted while in use/);
    }),
  LIMIT_MS,
);

for (const which of ["cache", "backing"] as const) {
  test(
    `a ${which} file that was moved away and replaced by a copy is warned of, until it is back`,
    () =>
      inWorkshop(async (place) => {
        const files = await place.format(SIZES);
        const path = files[which];
        const served = await place.mount({ ...files, flags: WRITEBACK });
        renameSync(path, `${path}.moved`);
        await run("cp", "--sparse=always", `${path}.moved`, path);
        writeSome(largeBlocks(), served, 4);
        const words = new RegExp(`${which}\\.img was moved away while in use, and another file`);
        assertMatch((await statusOf(served)).warnings![0]!, words);
        const refused = await client("unmount", served.mountpoint);
        assertEquals(refused.status, 1);
        assertMatch(refused.stderr, words);
        renameSync(`${path}.moved`, path);
        await place.unmount(served, "--flush");
      }),
    LIMIT_MS,
  );
}

test(
  "a served file is refused behind a loop device, by make --force and by another mount",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      writeSome(largeBlocks(), served, 4);
      const hash = hashOfFile(served.file);
      const loop = await place.attachLoop(cache, { direct: false });
      const other = place.makeFolder("other");
      for (const words of [["make", "-C", loop, "--force"], ["mount", "-C", loop, other]]) {
        const refused = await client(words[0]!, ...words.slice(1));
        assertEquals(refused.status, 1);
        assertMatch(refused.stderr, /cache\.img behind it is in use by process \d+ .*it serves/);
      }
      await place.detachLoop(loop);
      await place.unmount(served);
      const again = await place.mount({ cache, backing });
      assertEquals(hashOfFile(again.file), hash);
      await place.unmount(again);
    }),
  LIMIT_MS,
);

test(
  "a backing file cut short keeps its dirty data in the cache, until it is whole again",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      const truth = largeBlocks();
      // All of it is dirty, so nothing of the backing file is needed.
      writeSome(truth, served, 8);
      truncateSync(backing, 1 << 20);
      const flushed = await client("flush", served.mountpoint);
      assertEquals(flushed.status, 1);
      assertMatch(flushed.stderr, /cut short while in use/);
      assertMatch((await statusOf(served)).devices[0]!.lastError!, /backing\.img.*cut short/);
      assertEquals((await client("unmount", served.mountpoint)).status, 1);
      assertEquals(await exitOf(served), 1);
      truncateSync(backing, 40 << 20);
      const again = await place.mount({ cache, backing });
      assertEquals(truth.verify(again.file).losses, []);
      await place.unmount(again, "--flush");
      await bcacheFuse("check", "--cache", cache, "--backing", backing);
    }),
  LIMIT_MS,
);

test(
  "a backing device that reports errors is named, and right when it works again",
  () =>
    inWorkshop(async (place) => {
      // The loop device answers EIO when there is no room for its sparse file.
      const disk = await smallDisk(place, { mib: 96, freeMib: 3 });
      const { cache, backing } = await place.format(SIZES);
      const moved = join(disk.folder, "moved.img");
      await run("cp", "--sparse=always", backing, moved);
      const loop = await place.attachLoop(moved, { direct: false });
      const served = await place.mount({ cache, backing: loop, flags: WRITEBACK });
      const truth = largeBlocks();
      writeSome(truth, served, 30);
      const flushed = await client("flush", served.mountpoint);
      assertEquals(flushed.status, 1, flushed.stdout);
      const [device] = (await statusOf(served)).devices;
      assertMatch(device!.lastError!, /EIO/);
      assertGreater(device!.ioErrors, 0);
      assertEquals((await client("unmount", served.mountpoint)).status, 1);
      assertEquals(await exitOf(served), 1);
      await place.detachLoop(loop);
      disk.makeSpace();
      const mended = await place.attachLoop(moved, { direct: false });
      const again = await place.mount({ cache, backing: mended });
      assertEquals(truth.verify(again.file).losses, []);
      await place.unmount(again, "--flush");
      await place.detachLoop(mended);
      await run("umount", disk.folder);
    }),
  LIMIT_MS,
);

for (const full of ["cache", "backing"] as const) {
  test(
    `a full disk under the ${full} file loses nothing that was flushed`,
    () =>
      inWorkshop(async (place) => {
        const disk = await smallDisk(place, { mib: 96, freeMib: 12 });
        const files = await place.format(SIZES);
        const moved = join(disk.folder, "moved.img");
        await run("cp", "--sparse=always", files[full], moved);
        const cache = full === "cache" ? moved : files.cache;
        const backing = full === "backing" ? moved : files.backing;
        const served = await place.mount({ cache, backing, flags: ["--cache-mode", "writeback"] });
        const truth = largeBlocks();
        const batches = writeUntilFailure(truth, served, 3);
        assertGreater(batches, 5);
        const status = await statusOf(served);
        const told = full === "cache" ? status.failed : status.devices[0]!.lastError;
        assertMatch(told!, /moved\.img.*ENOSPC.*free space on the file system/);
        assert(complaintsOf(served).some((line) => line.includes("ENOSPC")), served.output());
        const gone = await client("unmount", served.mountpoint);
        assertEquals(gone.status, full === "cache" ? 1 : 0, gone.stderr);
        await exitOf(served);
        disk.makeSpace();
        const again = await place.mount({ cache, backing });
        assertEquals(truth.verify(again.file).losses.slice(0, 5), []);
        await place.unmount(again, "--flush");
        assertEquals((await attempt(["umount", disk.folder])).status, 0);
      }),
    LIMIT_MS,
  );
}
