/** The program as npm installs it: packed, unpacked below node_modules, started by its launcher. */
import { test } from "bun:test";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { attempt, inWorkshop, run, TOP, type Workshop } from "./support/workshop.ts";

const RUNTIME = process.versions["bun"] === undefined ? "deno" : "bun";

/** Packs the project and unpacks it where npm would put it. The launcher's path. */
async function install(place: Workshop): Promise<string> {
  const tarball = (await run("npm", "pack", "--silent", "--pack-destination", place.folder, TOP))
    .trim().split("\n").pop()!;
  const modules = place.makeFolder("lib/node_modules");
  await run("tar", "-xzf", place.path(tarball), "-C", modules);
  await run("mv", join(modules, "package"), join(modules, "bcache-fuse"));
  // What npm would fetch is here already.
  for (const name of readdirSync(join(TOP, "node_modules"))) {
    if (name.startsWith(".") && name !== ".bin") continue;
    symlinkSync(join(TOP, "node_modules", name), join(modules, name));
  }
  const bin = place.makeFolder("bin");
  const launcher = join(bin, "bcache-fuse");
  symlinkSync(join(modules, "bcache-fuse/api/cli/launch.sh"), launcher);
  return launcher;
}

test(
  "an installed copy formats, mounts, serves and unmounts",
  () =>
    inWorkshop(async (place) => {
      const launcher = await install(place);
      const installed = (...args: string[]) =>
        run("env", `BCACHE_FUSE_RUNTIME=${RUNTIME}`, launcher, ...args);
      const { version } = JSON.parse(readFileSync(join(TOP, "package.json"), "utf8"));
      assertEquals((await installed("--version")).trim(), version);
      const [cache, backing] = [place.path("cache"), place.path("backing")];
      await installed("make", "-C", cache, "-B", backing, "--size", "64M", "-b", "64k");
      const mountpoint = place.makeFolder("mnt");
      const mounted = await installed(
        ...["mount", "-C", cache, "-B", backing, "--http", "off", "--daemon", mountpoint],
      );
      try {
        assertStringIncludes(mounted, "mounted at");
        const text = place.path("text");
        writeFileSync(text, "kept by an installed copy\n".repeat(1000));
        const file = join(mountpoint, "bcache0");
        await run("dd", `if=${text}`, `of=${file}`, "conv=notrunc,fsync", "status=none");
        const read = await run("head", "-c", String(readFileSync(text).length), file);
        assert(read === readFileSync(text, "utf8"), "the file gives back what was written");
      } finally {
        const gone = await attempt(
          ["env", `BCACHE_FUSE_RUNTIME=${RUNTIME}`, launcher, "unmount", mountpoint],
        );
        assertEquals(gone.status, 0, gone.stderr);
      }
    }),
  120_000,
);
