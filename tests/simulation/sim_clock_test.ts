import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { Mutex } from "../../lib/base/sync.ts";
import { SimClock, SimulationStuck } from "./sim_clock.ts";
import { SimRandom } from "./sim_random.ts";

async function never(): Promise<void> {
  await new Promise<void>(() => {});
}

test("sleepers wake in order of time, and of asking where the time is the same", async () => {
  const clock = new SimClock();
  const order: string[] = [];
  const sleeper = async (name: string, delayMs: number) => {
    await clock.sleep(delayMs);
    order.push(`${name}@${clock.nowMs()}`);
  };
  await clock.run(Promise.all([sleeper("c", 20), sleeper("a", 10), sleeper("b", 10)]));
  assertEquals(order, ["a@10", "b@10", "c@20"]);
});

test("all that follows from one event settles before the next one fires", async () => {
  const clock = new SimClock();
  let steps = 0;
  let seen = -1;
  const chain = async () => {
    await clock.sleep(1);
    for (let step = 0; step < 1000; step++) {
      await Promise.resolve();
      steps++;
    }
  };
  const watch = async () => {
    await clock.sleep(1.001);
    seen = steps;
  };
  await clock.run(Promise.all([chain(), watch()]));
  assertEquals(seen, 1000);
});

test("an aborted sleep ends at once and an aborted signal does not sleep", async () => {
  const clock = new SimClock();
  const controller = new AbortController();
  const body = async () => {
    const long = clock.sleep(1_000_000, controller.signal);
    await clock.sleep(5);
    controller.abort();
    await long;
    await clock.sleep(1_000_000, controller.signal);
    return clock.nowMs();
  };
  assertEquals(await clock.run(body()), 5);
});

test("work that waits for nothing that can happen is reported as a deadlock", async () => {
  await assertRejects(() => new SimClock().run(never()), SimulationStuck, "deadlock");
});

test("work that only waits in turns ends at its limit of simulated time", async () => {
  const clock = new SimClock();
  const spin = async () => {
    for (;;) await clock.turn();
  };
  await assertRejects(() => clock.run(spin(), { limitMs: 1 }), SimulationStuck, "no end at");
});

test("a run can be stopped, and leaves the rest of the work where it was", async () => {
  const clock = new SimClock();
  let stop = false;
  const body = async () => {
    await clock.sleep(1);
    stop = true;
    await clock.sleep(1);
    throw new Error("ran on");
  };
  assertEquals(await clock.run(body(), { stopped: () => stop }), undefined);
  assertEquals(clock.nowMs(), 1);
});

/** Workers that lock, race and sleep: a run with much to disagree about. */
async function busyRun(seed: number): Promise<string> {
  const random = new SimRandom(seed);
  const clock = new SimClock({ permute: random.fork(1) });
  const lock = new Mutex();
  const worker = async (name: number) => {
    for (let round = 0; round < 50; round++) {
      await Promise.race([clock.sleep(random.below(3)), clock.turn()]);
      await lock.run(async () => {
        clock.trace.note(name, round);
        if (random.chance(0.5)) await clock.sleep(random.below(2));
      });
    }
  };
  await clock.run(Promise.all([1, 2, 3, 4].map(worker)));
  return clock.trace.hash;
}

test("the trace of a run is a function of its seed, the same on every runtime", async () => {
  // The literals were printed by Bun and by Deno; a runtime that settles promises in another
  // order than the language says would print others.
  assertEquals(await busyRun(1), "2ea87f29");
  assertEquals(await busyRun(2), "161bbee0");
});

/** The order in which four tasks go on that became ready at the same moment, twice. */
async function orderOf(permute: SimRandom | undefined): Promise<string> {
  const clock = new SimClock(permute === undefined ? {} : { permute });
  const order: string[] = [];
  const task = async (name: string) => {
    await clock.sleep(5);
    order.push(name);
    await clock.turn();
    order.push(name);
  };
  await clock.run(Promise.all(["a", "b", "c", "d"].map(task)));
  return order.join("");
}

test("tasks that are ready at once go on in every order, which the seed decides", async () => {
  const first = new Set<string>();
  const both = new Set<string>();
  for (let seed = 0; seed < 400; seed++) {
    const order = await orderOf(new SimRandom(seed));
    assertEquals(await orderOf(new SimRandom(seed)), order, "the same seed, the same order");
    first.add(order.slice(0, 4));
    both.add(order);
  }
  assertEquals(first.size, 24, "all permutations of four");
  assertEquals(both.size > 100, true, `${both.size} orders of both rounds`);
  assertEquals(await orderOf(undefined), "abcdabcd");
});

test("the order of ready tasks is the same on every runtime", async () => {
  // Printed by Bun and by Deno.
  const orders = await Promise.all([1, 2, 3].map((seed) => orderOf(new SimRandom(seed))));
  assertEquals(orders, ["cabdcdba", "cdabcdab", "badcdbca"]);
});
