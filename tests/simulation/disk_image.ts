/**
 * The bytes of a simulated disk: pages of 4 KiB, made when first written, shared between copies
 * until one of them writes (a copy is taken at every crash point, so it must be cheap).
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
    for (let at = 0; at < into.length; at++) {
      if ((at & 3) === 0) state = Math.imul(state, 1_664_525) + 1_013_904_223 | 0;
      into[at] = state >>> (8 * (at & 3));
    }
  };
}

export class DiskImage {
  readonly sizeSectors: number;
  #unwritten: Unwritten;
  #pages: Array<Uint8Array | undefined>;
  #owned: Uint8Array; // 1 where no copy shares the page.

  constructor(
    sizeSectors: number,
    unwritten: Unwritten,
    sharedPages?: Array<Uint8Array | undefined>,
  ) {
    const pages = Math.ceil(sizeSectors / PAGE_SECTORS);
    this.sizeSectors = sizeSectors;
    this.#unwritten = unwritten;
    this.#pages = sharedPages ?? new Array<Uint8Array | undefined>(pages).fill(undefined);
    this.#owned = new Uint8Array(pages);
  }

  /** An image with the same bytes; writes to either do not show in the other. */
  copy(): DiskImage {
    this.#owned.fill(0);
    return new DiskImage(this.sizeSectors, this.#unwritten, this.#pages.slice());
  }

  read(atSector: number, into: Uint8Array): void {
    this.#eachPiece(atSector, into.length, (page, inPage, offset, length) => {
      const bytes = this.#pages[page];
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

  /** The page's bytes, this image's alone. */
  #own(page: number, lengthBytes: number): Uint8Array {
    const old = this.#pages[page];
    if (old !== undefined && this.#owned[page] === 1) return old;
    const bytes = new Uint8Array(PAGE_BYTES);
    if (old !== undefined) bytes.set(old);
    else if (lengthBytes < PAGE_BYTES) this.read(page * PAGE_SECTORS, bytes);
    this.#pages[page] = bytes;
    this.#owned[page] = 1;
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
