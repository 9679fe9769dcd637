/**
 * Loop devices, and the files behind them: a loop device is another way to a file, and the kernel
 * lets several of them, and whoever opens the file itself, share it unasked.
 *
 * Files are told apart by device and inode number, since a file may have several names. A look at
 * a file on a FUSE mount may wait for ever: it is left out where it cannot be the same file.
 */
import * as fs from "node:fs";

const BLOCK_FOLDER = "/sys/block";

export interface LoopDevice {
  /** `loop0`. */
  readonly name: string;
  /** The file behind it as the kernel names it: `/images/a`, `/images/a (deleted)`. */
  readonly file: string;
  /** What of the file it shows; up to the end of the file: Infinity. */
  readonly startBytes: number;
  readonly endBytes: number;
  /** The kernel detaches it when the last user leaves it, as after `mount -o loop`. */
  readonly autoclear: boolean;
}

/** All loop devices that have a file. `folder`: another than sysfs, for tests. */
export function loopDevices(folder: string = BLOCK_FOLDER): LoopDevice[] {
  let names: string[];
  try {
    names = fs.readdirSync(folder);
  } catch {
    return []; // Without sysfs there is nothing that we could name.
  }
  return names.flatMap((name) => {
    const device = readLoop(`${folder}/${name}`, name);
    return device === undefined ? [] : [device];
  });
}

/**
 * The loop devices that a block device comes to: itself, the one that it is a partition of, those
 * that a mapped device or an array is made of. What is behind their files is not followed.
 */
export function loopsBelow(major: number, minor: number): LoopDevice[] {
  const found = new Map<string, LoopDevice>();
  const seen = new Set<string>();
  const visit = (folder: string): void => {
    let at: string;
    try {
      at = fs.realpathSync(folder);
    } catch {
      return; // It went away.
    }
    if (fs.existsSync(`${at}/partition`)) at = at.slice(0, at.lastIndexOf("/"));
    if (seen.has(at)) return;
    seen.add(at);
    const name = at.slice(at.lastIndexOf("/") + 1);
    const loop = readLoop(at, name);
    if (loop !== undefined) found.set(name, loop);
    if (!fs.existsSync(`${at}/slaves`)) return;
    for (const slave of fs.readdirSync(`${at}/slaves`)) visit(`${at}/slaves/${slave}`);
  };
  visit(`/sys/dev/block/${major}:${minor}`);
  return [...found.values()];
}

/** Other loop devices that show some of the same bytes of the same file. */
export function overlapping(loop: LoopDevice): LoopDevice[] {
  return loopDevices().filter((other) =>
    other.name !== loop.name && other.startBytes < loop.endBytes &&
    loop.startBytes < other.endBytes && isSameFile(loop.file, other.file)
  );
}

function readLoop(folder: string, name: string): LoopDevice | undefined {
  const text = (attribute: string): string | undefined => {
    try {
      return fs.readFileSync(`${folder}/loop/${attribute}`, "utf8").replace(/\n$/, "");
    } catch {
      return undefined;
    }
  };
  const file = text("backing_file");
  if (file === undefined || file === "") return undefined;
  const startBytes = Number(text("offset") ?? 0);
  const limitBytes = Number(text("sizelimit") ?? 0);
  const endBytes = limitBytes === 0 ? Infinity : startBytes + limitBytes;
  return { name, file, startBytes, endBytes, autoclear: text("autoclear") === "1" };
}

/** Whether two real paths are one file, by whatever names. What is gone is compared as text. */
export function isSameFile(one: string, other: string): boolean {
  if (one === other) return true;
  // Names of one file are on one file system. Behind a FUSE mount a look may wait for ever.
  const [mountOne, mountOther] = [fuseMountOf(one), fuseMountOf(other)];
  if (mountOne !== mountOther) return false;
  const [first, second] = [identityOf(one), identityOf(other)];
  return first !== undefined && first === second;
}

function identityOf(path: string): string | undefined {
  try {
    // Inode numbers may have all their 64 bits.
    const { dev, ino, rdev, mode } = fs.statSync(path, { bigint: true });
    const isBlockDevice = (Number(mode) & fs.constants.S_IFMT) === fs.constants.S_IFBLK;
    return isBlockDevice ? `device ${rdev}` : `${dev}:${ino}`;
  } catch {
    return undefined; // Gone, or "(deleted)".
  }
}

/** The FUSE mount that `path` is on; undefined: on another file system. */
function fuseMountOf(path: string): string | undefined {
  let found: { point: string; type: string } | undefined;
  let table: string;
  try {
    table = fs.readFileSync("/proc/self/mounts", "utf8");
  } catch {
    return undefined;
  }
  for (const line of table.split("\n")) {
    const [, escaped, type] = line.split(" ");
    if (escaped === undefined || type === undefined) continue;
    const point = escaped.replace(
      /\\([0-7]{3})/g,
      (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)),
    );
    const isAbove = point === "/" || path === point || path.startsWith(`${point}/`);
    if (isAbove && point.length >= (found?.point.length ?? 0)) found = { point, type };
  }
  return found?.type.startsWith("fuse") ? found.point : undefined;
}
