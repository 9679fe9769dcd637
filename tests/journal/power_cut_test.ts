/**
 * The journal through many lives: each ends in a power cut at some operation of the device, and
 * the next begins from what survived. An oracle knows which keys were promised.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { SECTOR_BYTES } from "../../lib/device/device.ts";
import { type JournalReplay, readJournal } from "../../lib/journal/reader.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";
import { type Lie, PowerDevice, SeededRandom } from "./power_device.ts";
import {
  idsOf,
  KEY_WORDS,
  keyOf,
  Leaf,
  openJournal,
  placeOn,
  type Shape,
  type World,
} from "./world.ts";

const LEAVES = 3;
const SHAPES: readonly Shape[] = [
  { buckets: 2, bucketSectors: 8, blockSectors: 1 },
  { buckets: 3, bucketSectors: 8, blockSectors: 2, queueEntries: 2 },
  { buckets: 4, bucketSectors: 16, blockSectors: 1, pins: 32 },
];
const DATA_SECTORS = 4096;

/** What survives power cuts beside the medium: what the test knows. */
interface Oracle {
  nextId: number;
  /** Ids of the keys of which `commit` said that they are durable. */
  promised: Set<number>;
  leaves: Array<Set<number>>;
}

/** The whole device: the journal's buckets, then a sector per leaf, then a sector per key. */
function layoutOf(shape: Shape) {
  const leaves = (shape.buckets + 1) * shape.bucketSectors;
  return { leaves, data: leaves + LEAVES, sectors: leaves + LEAVES + DATA_SECTORS };
}

interface Life {
  readonly device: PowerDevice;
  readonly world: World;
  readonly leaves: Leaf[];
}

/** Starts a journal on what survived and replays it, as recovery does. */
async function begin(
  world: World,
  device: PowerDevice,
  shape: Shape,
  oracle: Oracle,
  replay: JournalReplay | undefined,
  eager: boolean,
): Promise<Life> {
  const at = layoutOf(shape);
  const leaves = oracle.leaves.map((durable, index) =>
    new Leaf(
      world.journal.pins,
      durable,
      () => device.write(at.leaves + index, new Uint8Array(SECTOR_BYTES), { fua: true }),
    )
  );
  if (replay) {
    for await (const entry of replay.entries()) {
      for (const id of idsOf(entry.words, entry.start, entry.end)) {
        leaves[id % LEAVES]!.insert(entry.seq, id);
      }
      // Replay may have to make a new root or new priorities durable: more than there is room for.
      const commits = eager ? 3 : 0;
      for (let count = 0; count < commits; count++) await world.journal.commit();
      world.journal.pins.release(entry.seq);
    }
  }
  return { device, world, leaves };
}

/** Works until the power fails or `steps` are done. */
async function live(
  beginning: Promise<Life>,
  shape: Shape,
  oracle: Oracle,
  random: SeededRandom,
  steps: number,
) {
  const life = await beginning;
  const { device, world, leaves } = life;
  const { journal } = world;
  const at = layoutOf(shape);
  const background: Array<Promise<unknown>> = [];
  const firstId = oracle.nextId;
  await journal.finishRecovery();
  for (let step = 0; step < steps; step++) {
    const choice = random.below(100);
    if (choice < 70) {
      const id = oracle.nextId++;
      // Data first, volatile; only then its key.
      const sector = new Uint8Array(SECTOR_BYTES);
      new DataView(sector.buffer).setUint32(0, id);
      await device.write(at.data + id % DATA_SECTORS, sector);
      for (;;) {
        const seq = journal.tryAppend(keyOf(id), 0, KEY_WORDS);
        if (seq > 0) {
          leaves[id % LEAVES]!.insert(seq, id);
          break;
        }
        await journal.whenRoom();
      }
    } else if (choice < 80) {
      const end = oracle.nextId;
      const commit = journal.commit().then(() => {
        for (let id = firstId; id < end; id++) oracle.promised.add(id);
      });
      if (random.below(2) === 0) await commit;
      else background.push(commit.catch(() => {}));
    } else if (choice < 90) {
      // After a power cut, `commit` and `whenRoom` say so.
      background.push(leaves[random.below(LEAVES)]!.flushForJournal().catch(() => {}));
    } else {
      await world.clock.advance(random.below(60));
    }
  }
  await Promise.all(background);
  await journal.commit();
}

