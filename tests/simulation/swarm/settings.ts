/**
 * Values for every attribute that may be written while a set is in use, taken from the tables of
 * attributes themselves: a new attribute is tried as soon as it is in its table.
 */
import { assert } from "../../../lib/base/assert.ts";
import { DEVICE_ATTRIBUTES, SET_ATTRIBUTES } from "../../../lib/cache/attributes/tables.ts";
import type { SimRandom } from "../sim_random.ts";

/** Steps of their own, or the end of all requests. */
const NOT_SET = new Set([
  "detach",
  "stop",
  "unregister",
  "flash_vol_create",
  "io_disable",
]);
/** Ranges narrower than what is allowed: beyond them a run only waits, or nothing ever happens. */
const NARROWER: Readonly<Record<string, string>> = {
  writeback_rate_maximum: "256 to 2147483647",
  writeback_rate_minimum: "64 to 2147483647",
  running: "1",
  synchronous: "1",
  label: "one, another",
};
/** Where the chance alone would hardly ever find what matters. */
const OFTEN: Readonly<Record<string, readonly string[]>> = {
  sequential_cutoff: ["0", "4096", "16k", "64k", "4M"],
  writeback_delay: ["0", "1", "30"],
  writeback_percent: ["0", "1", "10", "40"],
  journal_delay_ms: ["0", "1", "100", "1000"],
  stripe_size: ["0", "4k", "64k", "4M"],
  writeback_age_limit: ["0", "1", "10"],
};

export interface Setting {
  readonly name: string;
  readonly value: string;
}

interface Choice {
  readonly name: string;
  readonly range: string;
}

function choicesOf(table: ReadonlyArray<{ name: string; range?: string; write?: unknown }>) {
  return table
    .filter(({ name, write }) => write !== undefined && !NOT_SET.has(name))
    .map(({ name, range }): Choice => ({ name, range: NARROWER[name] ?? range ?? "" }));
}

const OF_DEVICE: readonly Choice[] = choicesOf(DEVICE_ATTRIBUTES);
const OF_SET: readonly Choice[] = choicesOf(SET_ATTRIBUTES);

/** An attribute of a device, or of the set, and a value in its range. */
export function randomSetting(random: SimRandom, of: "device" | "set"): Setting {
  const { name, range } = random.pick(of === "device" ? OF_DEVICE : OF_SET);
  const often = OFTEN[name];
  if (often !== undefined && random.chance(0.7)) return { name, value: random.pick(often) };
  return { name, value: valueIn(range, name, random) };
}

/** Collections, and moving of data within them, more often than the tables alone would have it. */
export function collectionSetting(random: SimRandom): Setting {
  const [name, value] = random.pick(
    [
      ["trigger_gc", "1"],
      ["trigger_gc", "1"],
      ["copy_gc_enabled", "1"],
      ["gc_always_rewrite", "1"],
      ["prune_cache", "1000"],
    ] as const,
  );
  return { name, value };
}

function valueIn(range: string, name: string, random: SimRandom): string {
  if (range === "anything" || range === "1") return "1";
  const words = range.split(range === "0 or 1" ? " or " : ", ");
  if (words.length > 1) return random.pick(words);
  const [, least, most] = /^(\d+) to (.*)$/.exec(range) ?? [];
  assert(least !== undefined, `the range of ${name} is one that can be drawn from: "${range}"`);
  const from = Number(least);
  const to = /^\d+$/.test(most!) ? Number(most) : 40; // Else a limit that another sets.
  const end = random.below(10);
  if (end === 0) return `${from}`;
  if (end === 1) return `${to}`;
  // As many small values as large ones.
  let span = 1;
  while (span < to - from && random.chance(0.9)) span *= 2;
  span = Math.min(span, to - from);
  let value = from + Math.floor(random.nextU32() / 0x1_0000_0000 * (span + 1));
  if (name === "stripe_size") value -= value % 512;
  return `${value}`;
}
