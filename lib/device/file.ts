/**
 * A regular file or a block device as a Device.
 *
 * - Transfers loop until they are whole: a short one continues, an interrupted one is repeated.
 * - A flush is fdatasync, shared by all who ask while one is under way. Linux reports a failed
 *   write-back once and then forgets the data: after one failed flush all later ones fail too.
 * - A file that was cut short while in use reads as zeroes as soon as something is written behind
 *   its new end. So each flush looks at its length, and so does a write that would give it its old
 *   length back; a file found short is not read or written any more.
 * - Holes are punched to give back space, where the file system can; else zeroes are written.
 * - The sync member is plain pread and pwrite: no promise, nothing allocated here.
 */
import * as fs from "node:fs";
import { resolve as resolvePath } from "node:path";
import { assert } from "../base/assert.ts";
import { BcacheError } from "../base/errors.ts";
import { Shared } from "../base/sync.ts";
import { assertRange, assertTransfer, refuseReadOnly } from "./checks.ts";
import { type Device, SECTOR_BYTES, type WriteOptions } from "./device.ts";
import { linuxDevice, lockBehind, lockFile } from "./file_lock.ts";
import {
  ERRNO_OF,
  type FileCalls,
  type FileState,
  followLink,
  type HostCalls,
  nodeFileCalls,
  refuseDanglingLink,
  systemCode,
  systemError,
} from "./host.ts";
import { NO_TOPOLOGY, readTopology, type Topology } from "./topology.ts";

const ZERO_PIECE_BYTES = 1024 * 1024;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;

export interface FileDeviceOptions {
  readonly readOnly?: boolean;
  /**
   * Refuse with Busy when another process has it so. Default: when it is opened for writing and
   * `host` is there to do it.
   */
  readonly exclusive?: boolean;
  /** Without it: no locks, no holes (zeroes are written), sizes from sysfs. */
  readonly host?: HostCalls;
  /** For tests. */
  readonly files?: FileCalls;
}

/**
 * Opens a regular file or a block device. Rejects with NotFound, Permission, Busy,
 * InvalidArgument or DeviceIo; nothing stays open then.
 */
export async function openFileDevice(
  path: string,
  options: FileDeviceOptions = {},
): Promise<FileDevice> {
  if (path.includes("\0")) {
    throw new BcacheError("InvalidArgument", `${JSON.stringify(path)} is no path: it has a NUL`);
  }
  const readOnly = options.readOnly ?? false;
  const { host } = options;
  const exclusive = options.exclusive ?? (!readOnly && host !== undefined);
  assert(!exclusive || host !== undefined, "a lock needs the host's calls");
  let fd: number | undefined;
  let claim: number | undefined;
  const behind: number[] = [];
  try {
    // Not in this thread: a file system that hangs must not hang who serves others.
    assertKind(path, await fs.promises.stat(path)); // Opening a pipe would wait for ever.
    fd = await openFile(path, readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR);
    const stat = fs.fstatSync(fd);
    assertKind(path, stat);
    if (exclusive && host) {
      claim = lockFile(path, fd, stat, host);
      await lockBehind(path, stat, host, behind);
    }
    const measured = stat.isBlockDevice()
      ? measureBlockDevice(path, fd, stat, host)
      : { sizeBytes: stat.size, sectorBytes: SECTOR_BYTES, topology: NO_TOPOLOGY };
    const filePath = await followLink(path);
    return new FileDevice(path, { fd, claim, behind, filePath }, measured, options);
  } catch (error) {
    if (claim !== undefined) host?.close(claim);
    for (const each of behind) fs.closeSync(each);
    if (fd !== undefined) fs.closeSync(fd);
    if (systemCode(error) === "ENOENT") refuseDanglingLink(path);
    throw systemError(`${path} cannot be opened`, error);
  }
}

function openFile(path: string, flags: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.open(path, flags, (error, fd) => error ? reject(error) : resolve(fd));
  });
}

function assertKind(path: string, stat: fs.Stats): void {
  if (stat.isFile() || stat.isBlockDevice()) return;
  const kind = stat.isDirectory() ? "a directory" : "neither a regular file nor a block device";
  const message = `${path} is ${kind}; name the image or the disk that is meant`;
  throw new BcacheError("InvalidArgument", message);
}

/** What is open of a device: the file itself, and what keeps others from it. */
interface Opened {
  readonly fd: number;
  readonly claim: number | undefined;
  /** Files behind a loop device, locked. */
  readonly behind: readonly number[];
  readonly filePath: string;
}

