/** Pressure in the journal: how many leaves are asked to write, and when the next ones are. */
import { describe, test } from "bun:test";
import { assertEquals } from "@std/assert";
import { type PinHolder, Pins } from "../../lib/journal/pins.ts";
import { Reclaimer } from "../../lib/journal/reclaim.ts";
import { drainMicrotasks } from "../support/manual_clock.ts";
import { TestFaults } from "./world.ts";

/** `count` leaves that hold the oldest entry; one that is asked writes until `write` is called. */
function leavesOf(pins: Pins, count: number) {
  const seq = pins.open();
  const asked: Array<() => void> = [];
  for (let at = 0; at < count; at++) {
    const leaf: PinHolder = {
      flushForJournal: async () => {
        const written = Promise.withResolvers<void>();
        asked.push(written.resolve);
        await written.promise;
        pins.unpin(seq, leaf);
      },
    };
    pins.pin(seq, leaf);
  }
  pins.release(seq);
  /** Lets those write that were asked; how many they were. */
  return async (): Promise<number> => {
    await drainMicrotasks();
    const writing = asked.splice(0);
    for (const write of writing) write();
    return writing.length;
  };
}

describe("under pressure", () => {
  test("eight leaves of the oldest entry write at a time, until it is let go", async () => {
    const pins = new Pins(1, 1, () => {}, 8);
    const write = leavesOf(pins, 20);
    const faults = new TestFaults();
    const reclaimer = new Reclaimer({ pins, faults, pressure: () => pins.oldest() === 1 });
    const running = reclaimer.run();
    assertEquals([await write(), await write(), await write(), await write()], [8, 8, 4, 0]);
    reclaimer.end();
    await running;
    assertEquals([reclaimer.rounds, reclaimer.flushes], [3, 20]);
    assertEquals(faults.failed, undefined);
  });

  test("nobody is asked while a round is under way, however short room is", async () => {
    const pins = new Pins(1, 1, () => {}, 8);
    const write = leavesOf(pins, 9);
    const reclaimer = new Reclaimer({ pins, faults: new TestFaults(), pressure: () => true });
    const running = reclaimer.run();
    for (let time = 0; time < 3; time++) {
      reclaimer.wake();
      await drainMicrotasks();
    }
    assertEquals([reclaimer.rounds, reclaimer.flushes], [1, 8]);
    assertEquals([await write(), await write()], [8, 1]);
    reclaimer.end();
    await running;
  });
});
