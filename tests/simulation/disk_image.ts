/**
 * The bytes of a simulated disk: pages of 4 KiB, made when first written, shared between copies
 * until one of them writes (a copy is taken at every crash point, so it must be cheap, also that
 * of a large disk with little on it: pages are in chunks, which are shared in the same way).
 *
 * Sectors that nobody wrote hold what `unwritten` says, seeded garbage as a rule: code that scans
 * for its structures must recognise them by magic and checksum, not by the rest being zero.
 */
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { hashOf } from "./sim_random.ts";

export const PAGE_SECTORS = 8;
const PAGE_BYTES = PAGE_SECTORS * SECTOR_BYTES;

/** Fills the 512 bytes of a sector that was never written. Must depend on the sector alone. */
export type Unwritten = (sector: number, into: Uint8Array) => void;

export const zeroSectors: Unwritten = (_sector, into) => {
  into.fill(0);
};

export function garbageSectors(seed: number): Unwritten {
  return (sector, into) => {
    let state = hashOf(seed, sector) | 1;
    const view = new DataView(into.buffer, into.byteOffset, into.length);
    for (let at = 0; at < into.length; at += 4) {
      state = Math.imul(state, 1_664_525) + 1_013_904_223 | 0;
      view.setInt32(at, state, true);
    }
  };
}

/** Pages that follow each other; undefined ones were never written. */
interface Chunk {
  readonly pages: Array<Uint8Array | undefined>;
  /** 1 where no copy shares the page. */
  readonly owned: Uint8Array;
}

const CHUNK_PAGES = 128;

export class DiskImage {
  readonly sizeSectors: number;
  #unwritten: Unwritten;
  #chunks: Array<Chunk | undefined>;
  #owned: Uint8Array; // 1 where no copy shares the chunk.

  constructor(
    sizeSectors: number,
    unwritten: Unwritten,
    sharedChunks?: Array<Chunk | undefined>,
  ) {
    const chunks = Math.ceil(sizeSectors / (PAGE_SECTORS * CHUNK_PAGES));
    this.sizeSectors = sizeSectors;
    this.#unwritten = unwritten;
    this.#chunks = sharedChunks ?? new Array<Chunk | undefined>(chunks).fill(undefined);
    this.#owned = new Uint8Array(chunks);
  }

  /** An image with the same bytes; writes to either do not show in the other. */
  copy(): DiskImage {
    this.#owned.fill(0);
    return new DiskImage(this.sizeSectors, this.#unwritten, this.#chunks.slice());
  }

  read(atSector: number, into: Uint8Array): void {
    this.#eachPiece(atSector, into.length, (page, inPage, offset, length) => {
      const bytes = this.#pageOf(page);
      if (bytes !== undefined) {
        into.set(bytes.subarray(inPage, inPage + length), offset);
        return;
      }
      for (let done = 0; done < length; done += SECTOR_BYTES) {
        const sector = page * PAGE_SECTORS + (inPage + done) / SECTOR_BYTES;
        this.#unwritten(sector, into.subarray(offset + done, offset + done + SECTOR_BYTES));
      }
    });
  }

  write(atSector: number, from: Uint8Array): void {
    this.#eachPiece(atSector, from.length, (page, inPage, offset, length) => {
      this.#own(page, length).set(from.subarray(offset, offset + length), inPage);
    });
  }

  #pageOf(page: number): Uint8Array | undefined {
    return this.#chunks[Math.floor(page / CHUNK_PAGES)]?.pages[page % CHUNK_PAGES];
  }

  /** The chunk that a page is in, this image's alone. */
  #ownChunk(page: number): Chunk {
    const at = Math.floor(page / CHUNK_PAGES);
    const old = this.#chunks[at];
    if (old !== undefined && this.#owned[at] === 1) return old;
    const pages = old?.pages.slice() ??
      new Array<Uint8Array | undefined>(CHUNK_PAGES).fill(undefined);
    const chunk: Chunk = { pages, owned: new Uint8Array(CHUNK_PAGES) };
    this.#chunks[at] = chunk;
    this.#owned[at] = 1;
    return chunk;
  }

  /** The page's bytes, this image's alone. */
  #own(page: number, lengthBytes: number): Uint8Array {
    const { pages, owned } = this.#ownChunk(page);
    const at = page % CHUNK_PAGES;
    const old = pages[at];
    if (old !== undefined && owned[at] === 1) return old;
    const bytes = new Uint8Array(PAGE_BYTES);
    if (old !== undefined) bytes.set(old);
    else if (lengthBytes < PAGE_BYTES) this.read(page * PAGE_SECTORS, bytes);
    pages[at] = bytes;
    owned[at] = 1;
    return bytes;
  }

  #eachPiece(
    atSector: number,
    lengthBytes: number,
    visit: (page: number, inPage: number, offset: number, length: number) => void,
  ): void {
    for (let offset = 0; offset < lengthBytes;) {
      const sector = atSector + offset / SECTOR_BYTES;
      const page = Math.floor(sector / PAGE_SECTORS);
      const inPage = (sector % PAGE_SECTORS) * SECTOR_BYTES;
      const length = Math.min(PAGE_BYTES - inPage, lengthBytes - offset);
      visit(page, inPage, offset, length);
      offset += length;
    }
  }
}
