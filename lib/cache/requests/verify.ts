/**
 * Comparing what is cached and clean with the backing device. Answers to `bch_data_verify` of
 * debug.c: for tests, and for people who doubt their cache device.
 */
import { BcacheError } from "../../base/errors.ts";
import { Segment } from "../../btree/btree.ts";
import type { CachedDevice } from "./cached_device.ts";
import type { RequestParts } from "../request_parts.ts";

/**
 * Compares what was just read from the cache at `at` (a clean segment) with the backing device.
 * Data that is being changed meanwhile is left alone. @throws BcacheError BadFormat, after having
 * failed the cache set, when the cache is wrong
 */
export async function verifyCleanHit(
  dev: CachedDevice,
  parts: RequestParts,
  hit: { at: number; sector: number; gen: number; bytes: Uint8Array },
): Promise<void> {
  const { at, bytes } = hit;
  const end = at + bytes.length / 512;
  const backing = new Uint8Array(bytes.length);
  await dev.readBacking(at, backing);
  const first = firstDifference(bytes, backing);
  if (first < 0) return;
  // await: somebody writes there now, or has, and then both copies may be right.
  if (dev.locks.isChanging(at, end) || !isStill(dev, parts, hit, end)) return;
  const error = new BcacheError(
    "BadFormat",
    `${dev.name}: sector ${at + Math.floor(first / 512)}: verify failed: the clean data in the ` +
      `cache (cache device sector ${hit.sector + Math.floor(first / 512)}) differs from the ` +
      "backing device's; check both, and make the cache anew",
  );
  parts.faults.raise(error);
  throw error;
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return at;
  return -1;
}

/** Whether the index says of the whole range what it said before. */
function isStill(
  dev: CachedDevice,
  { btree }: RequestParts,
  hit: { at: number; sector: number; gen: number },
  end: number,
): boolean {
  const leaf = btree.findLeaf(dev.inode, hit.at);
  if (leaf === undefined) return false;
  const segment = new Segment();
  btree.lookup(leaf, dev.inode, hit.at, end, segment);
  return segment.cached && !segment.dirty && segment.sector === hit.sector &&
    segment.gen === hit.gen && segment.end === end;
}
