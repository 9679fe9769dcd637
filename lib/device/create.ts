/**
 * Making files for devices: sparse, new, and sure to be there after a power cut. An existing file
 * is never touched.
 */
import * as fs from "node:fs";
import { dirname } from "node:path";
import { BcacheError } from "../base/errors.ts";
import { systemCode, systemError } from "./host.ts";

/**
 * Creates a file of `sizeBytes` that reads as zeroes and takes no space yet. Throws Exists,
 * NotFound, Permission or NoSpace; no file is left then.
 */
export function createSparseFile(path: string, sizeBytes: number): void {
  let fd: number;
  try {
    fd = fs.openSync(path, "wx", 0o600);
  } catch (error) {
    if (systemCode(error) === "EEXIST") {
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
