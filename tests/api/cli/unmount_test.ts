/** What `unmount` makes of the programs of the system, which here are scripts. */
import { afterEach, beforeEach, test } from "bun:test";
import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { detachByHand, refuseDeleted } from "../../../api/cli/unmount.ts";
import { BcacheError } from "../../../lib/base/errors.ts";
import { openLibc } from "../../../lib/runtime/libc.ts";

const MOUNT = "/no/such/mount";
const before = { PATH: process.env["PATH"], LC_ALL: process.env["LC_ALL"] };
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "bcache-fuse-unmount-"));
  process.env["PATH"] = `${folder}:${before.PATH}`;
});
afterEach(() => {
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  rmSync(folder, { recursive: true, force: true });
});

/** The program that unmounts, for root and for others, does `script`. */
function unmountingDoes(script: string): void {
  for (const name of ["umount", "fusermount3"]) {
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }
}

test("what the system says is read in English, whatever the language", () => {
  process.env["LC_ALL"] = "de_DE.UTF-8";
  unmountingDoes('[ "$LC_ALL" = C ] && echo busy >&2 || echo Das Ziel wird benutzt >&2; exit 32');
  const error = assertThrows(() => detachByHand(MOUNT, "unless busy"), BcacheError);
  assertEquals(error.code, "Busy");
});

test("of a server that does not answer the PID is named, and what wakes it", () => {
  unmountingDoes("exec sleep 20");
  const detach = (pid: number | undefined) => () =>
    detachByHand(MOUNT, "unless busy", { pid, patienceMs: 200 });
  const error = assertThrows(detach(12), BcacheError, "process 12 does not answer");
  assertEquals(error.code, "Shutdown");
  assertStringIncludes(error.message, "kill -CONT 12 goes on with it");
  assertThrows(detach(undefined), BcacheError, "the process that serves it does not answer");
});

test("what else the system says is passed on", () => {
  unmountingDoes("echo must be superuser >&2; exit 32");
  const detach = () => detachByHand(MOUNT, "now");
  assertThrows(detach, BcacheError, `cannot unmount ${MOUNT}: must be superuser; try it as root`);
});

test("a device that was deleted under a server that cannot be asked is not given up", async () => {
  const libc = await openLibc();
  const paths = ["disk", "mnt.sock.lock", "log", "kept"].map((name) => join(folder, name));
  const [disk, lock, log] = paths;
  const open = paths.map((path) => openSync(path, "w+"));
  try {
    for (const [at, file] of open.entries()) if (paths[at] !== log) libc.flock(file, 2);
    refuseDeleted(process.pid, "mnt");
    for (const path of [disk!, lock!, log!]) rmSync(path);
    const error = assertThrows(() => refuseDeleted(process.pid, "mnt"), BcacheError);
    assertEquals(
      [error.code, error.message],
      [
        "Busy",
        `${disk} was deleted while in use, and ends with this mount: copy the files of mnt to ` +
        "another place first; or give it up with --force",
      ],
    );
  } finally {
    for (const file of open) closeSync(file);
  }
  refuseDeleted(process.pid, "mnt");
});
