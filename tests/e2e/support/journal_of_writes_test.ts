/** The oracle of the crash tests sees a lost, a torn, a misplaced and an invented write. */
import { test } from "bun:test";
import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JournalOfWrites } from "./journal_of_writes.ts";

const BLOCKS = 64;
const BLOCK_BYTES = 4096;

/** A file after some batches of writes, the state after the last fsync, and what is known of it. */
function written(folder: string): { truth: JournalOfWrites; path: string } {
  const path = join(folder, "file");
  writeFileSync(path, "");
  truncateSync(path, BLOCKS * BLOCK_BYTES);
  const truth = new JournalOfWrites(BLOCKS, BLOCK_BYTES);
  let calls = 0;
  const random = () => Math.imul(++calls, 2654435761) >>> 8;
  // A server that never dies: the writing ends by its limit, in between two batches.
  assertThrows(() => truth.writeUntilDeath(path, random, 5), Error, "still served");
  return { truth, path };
}

function inFolder(body: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-oracle-"));
  try {
    body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** What the oracle says after `change` was made to the bytes of the file. */
function lossesAfter(change: (bytes: Uint8Array, firstWritten: number) => void): string[] {
  let losses: string[] = [];
  inFolder((folder) => {
    const { truth, path } = written(folder);
    const bytes = new Uint8Array(readFileSync(path));
    const block = Array.from({ length: BLOCKS }, (_, at) => at)
      .find((at) => bytes[at * BLOCK_BYTES + 4] !== 0 || bytes[at * BLOCK_BYTES] !== 0)!;
    change(bytes, block * BLOCK_BYTES);
    writeFileSync(path, bytes);
    losses = truth.verify(path).losses;
  });
  return losses;
}

test("a file as it was written has no losses", () => assertEquals(lossesAfter(() => {}), []));

test("an fsynced block that reads as zeroes is a loss", () => {
  const losses = lossesAfter((bytes, at) => bytes.fill(0, at, at + BLOCK_BYTES));
  assertEquals(losses.length, 8);
  assertMatch(losses[0]!, /version 0, but \d+ was fsynced/);
});

test("one changed byte is a loss", () => {
  const losses = lossesAfter((bytes, at) => bytes[at + 3000]! ^= 1);
  assertEquals(losses.length, 1);
  assertMatch(losses[0]!, /not something that was ever written/);
});

test("a block in another's place is a loss", () => {
  const losses = lossesAfter((bytes, at) => {
    const other = at + BLOCK_BYTES < bytes.length ? at + BLOCK_BYTES : at - BLOCK_BYTES;
    bytes.copyWithin(other, at, at + BLOCK_BYTES);
  });
  assertEquals(losses.length, 8);
});
