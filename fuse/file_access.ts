/**
 * Who may use a file of a mount that other users may enter: whoever may use the device behind it.
 * The kernel decides by owner and permissions (`default_permissions`), as it does there; access
 * control lists are not looked at.
 */
import { stat } from "node:fs/promises";

export interface FileAccess {
  readonly ownerUser: number;
  readonly ownerGroup: number;
  /** Bits of 0o666. */
  readonly permissions: number;
}

/** That of the device or image at `path`; undefined: there is none any more. */
export async function accessOf(path: string): Promise<FileAccess | undefined> {
  try {
    const { uid, gid, mode } = await stat(path);
    return { ownerUser: uid, ownerGroup: gid, permissions: mode & 0o666 };
  } catch {
    return undefined;
  }
}
