/** `show` and Debian's bcache-super-show say the same of devices that either side made. */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { bcacheFuse, inWorkshop, run } from "./support/workshop.ts";

const LIMIT_MS = 180_000;

/** Flags that both make-bcache and our make take, with the size of the cache they suit. */
const GEOMETRIES: ReadonlyArray<{ cacheMib: number; flags: readonly string[] }> = [
  { cacheMib: 64, flags: ["-b", "64k", "-w", "4k"] },
  { cacheMib: 512, flags: ["--writeback", "--cache-replacement-policy", "fifo"] },
  { cacheMib: 128, flags: ["-b", "128k", "-w", "512", "--discard", "-o", "1000"] },
  { cacheMib: 64, flags: ["-b", "32k", "--cache-replacement-policy", "random"] },
];

/** Fields and values, however many tabs stand between them. */
function fieldsOf(output: string): string[][] {
  return output.split("\n").filter((line) => line.trim() !== "")
    .map((line) => line.trim().split(/\t+/).map((part) => part.trim()));
}

for (const { cacheMib, flags } of GEOMETRIES) {
  test(
    `both tools show the same of devices made with ${flags.join(" ")}`,
    () =>
      inWorkshop(async (place) => {
        for (const maker of ["ours", "Debian's"]) {
          const cache = place.path(`cache-${maker}`);
          const backing = place.path(`backing-${maker}`);
          await run("truncate", "-s", `${cacheMib}M`, cache);
          await run("truncate", "-s", "64M", backing);
          const args = [...flags, "-C", cache, "-B", backing];
          if (maker === "ours") await bcacheFuse("make", ...args);
          else await run("make-bcache", ...args);
          for (const device of [cache, backing]) {
            const debian = fieldsOf(await run("bcache-super-show", device));
            assertEquals(fieldsOf(await bcacheFuse("show", device)), debian, `${maker}: ${device}`);
            assert(debian.some(([name]) => name === "cset.uuid"), "there was something to compare");
          }
        }
      }),
    LIMIT_MS,
  );
}

test(
  "a device that make-bcache formatted mounts and keeps what is written",
  () =>
    inWorkshop(async (place) => {
      const cache = place.path("cache.img");
      const backing = place.path("backing.img");
      await run("truncate", "-s", "64M", cache, backing);
      await run("make-bcache", "-b", "64k", "-w", "4k", "--writeback", "-C", cache, "-B", backing);
      const options = { cache, backing };
      const verify = ["--name=v", "--size=32m", "--rw=randwrite", "--bs=8k", "--verify=crc32c"];
      let served = await place.mount(options);
      await run(
        "fio",
        ...verify,
        "--verify_state_save=0",
        "--randseed=3",
        `--filename=${served.file}`,
      );
      await place.unmount(served);
      served = await place.mount(options);
      await run(
        "fio",
        ...verify,
        "--verify_only",
        "--randseed=3",
        "--verify_state_save=0",
        `--filename=${served.file}`,
      );
      await place.unmount(served);
      for (const device of [cache, backing]) {
        assertEquals(
          fieldsOf(await bcacheFuse("show", device)),
          fieldsOf(await run("bcache-super-show", device)),
        );
      }
    }),
  LIMIT_MS,
);
