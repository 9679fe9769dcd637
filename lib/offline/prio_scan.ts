/**
 * Reads the chain of prio_sets for what it says of generations, as far as it goes. Answers to
 * `prio_read` of super.c.
 */
import { SEQUENCE_MAX } from "../ondisk/layout.ts";
import { genAt, prioAt, readPrioSetHeader, verifyPrioSet } from "../ondisk/prio_set.ts";
import type { BucketView } from "./bucket_view.ts";
import { bucketRange, type CacheImage, isBucket, tryRead } from "./cache_image.ts";
import { type Finding, type Report, RESTORE } from "./findings.ts";

/** One prio_set: the buckets it describes. `bytes` are valid until the next is asked for. */
export interface ScannedPrioSet {
  readonly set: number;
  readonly bucket: number;
  readonly sequence: number;
  readonly firstBucket: number;
  readonly count: number;
  readonly bytes: Uint8Array;
}

/** Yields every set that can be read; reports, and ends with, the first that cannot. */
export async function* scanPrioSets(
  image: CacheImage,
  firstBucket: number,
  report: Report,
): AsyncGenerator<ScannedPrioSet, void, undefined> {
  const { device, geometry, magics } = image;
  const { prioSetCount, priosPerSet, bucketCount } = geometry;
  const bytes = new Uint8Array(geometry.metaBytes);
  const fault = (more: Pick<Finding, "what" | "bucket" | "sector" | "found" | "expected">) =>
    report({
      severity: "error",
      subject: "priorities",
      device: device.name,
      advice: RESTORE,
      ...more,
    });
  const chain = new Set<number>();
  let bucket = firstBucket;
  let sequence = 0;
  for (let set = 0; set < prioSetCount; set++) {
    const from = set === 0 ? "the journal" : "the one before";
    if (!isBucket(image, bucket) || chain.has(bucket)) {
      const found = chain.has(bucket) ? `bucket ${bucket}, which holds another` : String(bucket);
      const what = `${from} names no possible bucket for prio_set ${set} of ${prioSetCount}`;
      return fault({ what, found, expected: `one of ${bucketRange(image)}` });
    }
    chain.add(bucket);
    const at = { bucket, sector: bucket * geometry.bucketSectors };
    const failure = await tryRead(device, at.sector, bytes);
    const damage = failure ?? verifyPrioSet(bytes, magics.prioSet);
    if (damage !== undefined) {
      const why = typeof damage === "string"
        ? `cannot be read: ${damage}`
        : `has a ${damage.reason}: ${damage.detail}`;
      return fault({ ...at, what: `prio_set ${set} of ${prioSetCount} ${why}` });
    }
    const header = readPrioSetHeader(bytes);
    if (header.sequence > SEQUENCE_MAX) {
      return fault({
        ...at,
        what: `prio_set ${set} of ${prioSetCount} has an impossible number`,
        found: `sequence ${header.sequence}`,
        expected: "at most 2^52",
      });
    }
    if (set > 0 && header.sequence !== sequence) {
      fault({
        ...at,
        what: `prio_set ${set} of ${prioSetCount} is of another round than the first`,
        found: `sequence ${header.sequence}`,
        expected: String(sequence),
      });
      return;
    }
    sequence = header.sequence;
    const first = set * priosPerSet;
    const count = Math.min(priosPerSet, bucketCount - first);
    yield { set, bucket, sequence, firstBucket: first, count, bytes };
    bucket = header.nextBucket;
  }
}

/** Loads all generations; returns the buckets of the chain, and whether it was whole. */
export async function loadGenerations(
  image: CacheImage,
  firstBucket: number,
  into: { buckets: BucketView; report: Report },
): Promise<{ chain: number[]; complete: boolean; sequence: number; inUse: number }> {
  const { buckets, report } = into;
  const chain: number[] = [];
  let sequence = 0;
  let inUse = 0;
  for await (const set of scanPrioSets(image, firstBucket, report)) {
    chain.push(set.bucket);
    sequence = set.sequence;
    for (let index = 0; index < set.count; index++) {
      buckets.gen[set.firstBucket + index] = genAt(set.bytes, index);
      if (prioAt(set.bytes, index) !== 0) inUse++;
    }
    buckets.genKnown.fill(1, set.firstBucket, set.firstBucket + set.count);
  }
  return { chain, complete: chain.length === image.geometry.prioSetCount, sequence, inUse };
}
