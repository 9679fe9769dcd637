/**
 * What a crash test knows of a file: which version of each block was written, and which is known
 * to be durable. Every 512-byte sector of a block says its block and version, so a torn block,
 * a lost one and a misplaced one are all seen for what they are.
 */
import { closeSync, constants, fsyncSync, openSync, readSync, writeSync } from "node:fs";

const SECTOR_BYTES = 512;
const SECTOR_WORDS = SECTOR_BYTES / 4;
const MAGIC = 0x626c6f63;

export interface Verdict {
  /** What is wrong, one line each; empty when every acknowledged write is there. */
  readonly losses: string[];
  /** How many sectors hold a version that was fsynced before the crash. */
  readonly durableSectors: number;
}

export class JournalOfWrites {
  readonly blockBytes: number;
  readonly blocks: number;
  #sectorsPerBlock: number;
  /** Per sector the oldest version a crash may leave. */
  #durable: Uint32Array;
  /** Per block the newest version that was ever handed to write. */
  #newest: Uint32Array;
  #words: Uint32Array;

  constructor(blocks: number, blockBytes: number) {
    this.blocks = blocks;
    this.blockBytes = blockBytes;
    this.#sectorsPerBlock = blockBytes / SECTOR_BYTES;
    this.#durable = new Uint32Array(blocks * this.#sectorsPerBlock);
    this.#newest = new Uint32Array(blocks);
    this.#words = new Uint32Array(blockBytes / 4);
  }

  /**
   * Writes random batches of blocks, each followed by fsync, until the file's server dies. Only
   * what an fsync returned for counts as durable; with `durably` the file is opened with O_DIRECT
   * and O_DSYNC, and every write that returned counts. Returns the number of batches. Throws when
   * nothing has died after `limitMs`.
   */
  writeUntilDeath(path: string, random: () => number, limitMs: number, durably = false): number {
    const durable = durably ? constants.O_DIRECT | constants.O_DSYNC : 0;
    const file = openSync(path, constants.O_RDWR | durable);
    const deadlineMs = performance.now() + limitMs;
    let fsyncs = 0;
    try {
      while (this.#writeBatch(file, random, durably)) {
        fsyncs++;
        if (performance.now() > deadlineMs) throw new Error(`still served after ${limitMs} ms`);
      }
      return fsyncs;
    } finally {
      try {
        closeSync(file);
      } catch {
        // Closing flushes, and there is nobody left to flush to.
      }
    }
  }

  /** Writes random batches, each followed by fsync, as long as `goesOn`; none may fail. */
  writeBatches(path: string, random: () => number, goesOn: () => boolean): void {
    const file = openSync(path, constants.O_RDWR);
    try {
      while (goesOn()) {
        if (!this.#writeBatch(file, random, false)) throw new Error(`${path}: a write failed`);
      }
    } finally {
      closeSync(file);
    }
  }

  /** False when the server has died before the batch was durable. */
  #writeBatch(file: number, random: () => number, durably: boolean): boolean {
    const batch = Array.from({ length: 1 + random() % 8 }, () => random() % this.blocks);
    try {
      for (const block of batch) {
        this.#writeBlock(file, block);
        if (durably) this.#markDurable(block);
      }
      if (!durably) fsyncSync(file);
    } catch {
      // ENOTCONN, ECONNABORTED or EIO: the server was killed, which is what we wait for.
      return false;
    }
    for (const block of batch) this.#markDurable(block);
    return true;
  }

  /** Compares the file with what may be there, and takes what is found as the new truth. */
  verify(path: string): Verdict {
    const losses: string[] = [];
    let durableSectors = 0;
    const file = openSync(path, constants.O_RDONLY);
    const bytes = new Uint8Array(this.#words.buffer);
    try {
      for (let block = 0; block < this.blocks; block++) {
        if (
          readSync(file, bytes, 0, this.blockBytes, block * this.blockBytes) !== this.blockBytes
        ) {
          losses.push(`block ${block}: short read`);
          continue;
        }
        for (let sector = 0; sector < this.#sectorsPerBlock; sector++) {
          const loss = this.#verifySector(block, sector);
          if (loss !== undefined) losses.push(loss);
          if (this.#durable[block * this.#sectorsPerBlock + sector]! > 0) durableSectors++;
        }
      }
    } finally {
      closeSync(file);
    }
    return { losses, durableSectors };
  }

  #writeBlock(file: number, block: number): void {
    const version = this.#newest[block]! + 1;
    // Before the write: from here on a crash may leave this version.
    this.#newest[block] = version;
    for (let sector = 0; sector < this.#sectorsPerBlock; sector++) {
      const at = sector * SECTOR_WORDS;
      for (let word = 0; word < SECTOR_WORDS; word++) {
        this.#words[at + word] = wordOf(block, version, sector, word);
      }
    }
    writeSync(
      file,
      new Uint8Array(this.#words.buffer),
      0,
      this.blockBytes,
      block * this.blockBytes,
    );
  }

  #markDurable(block: number): void {
    const at = block * this.#sectorsPerBlock;
    this.#durable.fill(this.#newest[block]!, at, at + this.#sectorsPerBlock);
  }

  #verifySector(block: number, sector: number): string | undefined {
    const index = block * this.#sectorsPerBlock + sector;
    const at = sector * SECTOR_WORDS;
    const blank = this.#words.subarray(at, at + SECTOR_WORDS).every((word) => word === 0);
    const version = blank ? 0 : this.#words[at + 2]!;
    const place = `block ${block} sector ${sector}`;
    for (let word = 0; word < SECTOR_WORDS && !blank; word++) {
      if (this.#words[at + word] !== wordOf(block, version, sector, word)) {
        return `${place}: not something that was ever written there (word ${word})`;
      }
    }
    const [oldest, newest] = [this.#durable[index]!, this.#newest[block]!];
    if (version < oldest) return `${place}: version ${version}, but ${oldest} was fsynced`;
    if (version > newest) return `${place}: version ${version}, but ${newest} is the newest`;
    // What recovery served is what the next crash must not take away again.
    this.#durable[index] = version;
    return undefined;
  }
}

/** The content of one word of a sector: three that identify it, then a pattern from them. */
function wordOf(block: number, version: number, sector: number, word: number): number {
  if (word === 0) return MAGIC + sector;
  if (word === 1) return block;
  if (word === 2) return version;
  return Math.imul(block * 64 + sector + 1, 0x9e3779b1) + Math.imul(version, 0x85ebca6b) + word >>>
    0;
}
