/** Journals the Linux kernel wrote: read as the kernel read them. */
import { describe, test } from "bun:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { readJournal } from "../../lib/journal/reader.ts";
import { magicsOf } from "../../lib/ondisk/magic.ts";
import { type FixtureImage, fixtures, unpackFixture } from "../support/fixtures.ts";
import { openReadOnly } from "./file_device.ts";

interface CacheImage extends FixtureImage {
  readonly bucket_size: number;
  readonly journal_buckets: readonly number[];
  readonly journal: {
    readonly newest_seq: number;
    readonly last_seq: number;
    readonly live_entries_found: number;
    readonly keys_u64s: number;
    readonly btree_root_level: number;
  };
}

/** Runs `body` with the journal of a fixture. */
async function withJournal(
  name: string,
  body: (image: CacheImage, read: () => ReturnType<typeof readJournal>) => Promise<void>,
): Promise<void> {
  const fixture = unpackFixture(name);
  const image = fixture.entry.images["cache.img"] as CacheImage;
  const device = openReadOnly(fixture.pathOf("cache.img"));
  try {
    const uuid = Uint8Array.from(
      image.set_uuid.replaceAll("-", "").match(/../g)!,
      (digits) => parseInt(digits, 16),
    );
    const place = {
      device,
      magic: magicsOf(uuid).jset,
      bucketSectors: image.bucket_size / 512,
      blockSectors: image.block_size / 512,
      buckets: image.journal_buckets,
    };
    await body(image, () => readJournal(place));
  } finally {
    await device.close();
    fixture.remove();
  }
}

const READABLE = fixtures().filter((fixture) => fixture.damage === undefined);

describe("the journal of the kernel's image", () => {
  for (const { name } of READABLE) {
    test(`${name} is found whole`, async () => {
      await withJournal(name, async (image, read) => {
        const replay = await read();
        let keyWords = 0;
        const seqs: number[] = [];
        for await (const entry of replay.entries()) {
          seqs.push(entry.seq);
          keyWords += (entry.end - entry.start) / 2;
        }
        const expected = image.journal;
        assertEquals(replay.head.seq, expected.newest_seq);
        assertEquals(replay.head.lastSeq, expected.last_seq);
        assertEquals(replay.head.rootLevel, expected.btree_root_level);
        assertEquals(seqs.length, expected.live_entries_found);
        assertEquals(seqs[0], expected.last_seq);
        assertEquals(seqs.at(-1), expected.newest_seq);
        assertEquals(keyWords, expected.keys_u64s);
        assertEquals(replay.warnings, []);
      });
    });
  }

  test("with a damaged entry in the middle is refused, in the kernel's words", async () => {
    await withJournal("damaged-journal-middle", async (_image, read) => {
      const error = await assertRejects(
        read,
        BcacheError,
        "journal entries 57-64 missing (replaying 2-84)",
      );
      assertEquals(error.code, "BadFormat");
    });
  });

  test("with a damaged newest entry ends before it, and says where the damage is", async () => {
    await withJournal("damaged-journal-newest", async (_image, read) => {
      const replay = await read();
      assertEquals([replay.head.lastSeq, replay.head.seq], [2, 83]);
      assertEquals(replay.entryCount, 82);
      assertEquals(replay.warnings.length, 1);
      assert(/journal bucket \d+, offset \d+ sectors: checksum/.test(replay.warnings[0]!));
    });
  });
});
