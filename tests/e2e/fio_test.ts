/** fio's own checksums on the mounted file, in every cache mode, with a cache that overflows. */
import { test } from "bun:test";
import { CACHE_MODES } from "../../lib/cache/ports.ts";
import { inWorkshop, run } from "./support/workshop.ts";

const LIMIT_MS = 120_000;

/**
 * Random writes of 4 to 64 KiB over 160 MiB, every block once, read back and compared while
 * others are still being written. The same seed names the same blocks in a later run.
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
    "--verify_backlog=512",
    `--randseed=${seed}`,
  ];
}

for (const [at, mode] of CACHE_MODES.entries()) {
  test(
    `in ${mode} mode fio finds every block it wrote, at once and after a restart`,
    () =>
      inWorkshop(async (place) => {
        const { cache, backing } = await place.format({ cacheMib: 48, backingMib: 162 });
        const flags = ["--cache-mode", mode];
        let served = await place.mount({ cache, backing, flags });
        await run(...fioJob(served.file, at + 1));
        await place.unmount(served);
        served = await place.mount({ cache, backing, flags });
        await run(...fioJob(served.file, at + 1), "--verify_only");
        await place.unmount(served);
      }),
    LIMIT_MS,
  );
}
