/** Compares dirty data in the cache with what is on the backing device, sector by sector. */
import type { Device } from "../device/device.ts";
import {
  keyDirty,
  keyInode,
  keyOffset,
  keyStart,
  pointerSector,
  SLOT_WORDS,
} from "../ondisk/bkey.ts";
import { tryRead } from "./cache_image.ts";
import { effectiveLeaves, type IndexView, pointerState } from "./index_view.ts";

const PIECE_SECTORS = 128;

/** How many of a device's dirty sectors the backing device has not, or cannot be compared. */
export async function sectorsNotWrittenBack(
  index: IndexView,
  inode: number,
  backing: Device,
): Promise<number> {
  let count = 0;
  for await (const { keys } of effectiveLeaves(index, inode)) {
    const { words } = keys;
    for (let at = keys.upperBound(inode, 0) * SLOT_WORDS; at < keys.count * SLOT_WORDS;) {
      if (keyInode(words, at) !== inode) break;
      if (keyDirty(words, at) && pointerState(index, words, at) === "good") {
        const extent = { start: keyStart(words, at), end: keyOffset(words, at) };
        count += await differing(index, { ...extent, sector: pointerSector(words, at) }, backing);
      }
      at += SLOT_WORDS;
    }
  }
  return count;
}

async function differing(
  index: IndexView,
  extent: { start: number; end: number; sector: number },
  backing: Device,
): Promise<number> {
  const cached = new Uint8Array(PIECE_SECTORS * 512);
  const stored = new Uint8Array(PIECE_SECTORS * 512);
  let count = 0;
  for (let at = extent.start; at < extent.end; at += PIECE_SECTORS) {
    const sectors = Math.min(PIECE_SECTORS, extent.end - at);
    const [ours, theirs] = [cached, stored].map((bytes) => bytes.subarray(0, sectors * 512));
    const place = extent.sector + (at - extent.start);
    const failure = await tryRead(index.image.device, place, ours!) ??
      await tryRead(backing, at, theirs!);
    if (failure !== undefined) count += sectors;
    else for (let sector = 0; sector < sectors; sector++) count += differs(ours!, theirs!, sector);
  }
  return count;
}

function differs(a: Uint8Array, b: Uint8Array, sector: number): number {
  for (let at = sector * 512; at < (sector + 1) * 512; at++) if (a[at] !== b[at]) return 1;
  return 0;
}
