/** The real clock and the system's randomness. */
import { test } from "bun:test";
import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { RealClock } from "../../lib/runtime/clock.ts";
import { SystemRandom } from "../../lib/runtime/random.ts";

test("a sleep takes its time, and ends at once when it is aborted", async () => {
  const clock = new RealClock();
  const startMs = clock.nowMs();
  await clock.sleep(20);
  const sleptMs = clock.nowMs() - startMs;
  assertGreater(sleptMs, 18);
  const controller = new AbortController();
  const long = clock.sleep(60_000, controller.signal);
  controller.abort();
  await long;
  await clock.sleep(60_000, controller.signal);
  assertLess(clock.nowMs() - startMs, 10_000);
});

test("a turn lets other ready work run first", async () => {
  const order: string[] = [];
  setImmediate(() => order.push("other"));
  await new RealClock().turn();
  assertEquals(order, ["other"]);
});

test("wall time counts seconds since 1970", () => {
  const seconds = new RealClock().wallSeconds();
  assert(Number.isInteger(seconds));
  assertLess(Math.abs(seconds - Date.now() / 1000), 2);
});

test("random numbers fill all 32 bits and do not repeat at the end of a block", () => {
  const random = new SystemRandom();
  let [either, both] = [0, 0xffff_ffff];
  const seen = new Set<number>();
  for (let count = 0; count < 1000; count++) {
    const value = random.nextU32();
    assert(Number.isInteger(value) && value >= 0 && value < 2 ** 32);
    either = (either | value) >>> 0;
    both = (both & value) >>> 0;
    seen.add(value);
  }
  assertEquals([either, both], [0xffff_ffff, 0]);
  assertGreater(seen.size, 990);
});
