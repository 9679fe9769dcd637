/**
 * Giving up what a crash left of data that nobody can ask for any more: all that a device has whose
 * entry in the UUID table was invalidated. It is dirty, so it would hold its buckets for ever.
 *
 * A piece at a time, each while no device comes, goes or changes its size. Between two pieces the
 * place may be used again: whether it is nobody's is asked anew each time.
 */
import { OFFSET_MAX } from "../../ondisk/bkey.ts";
import { isInvalidated } from "../../ondisk/uuid_entry.ts";
import type { Engine } from "../engine.ts";
import { dropSomeKeys } from "./drop_keys.ts";

/** Whoever waited for the start comes first. */
const DELAY_MS = 100;

/** Runs a step while no other device comes or goes. */
export type Alone = <T>(step: () => Promise<T>) => Promise<T>;

/** Drops all that is left, in the background of a set that has just started. */
export async function dropLeftovers(
  engine: Engine,
  alone: Alone,
  signal: AbortSignal,
): Promise<void> {
  await engine.world.clock.sleep(DELAY_MS, signal);
  for (let inode = 0; inode < engine.uuids.capacity; inode++) {
    let at = isLeft(engine, inode) ? 0 : undefined;
    while (at !== undefined && !signal.aborted) {
      const from = at;
      at = await alone(() => dropSome(engine, inode, from));
    }
  }
}

/** Drops a piece of what is left of a place; where to go on, undefined: that was all. */
async function dropSome(engine: Engine, inode: number, at: number): Promise<number | undefined> {
  if (!isLeft(engine, inode)) return undefined;
  const { next } = await dropSomeKeys(engine, inode, { from: at });
  return next < OFFSET_MAX ? next : undefined;
}

/** Whether the keys of a place are nobody's, and there are some. */
function isLeft({ uuids, dirty }: Engine, inode: number): boolean {
  return dirty.of(inode) > 0 && isInvalidated(uuids.entry(inode));
}
