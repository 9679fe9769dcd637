import { test } from "bun:test";
import { assertEquals, assertRejects } from "@std/assert";
import { allEnded, endingWith, Mutex, Shared, Signal, TaskGroup } from "../../lib/base/sync.ts";

test("a shared run answers only those who asked before it started", async () => {
  let started = 0;
  const gates: Array<() => void> = [];
  const shared = new Shared(() => {
    started++;
    return new Promise((resolve) => gates.push(resolve));
  });
  const done: string[] = [];
  const a = shared.run().then(() => done.push("a"));
  const b = shared.run().then(() => done.push("b"));
  const c = shared.run().then(() => done.push("c"));
  assertEquals(started, 1);
  gates[0]!();
  await a;
  assertEquals(done, ["a"]);
  assertEquals(started, 2);
  gates[1]!();
  await Promise.all([b, c]);
  assertEquals(started, 2);
});

test("a shared run after a failed one runs anew", async () => {
  let runs = 0;
  const shared = new Shared(() =>
    runs++ === 0 ? Promise.reject(new Error("x")) : Promise.resolve()
  );
  const failed = shared.run().then(() => "ok", () => "failed");
  const next = shared.run().then(() => "ok", () => "failed");
  assertEquals([await failed, await next], ["failed", "ok"]);
});

test("a mutex serves in order", async () => {
  const mutex = new Mutex();
  const order: number[] = [];
  await Promise.all([1, 2, 3].map((n) =>
    mutex.run(async () => {
      await Promise.resolve();
      order.push(n);
    })
  ));
  assertEquals(order, [1, 2, 3]);
  assertEquals(mutex.held, false);
});

test("a task group waits for its tasks and reports failures", async () => {
  const failures: unknown[] = [];
  const group = new TaskGroup((error) => failures.push(error));
  const signal = new Signal();
  group.start(async (stop) => {
    stop.addEventListener("abort", () => signal.raise());
    await signal.wait();
  });
  group.start(() => Promise.reject(new Error("broken")));
  await group.stop();
  assertEquals(group.size, 0);
  assertEquals(failures.length, 1);
});

test("all have ended before the first failure of several is told", async () => {
  const gate = Promise.withResolvers<void>();
  let told = false;
  const all = allEnded([Promise.resolve(), Promise.reject(new Error("x")), gate.promise]);
  const ended = assertRejects(() => all.finally(() => void (told = true)), Error, "x");
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  assertEquals(told, false);
  gate.resolve();
  await ended;
});

test("work with an end settles as the work did, after the end, in one turn more", async () => {
  const order: string[] = [];
  const work = Promise.resolve("done");
  const ended = endingWith(work, () => order.push("end")).then((value) => order.push(value));
  await work;
  assertEquals(order, ["end"]);
  await Promise.resolve();
  assertEquals(order, ["end", "done"], "not as many turns as Promise.finally takes somewhere");
  await ended;
  const failing = endingWith(Promise.reject(new Error("no")), () => order.push("end"));
  await assertRejects(() => failing, Error, "no");
  assertEquals(order, ["end", "done", "end"]);
});