/** Keys, seen after the cut, that were promised and are not there; what else is wrong. */
async function losses(stable: Uint8Array, shape: Shape, oracle: Oracle): Promise<string[]> {
  const wrong: string[] = [];
  const device = new PowerDevice({ random: new SeededRandom(0), stable: stable.slice() });
  const replay = await readJournal(placeOn(device, shape));
  const present = new Set<number>();
  for (const leaf of oracle.leaves) for (const id of leaf) present.add(id);
  let expectedSeq = replay.head.lastSeq;
  const at = layoutOf(shape);
  const sector = new Uint8Array(SECTOR_BYTES);
  for await (const entry of replay.entries()) {
    if (entry.seq !== expectedSeq) wrong.push(`entry ${entry.seq} instead of ${expectedSeq}`);
    expectedSeq = entry.seq + 1;
    for (const id of idsOf(entry.words, entry.start, entry.end)) {
      present.add(id);
      if (id + DATA_SECTORS <= oracle.nextId) continue; // Its sector was used again.
      await device.read(at.data + id % DATA_SECTORS, sector);
      const found = new DataView(sector.buffer).getUint32(0);
      if (found !== id) wrong.push(`key ${id} points to data that is not there`);
    }
  }
  for (const id of oracle.promised) {
    if (!present.has(id)) wrong.push(`committed key ${id} is lost`);
  }
  return wrong;
}

/** Several lives; returns what went wrong, and how often the ring went round. */
async function run(seed: number, lie?: Lie): Promise<{ wrong: string[]; entries: number }> {
  const random = new SeededRandom(seed);
  const shape = SHAPES[seed % SHAPES.length]!;
  const oracle: Oracle = {
    nextId: 1,
    promised: new Set(),
    leaves: Array.from({ length: LEAVES }, () => new Set<number>()),
  };
  let stable: Uint8Array = new Uint8Array(layoutOf(shape).sectors * SECTOR_BYTES);
  const wrong: string[] = [];
  let entries = 0;
  for (let number = 0; number < 8; number++) {
    const device = new PowerDevice({ random, stable, ...(lie === undefined ? {} : { lie }) });
    // The first life lives to have something durable; a few die while they recover.
    device.cutAt = number === 0
      ? Infinity
      : random.below(4) === 0
      ? 1 + random.below(4)
      : 1 + random.below(300);
    const replay = number === 0 ? undefined : await readJournal(placeOn(device, shape));
    const world = openJournal(device, shape, replay?.start);
    const life = begin(world, device, shape, oracle, replay, random.below(3) === 0);
    const finished = live(life, shape, oracle, random, number === 0 ? 40 : 250);
    let over = false;
    const ended = finished.catch(() => {}).finally(() => over = true);
    await Promise.race([ended, stall(device, () => over)]);
    if (!over) wrong.push(`life ${number} stalled`);
    stable = device.afterPowerCut();
    await world.tasks.stop();
    if (over) await ended;
    entries += world.journal.counters.entriesWritten;
    wrong.push(...device.violations);
    const failure = world.faults.failed;
    if (failure && !device.dead) wrong.push(String(failure));
    if (device.inFlight > 0) wrong.push("an operation is still under way");
    if (wrong.length > 0) break;
    try {
      wrong.push(...await losses(stable, shape, oracle));
    } catch (error) {
      wrong.push(String(error));
    }
    if (wrong.length > 0) break;
  }
  return { wrong, entries };
}

/** Resolves when the device has been idle for a long while, or it is `over`. */
async function stall(device: PowerDevice, over: () => boolean): Promise<void> {
  let idle = 0;
  let operations = -1;
  while (idle < 2000 && !over()) {
    await drainMicrotasks();
    idle = device.operations === operations ? idle + 1 : 0;
    operations = device.operations;
  }
}

describe("the journal after a power cut", () => {
  test("has every committed key, the data it points to, and no gap", async () => {
    let entries = 0;
    for (let seed = 1; seed <= 60; seed++) {
      const result = await run(seed);
      assertEquals(result.wrong, [], `seed ${seed}`);
      entries += result.entries;
    }
    assert(entries > 5000, `the rings went round hundreds of times (${entries} entries)`);
  }, 30_000);

  for (const lie of ["flush does nothing", "fua does nothing"] as const) {
    test(`would be seen to lose keys if ${lie.replace("does", "did")}`, async () => {
      let caught = 0;
      for (let seed = 1; seed <= 10; seed++) {
        const { wrong } = await run(seed, lie);
        if (wrong.some((line) => /is lost|missing|no journal|not there/.test(line))) caught++;
      }
      assert(caught > 0, "the oracle notices");
    });
  }
});
