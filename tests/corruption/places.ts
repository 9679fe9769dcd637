/** The rows of the table: structures of the format, and where they lie in a sample. */
import { readJournal } from "../../lib/journal/reader.ts";
import { journalPlace } from "../../lib/offline/journal_scan.ts";
import { keyDiskWords, pointerSector, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { BSET_HEADER_BYTES, bsetBlocks, readBsetHeader } from "../../lib/ondisk/bset.ts";
import { indexOf, resealJset, resealNode } from "../offline/world.ts";
import { BUCKET_SECTORS, type Sample } from "./set.ts";

export const STRUCTURES = [
  "superblock of the cache",
  "superblock of a backing device",
  "journal: the newest entry",
  "journal: the newest entry's numbers, with a right checksum",
  "journal: an entry in the middle",
  "journal: an entry no longer needed",
  "UUID table",
  "UUID table of a set with a volume",
  "priorities and generations",
  "b-tree: the root",
  "b-tree: a leaf's header",
  "b-tree: a later set of a leaf",
  "a key, in a set whose checksum is right",
  "a pointer, in a set whose checksum is right",
] as const;
/** Tried on a set with a volume of its own. */
export const OF_VOLUME = "UUID table of a set with a volume";
export type Structure = (typeof STRUCTURES)[number];

export interface Place {
  /** The index of the backing device; undefined: the cache. */
  readonly backing?: number;
  /** Where the structure begins, and the sectors it takes. */
  readonly sector: number;
  readonly sectors: number;
  /** Bits to be flipped, one at a time: byte in the structure, and bit. */
  readonly bits: ReadonlyArray<readonly [byte: number, bit: number]>;
  /** Where the structure began in each earlier state; undefined: it was not there yet. */
  readonly earlierSectors?: ReadonlyArray<number | undefined>;
  /** Makes checksums right again, of the bytes of its whole bucket: damage behind a checksum. */
  readonly reseal?: (bucket: Uint8Array) => void;
}

const place = (
  sector: number,
  sectors: number,
  bytes: readonly number[],
  more: Partial<Place> = {},
): Place => ({ sector, sectors, bits: bytes.map((byte, at) => [byte, (at * 3) % 8]), ...more });

/** Every structure of a sample. */
export async function placesOf(sample: Sample): Promise<Record<Structure, Place>> {
  const { image, journal, tree, uuids } = await indexOf(sample.cache);
  const { bucketSectors } = image.geometry;
  const at = (bucket: number) => bucket * bucketSectors;
  const entries = journal.needed.map(({ index, block }) =>
    at(journal.place.buckets[index]!) + block
  );
  const old = await unneededEntry(sample);
  const leaf = await leafWithSets(sample, tree.leaves.map((each) => each.key!));
  const root = pointerSector(journal.head.rootKey, 0);
  const reseal = (bytes: Uint8Array) => resealNode(bytes, leaf.key, 512);
  const header = [0, 9, 17, 24, 28, 40];
  const earlier = await earlierSectors(sample);
  return {
    "superblock of the cache": place(8, 1, [1, 16, 24, 40, 56, 105, 184, 194, 206]),
    "superblock of a backing device": place(8, 1, [1, 16, 24, 40, 56, 105, 111, 192], {
      backing: 1,
    }),
    "journal: the newest entry": place(entries.at(-1)!, 1, [0, 9, 17, 28, 33, 50, 110]),
    // Its own number, the oldest that is needed, the root's level.
    "journal: the newest entry's numbers, with a right checksum": place(entries.at(-1)!, 1, [], {
      bits: [[16, 7], [23, 3], [33, 1], [39, 1], [169, 7]],
      reseal: resealJset,
    }),
    "journal: an entry in the middle": place(entries[entries.length >> 1]!, 1, [0, 9, 17, 28, 110]),
    "journal: an entry no longer needed": place(old, 1, [0, 9, 17, 28, 33, 110]),
    // The second device's entry: UUID, label, times, flags.
    "UUID table": place(at(uuids!.bucket), bucketSectors, [129, 145, 179, 183, 187, 189], {
      earlierSectors: earlier.uuids,
    }),
    // The volume's entry: flags, UUID, flags, size.
    [OF_VOLUME]: place(at(uuids!.bucket), bucketSectors, [316, 257, 317, 320, 321], {
      earlierSectors: earlier.uuids,
    }),
    "priorities and generations": place(
      at(journal.head.prioBucket),
      bucketSectors,
      [0, 9, 17, 99],
      {
        earlierSectors: earlier.priorities,
      },
    ),
    "b-tree: the root": place(root, bucketSectors, header),
    "b-tree: a leaf's header": place(leaf.sector, bucketSectors, header),
    "b-tree: a later set of a leaf": place(leaf.sector + leaf.laterBlock, 1, header),
    "a key, in a set whose checksum is right": place(
      leaf.sector,
      bucketSectors,
      [32, 33, 34, 36, 40, 42, 44],
      { reseal },
    ),
    "a pointer, in a set whose checksum is right": place(
      leaf.sector,
      bucketSectors,
      [leaf.pointerByte, leaf.pointerByte + 1, leaf.pointerByte + 3, leaf.pointerByte + 5],
      { reseal },
    ),
  };
}

/** Where UUID table and priorities were: they are written to another bucket each time. */
async function earlierSectors(sample: Sample) {
  const uuids: Array<number | undefined> = [];
  const priorities: Array<number | undefined> = [];
  for (const [age, { cache }] of sample.earlier.entries()) {
    const index = age === 0 ? undefined : await indexOf(cache);
    uuids.push(index === undefined ? undefined : index.uuids!.bucket * BUCKET_SECTORS);
    priorities.push(
      index === undefined ? undefined : index.journal.head.prioBucket * BUCKET_SECTORS,
    );
  }
  return { uuids, priorities };
}

/** An entry older than those that are needed, in a bucket of its own age. */
async function unneededEntry(sample: Sample): Promise<number> {
  const { image, journal } = await indexOf(sample.cache);
  const kept = journalPlace(image);
  const { start } = await readJournal(kept);
  const { bucketNewestSeq } = start.ring;
  const index = bucketNewestSeq.findIndex((seq) => seq > 0 && seq < journal.head.lastSeq);
  if (index < 0) throw new Error("a bucket of the journal has only old entries");
  return kept.buckets[index]! * BUCKET_SECTORS;
}

interface LeafPlace {
  readonly key: Uint32Array;
  readonly sector: number;
  /** Where its second set begins. */
  readonly laterBlock: number;
  /** The first pointer of the first set. */
  readonly pointerByte: number;
}

async function leafWithSets(sample: Sample, keys: readonly Uint32Array[]): Promise<LeafPlace> {
  for (const key of keys) {
    const sector = pointerSector(key, 0);
    const bytes = new Uint8Array(BUCKET_SECTORS * 512);
    await sample.cache.read(sector, bytes);
    const words = new Uint32Array(bytes.buffer);
    const first = readBsetHeader(words, 0);
    const laterBlock = bsetBlocks(first.keyWords64, 512);
    const later = readBsetHeader(words, laterBlock * 128);
    if (later.seqLow !== first.seqLow) continue;
    let word = BSET_HEADER_BYTES / 4;
    while (keyDiskWords(words, word) < SLOT_WORDS) word += keyDiskWords(words, word);
    return { key, sector, laterBlock, pointerByte: 4 * word + 16 };
  }
  throw new Error("a leaf has two sets");
}
