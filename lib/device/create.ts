/**
 * Making files for devices: sparse, new, and sure to be there after a power cut. An existing file
 * is never touched.
 */
import * as fs from "node:fs";
import { dirname } from "node:path";
import { BcacheError } from "../base/errors.ts";
import { refuseDanglingLink, systemCode, systemError } from "./host.ts";

/** Node's and Bun's limit; file systems have smaller ones of their own. */
const FILE_BYTES_MAX = 2 ** 52 - 1;

/** Whether there is anything of this name, a link to nothing too. */
export function nameExists(path: string): boolean {
  return fs.lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

/**
 * Creates a file of `sizeBytes` that reads as zeroes and takes no space yet. Throws Exists,
 * NotFound, Permission or NoSpace; no file is left then. Throws WrongState where a link to nothing
 * has the name.
 */
export function createSparseFile(path: string, sizeBytes: number): void {
  if (sizeBytes > FILE_BYTES_MAX) {
    throw new BcacheError(
      "NoSpace",
      `${path} cannot be created with ${sizeBytes} bytes, expected at most ${FILE_BYTES_MAX}: ` +
        "no file is larger; see where that size comes from",
    );
  }
  let fd: number;
  try {
    fd = fs.openSync(path, "wx", 0o600);
  } catch (error) {
    if (systemCode(error) === "EEXIST") {
      refuseDanglingLink(path);
      throw new BcacheError("Exists", `${path} exists already; remove it or name another file`);
    }
    throw systemError(`${path} cannot be created`, error);
  }
  try {
    fs.ftruncateSync(fd, sizeBytes);
    fs.fsyncSync(fd);
    syncFolder(path);
  } catch (error) {
    fs.unlinkSync(path);
    throw systemError(`${path} cannot be created with ${sizeBytes} bytes`, error);
  } finally {
    fs.closeSync(fd);
  }
}

/** Takes back what `createSparseFile` made, when something after it failed. */
export function removeCreatedFile(path: string): void {
  try {
    fs.unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw systemError(`${path} cannot be removed`, error);
  }
}

/** A name is durable when its folder is. */
function syncFolder(path: string): void {
  const fd = fs.openSync(dirname(path), "r");
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}
