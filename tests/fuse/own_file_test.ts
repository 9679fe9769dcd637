/** Files of the mount itself are refused as devices, however they are named. */
import { test } from "bun:test";
import { assertRejects } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { refuseOwnFile } from "../../fuse/own_file.ts";
import { BcacheError } from "../../lib/base/errors.ts";

test("a file below the mount point is refused by its path, through links and folders", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-own-"));
  const mount = join(folder, "mnt");
  mkdirSync(join(folder, "other"));
  symlinkSync("mnt/bcache0", join(folder, "file"));
  symlinkSync(mount, join(folder, "folder"));
  symlinkSync("../file", join(folder, "other", "chain"));
  symlinkSync("round", join(folder, "round"));
  for (const path of ["mnt/bcache0", "mnt", "file", "folder/bcache1", "other/../other/chain"]) {
    const refused = () => refuseOwnFile(`${folder}/${path}`, mount);
    await assertRejects(refused, BcacheError, "is served by this mount itself");
  }
  for (const path of ["mnt2", "other/mnt", "away", "round", "/dev/null", "/dev/loop987654"]) {
    await refuseOwnFile(path.startsWith("/") ? path : join(folder, path), mount);
  }
  rmSync(folder, { recursive: true });
});

test("a file below the mount point is refused behind loop devices, at all levels", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-own-"));
  const mount = join(folder, "mnt");
  mkdirSync(mount);
  writeFileSync(join(mount, "bcache0"), new Uint8Array(65536));
  const loops: string[] = [];
  try {
    for (let level = 0; level < 2; level++) {
      const words = ["--show", "-f", loops.at(-1) ?? join(mount, "bcache0")];
      const loop = spawnSync("losetup", words, { encoding: "utf8" });
      if (loop.status !== 0) return; // Only root may, and not on every machine.
      loops.push(loop.stdout.trim());
    }
    symlinkSync(loops[1]!, join(folder, "link"));
    for (const path of [...loops, join(folder, "link")]) {
      const refused = () => refuseOwnFile(path, mount);
      await assertRejects(refused, BcacheError, "is served by this mount itself");
    }
  } finally {
    for (const loop of loops.reverse()) spawnSync("losetup", ["-d", loop]);
    rmSync(folder, { recursive: true });
  }
});
