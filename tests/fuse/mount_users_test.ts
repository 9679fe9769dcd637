/** Who keeps a file in use, from what the kernel would tell of loop devices and mounts. */
import { afterEach, beforeEach, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describeUsers } from "../../fuse/mount_users.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-users-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("a loop device is named with what is mounted from it, which goes first", () => {
  const file = join(folder, "mnt", "bcache0");
  const block = join(folder, "block");
  for (const name of ["loop3", "loop30"]) {
    mkdirSync(join(block, name, "loop"), { recursive: true });
    writeFileSync(join(block, name, "loop/backing_file"), name === "loop3" ? `${file}\n` : "/x\n");
  }
  const mounts = join(folder, "mountinfo");
  const line = (source: string, point: string) => `36 35 98:0 / ${point} rw - ext4 ${source} rw\n`;
  const users = (...lines: string[]) => {
    writeFileSync(mounts, lines.join(""));
    return describeUsers(file, { block, mounts });
  };
  assertEquals(users(line("/dev/loop30", "/x")), '/dev/loop3 ("losetup -d /dev/loop3")');
  assertEquals(
    users(line("/dev/loop3", "/a\\040b"), line("/dev/loop3p1", "/y")),
    '/dev/loop3, mounted at /a b and /y ("umount /a b /y", then "losetup -d /dev/loop3")',
  );
  // As `mount -o loop` makes it: the kernel detaches it with the last mount.
  writeFileSync(join(block, "loop3/loop/autoclear"), "1\n");
  assertEquals(users(line("/dev/loop3", "/a")), '/dev/loop3, mounted at /a ("umount /a")');
  assertEquals(users(line("/dev/loop30", "/x")), '/dev/loop3 ("losetup -d /dev/loop3")');
});
