/**
 * UUIDs: 16 bytes on disk, `8f66098c-a234-4f47-a35b-7392a76383cd` for people. The text shows the
 * bytes in order, as libuuid does.
 */
import { assert } from "../base/assert.ts";
import type { Random } from "../base/runtime.ts";

export const UUID_BYTES = 16;

/** The text of a UUID: 36 characters, lower case. */
export function formatUuid(uuid: Uint8Array): string {
  assert(uuid.length === UUID_BYTES, "a UUID is 16 bytes");
  let text = "";
  for (let i = 0; i < UUID_BYTES; i++) {
    if (i === 4 || i === 6 || i === 8 || i === 10) text += "-";
    text += uuid[i]!.toString(16).padStart(2, "0");
  }
  return text;
}

/** The UUID that `text` names, hyphens optional; undefined when it names none. */
export function parseUuid(text: string): Uint8Array | undefined {
  const pattern = /^([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})$/i;
  const match = pattern.exec(text.trim());
  if (!match) return undefined;
  const digits = match.slice(1).join("");
  const uuid = new Uint8Array(UUID_BYTES);
  for (let i = 0; i < UUID_BYTES; i++) {
    uuid[i] = Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16);
  }
  return uuid;
}

/** A fresh random (version 4) UUID. */
export function randomUuid(random: Random): Uint8Array {
  const uuid = new Uint8Array(UUID_BYTES);
  for (let i = 0; i < UUID_BYTES; i++) uuid[i] = random.nextU32() >>> 24;
  uuid[6] = (uuid[6]! & 0x0f) | 0x40;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}

/** Whether every byte is zero, which stands for "none" everywhere. */
export function isZeroUuid(uuid: Uint8Array): boolean {
  return uuid.every((byte) => byte === 0);
}

export function equalUuids(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
