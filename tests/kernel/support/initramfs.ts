/**
 * The initial file system of the guest: busybox, the modules that the machine needs, the guest's
 * init and the script to run, as one archive of the kind the kernel unpacks (cpio, "newc").
 */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** What the machine is made of; what these depend on comes with them. */
const MODULES = ["virtio_pci", "virtio_blk", "bcache"];
const FOLDER = 0o040755;
const PROGRAM = 0o100755;
const PLAIN = 0o100644;
const LINK = 0o120777;

/** A newc archive under construction. */
class Archive {
  #parts: Uint8Array[] = [];
  #length = 0;
  #files = 0;

  add(name: string, mode: number, content: Uint8Array = new Uint8Array(0)): void {
    const path = new TextEncoder().encode(`${name}\0`);
    // inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
    const fields = [++this.#files, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, path.length, 0];
    const head = "070701" + fields.map((field) => field.toString(16).padStart(8, "0")).join("");
    this.#push(new TextEncoder().encode(head));
    this.#push(path);
    this.#pad();
    this.#push(content);
    this.#pad();
  }

  bytes(): Uint8Array {
    this.add("TRAILER!!!", 0);
    return Buffer.concat(this.#parts);
  }

  #push(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.#length += bytes.length;
  }

  #pad(): void {
    this.#push(new Uint8Array((4 - this.#length % 4) % 4));
  }
}

/** The modules `wanted` and all they depend on, each after those. */
function inLoadingOrder(folder: string, wanted: readonly string[]): string[] {
  const files = new Map(
    readdirSync(folder).map((file) => [file.slice(0, -".ko".length).replaceAll("-", "_"), file]),
  );
  const order: string[] = [];
  const visit = (name: string) => {
    const file = files.get(name.replaceAll("-", "_"));
    if (file === undefined || order.includes(file)) return; // No such file: it is built in.
    const text = readFileSync(join(folder, file), "latin1");
    const depends = /\0depends=([^\0]*)\0/.exec(text)?.[1] ?? "";
    for (const other of depends.split(",")) if (other !== "") visit(other);
    order.push(file);
  };
  wanted.forEach(visit);
  return order;
}

function busyboxPath(): string {
  const found = ["/bin/busybox", "/usr/bin/busybox"].find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new Error("no busybox; run: sh tests/support/install.sh kernel (it needs root and Debian)");
}

/** @param kernelFolder as tests/support/fetch_kernel.sh made it. @param script what init runs. */
export function initramfs(kernelFolder: string, script: string): Uint8Array {
  const archive = new Archive();
  for (const name of ["bin", "dev", "proc", "sys", "tmp", "modules"]) archive.add(name, FOLDER);
  const busybox = busyboxPath();
  archive.add("bin/busybox", PROGRAM, readFileSync(busybox));
  for (const applet of execFileSync(busybox, ["--list"], { encoding: "utf8" }).split("\n")) {
    if (applet === "" || applet === "busybox") continue;
    archive.add(`bin/${applet}`, LINK, new TextEncoder().encode("busybox"));
  }
  const modules = join(kernelFolder, "modules");
  const order = inLoadingOrder(modules, MODULES);
  for (const file of order) {
    archive.add(`modules/${file}`, PLAIN, readFileSync(join(modules, file)));
  }
  archive.add("modules/order", PLAIN, new TextEncoder().encode(`${order.join("\n")}\n`));
  archive.add("init", PROGRAM, readFileSync(join(import.meta.dirname!, "guest.sh")));
  archive.add("script", PLAIN, new TextEncoder().encode(script));
  return archive.bytes();
}
