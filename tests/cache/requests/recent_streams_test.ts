/** Which requests count as one stream, and what a task is known for. */
import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { RecentStreams } from "../../../lib/cache/requests/recent_streams.ts";
import { SimRandom } from "../../simulation/sim_random.ts";

const KIB = 1024;

describe("a stream", () => {
  test("grows with every request that begins where the last one ended", () => {
    const streams = new RecentStreams();
    assertEquals(streams.note(1000, 8, 0, 1), 4 * KIB);
    assertEquals(streams.note(1008, 8, 1, 1), 8 * KIB);
    assertEquals(streams.note(5000, 8, 2, 2), 4 * KIB, "elsewhere another begins");
    assertEquals(streams.note(1016, 8, 3, 1), 12 * KIB, "and the first goes on");
    assertEquals(streams.note(1016, 8, 3, 1), 12 * KIB, "asked again, it is the same request");
  });

  test("has ended when it was idle for five seconds", () => {
    const streams = new RecentStreams();
    streams.note(0, 64, 0, 0);
    assertEquals(streams.note(64, 8, 4999, 0), 36 * KIB);
    assertEquals(streams.note(72, 8, 9999, 1), 4 * KIB);
  });

  test("is forgotten when 128 others came since", () => {
    const streams = new RecentStreams();
    streams.note(0, 8, 0, 1);
    for (let index = 1; index < 128; index++) streams.note(index * 1000, 8, 0, 1 + index % 60);
    assertEquals(streams.note(8, 8, 0, 1), 8 * KIB, "the 128th still knows the first");
    for (let index = 200; index < 328; index++) streams.note(index * 1000, 8, 0, 1 + index % 60);
    assertEquals(streams.note(16, 8, 0, 63), 4 * KIB);
  });

  test("does not count beyond 32 bits, as in the kernel", () => {
    const streams = new RecentStreams();
    const half = 2 ** 31 / 512;
    assertEquals(streams.note(0, half, 0, 0), 2 ** 31);
    assertEquals(streams.note(half, half, 0, 0), 2 ** 31);
    assertEquals(streams.note(2 * half, 8, 0, 0), 2 ** 31 + 4096);
  });
});

describe("a task", () => {
  test("that reads long runs is known for it at the beginning of the next", () => {
    const streams = new RecentStreams();
    let at = 0;
    let first = 0;
    for (let run = 0; run < 20; run++) {
      first = streams.note(at, 8192, run, 7);
      at += 1_000_000;
    }
    // The average comes nearer to a run of 4 MiB each time, by an eighth; a run counts in full.
    assertEquals(first, 4096 * KIB);
    assertEquals(streams.note(at, 8, 21, 7) > 3600 * KIB, true, "by its average");
    assertEquals(streams.note(at + 500_000, 8, 21, 8), 4 * KIB, "another task is not");
    for (let index = 0; index < 60; index++) streams.note(at += 1_000_000, 8, 22, 7);
    assertEquals(streams.note(at + 1_000_000, 8, 22, 7) < 16 * KIB, true, "and it is lived down");
  });
});

/** The same, as plainly as can be. */
class PlainStreams {
  #streams: Array<{ end: number; bytes: number; lastMs: number }> = [];
  #tasks = new Map<number, { run: number; average: number }>();

  note(start: number, sectors: number, nowMs: number, task: number): number {
    const of = this.#tasks.get(task) ?? { run: 0, average: 0 };
    this.#tasks.set(task, of);
    const found = this.#streams.findIndex((s) => s.end === start && nowMs - s.lastMs < 5000);
    const [stream] = found >= 0 ? this.#streams.splice(found, 1) : [{ bytes: 0 }];
    if (found < 0) {
      of.average = Math.floor((of.average * 7 + of.run) / 8);
      if (this.#streams.length === 128) this.#streams.pop();
    }
    const bytes = stream!.bytes + sectors * 512;
    this.#streams.unshift({ end: start + sectors, bytes, lastMs: nowMs });
    of.run = bytes;
    return Math.max(of.run, of.average);
  }
}

test("streams are what a plain list of them would be", () => {
  const random = new SimRandom(5);
  const [streams, plain] = [new RecentStreams(), new PlainStreams()];
  let nowMs = 0;
  let lastStart = -1;
  const ends: number[] = [];
  for (let step = 0; step < 20_000; step++) {
    nowMs += random.chance(0.001) ? 4000 + random.below(2000) : random.below(20);
    const known = ends.length > 0 && random.chance(0.6);
    const start = known ? random.pick(ends) : random.below(2 ** 20) * 8;
    if (start === lastStart) continue; // Asked again: it would not be counted.
    lastStart = start;
    const sectors = 8 * (1 + random.below(64));
    const task = random.below(40);
    assertEquals(
      streams.note(start, sectors, nowMs, task),
      plain.note(start, sectors, nowMs, task),
      `step ${step}`,
    );
    ends.push(start + sectors);
    if (ends.length > 150) ends.shift();
  }
});
