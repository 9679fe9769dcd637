/**
 * Reads the UUID table and looks for what cannot be in one: it has no checksum, so contradictions
 * are all that can be found. Answers to `uuid_read` of super.c.
 */
import { keyPointers, keyText, pointerDevice, pointerGen, pointerSector } from "../ondisk/bkey.ts";
import { convertOldUuidTable, readUuidEntry, type UuidEntry } from "../ondisk/uuid_entry.ts";
import { uuidTableFaults } from "../ondisk/uuid_table.ts";
import { bucketOf, bucketRange, type CacheImage, isBucket, tryRead } from "./cache_image.ts";
import { type Finding, type Report, RESTORE } from "./findings.ts";
import type { JournalHead } from "../journal/reader.ts";

export interface UuidScan {
  readonly bucket: number;
  readonly gen: number;
  readonly entries: readonly UuidEntry[];
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
  for (const { about } of uuidTableFaults(entries)) fault({ ...at, ...about });
  return { bucket, gen: pointerGen(key, 0), entries };
}
