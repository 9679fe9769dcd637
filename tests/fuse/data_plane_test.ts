/** The loop and its clock, in this thread: a plane that blocks here blocks the test, too. */
import { afterEach, describe, test } from "bun:test";
import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import { DataPlane } from "../../fuse/data_plane.ts";
import { DataPlaneClock } from "../../fuse/data_plane_clock.ts";
import { openLibc } from "../../lib/runtime/libc.ts";

/** Nothing here may take this long; a plane that would block for ever wakes up by then. */
const NET_MS = 1000;

const undo: Array<() => Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function startPlane(): Promise<
  { plane: DataPlane; clock: DataPlaneClock; wake: () => void }
> {
  const libc = await openLibc();
  const wakeFd = libc.eventfd();
  const clock = new DataPlaneClock();
  const plane = new DataPlane({ libc, clock, wakeFd });
  const net = new AbortController();
  void clock.sleep(NET_MS, net.signal);
  plane.start();
  undo.push(async () => {
    net.abort();
    await plane.stop();
    libc.close(wakeFd);
  });
  const one = new Uint8Array(new BigUint64Array([1n]).buffer);
  return { plane, clock, wake: () => void libc.write(wakeFd, one) };
}

describe("the clock", () => {
  test("wakes sleepers in the order of their times, however they were put in", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(20), { maxLength: 40 }), async (delays) => {
        const clock = new DataPlaneClock();
        let nowMs = 0;
        clock.nowMs = () => nowMs;
        const woken: number[] = [];
        for (const delayMs of delays) void clock.sleep(delayMs).then(() => woken.push(delayMs));
        for (; nowMs <= 20; nowMs++) {
          clock.fire();
          await Promise.resolve();
          assertEquals(woken.length, delays.filter((delayMs) => delayMs <= nowMs).length);
        }
        assertEquals(woken, [...delays].sort((a, b) => a - b));
        assertEquals(clock.nextMs(), Infinity);
      }),
      { numRuns: 50 },
    );
  });

  test("wakes an aborted sleeper at once, and forgets it", async () => {
    const clock = new DataPlaneClock();
    const controller = new AbortController();
    const sleep = clock.sleep(1e9, controller.signal);
    assert(clock.nextMs() > 1e8);
    controller.abort();
    await sleep;
    await clock.sleep(1e9, controller.signal);
    assertEquals(clock.nextMs(), Infinity);
  });

  test("has something due while a turn is asked for", async () => {
    const clock = new DataPlaneClock();
    const turn = clock.turn();
    assertEquals(clock.nextMs(), 0);
    assertEquals(clock.fire(), 1);
    await turn;
  });
});

describe("the data plane", () => {
  test("sleeps as long as its clock says", async () => {
    const { clock } = await startPlane();
    const startMs = performance.now();
    await clock.sleep(30);
    const sleptMs = performance.now() - startMs;
    assert(sleptMs >= 29, `${sleptMs}`);
    assertLess(sleptMs, NET_MS / 2);
  });

  test("blocks without using the processor while nothing is to be done", async () => {
    const { clock } = await startPlane();
    await clock.sleep(10);
    const before = process.cpuUsage();
    await clock.sleep(300);
    const used = process.cpuUsage(before);
    assertLess(used.user + used.system, 100_000);
  });

  test("delivers what comes through the event loop while an operation is under way", async () => {
    const { plane } = await startPlane();
    const startMs = performance.now();
    await plane.track(new Promise<void>((resolve) => setTimeout(resolve, 20)));
    assertLess(performance.now() - startMs, NET_MS / 2);
  });

  test("regression: runs what the end of the last operation left in the event loop", async () => {
    const { plane, clock } = await startPlane();
    for (let attempt = 0; attempt < 5; attempt++) {
      const startMs = performance.now();
      plane.begin();
      await new Promise<void>((resolve) => {
        setTimeout(() => {
          plane.end();
          setImmediate(resolve);
        }, 5);
      });
      assertLess(performance.now() - startMs, NET_MS / 2);
      await clock.turn();
    }
  });

  test("waits for a message that was announced, in whichever order both arrive", async () => {
    const { plane, clock, wake } = await startPlane();
    await clock.sleep(5);
    wake();
    await new Promise<void>((resolve) => {
      setTimeout(() => {
        plane.noteMessage();
        resolve();
      }, 10);
    });
    plane.noteMessage();
    wake();
    // Both are even now, so it blocks again.
    await clock.sleep(10);
    const before = process.cpuUsage();
    await clock.sleep(200);
    const used = process.cpuUsage(before);
    assertLess(used.user + used.system, 80_000);
  });
});
