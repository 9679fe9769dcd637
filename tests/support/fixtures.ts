/**
 * The images the Linux kernel wrote (tests/fixtures): what its manifest says of each, and copies
 * to work on.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What the kernel served and said of one device of a fixture. */
export interface FixtureDevice {
  readonly state?: "clean" | "dirty" | "no cache" | "inconsistent";
  /** "1" when the kernel served it. */
  readonly running?: string;
  readonly label?: string;
  readonly cache_mode?: string;
  readonly name?: string;
  readonly bytes?: number;
  readonly dirty_bytes?: number;
  readonly sha256?: string;
  readonly sha256_with_backing_data_zeroed?: string;
  readonly sha256_of_dirty_over_zeroes?: string;
  readonly writeback_leaves_sha256?: boolean;
}

export interface FixtureImage {
  readonly uuid: string;
  readonly set_uuid: string;
  readonly bytes: number;
  readonly sha256: string;
  readonly block_size: number;
  readonly data_offset_sectors?: number;
}

export interface FixtureEntry {
  readonly name: string;
  readonly damage?: string;
  /** By image name: `cache.img`, `backing1.img`, … */
  readonly images: Readonly<Record<string, FixtureImage>>;
  readonly kernel: {
    /** By image name: "ok" or the kernel's error. */
    readonly register: Readonly<Record<string, string>>;
    /** By backing image, or `volumeN` for a flash-only volume. */
    readonly devices: Readonly<Record<string, FixtureDevice>>;
  };
  readonly archive: { readonly file: string };
}

/** A fixture unpacked for one test, which removes it. */
export interface UnpackedFixture {
  readonly entry: FixtureEntry;
  readonly pathOf: (image: string) => string;
  readonly remove: () => void;
}

const FOLDER = join(import.meta.dirname!, "../fixtures");

/** All fixtures, in the manifest's order. */
export function fixtures(): readonly FixtureEntry[] {
  const manifest = JSON.parse(readFileSync(join(FOLDER, "manifest.json"), "utf8"));
  return manifest.fixtures as FixtureEntry[];
}

/** Unpacks a fixture, holes and all, into a fresh temporary folder. */
export function unpackFixture(name: string): UnpackedFixture {
  const entry = fixtures().find((fixture) => fixture.name === name);
  if (entry === undefined) throw new Error(`no fixture ${name} in tests/fixtures/manifest.json`);
  const folder = mkdtempSync(join(tmpdir(), `bcache-fuse-${name}-`));
  execFileSync("tar", ["-xJf", join(FOLDER, entry.archive.file), "-C", folder]);
  return {
    entry,
    pathOf: (image) => join(folder, image),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** Makes everything from `fromBytes` to the end of the file read as zeroes; its size stays. */
export function zeroTail(path: string, fromBytes: number): void {
  const sizeBytes = statSync(path).size;
  truncateSync(path, fromBytes);
  truncateSync(path, sizeBytes);
}

/** The SHA-256, in hex, of a file from `fromBytes` to its end. */
export function hashOfFile(path: string, fromBytes = 0): string {
  const hash = createHash("sha256");
  const piece = new Uint8Array(1 << 20);
  const file = openSync(path, "r");
  try {
    for (let at = fromBytes;;) {
      const lengthBytes = readSync(file, piece, 0, piece.length, at);
      if (lengthBytes === 0) return hash.digest("hex");
      hash.update(piece.subarray(0, lengthBytes));
      at += lengthBytes;
    }
  } finally {
    closeSync(file);
  }
}
