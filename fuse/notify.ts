/**
 * Telling the kernel that names and contents it remembers are no longer so. Sent from a thread
 * other than the one that answers requests: the kernel may make the sender wait for answers.
 */
import type { FilesystemChange } from "./filesystem.ts";
import { NOTIFY, NOTIFY_ENTRY_OUT, NOTIFY_INODE_OUT, OUT_HEADER, ROOT_NODE } from "./protocol.ts";

/** The messages about a change, each to be written to the connection at once. */
export function notifications(change: FilesystemChange): Uint8Array<ArrayBuffer>[] {
  return [
    ...change.gone.flatMap(({ node, name }) => [entryGone(name), contentsGone(node)]),
    ...change.resized.map(contentsGone),
  ];
}

function message(
  code: number,
  bodyBytes: number,
): { bytes: Uint8Array<ArrayBuffer>; view: DataView } {
  const bytes = new Uint8Array(OUT_HEADER.sizeBytes + bodyBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(OUT_HEADER.len, bytes.length, true);
  view.setInt32(OUT_HEADER.error, code, true);
  return { bytes, view };
}

function entryGone(name: string): Uint8Array<ArrayBuffer> {
  const encoded = new TextEncoder().encode(name);
  const body = NOTIFY_ENTRY_OUT.sizeBytes + encoded.length + 1;
  const { bytes, view } = message(NOTIFY.INVALIDATE_ENTRY, body);
  const at = OUT_HEADER.sizeBytes;
  view.setUint32(at + NOTIFY_ENTRY_OUT.parent, ROOT_NODE, true);
  view.setUint32(at + NOTIFY_ENTRY_OUT.namelen, encoded.length, true);
  bytes.set(encoded, at + NOTIFY_ENTRY_OUT.sizeBytes);
  return bytes;
}

/** Offset and length zero: all pages, and the attributes. */
function contentsGone(node: number): Uint8Array<ArrayBuffer> {
  const { bytes, view } = message(NOTIFY.INVALIDATE_INODE, NOTIFY_INODE_OUT.sizeBytes);
  view.setUint32(OUT_HEADER.sizeBytes + NOTIFY_INODE_OUT.ino, node, true);
  return bytes;
}
