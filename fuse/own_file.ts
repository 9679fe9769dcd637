/**
 * Files that the mount itself serves must not become its devices: the thread that serves them
 * would wait for itself, for ever. Even a look at one hangs, so links are followed here by hand,
 * and nothing at or below the mount point is ever asked for.
 */
import { readlink, stat } from "node:fs/promises";
import { dirname, join, parse, relative, resolve, sep } from "node:path";
import { BcacheError } from "../lib/base/errors.ts";
import { linuxDevice } from "../lib/device/file_lock.ts";
import { loopsBelow } from "../lib/device/loop.ts";

const LINKS_MAX = 40;
const LOOP_LEVELS_MAX = 16;

/** Rejects with Busy when `path` leads to a file below `mountPoint`. */
export async function refuseOwnFile(path: string, mountPoint: string): Promise<void> {
  const mount = resolve(mountPoint);
  if (!(await leadsInto(path, mount))) return;
  throw new BcacheError(
    "Busy",
    `${path}: is served by this mount itself, at ${mountPoint}; name a device outside of it`,
  );
}

/** Whether `path`, with its links and loop devices followed, comes to `mount`, a real path. */
async function leadsInto(path: string, mount: string): Promise<boolean> {
  let files = [path];
  for (let level = 0; files.length > 0 && level < LOOP_LEVELS_MAX; level++) {
    const behind: string[] = [];
    for (const file of files) {
      const end = await endOfLinks(file, mount);
      if (end === "inside") return true;
      if (end !== undefined) behind.push(...await loopFiles(end.path));
    }
    files = behind;
  }
  return false;
}

/** Where the links of `path` end; undefined: there are too many, opening it says so. */
async function endOfLinks(
  path: string,
  mount: string,
): Promise<"inside" | { path: string } | undefined> {
  let whole = resolve(path);
  for (let links = 0; links < LINKS_MAX; links++) {
    const next = await followFirstLink(whole, mount);
    if (next === "inside") return next;
    if (next === undefined) return { path: whole };
    whole = next;
  }
  return undefined;
}

/** The files behind a block device, of which `path` must not be on the mount itself. */
async function loopFiles(path: string): Promise<string[]> {
  try {
    const found = await stat(path);
    if (!found.isBlockDevice()) return [];
    const { major, minor } = linuxDevice(found.rdev);
    return loopsBelow(major, minor).map(({ file }) => file);
  } catch {
    return []; // Opening it says what is wrong with it.
  }
}

/** The path with its first link replaced; "inside" when it comes to `mount` before any. */
async function followFirstLink(whole: string, mount: string): Promise<string | undefined> {
  let at = parse(whole).root;
  const parts = relative(at, whole).split(sep);
  for (const [index, part] of parts.entries()) {
    at = join(at, part);
    if (at === mount) return "inside";
    const target = await linkTarget(at);
    if (target !== undefined) return resolve(dirname(at), target, ...parts.slice(index + 1));
  }
  return undefined;
}

/** Not in this thread: the file system that is asked may hang. */
async function linkTarget(path: string): Promise<string | undefined> {
  try {
    return await readlink(path);
  } catch {
    return undefined; // No link, or not there; opening it says which.
  }
}
