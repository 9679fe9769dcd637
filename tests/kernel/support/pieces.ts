/**
 * What is written: pieces of one data disk, so that both sides write the same bytes and the host
 * knows them. A model is the volume's content; sectors that a crash left open hold several
 * contents until somebody reads them.
 */
import { createHash } from "node:crypto";
import { SimRandom } from "../../simulation/sim_random.ts";

export const SECTOR = 512;
export const VOLUME_BYTES = 20 << 20;
export const DATA_BYTES = 32 << 20;

/** Copies `count` units from the data disk to the volume; places count units too. */
export interface Piece {
  readonly unitBytes: number;
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

/** Every sector of the data disk is different from every other. */
export function dataDisk(): Uint8Array {
  const words = new Uint32Array(DATA_BYTES / 4);
  let state = 0x2545_f491;
  for (let at = 0; at < words.length; at++) {
    state = Math.imul(state ^ state >>> 15, 0x2c1b_3c6d) + at | 0;
    words[at] = state;
  }
  return new Uint8Array(words.buffer);
}

export interface PieceRange {
  readonly fromBytes: number;
  readonly toBytes: number;
}

/** Random pieces within a range: most of a few units, some long, some touching the last one. */
export function pieces(
  random: SimRandom,
  count: number,
  unitBytes: number,
  range: PieceRange,
): Piece[] {
  const result: Piece[] = [];
  const first = range.fromBytes / unitBytes;
  const units = (range.toBytes - range.fromBytes) / unitBytes;
  let next = 0;
  for (let index = 0; index < count; index++) {
    const longest = random.chance(0.1) ? 256 << 10 : 16 << 10;
    const length = random.between(1, Math.max(1, longest / unitBytes));
    const follows = random.chance(0.25) && next + length <= units;
    const to = follows ? next : random.below(units - length);
    next = to + length;
    const from = random.below(DATA_BYTES / unitBytes - length);
    result.push({ unitBytes, from, to: first + to, count: length });
  }
  return result;
}

/** The bytes of a piece. */
export function bytesOf(piece: Piece, data: Uint8Array): Uint8Array {
  const start = piece.from * piece.unitBytes;
  return data.subarray(start, start + piece.count * piece.unitBytes);
}

/**
 * The content of one volume. What a crash left open may read either way until it is written again:
 * a cached copy and the backing device may hold different versions, and which of the two answers
 * changes when the cached copy makes room for something else.
 */
export class Model {
  readonly bytes = new Uint8Array(VOLUME_BYTES);
  /** By sector: what it may hold besides `bytes`. */
  #open = new Map<number, Uint8Array[]>();

  /** Written, and certain to be there. */
  write(piece: Piece, data: Uint8Array): void {
    const bytes = bytesOf(piece, data);
    const start = piece.to * piece.unitBytes;
    this.bytes.set(bytes, start);
    for (let at = 0; at < bytes.length; at += SECTOR) this.#open.delete((start + at) / SECTOR);
  }

  /** Written, and perhaps lost in the crash that follows. */
  writeUncertainly(piece: Piece, data: Uint8Array): void {
    const bytes = bytesOf(piece, data);
    const first = piece.to * piece.unitBytes / SECTOR;
    for (let at = 0; at < bytes.length; at += SECTOR) {
      const sector = first + at / SECTOR;
      const versions = this.#open.get(sector) ?? [];
      versions.push(bytes.subarray(at, at + SECTOR));
      this.#open.set(sector, versions);
    }
  }

  /** The sectors of `found`, read from `fromBytes` on, that may not be as they are. */
  wrongSectors(found: Uint8Array, fromBytes: number = 0): number[] {
    const wrong: number[] = [];
    for (let at = 0; at < found.length; at += SECTOR) {
      const actual = found.subarray(at, at + SECTOR);
      const known = this.bytes.subarray(fromBytes + at, fromBytes + at + SECTOR);
      if (Buffer.compare(actual, known) === 0) continue;
      const sector = (fromBytes + at) / SECTOR;
      const others = this.#open.get(sector) ?? [];
      if (!others.some((each) => Buffer.compare(actual, each) === 0)) wrong.push(sector);
    }
    return wrong;
  }

  /** Of what no crash left open. */
  hash(toBytes: number): string {
    return createHash("sha256").update(this.bytes.subarray(0, toBytes)).digest("hex");
  }

  copy(): Model {
    const copy = new Model();
    copy.bytes.set(this.bytes);
    for (const [sector, versions] of this.#open) copy.#open.set(sector, versions.slice());
    return copy;
  }
}
