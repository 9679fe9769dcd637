/**
 * Files that come in versions, each written beside and renamed into place, as careful programs do:
 * after a crash a name holds the acknowledged version or a newer one, whole. The content follows
 * from name and version.
 *
 * As a program it is the writer: `files_in_versions.ts FOLDER SEED VERSION…` replaces random files
 * of the folder until something fails, and prints `SLOT VERSION` when that version is durable.
 */
import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { generator } from "./runtimes.ts";

const HEAD_WORDS = 4;
const MAGIC = 0x76657273;
const WORDS_MOST = 16_384;

/** The bytes of a version of a file; of up to 64 KiB. */
function contentOf(slot: number, version: number): Uint8Array<ArrayBuffer> {
  const random = generator(slot * 65_537 + version);
  const words = new Uint32Array(HEAD_WORDS + random() % WORDS_MOST);
  for (let word = HEAD_WORDS; word < words.length; word++) words[word] = random();
  words.set([MAGIC, slot, version, words.length]);
  return new Uint8Array(words.buffer);
}

const nameOf = (folder: string, slot: number): string => join(folder, `file${slot}`);

/**
 * Compares the files with the versions acknowledged, and takes what is found as the new ones.
 * Returns what is wrong, a line each.
 */
export function verifyVersions(folder: string, versions: number[]): string[] {
  const losses: string[] = [];
  versions.forEach((acknowledged, slot) => {
    const path = nameOf(folder, slot);
    if (!existsSync(path)) {
      if (acknowledged > 0) losses.push(`file${slot}: missing, version ${acknowledged} was synced`);
      return;
    }
    const bytes = new Uint8Array(readFileSync(path));
    const words = new Uint32Array(bytes.buffer, 0, Math.min(HEAD_WORDS, bytes.length >> 2));
    const version = words[2] ?? 0;
    if (version < acknowledged || version > acknowledged + 1 || words[1] !== slot) {
      losses.push(`file${slot}: version ${version} of file${words[1]}, ${acknowledged} was synced`);
      return;
    }
    const expected = contentOf(slot, version);
    const at = expected.findIndex((byte, index) => byte !== bytes[index]);
    if (at >= 0 || bytes.length !== expected.length) {
      losses.push(`file${slot}: version ${version} is wrong at byte ${at} of ${expected.length}`);
    }
    versions[slot] = version;
  });
  return losses;
}

/** Writes a version and makes it durable. */
export function writeVersion(folder: string, slot: number, version: number): void {
  const beside = join(folder, `beside${slot}`);
  const file = openSync(beside, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, 0o600);
  try {
    const bytes = contentOf(slot, version);
    for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(beside, nameOf(folder, slot));
  const directory = openSync(folder, constants.O_RDONLY);
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

if (import.meta.main) {
  const [folder, seed, ...rest] = process.argv.slice(2);
  const versions = rest.map(Number);
  const random = generator(Number(seed));
  const say = (line: string): number => writeSync(1, new TextEncoder().encode(`${line}\n`));
  try {
    for (;;) {
      const slot = random() % versions.length;
      const version = versions[slot]! + 1;
      writeVersion(folder!, slot, version);
      versions[slot] = version;
      say(`${slot} ${version}`);
    }
  } catch (error) {
    say(`ended: ${String(error)}`);
  }
}
