/**
 * Mounts of ours whose process was killed, cleared away with what lies on them: the file systems
 * and loop devices over their files. Such a mount serves nobody, and stands in the way of programs
 * that look at every mount, as mkfs.btrfs does.
 */
import { execFileSync } from "node:child_process";
import process from "node:process";
import { isDeadMount, mountEntries } from "../../api/control/mount_table.ts";
import { loopDevices } from "../../lib/device/loop.ts";

function run(program: string, ...args: string[]): void {
  const path = `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`;
  execFileSync(program, args, { env: { ...process.env, PATH: path }, stdio: "pipe" });
}

/** Clears the dead mount at the real path `mountPoint`; false, untouched: it is none. */
export function clearDeadMount(mountPoint: string): boolean {
  if (!isDeadMount(mountPoint)) return false;
  if (process.getuid?.() !== 0) {
    run("fusermount3", "-u", "-z", mountPoint);
    return true;
  }
  for (const { name, file } of loopDevices()) {
    if (!file.startsWith(`${mountPoint}/`)) continue;
    const loop = `/dev/${name}`;
    for (const { source, mountPoint: on } of mountEntries()) {
      if (source === loop) run("umount", on);
    }
    run("losetup", "--detach", loop);
  }
  run("umount", "-l", mountPoint);
  return true;
}

/** Clears every dead mount of this program, by whomever, and returns where they were. */
export function clearDeadMounts(): string[] {
  return mountEntries()
    .filter(({ type }) => type === "fuse.bcache")
    .map(({ mountPoint }) => mountPoint)
    .filter(clearDeadMount);
}
