/**
 * Damage of the UUID table, which has no checksum, as far as a start can see it: contradictions in
 * it, and dirty data of a device that it does not know. A set is not run over either. To serve it
 * would be to hide that data, and the next table that is written makes the damage last.
 *
 * No power cut leaves a sound set so. An entry is durable, and journaled, before its device has a
 * key; it is invalidated durably before its keys are dropped; no used slot becomes an unused one;
 * and one that is used again is emptied first (members/slots.ts). Linux does not wait for that
 * entry: a power cut within a tenth of a second after a volume was made there, and written to by
 * many small writes, may look the same. Nothing of it was flushed then, and no one can tell.
 */
import { BcacheError } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";
import { slotKind, uuidTableFaults } from "../ondisk/uuid_table.ts";
import type { Engine } from "./engine.ts";

/** Throws BadFormat for a table that cannot tell whose data is whose. */
export function refuseContradictions({ uuids, cache }: Engine): void {
  const entries = Array.from({ length: uuids.capacity }, (_, slot) => uuids.entry(slot));
  const fault = uuidTableFaults(entries).find(({ isFatal }) => isFatal);
  if (fault === undefined) return;
  const { what, found, expected } = fault.about;
  const values = found === undefined ? "" : `: found ${found}, expected ${expected}`;
  throw new BcacheError(
    "BadFormat",
    `${cache.name}: UUID table in bucket ${uuids.bucket}: ${what}${values}; the table is ` +
      "damaged: restore that bucket from a copy, or save what can be read with `extract " +
      "--rescue` (`check` lists all)",
  );
}

/** Throws BadFormat if a device that the table does not know has dirty data in the index. */
export function refuseUnknownDirt({ uuids, dirty, cache }: Engine): void {
  for (const inode of dirty.inodes()) {
    const isInTable = inode < uuids.capacity;
    if (isInTable && slotKind(uuids.entry(inode)) !== "free") continue;
    const found = isInTable ? `slot ${inode} is unused` : `there is no slot ${inode}`;
    throw new BcacheError(
      "BadFormat",
      `${cache.name}: UUID table in bucket ${uuids.bucket}: ${found}, but the cache has ` +
        `${formatBytes(dirty.of(inode) * 512)} of dirty data of device number ${inode}; the ` +
        "table is damaged: restore that bucket from a copy, or save what can be read with " +
        `\`extract --rescue\` (of a volume with --volume ${inode}; \`check\` lists all)`,
    );
  }
}
