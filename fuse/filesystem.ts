/**
 * The tiny filesystem: a root directory, and in it one file for each volume.
 *
 * What it decides is independent of how requests arrive: node numbers, attributes, who may do
 * what, and where a range ends. Files behave as a disk does: they can be read, written and
 * zeroed, and have the size they have; names and sizes cannot be changed from in here. Volumes come
 * and go while it is mounted: a node number is never given twice, so no request can name something
 * stale that looks valid. Node and handle numbers are the same thing: of an open file nothing is
 * kept but that it is open.
 *
 * Results are negated errno numbers where they can fail: this is called once per request.
 */
import { assert } from "../lib/base/assert.ts";
import { ERRNO } from "../lib/base/errors.ts";
import type { BlockVolume } from "../lib/cache/ports.ts";
import type { FileAccess } from "./file_access.ts";
import { FALLOCATE_MODE, FILE_TYPE, OPEN_FLAG, ROOT_NODE } from "./protocol.ts";

/** Errors that only a file system has. */
export const FILE_ERRNO = { ...ERRNO, EBADF: 9, ENOTTY: 25, EPROTO: 71, ESTALE: 116 } as const;

const FIRST_FILE_NODE = ROOT_NODE + 1;
/** What tools such as cp and qemu take as the preferred size; never less than a page. */
const PREFERRED_BYTES_LEAST = 4096;

export interface Timestamp {
  readonly seconds: number;
  readonly nanoseconds: number;
}

export interface Attributes {
  readonly node: number;
  /** File type and permissions. */
  readonly mode: number;
  readonly links: number;
  readonly sizeBytes: number;
  readonly preferredBytes: number;
  readonly ownerUser: number;
  readonly ownerGroup: number;
  readonly accessed: Timestamp;
  readonly modified: Timestamp;
}

export interface DirectoryEntry {
  readonly node: number;
  readonly name: string;
  readonly type: number;
}

/** What setattr(2) and its kin ask for; absent members stay. */
export interface AttributeChange {
  readonly sizeBytes?: number;
  readonly modeOrOwner?: boolean;
  readonly accessed?: Timestamp | "now";
  readonly modified?: Timestamp | "now";
}

interface Node {
  readonly number: number;
  readonly volume: BlockVolume | undefined;
  /** Undefined: only for who mounted. */
  access?: FileAccess;
  /** How often it is open. */
  opens: number;
  /** The size that the kernel was told. */
  sizeBytes: number;
  accessed: Timestamp;
  modified: Timestamp;
  /** Written since `modified` was last asked for: looking at a clock waits until then. */
  written: boolean;
}

/** What became another by `Filesystem.update`; the kernel still remembers it as it was. */
export interface FilesystemChange {
  readonly gone: ReadonlyArray<{ readonly node: number; readonly name: string }>;
  readonly resized: readonly number[];
}

export interface FilesystemOptions {
  readonly volumes: readonly BlockVolume[];
  readonly ownerUser: number;
  readonly ownerGroup: number;
  /** The whole mount is read-only. */
  readonly readOnly: boolean;
  readonly wallSeconds: () => number;
}

export class Filesystem {
  #options: FilesystemOptions;
  /** By node number; 0 is nothing, and neither are volumes that are gone. */
  #nodes: (Node | undefined)[];
  /** Those there are, as they are listed. */
  #files: Node[] = [];

  constructor(options: FilesystemOptions) {
    this.#options = options;
    this.#nodes = [undefined, this.#newNode(ROOT_NODE, undefined)];
    assert(this.#nodes.length === FIRST_FILE_NODE, "files come behind the directory");
    this.update(options.volumes);
  }

  #newNode(number: number, volume: BlockVolume | undefined): Node {
    const now = this.#now();
    const sizeBytes = volume?.sizeBytes ?? 0;
    return { number, volume, opens: 0, sizeBytes, accessed: now, modified: now, written: false };
  }

