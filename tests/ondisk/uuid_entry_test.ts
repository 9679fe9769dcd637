import { test } from "bun:test";
import { assertEquals, assertThrows } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { decodeLabel, encodeLabel } from "../../lib/ondisk/label.ts";
import {
  equalUuids,
  formatUuid,
  isZeroUuid,
  parseUuid,
  randomUuid,
} from "../../lib/ondisk/uuid.ts";
import {
  convertOldUuidTable,
  emptyUuidEntry,
  INVALID_UUID,
  isInvalidated,
  readUuidEntry,
  UUID_FLASH_ONLY,
  uuidEntryLabel,
  writeUuidEntry,
} from "../../lib/ondisk/uuid_entry.ts";

/** Bytes from hexadecimal digits; spaces do not count. */
function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.replaceAll(" ", "").match(/../g) ?? [], (h) => Number.parseInt(h, 16));
}

test("a slot the kernel wrote reads as it was and writes back the same", () => {
  const table = new Uint8Array(256);
  table.set(bytesOf("2b363894c9fc4da88c87d5a922f9f1be"));
  table.set(bytesOf("9216006b 9216006b 00000000 00000000"), 48);
  table.set(bytesOf("e461b3ffe461b3ffe461b3ffe461b3ff"), 128);
  table.set(bytesOf("9616006b 9616006b 00000000 01000000 00400000 00000000"), 128 + 48);
  const cached = readUuidEntry(table, 0);
  assertEquals(formatUuid(cached.uuid), "2b363894-c9fc-4da8-8c87-d5a922f9f1be");
  assertEquals([cached.firstRegistered, cached.lastRegistered], [0x6b001692, 0x6b001692]);
  assertEquals([cached.invalidated, cached.flags, cached.sectors], [0, 0, 0]);
  const volume = readUuidEntry(table, 1);
  assertEquals([volume.flags & UUID_FLASH_ONLY, volume.sectors], [1, 16384]);
  const copy = new Uint8Array(256).fill(0xee);
  writeUuidEntry(copy, 0, cached);
  writeUuidEntry(copy, 1, volume);
  assertEquals(copy, table);
});

test("a label with a newline and rubbish behind it shows only what was meant", () => {
  const entry = emptyUuidEntry();
  entry.label.set(bytesOf("6d796c6162656c0a 0000000000000000 c3234d53dff9434e"));
  assertEquals(uuidEntryLabel(entry), "mylabel");
});

test("labels of up to 32 bytes survive, longer ones and control characters are refused", () => {
  for (const text of ["", "home", "x".repeat(32), "Größe"]) {
    assertEquals(decodeLabel(encodeLabel(text)), text);
  }
  assertThrows(() => encodeLabel("x".repeat(33)), BcacheError, "33 bytes, at most 32");
  assertThrows(() => encodeLabel("a\nb"), BcacheError, "control character");
  assertThrows(() => encodeLabel("a\ud800b"), BcacheError, "half a character");
  assertEquals(decodeLabel(Uint8Array.of(0x1b, 0x5b, 0x41, 0)), "\ufffd[A");
});

test("a slot with the invalid UUID is invalidated, an unused one is not", () => {
  const entry = emptyUuidEntry();
  assertEquals(isInvalidated(entry), false);
  entry.uuid.set(INVALID_UUID);
  assertEquals(isInvalidated(entry), true);
});

test("a table of old 64-byte entries is converted in place", () => {
  const table = new Uint8Array(8 * 128);
  for (let i = 0; i < 8; i++) {
    table.fill(i + 1, i * 64, i * 64 + 60);
    table.fill(0xff, i * 64 + 60, i * 64 + 64); // Padding then, flags now.
  }
  convertOldUuidTable(table);
  for (let i = 0; i < 8; i++) {
    const entry = readUuidEntry(table, i);
    assertEquals(entry.uuid, new Uint8Array(16).fill(i + 1));
    assertEquals(entry.label, new Uint8Array(32).fill(i + 1));
    assertEquals(entry.firstRegistered, 0x01010101 * (i + 1));
    assertEquals(entry.invalidated, 0x01010101 * (i + 1));
    assertEquals([entry.flags, entry.sectors], [0, 0]);
  }
});

test("UUIDs are read with and without hyphens and printed in one form", () => {
  const text = "8f66098c-a234-4f47-a35b-7392a76383cd";
  const uuid = parseUuid(text)!;
  assertEquals([uuid[0], uuid[15]], [0x8f, 0xcd]);
  assertEquals(formatUuid(uuid), text);
  assertEquals(formatUuid(parseUuid(text.replaceAll("-", "").toUpperCase())!), text);
  for (const wrong of ["", text + "0", text.replace("8f", "8g"), "8f66098c"]) {
    assertEquals(parseUuid(wrong), undefined);
  }
});

test("random UUIDs are of version 4 and never zero", () => {
  const uuid = randomUuid({ nextU32: () => 0 });
  assertEquals(formatUuid(uuid), "00000000-0000-4000-8000-000000000000");
  assertEquals(isZeroUuid(uuid), false);
  assertEquals(isZeroUuid(new Uint8Array(16)), true);
  assertEquals(equalUuids(uuid, uuid.slice()), true);
  assertEquals(equalUuids(uuid, new Uint8Array(16)), false);
});
