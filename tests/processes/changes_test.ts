/** Modes, detaching and stopping while real programs write. */
import { test } from "bun:test";
import { assertEquals, assertGreater, assertMatch, assertNotEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { ControlClient } from "../../api/control/client.ts";
import {
  controlSocketPath,
  runDirectoryPath,
  runEnvironment,
} from "../../api/control/run_directory.ts";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { attempt, bcacheFuse, inWorkshop } from "../e2e/support/workshop.ts";
import { client, largeBlocks, statusOf, writeSome } from "./support/scene.ts";

const LIMIT_MS = 120_000;
const SIZES = { cacheMib: 40, backingMib: 40 };
const WRITEBACK = ["--cache-mode", "writeback", "--set", "writeback_running=0"];

test("fio's verification holds while the mode changes under it", () =>
  inWorkshop(async (place) => {
    const served = await place.mount(await place.format(SIZES));
    const fio = attempt([
      ...["fio", "--name=modes", `--filename=${served.file}`, "--size=32m", "--rw=randwrite"],
      ...["--bs=16k", "--ioengine=libaio", "--iodepth=8", "--direct=1", "--verify=crc32c"],
      ...["--verify_backlog=64", "--verify_state_save=0", "--verify_fatal=1", "--time_based"],
      ...["--runtime=3"],
    ]);
    let ended = false;
    void fio.then(() => ended = true);
    let changes = 0;
    while (!ended) {
      const mode = CACHE_MODES[changes++ % CACHE_MODES.length]!;
      await bcacheFuse("set", served.mountpoint, "bcache0/cache_mode", mode);
    }
    const { status, stdout, stderr } = await fio;
    assertEquals(status, 0, `${stdout}${stderr}`);
    await place.unmount(served);
  }), LIMIT_MS);

test(
  "a server killed in the middle of a detach has lost nothing",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const truth = largeBlocks();
      let interrupted = 0;
      for (const delayMs of [2, 10, 30, 60]) {
        const served = await place.mount({ cache, backing, flags: WRITEBACK });
        assertEquals(truth.verify(served.file).losses, []);
        writeSome(truth, served, 30);
        const socket = controlSocketPath(runDirectoryPath(runEnvironment()), served.mountpoint);
        const detaching = new ControlClient(socket).detach("bcache0").then(() => true, () => false);
        await sleep(delayMs);
        await place.kill(served);
        if (!(await detaching)) interrupted++;
        await bcacheFuse("check", "--cache", cache, "--backing", backing);
      }
      assertGreater(interrupted, 0, "a detach was cut off");
      const served = await place.mount({ cache, backing });
      assertEquals(truth.verify(served.file).losses, []);
      await place.unmount(served);
    }),
  LIMIT_MS,
);

test(
  "a device in use is stopped by force only, and has everything when it comes back",
  () =>
    inWorkshop(async (place) => {
      const { cache, backing } = await place.format(SIZES);
      const served = await place.mount({ cache, backing, flags: WRITEBACK });
      const truth = largeBlocks();
      writeSome(truth, served, 10);
      const held = openSync(served.file, "r");
      const refused = await client("stop", served.mountpoint, "bcache0");
      closeSync(held);
      assertEquals(refused.status, 1);
      assertMatch(refused.stderr, /in use by .*close that first, or use --force/);
      // Writes what is there already: dd reads the file and writes it back in place.
      const words = [`if=${served.file}`, `of=${served.file}`, "bs=64k", "conv=notrunc"];
      const dd = spawn("sh", ["-c", `while dd ${words.join(" ")} 2>/dev/null; do :; done; exit 3`]);
      const ended = once(dd, "exit");
      await sleep(300);
      await bcacheFuse("stop", served.mountpoint, "bcache0", "--force");
      assertNotEquals((await ended)[0], 0);
      assertEquals((await statusOf(served)).devices.length, 0);
      await bcacheFuse("attach", served.mountpoint, backing);
      assertEquals(truth.verify(served.file).losses, []);
      await place.unmount(served);
      await bcacheFuse("check", "--cache", cache, "--backing", backing);
    }),
  LIMIT_MS,
);