  /** From now on the directory has these volumes. */
  update(volumes: readonly BlockVolume[]): FilesystemChange {
    const before = this.#files;
    this.#files = volumes.map((volume) => {
      const known = before.find((node) => node.volume === volume);
      if (known !== undefined) return known;
      const node = this.#newNode(this.#nodes.length, volume);
      this.#nodes.push(node);
      return node;
    });
    const gone = before.filter((node) => !this.#files.includes(node));
    for (const node of gone) this.#nodes[node.number] = undefined;
    const resized = this.#files.filter((node) => node.sizeBytes !== node.volume!.sizeBytes);
    for (const node of resized) node.sizeBytes = node.volume!.sizeBytes;
    return {
      gone: gone.map(({ number, volume }) => ({ node: number, name: volume!.name })),
      resized: resized.map(({ number }) => number),
    };
  }

  /** Volumes whose file is only for who mounted. */
  get closedVolumes(): readonly BlockVolume[] {
    return this.#files.filter((node) => node.access === undefined).map((node) => node.volume!);
  }

  /** Opens files to other users; returns the nodes whose attributes are others now. */
  admit(accesses: ReadonlyMap<BlockVolume, FileAccess>): number[] {
    const admitted = this.#files.filter((node) => accesses.has(node.volume!));
    for (const node of admitted) node.access = accesses.get(node.volume!)!;
    return admitted.map(({ number }) => number);
  }

  get volumes(): readonly BlockVolume[] {
    return this.#files.map((node) => node.volume!);
  }

  /** How often the file is open. */
  opens(name: string): number {
    return this.#files.find((node) => node.volume!.name === name)?.opens ?? 0;
  }

  exists(node: number): boolean {
    return this.#nodes[node] !== undefined;
  }

  /** The volume that a node number means; undefined for the directory and for unknown ones. */
  volume(node: number): BlockVolume | undefined {
    return this.#nodes[node]?.volume;
  }

  /** Why `node` is not a file. One that was is gone as a disk is that was pulled out. */
  notAFile(node: number): number {
    if (node === ROOT_NODE) return -FILE_ERRNO.EISDIR;
    return node > ROOT_NODE && node < this.#nodes.length ? -ERRNO.ENODEV : -FILE_ERRNO.ESTALE;
  }

  /** A node number. */
  lookup(parent: number, name: string): number {
    if (parent !== ROOT_NODE) return this.exists(parent) ? -ERRNO.ENOTDIR : -FILE_ERRNO.ESTALE;
    if (name === "." || name === "..") return ROOT_NODE;
    return this.#files.find((node) => node.volume!.name === name)?.number ?? -ERRNO.ENOENT;
  }

  attributes(number: number): Attributes | undefined {
    const node = this.#nodes[number];
    if (node === undefined) return undefined;
    if (node.written) {
      node.modified = this.#now();
      node.written = false;
    }
    const volume = node.volume;
    const writable = volume !== undefined && !this.#readOnly(volume);
    const permissions = (node.access?.permissions ?? 0o600) & (writable ? 0o666 : 0o444);
    return {
      node: number,
      mode: volume === undefined ? FILE_TYPE.DIRECTORY | 0o555 : FILE_TYPE.REGULAR | permissions,
      links: volume === undefined ? 2 : 1,
      sizeBytes: volume?.sizeBytes ?? 0,
      preferredBytes: Math.max(volume?.blockSizeBytes ?? 0, PREFERRED_BYTES_LEAST),
      ownerUser: node.access?.ownerUser ?? this.#options.ownerUser,
      ownerGroup: node.access?.ownerGroup ?? this.#options.ownerGroup,
      accessed: node.accessed,
      modified: node.modified,
    };
  }

  /** Entry `index` of the root directory, from 0, or undefined past the last. */
  entry(index: number): DirectoryEntry | undefined {
    if (index === 0 || index === 1) {
      return { node: ROOT_NODE, name: index === 0 ? "." : "..", type: FILE_TYPE.DIRECTORY };
    }
    const node = this.#files[index - 2];
    if (node === undefined) return undefined;
    return { node: node.number, name: node.volume!.name, type: FILE_TYPE.REGULAR };
  }

  /** Times are taken as they are; owner, permissions and size cannot be changed. */
  change(number: number, change: AttributeChange): number {
    const node = this.#nodes[number];
    if (node === undefined) return -FILE_ERRNO.ESTALE;
    if (change.modeOrOwner) return -ERRNO.EPERM;
    if (change.sizeBytes !== undefined) {
      if (node.volume === undefined) return -FILE_ERRNO.EISDIR;
      if (this.#readOnly(node.volume)) return -ERRNO.EROFS;
      if (change.sizeBytes !== node.volume.sizeBytes) return -ERRNO.EPERM;
    }
    if (change.accessed) node.accessed = this.#time(change.accessed);
    if (change.modified) {
      node.modified = this.#time(change.modified);
      node.written = false;
    }
    return 0;
  }

  /**
   * A handle. Truncation is refused: a program that asks for it would take old bytes for its own.
   */
  open(node: number, flags: number): number {
    const volume = this.volume(node);
    if (volume === undefined) return this.notAFile(node);
    const writes = (flags & OPEN_FLAG.ACCESS_MODE) !== 0;
    if (this.#readOnly(volume) && (writes || (flags & OPEN_FLAG.TRUNCATE) !== 0)) {
      return -ERRNO.EROFS;
    }
    if ((flags & OPEN_FLAG.TRUNCATE) !== 0) return -ERRNO.EPERM;
    this.#nodes[node]!.opens++;
    return node;
  }

  /** One `open` less. */
  release(number: number): number {
    const node = this.#nodes[number];
    if (node === undefined) return this.notAFile(number);
    if (node.opens > 0) node.opens--;
    return 0;
  }

  openDirectory(node: number): number {
    if (node === ROOT_NODE) return node;
    return this.exists(node) ? -ERRNO.ENOTDIR : -FILE_ERRNO.ESTALE;
  }

  /** How many of `lengthBytes` can be read at `offsetBytes`: 0 at the end, as in any file. */
  readable(volume: BlockVolume, offsetBytes: number, lengthBytes: number): number {
    return Math.max(0, Math.min(lengthBytes, volume.sizeBytes - offsetBytes));
  }

  /** How many of `lengthBytes` can be written there; ENOSPC at the end, as on a block device. */
  writable(volume: BlockVolume, offsetBytes: number, lengthBytes: number): number {
    if (this.#readOnly(volume)) return -ERRNO.EROFS;
    if (lengthBytes === 0) return 0;
    if (offsetBytes >= volume.sizeBytes) return -ERRNO.ENOSPC;
    return Math.min(lengthBytes, volume.sizeBytes - offsetBytes);
  }

  /** Notes a write, for the time of modification. */
  touch(number: number): void {
    const node = this.#nodes[number];
    if (node !== undefined) node.written = true;
  }

  /** How many bytes fallocate(2) is to zero there, from `offsetBytes` on. */
  zeroable(volume: BlockVolume, mode: number, offsetBytes: number, lengthBytes: number): number {
    if (this.#readOnly(volume)) return -ERRNO.EROFS;
    if (lengthBytes === 0) return -ERRNO.EINVAL;
    const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FALLOCATE_MODE;
    const end = offsetBytes + lengthBytes;
    if (mode === (PUNCH_HOLE | KEEP_SIZE) || mode === (ZERO_RANGE | KEEP_SIZE)) {
      return this.readable(volume, offsetBytes, lengthBytes);
    }
    if (mode === ZERO_RANGE) return end <= volume.sizeBytes ? lengthBytes : -ERRNO.EPERM;
    return -ERRNO.EOPNOTSUPP;
  }

  /** access(2): permissions are the kernel's business; writing to what is read-only is ours. */
  access(number: number, wantsWrite: boolean): number {
    const node = this.#nodes[number];
    if (node === undefined) return -FILE_ERRNO.ESTALE;
    const readOnly = node.volume ? this.#readOnly(node.volume) : this.#options.readOnly;
    return wantsWrite && readOnly ? -ERRNO.EROFS : 0;
  }

  /** The answer to whatever would change the directory. */
  refuseChange(): number {
    return this.#options.readOnly ? -ERRNO.EROFS : -ERRNO.EPERM;
  }

  #readOnly(volume: BlockVolume): boolean {
    return this.#options.readOnly || volume.readOnly;
  }

  #now(): Timestamp {
    return { seconds: this.#options.wallSeconds(), nanoseconds: 0 };
  }

  #time(value: Timestamp | "now"): Timestamp {
    return value === "now" ? this.#now() : value;
  }
}