interface Measured {
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  readonly topology: Topology;
}

function measureBlockDevice(
  path: string,
  fd: number,
  stat: fs.Stats,
  host: HostCalls | undefined,
): Measured {
  const sizeBytes = host?.blockDeviceBytes(fd) ?? -1;
  const sectorBytes = host?.blockDeviceSectorBytes(fd) ?? -1;
  const { major, minor } = linuxDevice(stat.rdev);
  const folder = `/sys/dev/block/${major}:${minor}`;
  const topology = readTopology(folder);
  if (sizeBytes >= 0 && sectorBytes >= 0) return { sizeBytes, sectorBytes, topology };
  const queue = fs.existsSync(`${folder}/queue`) ? `${folder}/queue` : `${folder}/../queue`;
  const numberIn = (file: string) => Number(fs.readFileSync(file, "utf8").trim());
  const measured = {
    sizeBytes: numberIn(`${folder}/size`) * SECTOR_BYTES,
    sectorBytes: numberIn(`${queue}/logical_block_size`),
    topology,
  };
  if (Number.isSafeInteger(measured.sizeBytes) && measured.sectorBytes >= SECTOR_BYTES) {
    return measured;
  }
  throw new BcacheError("DeviceIo", `${path}: the size of the block device cannot be found out`);
}

/**
 * `deleted`: nobody can find the file any more, it ends when it is closed. `replaced`: it was moved
 * away, and its name leads to another file.
 */
export type FileFate = "there" | "deleted" | "replaced";

export class FileDevice implements Device {
  readonly name: string;
  readonly sizeSectors: number;
  readonly logicalBlockSectors: number;
  readonly readOnly: boolean;
  readonly optimalIoSectors: number;
  readonly partialStripesExpensive: boolean;
  readonly sync: NonNullable<Device["sync"]>;
  /** Bytes of the file behind its last whole sector: not part of the device. */
  readonly tailBytes: number;
  /** Its path: `name`, or where that leads when it is a link. */
  readonly filePath: string;
  #fd: number;
  #claim: number | undefined;
  #behind: readonly number[];
  /** The name, whatever the working folder is later. */
  #absolutePath: string;
  #host: HostCalls | undefined;
  #files: FileCalls;
  #flushes: Shared;
  #flushFailure: BcacheError | undefined;
  #inFlight = 0;
  #isOpen = true;
  #sizeBytes: number;
  /** Set for good when the file was found shorter than it was. */
  #cutShort: BcacheError | undefined;
  /** Modes of fallocate that were not refused yet. */
  #zeroModes: number[] = [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE];

  /** Use `openFileDevice`. */
  constructor(
    path: string,
    { fd, claim, behind, filePath }: Opened,
    measured: Measured,
    options: FileDeviceOptions,
  ) {
    this.name = path;
    this.filePath = filePath;
    this.sizeSectors = Math.floor(measured.sizeBytes / SECTOR_BYTES);
    this.tailBytes = measured.sizeBytes % SECTOR_BYTES;
    this.#sizeBytes = measured.sizeBytes;
    this.logicalBlockSectors = measured.sectorBytes / SECTOR_BYTES;
    this.optimalIoSectors = measured.topology.optimalIoSectors;
    this.partialStripesExpensive = measured.topology.partialStripesExpensive;
    this.readOnly = options.readOnly ?? false;
    this.#fd = fd;
    this.#claim = claim;
    this.#behind = behind;
    this.#absolutePath = resolvePath(path);
    this.#host = options.host;
    this.#files = options.files ?? nodeFileCalls;
    this.#flushes = new Shared(() => this.#fdatasync());
    this.sync = {
      read: (atSector, into) => this.#transferSync("read", atSector, into),
      write: (atSector, from) => this.#transferSync("write", atSector, from),
    };
  }

  async read(atSector: number, into: Uint8Array): Promise<void> {
    this.#check(atSector, into);
    await this.#transfer("read", atSector, into);
  }

  async write(atSector: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    this.#check(atSector, from);
    refuseReadOnly(this);
    this.#checkEnd(atSector, from);
    if (options.preflush) await this.flush();
    await this.#transfer("write", atSector, from);
    if (options.fua) await this.flush();
  }

