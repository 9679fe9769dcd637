/** An image edited between two mounts is not served stale: by the real program, on real files. */
import { test } from "bun:test";
import { assertEquals, assertMatch } from "@std/assert";
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { attempt, bcacheFuse, inWorkshop, PROGRAM, run } from "./support/workshop.ts";

const AT = 1 << 20;
const LENGTH = 64 * 1024;

function fill(path: string, value: number): void {
  const fd = openSync(path, "r+");
  writeSync(fd, new Uint8Array(LENGTH).fill(value), 0, LENGTH, AT);
  closeSync(fd);
}

function valueIn(path: string): number {
  const into = new Uint8Array(1);
  const fd = openSync(path, "r");
  readSync(fd, into, 0, 1, AT);
  closeSync(fd);
  return into[0]!;
}

test(
  "an image is the same by a link to it, also after a kill",
  () =>
    inWorkshop(async (place) => {
      const [image, link, cache] = ["disk.img", "link.img", "cache.img"].map((name) =>
        place.path(name)
      ) as [string, string, string];
      await run("truncate", "-s", "16M", image);
      await run("ln", "-s", image, link);
      const make = ["make", "-C", cache, "--size", "64M", "-b", "64k", "-B", link, "--sidecar"];
      await bcacheFuse(...make, "--writeback");
      const flags = ["--set", "writeback_running=0"];
      const first = await place.mount({ cache, backing: link, flags });
      fill(first.file, 5);
      await run("sync", first.file);
      await place.kill(first);
      for (const backing of [image, link]) {
        const again = await place.mount({ cache, backing, flags });
        assertEquals(valueIn(again.file), 5);
        await place.unmount(again);
        await bcacheFuse("check", "--cache", cache, "--backing", backing);
      }
      await bcacheFuse("writeback", "--cache", cache, "--backing", link);
      assertEquals(valueIn(image), 5);
    }),
  60_000,
);

test(
  "check of an edited image with dirty data advises what a mount takes",
  () =>
    inWorkshop(async (place) => {
      const image = place.path("disk.img");
      const cache = place.path("cache.img");
      await run("truncate", "-s", "16M", image);
      const make = ["make", "-C", cache, "--size", "64M", "-b", "64k", "-B", image, "--sidecar"];
      await bcacheFuse(...make, "--writeback");
      const flags = ["--set", "writeback_running=0"];
      const set = { cache, backing: image, flags };
      const first = await place.mount(set);
      fill(first.file, 5);
      await place.unmount(first);
      fill(image, 66);
      const checked = await attempt([...PROGRAM, "check", "--cache", cache, "--backing", image]);
      assertEquals(checked.status, 4);
      const line =
        /^error: .*was changed without its cache: .*; the cache has 64\.0 KiB of it .*$/m;
      const [advice] = line.exec(checked.stdout) ?? [checked.stdout];
      assertMatch(advice, /trust and flush; .* make -B \S+ --sidecar --force, mount, and then /);
      assertEquals(advice.includes("drop"), false);
      const trusted = { ...set, flags: [...flags, "--changed-image", "trust"] };
      const again = await place.mount(trusted);
      assertEquals(valueIn(again.file), 5);
      await bcacheFuse("flush", again.mountpoint);
      assertEquals(valueIn(image), 5);
      await place.unmount(again);
    }),
  60_000,
);

test(
  "an image edited behind its sidecar is refused, then served as told",
  () =>
    inWorkshop(async (place) => {
      const image = place.path("disk.img");
      const cache = place.path("cache.img");
      await run("truncate", "-s", "16M", image);
      const make = ["make", "-C", cache, "--size", "64M", "-b", "64k", "-B", image, "--sidecar"];
      await bcacheFuse(...make);
      const set = { cache, backing: image };
      const first = await place.mount(set);
      fill(first.file, 5);
      await place.unmount(first);

      // Nobody changed it: whatever happens between two sessions changes nothing.
      await bcacheFuse("check", "--cache", cache, "--backing", image);
      const again = await place.mount(set);
      assertEquals(valueIn(again.file), 5);
      await place.unmount(again);

      fill(image, 66);
      const devices = ["--cache", cache, "--backing", image];
      const words = ["mount", ...devices, "--http", "off", again.mountpoint];
      const refused = await attempt([...PROGRAM, ...words]);
      assertEquals(refused.status, 1);
      assertMatch(
        refused.stderr,
        /^bcache-fuse: \S+disk\.img: was changed without its cache: found modification time /,
      );
      for (const command of ["writeback", "extract"]) {
        const output = command === "extract" ? ["-o", place.path("merged.img")] : [];
        const outcome = await attempt([...PROGRAM, command, ...devices, ...output]);
        assertEquals(outcome.status, 1, command);
        assertMatch(outcome.stderr, /was changed without its cache/);
      }
      const checked = await attempt([...PROGRAM, "check", ...devices]);
      assertEquals(checked.status, 4);
      assertMatch(checked.stdout, /^error: .*was changed without its cache/m);

      const trusted = await place.mount({ ...set, flags: ["--changed-image", "trust"] });
      assertEquals(valueIn(trusted.file), 5);
      await place.unmount(trusted);
      fill(image, 67);
      const dropped = await place.mount({ ...set, flags: ["--changed-image", "drop"] });
      assertEquals(valueIn(dropped.file), 67);
      await place.unmount(dropped);
      fill(image, 68);
      const flags = ["--changed-image", "drop", "--http", "off", "--daemon"];
      const daemon = await attempt([...PROGRAM, "mount", ...devices, ...flags, again.mountpoint]);
      await bcacheFuse("unmount", again.mountpoint);
      assertEquals(daemon.status, 0);
      assertMatch(
        daemon.stderr,
        /^bcache-fuse: warning: \S+: was changed without its .* of it is dropped: [\d.]+ KiB\n$/,
      );
      const last = await place.mount(set);
      assertEquals(valueIn(last.file), 68);
      await place.unmount(last);
    }),
  60_000,
);
