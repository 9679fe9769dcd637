import { test } from "bun:test";
import { assertEquals } from "@std/assert";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fixtures, hashOfFile, unpackFixture, zeroTail } from "./fixtures.ts";

test("every fixture unpacks to the images its manifest records, holes and all", () => {
  let count = 0;
  for (const entry of fixtures()) {
    // The damaged ones are changed copies of others; two of the large ones show the unpacking.
    if (!["flash-only", "damaged-btree-leaf"].includes(entry.name)) continue;
    const unpacked = unpackFixture(entry.name);
    try {
      for (const [name, image] of Object.entries(entry.images)) {
        const path = unpacked.pathOf(name);
        assertEquals(statSync(path).size, image.bytes);
        assertEquals(hashOfFile(path), image.sha256, `${entry.name} ${name}`);
        count++;
      }
    } finally {
      unpacked.remove();
    }
  }
  assertEquals(count, 4);
});

test("zeroing the tail of a file keeps its head and its size", () => {
  const folder = mkdtempSync(join(tmpdir(), "bcache-fuse-tail-"));
  try {
    const path = join(folder, "file");
    writeFileSync(path, new Uint8Array(10_000).fill(7));
    const expected = join(folder, "expected");
    const bytes = new Uint8Array(10_000);
    bytes.fill(7, 0, 1000);
    writeFileSync(expected, bytes);
    zeroTail(path, 1000);
    assertEquals(hashOfFile(path), hashOfFile(expected));
    assertEquals(hashOfFile(path, 1000), hashOfFile(expected, 1000));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
