/**
 * A Device over another that is never written: what is written stays in memory and is read back
 * from there. Lets a cache set be looked at, journal replay and all, without changing a byte.
 */
import { type Device, SECTOR_BYTES } from "./device.ts";
import { ForwardingDevice } from "./forwarding.ts";

/** Memory is kept in pieces of this: 4 KiB. */
const PIECE_SECTORS = 8;
const PIECE_BYTES = PIECE_SECTORS * SECTOR_BYTES;

export class OverlayDevice extends ForwardingDevice {
  /** Written pieces by number; a set bit of `valid` says that a sector of it was written. */
  #pieces = new Map<number, { bytes: Uint8Array; valid: number }>();

  constructor(inner: Device) {
    super(inner, {
      readOnly: false,
      sync: {
        read: (atSector, into) => {
          inner.sync!.read(atSector, into);
          this.#overlay(atSector, into);
        },
        write: (atSector, from) => this.#keep(atSector, from),
      },
    });
  }

  override async read(atSector: number, into: Uint8Array): Promise<void> {
    await this.inner.read(atSector, into);
    this.#overlay(atSector, into);
  }

  override write(atSector: number, from: Uint8Array): Promise<void> {
    this.#keep(atSector, from);
    return Promise.resolve();
  }

  override flush(): Promise<void> {
    return Promise.resolve();
  }

  override discard(): Promise<void> {
    return Promise.resolve();
  }

  override zero(atSector: number, sectors: number): Promise<void> {
    const zeroes = new Uint8Array(PIECE_BYTES);
    for (let at = 0; at < sectors; at += PIECE_SECTORS) {
      const count = Math.min(PIECE_SECTORS, sectors - at);
      this.#keep(atSector + at, zeroes.subarray(0, count * SECTOR_BYTES));
    }
    return Promise.resolve();
  }

  override close(): Promise<void> {
    this.#pieces.clear();
    return this.inner.close();
  }

  #keep(atSector: number, from: Uint8Array): void {
    for (let at = 0; at < from.length; at += SECTOR_BYTES) {
      const sector = atSector + at / SECTOR_BYTES;
      const number = Math.floor(sector / PIECE_SECTORS);
      let piece = this.#pieces.get(number);
      if (piece === undefined) {
        piece = { bytes: new Uint8Array(PIECE_BYTES), valid: 0 };
        this.#pieces.set(number, piece);
      }
      const within = sector % PIECE_SECTORS;
      piece.bytes.set(from.subarray(at, at + SECTOR_BYTES), within * SECTOR_BYTES);
      piece.valid |= 1 << within;
    }
  }

  #overlay(atSector: number, into: Uint8Array): void {
    if (this.#pieces.size === 0) return;
    for (let at = 0; at < into.length; at += SECTOR_BYTES) {
      const sector = atSector + at / SECTOR_BYTES;
      const piece = this.#pieces.get(Math.floor(sector / PIECE_SECTORS));
      const within = sector % PIECE_SECTORS;
      if (piece === undefined || (piece.valid & (1 << within)) === 0) continue;
      const from = within * SECTOR_BYTES;
      into.set(piece.bytes.subarray(from, from + SECTOR_BYTES), at);
    }
  }
}
