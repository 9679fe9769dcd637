/**
 * Whether the simulator would notice: some breakages of the engine, each of which it must catch.
 * `npm run mutations` tries all of them.
 */
import { describe, test } from "bun:test";
import { assert, assertGreater } from "@std/assert";
import { huntFor, mutatedText } from "./mutant.ts";
import { MUTATIONS } from "./mutations.ts";

test("every mutation still finds its text in the code, once", () => {
  for (const mutation of MUTATIONS) assert(mutatedText(mutation).includes(mutation.becomes));
  assertGreater(MUTATIONS.length, 12);
});

describe("the simulator notices when", () => {
  for (const mutation of MUTATIONS.filter(({ quick }) => quick)) {
    test(mutation.name, async () => {
      const { scenario, seeds } = await huntFor(mutation);
      assert(scenario !== undefined, `not caught in ${seeds} seeds`);
    }, 120_000);
  }
});
