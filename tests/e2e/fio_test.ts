/** fio's own checksums on the mounted file, in every cache mode, with a cache that overflows. */
import { test } from "bun:test";
import { assertNotEquals } from "@std/assert";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { attempt, inWorkshop, run } from "./support/workshop.ts";

const LIMIT_MS = 180_000;

/**
 * Random writes of 4 to 64 KiB over 160 MiB, every block once. The same seed names the same blocks
 * in a later run.
 */
function fioJob(file: string, seed: number): string[] {
  return [
    "fio",
    "--name=mixed",
    `--filename=${file}`,
    "--size=160m",
    "--rw=randwrite",
    "--bsrange=4k-64k",
    "--ioengine=libaio",
    "--iodepth=16",
    "--direct=1",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    `--randseed=${seed}`,
  ];
}

/** Blocks are read back and compared while others are still being written. */
const READ_BETWEEN = "--verify_backlog=512";
/** Nothing is written. Not together with a backlog: fio then compares nothing at all. */
const VERIFY_ONLY = "--verify_only";

test("fio's verification finds a single block that was changed", () =>
  inWorkshop(async (place) => {
    const file = place.path("file");
    await run("truncate", "-s", "160M", file);
    await run(...fioJob(file, 1), READ_BETWEEN);
    await run(...fioJob(file, 1), VERIFY_ONLY);
    await run("dd", "if=/dev/zero", `of=${file}`, "bs=4k", "seek=20000", "count=1", "conv=notrunc");
    assertNotEquals((await attempt([...fioJob(file, 1), VERIFY_ONLY])).status, 0);
  }), LIMIT_MS);

for (const [at, mode] of CACHE_MODES.entries()) {
  test(
    `in ${mode} mode fio finds every block it wrote, at once and after a restart`,
    () =>
      inWorkshop(async (place) => {
        const { cache, backing } = await place.format({ cacheMib: 48, backingMib: 162 });
        const flags = ["--cache-mode", mode];
        let served = await place.mount({ cache, backing, flags });
        await run(...fioJob(served.file, at + 1), READ_BETWEEN);
        await run(...fioJob(served.file, at + 1), VERIFY_ONLY);
        await place.unmount(served);
        served = await place.mount({ cache, backing, flags });
        await run(...fioJob(served.file, at + 1), VERIFY_ONLY);
        await place.unmount(served);
      }),
    LIMIT_MS,
  );
}
