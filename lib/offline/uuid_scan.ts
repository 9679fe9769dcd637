/**
 * Reads the UUID table and looks for what cannot be in one: it has no checksum, so contradictions
 * are all that can be found. Answers to `uuid_read` of super.c.
 */
import { keyPointers, keyText, pointerDevice, pointerGen, pointerSector } from "../ondisk/bkey.ts";
import { formatUuid, isZeroUuid } from "../ondisk/uuid.ts";
import {
  convertOldUuidTable,
  isInvalidated,
  readUuidEntry,
  UUID_FLASH_ONLY,
  type UuidEntry,
} from "../ondisk/uuid_entry.ts";
import { bucketOf, bucketRange, type CacheImage, isBucket, tryRead } from "./cache_image.ts";
import { type Finding, type Report, RESTORE } from "./findings.ts";
import type { JournalHead } from "../journal/reader.ts";

export interface UuidScan {
  readonly bucket: number;
  readonly gen: number;
  readonly entries: readonly UuidEntry[];
}

/** A slot's kind, for people and programs. */
export type SlotKind = "free" | "cached device" | "flash-only volume" | "invalidated";

export function slotKind(entry: UuidEntry): SlotKind {
  if (isZeroUuid(entry.uuid)) return "free";
  if (isInvalidated(entry)) return "invalidated";
  return (entry.flags & UUID_FLASH_ONLY) !== 0 ? "flash-only volume" : "cached device";
}

/** The table that the newest journal entry names; undefined when it cannot be read. */
export async function scanUuids(
  image: CacheImage,
  head: JournalHead,
  report: Report,
): Promise<UuidScan | undefined> {
  const { device, geometry } = image;
  const key = head.uuidBucketKey;
  const bucket = bucketOf(image, pointerSector(key, 0));
  const fault = (more: Pick<Finding, "what" | "bucket" | "sector" | "found" | "expected">) => {
    const common = { severity: "error", subject: "uuids", device: device.name } as const;
    report({ ...common, advice: RESTORE, ...more });
    return undefined;
  };
  const atStart = pointerSector(key, 0) % geometry.bucketSectors === 0;
  if (
    keyPointers(key, 0) !== 1 || pointerDevice(key, 0) !== 0 || !atStart ||
    !isBucket(image, bucket)
  ) {
    return fault({
      what: `journal entry ${head.seq} names no possible place for the table`,
      found: keyText(key, 0),
      expected: `one pointer, to the start of a bucket of ${bucketRange(image)}`,
    });
  }
  const at = { bucket, sector: bucket * geometry.bucketSectors };
  const bytes = new Uint8Array(geometry.metaBytes);
  const failure = await tryRead(device, at.sector, bytes);
  if (failure !== undefined) return fault({ ...at, what: `cannot be read: ${failure}` });
  if (head.version === 0) convertOldUuidTable(bytes);
  const entries: UuidEntry[] = [];
  for (let index = 0; index < geometry.uuidEntryCount; index++) {
    entries.push(readUuidEntry(bytes, index));
  }
  reportContradictions(entries, (more) => fault({ ...at, ...more }));
  return { bucket, gen: pointerGen(key, 0), entries };
}

function reportContradictions(
  entries: readonly UuidEntry[],
  fault: (more: Pick<Finding, "what" | "found" | "expected">) => void,
): void {
  const slots = new Map<string, number>();
  entries.forEach((entry, slot) => {
    const kind = slotKind(entry);
    if (kind === "free") {
      const used = entry.flags !== 0 || entry.sectors !== 0 || entry.firstRegistered !== 0 ||
        entry.lastRegistered !== 0 || entry.invalidated !== 0 || !isBlank(entry.label);
      if (used) fault({ what: `slot ${slot} has no UUID and is not empty`, expected: "all zero" });
      return;
    }
    if ((entry.flags & ~UUID_FLASH_ONLY) !== 0) {
      const found = `0x${entry.flags.toString(16)}`;
      fault({ what: `slot ${slot} has unknown flags`, found, expected: "0 or 1" });
    }
    if (kind === "invalidated") return;
    if (entry.invalidated !== 0) {
      const found = `time ${entry.invalidated}`;
      fault({ what: `slot ${slot} is in use and says it was detached`, found, expected: "0" });
    }
    const uuid = formatUuid(entry.uuid);
    const other = slots.get(uuid);
    if (other !== undefined) fault({ what: `slots ${other} and ${slot} have one UUID, ${uuid}` });
    slots.set(uuid, slot);
  });
}

function isBlank(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}
