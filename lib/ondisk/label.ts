/**
 * Labels: up to 32 bytes, padded with NULs, without a terminator when all are used.
 * Kernel: SB_LABEL_SIZE; the label attribute in sysfs.c.
 */
import { BcacheError } from "../base/errors.ts";

/** The size of a raw label, in the superblock and in the UUID table. */
export const LABEL_BYTES = 32;

/**
 * The text of a raw label: up to the first NUL or newline, with everything unprintable replaced,
 * since the kernel copies a caller's buffer into UUID entries as it is.
 */
export function decodeLabel(raw: Uint8Array): string {
  let end = raw.findIndex((byte) => byte === 0 || byte === 0x0a);
  if (end < 0) end = raw.length;
  const text = new TextDecoder().decode(raw.subarray(0, end));
  return text.replace(/\p{Cc}/gu, "\ufffd");
}

/** The 32 bytes of a label. Throws InvalidArgument when it does not fit. */
export function encodeLabel(text: string): Uint8Array {
  const encoded = new TextEncoder().encode(text);
  if (encoded.length > LABEL_BYTES) {
    const found = `the label is ${encoded.length} bytes, at most ${LABEL_BYTES} fit`;
    throw new BcacheError("InvalidArgument", `${found}; choose a shorter one`);
  }
  if (/\p{Cc}/u.test(text)) {
    const found = "the label holds a control character";
    throw new BcacheError("InvalidArgument", `${found}; use printable characters`);
  }
  if (!text.isWellFormed()) {
    const found = "the label holds half a character (a lone surrogate)";
    throw new BcacheError("InvalidArgument", `${found}; use whole ones`);
  }
  const raw = new Uint8Array(LABEL_BYTES);
  raw.set(encoded);
  return raw;
}
