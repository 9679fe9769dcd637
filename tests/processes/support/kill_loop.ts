/** kill -9 again and again: mount, judge, write, kill, check the images, and round. */
import { assertEquals, assertGreater } from "@std/assert";
import type { CacheMode } from "../../../lib/cache/ports.ts";
import { attempt, type Workshop } from "../../e2e/support/workshop.ts";
import { Blocks, Files, Fio, type KillTarget } from "./kill_targets.ts";
import { generator, programUnder, RUNTIMES } from "./runtimes.ts";

export const KILL_TARGETS: Readonly<Record<string, () => KillTarget>> = {
  blocks: () => new Blocks(),
  fio: () => new Fio(),
  ext4: () => new Files("ext4"),
  xfs: () => new Files("xfs"),
  btrfs: () => new Files("btrfs"),
};

/** At least 513 buckets, which is what a cache needs. */
const CACHE_MIB = 40;

export interface KillChain {
  readonly target: string;
  readonly mode: CacheMode;
  readonly cycles: number;
  readonly seed: number;
}

export interface KillResult {
  readonly kills: number;
  /** Writes, files or batches that were acknowledged as durable. */
  readonly acknowledged: number;
}

/** After every kill, before anything repairs: the images alone must be in order. */
async function checkImages(cache: string, backing: string): Promise<void> {
  const [program, ...before] = programUnder("bun");
  const command = [program!, ...before, "check", "--cache", cache, "--backing", backing];
  const outcome = await attempt(command);
  assertEquals(outcome.status, 0, `check: ${outcome.stdout}${outcome.stderr}`);
}

/**
 * One cache set through many kills; the servers run under both runtimes in turn. Throws at the
 * first loss, naming the cycle.
 */
export async function runKillChain(
  place: Workshop,
  chain: KillChain,
  onCycle: (number: number) => void = () => {},
): Promise<KillResult> {
  const target = KILL_TARGETS[chain.target]!();
  const random = generator(chain.seed);
  const { cache, backing } = await place.format({
    cacheMib: CACHE_MIB,
    backingMib: target.backingMib,
  });
  let acknowledged = 0;
  for (let number = 0; number <= chain.cycles; number++) {
    const runtime = RUNTIMES[(chain.seed + number) % RUNTIMES.length]!;
    const cycle = { number, random, writeMs: 100 + random() % 500 };
    try {
      const flags = ["--cache-mode", chain.mode];
      const served = await place.mount({ cache, backing, flags, program: programUnder(runtime) });
      await target.verify(place, served, cycle);
      if (number === chain.cycles) {
        await target.leave?.(place);
        await place.unmount(served);
        break;
      }
      acknowledged += await target.writeAndKill(place, served, cycle);
      await place.clearAway(served);
      assertEquals(served.process.signalCode, "SIGKILL", "our signal ended the server");
      await checkImages(cache, backing);
    } catch (error) {
      const { target: name, mode, seed } = chain;
      const cause = error instanceof Error ? error.message : String(error);
      const where = `${name} in ${mode} mode, seed ${seed}, cycle ${number} (${runtime})`;
      throw new Error(`${where}: ${cause}`, { cause: error });
    }
    onCycle(number);
  }
  // On a busy machine a single short cycle may end before its first flush does.
  if (chain.cycles > 1) assertGreater(acknowledged, 0, "the writer got to work between the kills");
  return { kills: chain.cycles, acknowledged };
}