  async flush(): Promise<void> {
    assert(this.#isOpen, "a closed device is not used");
    if (this.readOnly) return;
    await this.#flushes.run();
  }

  // deno-lint-ignore require-await
  async discard(atSector: number, sectors: number): Promise<void> {
    assert(this.#isOpen, "a closed device is not used");
    assertRange(this, atSector, sectors);
    refuseReadOnly(this);
    this.#allocate(PUNCH_HOLE | KEEP_SIZE, atSector, sectors);
  }

  async zero(atSector: number, sectors: number): Promise<void> {
    assert(this.#isOpen, "a closed device is not used");
    assertRange(this, atSector, sectors);
    refuseReadOnly(this);
    if (sectors === 0) return;
    this.#assertWhole();
    for (const mode of [...this.#zeroModes]) if (this.#allocate(mode, atSector, sectors)) return;
    const zeroes = new Uint8Array(Math.min(sectors * SECTOR_BYTES, ZERO_PIECE_BYTES));
    for (let done = 0; done < sectors;) {
      const piece = Math.min(sectors - done, ZERO_PIECE_BYTES / SECTOR_BYTES);
      await this.#transfer("write", atSector + done, zeroes.subarray(0, piece * SECTOR_BYTES));
      done += piece;
    }
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    assert(this.#isOpen, "a device is closed once");
    assert(this.#inFlight === 0, "nothing is under way when a device is closed");
    this.#isOpen = false;
    if (this.#claim !== undefined) this.#host?.close(this.#claim);
    for (const each of this.#behind) fs.closeSync(each);
    fs.closeSync(this.#fd);
  }

  #check(atSector: number, bytes: Uint8Array): void {
    assert(this.#isOpen, "a closed device is not used");
    assertTransfer(this, atSector, bytes.length);
    if (this.#cutShort !== undefined) throw this.#cutShort;
  }

  /** Before a write that would end where the file once ended. */
  #checkEnd(atSector: number, from: Uint8Array): void {
    if (atSector + from.length / SECTOR_BYTES === this.sizeSectors) this.#assertWhole();
  }

  #assertWhole(): void {
    if (this.#cutShort === undefined) {
      const stat = fs.fstatSync(this.#fd);
      if (!stat.isFile() || stat.size >= this.#sizeBytes) return;
      this.#cutShort = new BcacheError(
        "DeviceIo",
        `${this.name}: has ${stat.size} bytes, but had ${this.#sizeBytes}: it was cut short ` +
          "while in use; what was behind its end is lost, and nothing of it is used any more",
      );
    }
    throw this.#cutShort;
  }

  /**
   * Whether the file is still what its name leads to. A file that was moved, with nothing in its
   * place, is: who looks for it is told that it is not there.
   */
  async fate(): Promise<FileFate> {
    if (!this.#isOpen) return "there";
    const open = fs.fstatSync(this.#fd, { bigint: true });
    if (!open.isFile()) return "there";
    if (open.nlink === 0n) return "deleted";
    try {
      // Not in this thread: the name may lead into the mount that this thread serves.
      const named = await fs.promises.stat(this.#absolutePath, { bigint: true });
      return named.dev === open.dev && named.ino === open.ino ? "there" : "replaced";
    } catch {
      return "there";
    }
  }

  /**
   * Size and time of modification of a regular file; undefined of a block device, and without the
   * host's calls, since not every runtime tells nanoseconds. `settled`: both are durable first,
   * with all that was written; nothing may be written meanwhile.
   */
  async fileState(options: { settled: boolean }): Promise<FileState | undefined> {
    assert(this.#isOpen, "a closed device is not used");
    const before = fs.fstatSync(this.#fd);
    if (!before.isFile() || this.#host?.modifiedNs === undefined) return undefined;
    if (options.settled && !this.readOnly) {
      await this.flush();
      await this.#fsync();
    }
    const modifiedNs = this.#host.modifiedNs(this.#fd);
    const sizeBytes = fs.fstatSync(this.#fd).size;
    return modifiedNs === undefined ? undefined : { sizeBytes, modifiedNs };
  }

  /** Times, too, which fdatasync leaves out. */
  async #fsync(): Promise<void> {
    this.#inFlight++;
    try {
      await new Promise<void>((resolve, reject) => {
        fs.fsync(this.#fd, (error) => error ? reject(error) : resolve());
      });
    } finally {
      this.#inFlight--;
    }
  }

  async #transfer(kind: "read" | "write", atSector: number, bytes: Uint8Array): Promise<void> {
    this.#inFlight++;
    try {
      for (let done = 0; done < bytes.length;) {
        done += await this.#step(kind, atSector, bytes, done);
      }
    } finally {
      this.#inFlight--;
    }
  }

  /** Transfers what the kernel takes at once; its length. */
  #step(kind: "read" | "write", atSector: number, bytes: Uint8Array, done: number) {
    const position = atSector * SECTOR_BYTES + done;
    return new Promise<number>((resolve, reject) => {
      const settle = (error: Error | null, count: number) => {
        if (error) {
          if (systemCode(error) === "EINTR") resolve(0);
          else reject(this.#failure(kind, atSector, bytes, error));
        } else if (count <= 0) reject(this.#ended(kind, atSector, bytes, done));
        else resolve(count);
      };
      if (kind === "read") {
        this.#files.read(this.#fd, bytes, done, bytes.length - done, position, settle);
      } else this.#files.write(this.#fd, bytes, done, bytes.length - done, position, settle);
    });
  }

  #transferSync(kind: "read" | "write", atSector: number, bytes: Uint8Array): void {
    this.#check(atSector, bytes);
    if (kind === "write") {
      refuseReadOnly(this);
      this.#checkEnd(atSector, bytes);
    }
    const files = this.#files;
    const position = atSector * SECTOR_BYTES;
    for (let done = 0; done < bytes.length;) {
      let count: number;
      try {
        count = kind === "read"
          ? files.readSync(this.#fd, bytes, done, bytes.length - done, position + done)
          : files.writeSync(this.#fd, bytes, done, bytes.length - done, position + done);
      } catch (error) {
        if (systemCode(error) === "EINTR") continue;
        throw this.#failure(kind, atSector, bytes, error);
      }
      if (count <= 0) throw this.#ended(kind, atSector, bytes, done);
      done += count;
    }
  }

  async #fdatasync(): Promise<void> {
    if (this.#flushFailure) throw this.#flushFailure;
    this.#inFlight++;
    try {
      await this.#fdatasyncOnce();
      this.#assertWhole();
    } catch (error) {
      this.#flushFailure = systemError(`${this.name}: flush failed`, error);
      throw this.#flushFailure;
    } finally {
      this.#inFlight--;
    }
  }

  async #fdatasyncOnce(): Promise<void> {
    for (;;) {
      const error = await new Promise<Error | null>((resolve) => {
        this.#files.fdatasync(this.#fd, (error) => resolve(error));
      });
      if (!error) return;
      if (systemCode(error) !== "EINTR") throw error;
    }
  }

  /**
   * fallocate with a mode that may not be supported here: false then, and it is not tried again.
   * The range then reads as zeroes.
   */
  #allocate(mode: number, atSector: number, sectors: number): boolean {
    if (!this.#host || !this.#zeroModes.includes(mode) || sectors === 0) return false;
    const [offset, length] = [atSector * SECTOR_BYTES, sectors * SECTOR_BYTES];
    let result: number;
    do {
      result = this.#host.fallocate(this.#fd, mode, offset, length);
    } while (result === -ERRNO_OF.EINTR);
    if (result >= 0) return true;
    const errno = -result;
    if (errno === ERRNO_OF.EIO || errno === ERRNO_OF.ENOSPC || errno === ERRNO_OF.EDQUOT) {
      const code = errno === ERRNO_OF.EIO ? "DeviceIo" : "NoSpace";
      const where = `${sectors} sectors at sector ${atSector}`;
      throw new BcacheError(code, `${this.name}: giving back ${where} failed: errno ${errno}`, {
        errno,
      });
    }
    // A range that is not whole blocks of a device is refused for itself: try again next time.
    const block = this.logicalBlockSectors;
    const isAligned = atSector % block === 0 && sectors % block === 0;
    if (isAligned) this.#zeroModes = this.#zeroModes.filter((other) => other !== mode);
    return false;
  }

  #failure(kind: string, atSector: number, bytes: Uint8Array, error: unknown): BcacheError {
    const where = `${bytes.length / SECTOR_BYTES} sectors at sector ${atSector}`;
    return systemError(`${this.name}: ${kind} of ${where} failed`, error);
  }

  #ended(kind: string, atSector: number, bytes: Uint8Array, done: number): BcacheError {
    try {
      this.#assertWhole();
    } catch (error) {
      return systemError(this.name, error);
    }
    const where = `${bytes.length / SECTOR_BYTES} sectors at sector ${atSector}`;
    const what = `${this.name}: ${kind} of ${where} ended after ${done} bytes`;
    return new BcacheError("DeviceIo", `${what}; is the device smaller than it was?`);
  }
}
