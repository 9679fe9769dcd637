/**
 * Two readers of one format, held against each other on damaged images: what the check calls clean
 * the engine runs, and an extracted image is what the engine serves.
 */
import { test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { CacheSet } from "../../lib/cache/cache_set.ts";
import type { Device } from "../../lib/device/device.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { checkCache } from "../../lib/offline/check.ts";
import { planExtract } from "../../lib/offline/extract.ts";
import type { IndexView } from "../../lib/offline/index_view.ts";
import { pointerSector, SLOT_WORDS } from "../../lib/ondisk/bkey.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { ManualClock } from "../support/manual_clock.ts";
import {
  BUCKET_SECTORS,
  copyOf,
  indexOf,
  patch,
  resealNode,
  smallSet,
  VOLUME_BYTES,
} from "./world.ts";

const IMAGES = 40;

/** Flips one bit: in a node that is sealed again, or anywhere in metadata. Returns where. */
async function damage(cache: Device, index: IndexView, random: SimRandom): Promise<string> {
  if (random.chance(0.5)) {
    const roots = [index.journal.head.rootKey.slice(0, SLOT_WORDS)];
    const key = random.pick([...roots, ...index.tree.leaves.map((leaf) => leaf.key!)]);
    const [at, bit] = [random.below(700), random.below(32)];
    await patch(cache, pointerSector(key, 0), BUCKET_SECTORS, (bytes) => {
      const words = new Uint32Array(bytes.buffer);
      words[at] = words[at]! ^ (1 << bit);
      resealNode(bytes, key, index.image.geometry.blockBytes);
    });
    return `word ${at} of the node at sector ${pointerSector(key, 0)}, bit ${bit}`;
  }
  const metadata = Array.from(index.buckets.use.keys())
    .filter((bucket) => bucket === 0 || index.buckets.use[bucket]! > 1);
  const sector = random.pick(metadata) * BUCKET_SECTORS + random.below(BUCKET_SECTORS);
  const at = random.below(512);
  await patch(cache, sector, 1, (bytes) => {
    bytes[at] = bytes[at]! ^ (1 << random.below(8));
  });
  return `byte ${at} of sector ${sector}`;
}

/** Everything the engine reads of the volume. */
async function served(cache: Device, backing: Device): Promise<Uint8Array> {
  const set = await CacheSet.open({
    cache,
    backings: [{ device: backing, path: "backing" }],
    clock: new ManualClock(),
    random: new SimRandom(99),
    log: () => {},
    readOnly: true,
  });
  try {
    const image = new Uint8Array(VOLUME_BYTES);
    for (let at = 0; at < image.length; at += 1 << 20) {
      await set.volumes[0]!.read(at, image.subarray(at, at + (1 << 20)));
    }
    return image;
  } finally {
    await set.close();
  }
}

for (const end of ["close", "cut"] as const) {
  test(`what the check calls clean the engine runs, and serves as extracted: ${end}`, async () => {
    const sound = await smallSet({ writes: 700, seed: 61, end });
    const index = await indexOf(sound.cache);
    const random = new SimRandom(17);
    let clean = 0;
    for (let number = 0; number < IMAGES; number++) {
      const cache = await copyOf(sound.cache);
      const { backing } = sound;
      const where = await damage(cache, index, random);
      const report = await checkCache({ cache, backings: [backing] });
      if (!report.clean) continue;
      clean++;
      const image = await served(cache, backing);
      const plan = await planExtract({ cache, of: { backing }, rescue: false });
      const output = new MemoryDevice(plan.sizeSectors);
      await plan.copyTo(output);
      const extracted = new Uint8Array(VOLUME_BYTES);
      await output.read(0, extracted);
      assertEquals(Buffer.compare(image, extracted), 0, where);
    }
    assert(clean > IMAGES / 4 && clean < IMAGES, "some damage matters, some does not");
  }, 60_000);
}
