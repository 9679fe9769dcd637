/** `mount --allow-other`: who may use an image may use its file, and nobody else. */
import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { spawnSync } from "node:child_process";
import { chmodSync, chownSync, statSync } from "node:fs";
import process from "node:process";
import { attempt, bcacheFuse, inWorkshop, run } from "./support/workshop.ts";

const NOBODY = 65534;

/** Only root becomes somebody else. */
function testAsRoot(name: string, body: () => Promise<void>, limitMs: number): void {
  const canSwitch = process.getuid?.() === 0 && spawnSync("setpriv", ["--version"]).status === 0;
  if (canSwitch) test(name, body, limitMs);
}

/** What user nobody may do with a file: "", "r", "w" or "rw". */
async function rightsOf(path: string): Promise<string> {
  const user = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
  const one = ["bs=4k", "count=1", "conv=notrunc", "status=none"];
  const reads = await attempt([...user, "dd", `if=${path}`, "of=/dev/null", ...one]);
  const writes = await attempt([...user, "dd", "if=/dev/zero", `of=${path}`, ...one]);
  return `${reads.status === 0 ? "r" : ""}${writes.status === 0 ? "w" : ""}`;
}

testAsRoot(
  "other users may do with a file what they may do with its image",
  () =>
    inWorkshop(async (place) => {
      chmodSync(place.folder, 0o755);
      const cache = place.path("cache.img");
      const images = ["private", "shared", "public", "later"].map((name) => place.path(name));
      const [first, second, third, later] = images as [string, string, string, string];
      for (const image of images) await run("truncate", "-s", "16M", image);
      await bcacheFuse("make", "-C", cache, "--size", "64M", "-b", "64k", "-B", ...images);
      chmodSync(first, 0o600);
      chmodSync(second, 0o644);
      chmodSync(third, 0o660);
      chownSync(third, 0, NOBODY);
      chmodSync(later, 0o666);
      chmodSync(cache, 0o600);
      const flags = ["--backing", second, "--backing", third, "--allow-other"];
      const { file, mountpoint } = await place.mount({ cache, backing: first, flags });
      await bcacheFuse("volume", "create", mountpoint, "1M");
      await bcacheFuse("attach", mountpoint, later);
      const served = ["bcache0", "bcache1", "bcache2", "bcache3", "bcache4"];
      const rights: string[] = [];
      for (const name of served) rights.push(await rightsOf(file.replace("bcache0", name)));
      assertEquals(rights, ["", "r", "rw", "", "rw"]);
      const found = served.map((name) => statSync(file.replace("bcache0", name)));
      assertEquals(found.map(({ mode }) => mode & 0o777), [0o600, 0o644, 0o660, 0o600, 0o666]);
      assertEquals(found.map(({ gid }) => gid), [0, 0, NOBODY, 0, 0]);
    }),
  60_000,
);

testAsRoot(
  "without it nobody else gets in, whatever the image allows",
  () =>
    inWorkshop(async (place) => {
      chmodSync(place.folder, 0o755);
      const set = await place.format({ cacheMib: 64, backingMib: 16 });
      chmodSync(set.backing, 0o666);
      const { file } = await place.mount(set);
      assertEquals(await rightsOf(file), "");
      assertEquals(statSync(file).mode & 0o777, 0o600);
    }),
  60_000,
);
