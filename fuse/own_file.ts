/**
 * Files that the mount itself serves must not become its devices: the thread that serves them
 * would wait for itself, for ever. Even a look at one hangs, so links are followed here by hand,
 * and nothing at or below the mount point is ever asked for.
 */
import { readFileSync } from "node:fs";
import { readlink } from "node:fs/promises";
import { dirname, join, parse, relative, resolve, sep } from "node:path";
import { BcacheError } from "../lib/base/errors.ts";

const LINKS_MAX = 40;

/** Rejects with Busy when `path` leads to a file below `mountPoint`. */
export async function refuseOwnFile(path: string, mountPoint: string): Promise<void> {
  const mount = resolve(mountPoint);
  if (!(await leadsInto(path, mount)) && !(await leadsInto(loopFile(path), mount))) return;
  throw new BcacheError(
    "Busy",
    `${path}: is served by this mount itself, at ${mountPoint}; name a device outside of it`,
  );
}

/** Whether `path`, with its links followed, comes to `mount`, a real path. */
async function leadsInto(path: string | undefined, mount: string): Promise<boolean> {
  if (path === undefined) return false;
  let whole = resolve(path);
  for (let links = 0; links < LINKS_MAX; links++) {
    const next = await followFirstLink(whole, mount);
    if (next === "inside") return true;
    if (next === undefined) return false;
    whole = next;
  }
  return false; // Opening it says that there are too many.
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

/** The file behind a loop device, as the kernel names it. */
function loopFile(path: string): string | undefined {
  const name = /^\/dev\/(loop\d+)$/.exec(resolve(path))?.[1];
  if (name === undefined) return undefined;
  try {
    return readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim();
  } catch {
    return undefined; // It has none.
  }
}
