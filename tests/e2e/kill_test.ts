/** kill -9 in the middle of fsynced writes: every acknowledged fsync is there afterwards. */
import { test } from "bun:test";
import { assert, assertEquals, assertGreater } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { JournalOfWrites } from "./support/journal_of_writes.ts";
import { inWorkshop, type Served, type Workshop } from "./support/workshop.ts";

const LIMIT_MS = 180_000;
const WRITE_LIMIT_MS = 30_000;
const ROUNDS = 6;
const BLOCK_BYTES = 4096;

/** A small generator of its own (xorshift), so that a failing seed can be named. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

/**
 * Writes until a helper process has killed the server. The killer is a process because the
 * writes below block this one.
 */
async function writeAndKill(
  place: Workshop,
  served: Served,
  truth: JournalOfWrites,
  random: () => number,
): Promise<number> {
  const delaySeconds = (0.2 + (random() % 600) / 1000).toFixed(3);
  const killer = spawn("sh", ["-c", `sleep ${delaySeconds}; kill -9 ${served.process.pid}`]);
  const gone = once(killer, "exit");
  const fsyncs = truth.writeUntilDeath(served.file, random, WRITE_LIMIT_MS);
  await gone;
  await place.clearAway(served);
  assertEquals(served.process.signalCode, "SIGKILL", "it was our signal that ended the server");
  return fsyncs;
}

for (const mode of ["writeback", "writethrough"]) {
  test(
    `every acknowledged fsync survives kill -9, round after round, in ${mode} mode`,
    () =>
      inWorkshop(async (place) => {
        const { cache, backing } = await place.format({ cacheMib: 48, backingMib: 80 });
        // Few enough blocks to be overwritten often, more than the cache takes without reuse.
        const truth = new JournalOfWrites(16_384, BLOCK_BYTES);
        const random = generator(mode.length * 7919);
        let fsyncs = 0;
        for (let round = 0; round < ROUNDS; round++) {
          const served = await place.mount({ cache, backing, flags: ["--cache-mode", mode] });
          const { losses } = truth.verify(served.file);
          assertEquals(losses.slice(0, 10), [], `round ${round}: ${losses.length} losses`);
          fsyncs += await writeAndKill(place, served, truth, random);
        }
        const served = await place.mount({ cache, backing, flags: ["--cache-mode", mode] });
        const { losses, durableSectors } = truth.verify(served.file);
        assertEquals(losses.slice(0, 10), [], `at the end: ${losses.length} losses`);
        assertGreater(fsyncs, ROUNDS, "the writer got to work between the kills");
        assert(durableSectors > fsyncs, "what was fsynced was looked at");
        await place.unmount(served);
      }),
    LIMIT_MS,
  );
}
