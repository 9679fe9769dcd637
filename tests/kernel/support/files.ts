/** Files that serve as disks. */
import { closeSync, ftruncateSync, openSync } from "node:fs";

/** A file of so many zero bytes; one that was there is emptied first. */
export function createFile(path: string, bytes: number): void {
  const fd = openSync(path, "w");
  ftruncateSync(fd, bytes);
  closeSync(fd);
}
