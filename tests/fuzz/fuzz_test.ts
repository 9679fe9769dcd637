/**
 * A slice of the fuzzing with fixed seeds: every decoder gets its share. `bun tests/fuzz/run.ts`
 * gives them as many as one likes, and a line from there shows a failure again.
 */
import { describe, test } from "bun:test";
import { assert, assertEquals } from "@std/assert";
import { BcacheError } from "../../lib/base/errors.ts";
import { MemoryDevice } from "../../lib/device/memory.ts";
import { SimRandom } from "../simulation/sim_random.ts";
import { fuzz, replayLine } from "./fuzzer.ts";
import { mutate, mutateText } from "./mutate.ts";
import { portions, runPortion } from "./plan.ts";
import { attempt, attemptLater, BoundedDevice, type FuzzTarget } from "./target.ts";
import { TARGETS } from "./targets.ts";

const INPUTS = 24_000;

describe("mutated input causes nothing but typed errors, right answers, bounded work:", () => {
  for (const { target, count } of portions(INPUTS)) {
    test(target.what, async () => {
      const { failures, inputs } = await runPortion({ target, count }, 1, () => {});
      const lines = failures.map(({ seed, message }) => [message, replayLine(target.name, seed)]);
      assertEquals(lines, []);
      assertEquals(inputs, count);
    }, 120_000);
  }
});

describe("the fuzzer", () => {
  const target = (attack: (random: SimRandom) => void): FuzzTarget => {
    return { name: "some", what: "something", share: 1, prepare: () => attack };
  };

  test("finds an untyped error, and shows it again by its seed alone", async () => {
    const some = target((random) => {
      if (random.below(50) === 7) throw new TypeError("undefined is no number");
    });
    const failures = await fuzz(some, { firstSeed: 1, count: 1000 });
    assert(failures.length > 0);
    for (const { seed, message } of failures) {
      const again = await fuzz(some, { firstSeed: seed, count: 1 });
      assertEquals(again.map((each) => each.seed), [seed]);
      assert(message.includes("TypeError: undefined is no number"));
    }
  });

  test("takes typed errors of one line for answers, and no others", async () => {
    assert(attempt(() => refuse("one line")) instanceof BcacheError);
    assert(await attemptLater(() => Promise.resolve(7)) === 7);
    const some = target(() => void attempt(() => refuse("two\nlines")));
    assertEquals((await fuzz(some, { firstSeed: 1, count: 9, failuresMax: 2 })).length, 2);
  });

  test("ends a decoder that reads without end", async () => {
    const device = new BoundedDevice(new MemoryDevice(8), { operations: 3, bytes: 4096 });
    const bytes = new Uint8Array(512);
    let reads = 0;
    const endless = async () => {
      for (;;) {
        await device.read(0, bytes);
        reads++;
      }
    };
    let message = "";
    await attemptLater(endless).catch((error) => message = String(error));
    assertEquals([message, reads], ["Error: memory: operations without end", 3]);
  });

  test("changes most inputs, the same way for the same seed", () => {
    let changed = 0;
    for (let seed = 0; seed < 200; seed++) {
      const [one, two] = [new Uint8Array(64), new Uint8Array(64)];
      mutate(new SimRandom(seed), one, { first: 0, last: 56 });
      mutate(new SimRandom(seed), two, { first: 0, last: 56 });
      assertEquals(one, two);
      if (one.some((byte) => byte !== 0)) changed++;
      assertEquals(
        mutateText(new SimRandom(seed), "a text"),
        mutateText(new SimRandom(seed), "a text"),
      );
    }
    assert(changed > 100, `${changed} of 200 were changed`);
  });

  test("gives every decoder a share, with names of their own", () => {
    assertEquals(new Set(TARGETS.map(({ name }) => name)).size, TARGETS.length);
    assert(portions(1000).every(({ count }) => count > 0));
    assertEquals(portions(10, "node").map(({ count }) => count), [10]);
    assertEquals(portions(10, "nothing"), []);
  });
});

function refuse(message: string): never {
  throw new BcacheError("BadFormat", message);
}
