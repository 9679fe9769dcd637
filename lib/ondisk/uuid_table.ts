/**
 * What cannot be in a UUID table. It has no checksum, so contradictions are all that can be found
 * of damage; this is the one list of them, for the start of a set and for `check`.
 *
 * Linux reads a table as it is. None of the fatal ones comes from it: it sets no flag but the one
 * of volumes, gives a size to volumes only, and a UUID one slot.
 */
import { formatUuid, isZeroUuid } from "./uuid.ts";
import { isInvalidated, UUID_FLASH_ONLY, type UuidEntry } from "./uuid_entry.ts";

/** A slot's kind, for people and programs. */
export type SlotKind = "free" | "cached device" | "flash-only volume" | "invalidated";

export function slotKind(entry: UuidEntry): SlotKind {
  if (isZeroUuid(entry.uuid)) return "free";
  if (isInvalidated(entry)) return "invalidated";
  return (entry.flags & UUID_FLASH_ONLY) !== 0 ? "flash-only volume" : "cached device";
}

/** Sizes in bytes are exact numbers up to here. */
export const VOLUME_SECTORS_MAX = 2 ** 44;

/** Whether the entry of a volume gives it a size that it can have. */
export function isServable({ sectors }: UuidEntry): boolean {
  return sectors > 0 && sectors <= VOLUME_SECTORS_MAX;
}

export interface UuidTableFault {
  readonly about: { readonly what: string; readonly found?: string; readonly expected?: string };
  /** Whose data is whose cannot be told: the set must not run. */
  readonly isFatal: boolean;
}

/** All contradictions of a table, in the order of its slots. */
export function uuidTableFaults(entries: readonly UuidEntry[]): UuidTableFault[] {
  const faults: UuidTableFault[] = [];
  const add = (isFatal: boolean, about: UuidTableFault["about"]) => faults.push({ about, isFatal });
  const slots = new Map<string, number>();
  entries.forEach((entry, slot) => {
    const kind = slotKind(entry);
    if (kind === "free") {
      const what = `slot ${slot} has no UUID and is not empty`;
      if (isUsed(entry)) add(false, { what, expected: "all zero" });
      return;
    }
    if ((entry.flags & ~UUID_FLASH_ONLY) !== 0) {
      const found = `0x${entry.flags.toString(16)}`;
      const what = `slot ${slot} has unknown flags`;
      add(kind !== "invalidated", { what, found, expected: "0 or 1" });
    }
    if (kind === "invalidated") return;
    if (kind === "cached device" && entry.sectors !== 0) {
      const what = `slot ${slot} has the size of a volume, but is none`;
      add(true, { what, found: `${entry.sectors} sectors`, expected: "0" });
    }
    if (entry.invalidated !== 0) {
      const found = `time ${entry.invalidated}`;
      const what = `slot ${slot} is in use and says it was detached`;
      add(false, { what, found, expected: "0" });
    }
    const uuid = formatUuid(entry.uuid);
    const other = slots.get(uuid);
    if (other !== undefined) {
      add(true, { what: `slots ${other} and ${slot} have one UUID, ${uuid}` });
    }
    slots.set(uuid, slot);
  });
  return faults;
}

/** Whether a slot without UUID has anything else in it. */
function isUsed(entry: UuidEntry): boolean {
  return entry.flags !== 0 || entry.sectors !== 0 || entry.firstRegistered !== 0 ||
    entry.lastRegistered !== 0 || entry.invalidated !== 0 ||
    entry.label.some((byte) => byte !== 0);
}
